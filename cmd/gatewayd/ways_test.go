package main

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/hub/hubtest"
)

// startTinyproxy runs a real proxy that wants a login and allows one port only.
func startTinyproxy(t *testing.T, s *plant, allowed string) (address string) {
	t.Helper()
	path := tool(t, "tinyproxy", "/usr/sbin/tinyproxy")
	address = freeAddress(t)
	_, port, _ := net.SplitHostPort(address)
	_, connect, _ := net.SplitHostPort(allowed)
	s.write("tinyproxy.conf", fmt.Sprintf("Port %s\nListen 127.0.0.1\nTimeout 600\nMaxClients 50\nBasicAuth plant7 hunter2\nConnectPort %s\n", port, connect))
	cmd := exec.Command(path, "-d", "-c", s.path("tinyproxy.conf"))
	check(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	})
	eventually(t, 10*time.Second, "the proxy accepts", func() bool {
		c, err := net.Dial("tcp", address)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return address
}

// TestProxyThatAllows443OnlyIsAWayOut is the plant of many sites: a proxy with a login
// that lets through what it takes for HTTPS.
func TestProxyThatAllows443OnlyIsAWayOut(t *testing.T) {
	s := newPlant(t, hubtest.Options{WebSocket: "127.0.0.1:0"}, "press-7")
	proxy := startTinyproxy(t, s, s.hub.WebSocketAddr())
	write := func(password string) {
		s.writeConfig(fmt.Sprintf("hub: {trust: [hub-ca.pem], system_roots: false, transport: auto, proxy: \"http://plant7:%s@%s\"}\n", password, proxy))
		config := string(must(os.ReadFile(s.path("config.yaml")))(t))
		s.write("config.yaml", strings.Replace(config, "    certificate:", "    websocket_address: "+s.hub.WebSocketAddr()+"\n    certificate:", 1))
	}
	write("hunter3")
	code, said := s.exitCode("check", "-c", "config.yaml", "--connect")
	if code != exitUsage || !strings.Contains(said, "proxy: "+proxy+" wants another user or password") {
		t.Errorf("exit code %d:\n%s", code, said)
	}
	write("hunter2")
	code, out := s.exitCode("check", "-c", "config.yaml", "--connect")
	if code != 0 || !strings.Contains(out, "mqtt is blocked: proxy: "+proxy+" does not allow connections") || !strings.Contains(out, "websocket: upgraded") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	said += out
	p := s.run()
	for i := range 20 {
		resp := must(http.Post("http://"+s.http+"/v1/messages/sensors/press-7/x", "text/plain", strings.NewReader(fmt.Sprint(i))))(t)
		resp.Body.Close()
	}
	eventually(t, 20*time.Second, "messages arrive", func() bool { return len(s.hub.Messages()) == 20 })
	r := must(s.status())(t)
	if id := r.Identities[0]; id.Transport != "mqtt-ws" || id.Remote != s.hub.WebSocketAddr()+" through "+proxy || id.FirstFault != "" {
		t.Errorf("status %+v", id)
	}
	said += s.get("/status") + s.get("/metrics")
	if code := p.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if said += p.log.String(); strings.Contains(said, "hunter") {
		t.Error("the proxy's password shows")
	}
}

// TestReloadChangesTheWayOut takes an identity from one port to the other.
func TestReloadChangesTheWayOut(t *testing.T) {
	s := newPlant(t, hubtest.Options{WebSocket: "127.0.0.1:0"}, "press-7")
	p := s.run()
	over := func(want string) {
		t.Helper()
		eventually(t, 20*time.Second, "over "+want, func() bool {
			r, err := s.status()
			return err == nil && len(r.Identities) == 1 && r.Identities[0].Transport == want
		})
	}
	over("mqtt")
	config := string(must(os.ReadFile(s.path("config.yaml")))(t))
	s.write("config.yaml", strings.Replace(config, "address: "+s.hub.Addr(), "address: "+s.hub.WebSocketAddr()+"\n    transport: mqtt-ws", 1))
	if code, out := s.exitCode("reload", "-c", "config.yaml"); code != 0 {
		t.Fatalf("reload: %s", out)
	}
	over("mqtt-ws")
	p.stop()
}

// TestBoxThatTakes8883ApartLeadsTo443: log and status name it, and the identity works.
func TestBoxThatTakes8883ApartLeadsTo443(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{WebSocket: "127.0.0.1:0"}, "press-7")
	ca := must(certtest.NewCA("helpful proxy"))(t)
	pair := must(ca.Issue(certtest.Leaf{CN: s.hub.HostName(), DNS: []string{s.hub.HostName()}}))(t)
	cert := must(tls.X509KeyPair(pair.CertPEM, pair.KeyPEM))(t)
	box := must(tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}}))(t)
	var trusted atomic.Int32
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := box.Accept()
			if err != nil {
				return
			}
			if c.(*tls.Conn).HandshakeContext(t.Context()) == nil {
				trusted.Add(1)
			}
			c.Close()
		}
	})
	t.Cleanup(func() { box.Close(); serving.Wait() })
	s.writeConfig("hub: {trust: [hub-ca.pem], system_roots: false, transport: auto}\n")
	config := string(must(os.ReadFile(s.path("config.yaml")))(t))
	config = strings.Replace(config, "address: "+s.hub.Addr(), "address: "+box.Addr().String()+"\n    websocket_address: "+s.hub.WebSocketAddr(), 1)
	s.write("config.yaml", config)
	p := s.run()
	eventually(t, 20*time.Second, "connected over the other port", func() bool {
		id, ok := s.identityStatus("press-7")
		return ok && id.Connected && id.FirstFault == "" && id.Transport == "mqtt-ws" && strings.Contains(id.Detour, "CN=helpful proxy")
	})
	code, out := s.exitCode("status", "-c", "config.yaml")
	if code != 0 || !strings.Contains(out, "not over mqtt: tls: the server's certificate comes from an unknown authority: CN=helpful proxy") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	if n := strings.Count(p.log.String(), "the hub cannot be reached over mqtt, mqtt-ws is taken"); n != 1 || trusted.Load() > 0 {
		t.Errorf("said %d times; the box was trusted %d times", n, trusted.Load())
	}
}
