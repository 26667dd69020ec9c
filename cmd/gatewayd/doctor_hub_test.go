package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/config"
	"gatewayd/internal/hub/hubtest"
)

// speaker answers whoever connects with some bytes.
func speaker(t testing.TB, say string) string {
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, say)
			_, _ = c.Read(make([]byte, 2048)) // what it says does not matter
			c.Close()
		}
	}()
	return l.Addr().String()
}

// blackHole has a full queue of connections that nobody accepts: the kernel drops
// every further one without an answer.
func blackHole(t testing.TB) string {
	fd := must(syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0))(t)
	t.Cleanup(func() { syscall.Close(fd) })
	check(t, syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	check(t, syscall.Listen(fd, 0))
	sa := must(syscall.Getsockname(fd))(t).(*syscall.SockaddrInet4)
	address := fmt.Sprintf("127.0.0.1:%d", sa.Port)
	for range 3 {
		c, err := net.DialTimeout("tcp", address, 200*time.Millisecond)
		if err == nil {
			t.Cleanup(func() { c.Close() })
		}
	}
	return address
}

// tlsServer presents a certificate and hangs up.
func tlsServer(t testing.TB, pair *certtest.Pair) string {
	l := must(tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair.TLS()}}))(t)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.(*tls.Conn).Handshake() // the client decides
			c.Close()
		}
	}()
	return l.Addr().String()
}

// at has the identity dial another address.
func at(address func(*plant) string) func(*plant) {
	return func(s *plant) { s.edit("address: "+s.hub.Addr(), "address: "+address(s)) }
}

// server is at with a server whose certificate the CA in hub-ca.pem issued.
func server(l certtest.Leaf) func(*plant) {
	return at(func(s *plant) string {
		ca := must(certtest.NewCA("hub root"))(s.t)
		s.write("hub-ca.pem", string(ca.PEM()))
		return tlsServer(s.t, must(ca.Issue(l))(s.t))
	})
}

// own443 is port 443 of a loopback address of its own, or "" where it may not be bound.
func own443(n int) string {
	address := fmt.Sprintf("127.%d.%d.%d:443", 100+n, 1+os.Getpid()/250%250, 1+os.Getpid()%250)
	l, err := net.Listen("tcp", address)
	if err != nil {
		return ""
	}
	l.Close()
	return address
}

// only443 leaves the way over WebSocket.
func only443(s *plant) {
	host, _, err := net.SplitHostPort(s.hub.WebSocketAddr())
	if err != nil {
		if os.Getenv("CI") != "" {
			s.t.Fatal(err)
		}
		s.t.Skip("port 443 cannot be bound")
	}
	s.edit("address: "+s.hub.Addr(), "address: "+host+":9") // where nobody listens
}

func networkAilments() []ailment {
	const host = hubtest.DefaultHostName
	day := func(n int) time.Time { return time.Now().AddDate(0, 0, n) }
	return []ailment{
		{name: "name unknown", before: at(func(*plant) string { return "no-such-host.invalid:8883" }), step: "dns", text: "no-such-host.invalid", next: "DNS"},
		{name: "port closed", before: func(s *plant) { s.hub.StopListening() }, step: "tcp", text: "connection refused"},
		{name: "8883 blocked and another way allowed", opt: hubtest.Options{WebSocket: own443(1)}, before: func(s *plant) {
			only443(s)
			s.edit("system_roots: false,", "system_roots: false, transport: auto,")
		}, text: "8883 is blocked"},
		{name: "8883 blocked and 443 open", opt: hubtest.Options{WebSocket: own443(2)}, before: only443, step: "tcp", text: "connection refused", next: "transport: auto"},
		{name: "black hole", before: at(func(s *plant) string { return blackHole(s.t) }), step: "tcp", text: "no answer in time", next: "firewall"},
		{name: "address of something else", before: at(func(s *plant) string { return speaker(s.t, "SSH-2.0-OpenSSH_9.6\r\n") }), step: stepTLS, text: "does not speak TLS"},
		{name: "captive portal", before: at(func(s *plant) string { return speaker(s.t, "HTTP/1.1 302 Found\r\nLocation: http://login/\r\n\r\n") }), step: stepTLS, text: "web server", next: "captive portal"},
		{name: "closed in TLS", before: at(func(s *plant) string { return speaker(s.t, "") }), step: stepTLS, text: "closed"},
		{name: "silent in TLS", before: func(s *plant) { s.hub.HangTLS(true) }, step: stepTLS, text: "no answer"},
		{name: "server with another name", before: server(certtest.Leaf{CN: "proxy", DNS: []string{"proxy.example"}}), step: stepServer, text: "another name"},
		{name: "server of an unknown CA", before: func(s *plant) {
			s.write("hub-ca.pem", string(must(certtest.NewCA("old root"))(s.t).PEM()))
		}, step: stepServer, text: "unknown authority", next: "hub.trust"},
		{name: "proxy that takes TLS apart", before: at(func(s *plant) string {
			ca := must(certtest.NewCA("Corporate Inspection CA"))(s.t)
			return tlsServer(s.t, must(ca.Issue(certtest.Leaf{CN: host, DNS: []string{host}}))(s.t))
		}), step: stepServer, text: "Corporate Inspection CA", next: "intercepts TLS"},
		{name: "server certificate expired", before: server(certtest.Leaf{CN: host, DNS: []string{host}, NotBefore: day(-9), NotAfter: day(-1)}), step: stepServer, text: "not valid", next: "clock"},
	}
}

// through has the identities go through a proxy.
func through(url func(*plant) string) func(*plant) {
	return func(s *plant) { s.edit("system_roots: false,", "system_roots: false, proxy: \""+url(s)+"\",") }
}

// proxySays is an HTTP proxy that answers everybody the same.
func proxySays(answer string) func(*plant) {
	return through(func(s *plant) string {
		l := must(net.Listen("tcp", "127.0.0.1:0"))(s.t)
		server := &http.Server{ErrorLog: quiet(), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			c, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				return
			}
			defer c.Close()
			_, _ = io.WriteString(c, answer)
		})}
		go func() { _ = server.Serve(l) }()
		s.t.Cleanup(func() { server.Close() })
		return "http://" + l.Addr().String()
	})
}

func proxyAilments() []ailment {
	return []ailment{
		{name: "proxy out of reach", before: through(func(s *plant) string { return "http://" + freeAddress(s.t) }), step: "tcp", text: "proxy"},
		{name: "proxy of unknown name", before: through(func(*plant) string { return "http://proxy.invalid:3128" }), step: "dns", text: "proxy.invalid"},
		{name: "proxy wants a login", before: proxySays("HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=x\r\nContent-Length: 0\r\n\r\n"), step: "proxy", text: "407"},
		{name: "proxy forbids the hub", before: proxySays("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"), step: "proxy", text: "403"},
		{name: "proxy that is none", before: through(func(s *plant) string { return "socks5://" + speaker(s.t, "HTTP/1.1 400 Bad Request\r\n\r\n") }), step: "proxy", text: ""},
	}
}

func hubAilments() []ailment {
	refuse := func(how hubtest.Refusal) func(*plant) {
		return func(s *plant) {
			pair := s.issue("press-7", certtest.Leaf{CN: "press-7"})
			s.hub.RefuseFingerprint(fmt.Sprintf("%x", fingerprint(pair.Leaf)), how)
		}
	}
	return []ailment{
		{name: "refused in TLS 1.2", opt: hubtest.Options{MaxTLS: tls.VersionTLS12}, before: refuse(hubtest.TLSAlert), step: stepTLS, text: "refused in TLS", next: "site CA"},
		{name: "refused in TLS 1.3", opt: hubtest.Options{MinTLS: tls.VersionTLS13}, before: refuse(hubtest.TLSAlert), step: stepTLS, text: "refused in TLS", next: "site CA"},
		{name: "unknown CA", before: func(s *plant) { s.hub.RemoveCA(s.ca.Cert) }, step: stepConnack, text: "code 5", next: "the hub must know that CA"},
		{name: "device unknown", before: func(s *plant) { s.hub.RemoveDevice("press-7") }, step: stepConnack, text: "code 5", next: "known to this hub"},
		{name: "device disabled", before: func(s *plant) { check(s.t, s.hub.SetDisabled("press-7", true)) }, step: stepConnack, text: "code 5", next: "enabled"},
		{name: "thumbprint not registered", before: func(s *plant) {
			check(s.t, s.hub.AddDevice(hubtest.Device{DeviceID: "press-7", Thumbprints: []string{strings.Repeat("AB", 32)}}))
		}, step: stepConnack, text: "code 5", next: "thumbprint"},
		{name: "hub unavailable", before: refuse(hubtest.ConnackThree), step: stepConnack, text: "code 3", next: "again"},
		{name: "silent after CONNECT", before: refuse(hubtest.Hang), step: stepConnack, text: "no answer to CONNECT"},
		{name: "closed after CONNECT", before: refuse(hubtest.CloseSilently), step: stepConnack, text: "without an answer"},
		{name: "contested", before: func(s *plant) { check(s.t, s.hub.Contest("press-7", 300*time.Millisecond)) }, args: []string{"--stay", "3s"},
			step: stepContest, text: "closed it", next: "another gateway"},
	}
}

// One proxy that cannot be reached says nothing about another one.
func TestDoctorTriesEachRoad(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{}, "press-7", "oven-2", "oven-3")
	cfg := must(config.Load(s.path("config.yaml")))(t)
	for i, proxy := range []string{"http://10.0.0.1:3128", "http://10.0.0.2:3128", "http://10.0.0.1:3128"} {
		s.edit("DeviceId="+cfg.Identities[i].Name+";x509=true\n", "DeviceId="+cfg.Identities[i].Name+";x509=true\n    proxy: "+proxy+"\n")
	}
	cfg = must(config.Load(s.path("config.yaml")))(t)
	road := func(i int) string { return roadOf(&cfg.Identities[i]) }
	if road(0) == road(1) || road(0) != road(2) {
		t.Errorf("roads %s, %s and %s", road(0), road(1), road(2))
	}
}
