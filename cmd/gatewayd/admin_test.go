package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gatewayd/internal/hub/hubtest"
	"gatewayd/internal/packet"
)

// runAdmin is run, and waits until the admin address answers.
func (s *plant) runAdmin() *process {
	s.t.Helper()
	p := s.run()
	eventually(s.t, 10*time.Second, "the admin address answers", func() bool {
		c, err := net.Dial("tcp", s.admin)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return p
}

// adminAsk makes a request to the admin address.
func (s *plant) adminAsk(method, path string, header ...string) (int, string) {
	s.t.Helper()
	r := must(http.NewRequest(method, "http://"+s.admin+path, nil))(s.t)
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			r.Host = header[i+1]
			continue
		}
		r.Header.Set(header[i], header[i+1])
	}
	resp := must(http.DefaultClient.Do(r))(s.t)
	defer resp.Body.Close()
	body := must(io.ReadAll(resp.Body))(s.t)
	return resp.StatusCode, string(body)
}

func TestNothingCanBeChangedWithoutAToken(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{}, "press-7")
	p := s.runAdmin()
	for _, path := range []string{"/act/reload", "/act/log-level", "/act/requeue"} {
		if code, text := s.adminAsk("POST", path); code != http.StatusNotFound || !strings.Contains(text, "admin.token_file") {
			t.Errorf("%s is answered with %d: %s", path, code, text)
		}
	}
	for _, path := range []string{"/debug/pprof/", "/debug/pprof/heap", "/debug/pprof/profile", "/debug/pprof/cmdline"} {
		if code, _ := s.adminAsk("GET", path); code != http.StatusNotFound {
			t.Errorf("%s is answered with %d", path, code)
		}
	}
	for _, path := range []string{"/", "/status", "/metrics", "/healthz", "/live"} {
		if code, _ := s.adminAsk("GET", path, "Host", "rebound.example:9180"); code != http.StatusMisdirectedRequest {
			t.Errorf("%s for another host name is answered with %d", path, code)
		}
	}
	if strings.Contains(p.log.String(), "reload") {
		t.Error("something was reloaded")
	}
}

func TestATokenOpensReloadLogLevelAndProfiles(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{}, "press-7")
	const first, second = "the-first-token-of-all", "the-second-token-of-all"
	s.write("tokens", "anna "+first+"\n")
	config := string(must(os.ReadFile(s.path("config.yaml")))(t))
	s.write("config.yaml", strings.Replace(config, "admin: {", "admin: {token_file: tokens, ", 1))
	p := s.runAdmin()
	bearer := func(token string) []string { return []string{"Authorization", "Bearer " + token} }
	want := func(code int, method, path, token, text string) {
		t.Helper()
		got, body := s.adminAsk(method, path, bearer(token)...)
		if got != code || !strings.Contains(body, text) {
			t.Errorf("%s %s is answered with %d: %.300s; want %d with %q", method, path, got, body, code, text)
		}
	}
	eventually(t, 20*time.Second, "the gateway is ready", func() bool {
		code, _ := s.adminAsk("GET", "/readyz")
		return code == http.StatusOK
	})
	want(200, "POST", "/act/reload", first, "nothing changed")
	want(401, "POST", "/act/reload", second, "token")
	want(200, "GET", "/debug/pprof/goroutine?debug=1", first, "goroutine profile")
	want(200, "GET", "/debug/pprof/profile?seconds=1", first, "")
	want(404, "GET", "/debug/pprof/cmdline", first, "")
	want(409, "POST", "/act/requeue", first, "not configured")
	if code, _ := s.adminAsk("GET", "/debug/pprof/heap"); code != http.StatusUnauthorized {
		t.Errorf("profiles without a token: %d", code)
	}
	if code, _ := s.adminAsk("GET", "/status"); code != http.StatusOK {
		t.Errorf("status for this machine: %d", code)
	}
	// The tokens are those of the file, and a file that cannot be read changes nothing.
	s.write("tokens", second+"\n")
	want(200, "POST", "/act/reload", first, "nothing changed")
	want(401, "POST", "/act/reload", first, "token")
	s.write("tokens", "three words here\n")
	want(409, "POST", "/act/reload", second, "admin.token_file")
	want(409, "POST", "/act/reload", second, "line 1: not a token")
	if code, out := s.exitCode("check", "-c", "config.yaml"); code != exitUsage || !strings.Contains(out, "admin.token_file") {
		t.Errorf("check exits with %d: %s", code, out)
	}
	for _, token := range []string{first, second} {
		if strings.Contains(p.log.String(), token) {
			t.Error("a token is in the log")
		}
	}
}

// Ready is who takes readings: with a listener that could not be opened it is not.
func TestReadyzNamesAListenerThatIsNotOpen(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{}, "press-7")
	p := s.runAdmin()
	eventually(t, 10*time.Second, "ready", func() bool { code, text := s.adminAsk("GET", "/readyz"); return code == 200 && text == "ready\n" })
	taken := freeAddress(t)
	l := must(net.Listen("tcp", taken))(t)
	defer l.Close()
	s.listen(fmt.Sprintf("{listen: %q}", taken))
	check(t, p.cmd.Process.Signal(syscall.SIGHUP))
	eventually(t, 10*time.Second, "not ready", func() bool {
		code, text := s.adminAsk("GET", "/readyz")
		return code == http.StatusServiceUnavailable && strings.Contains(text, taken+" is not open")
	})
	if code, _ := s.adminAsk("GET", "/healthz"); code != http.StatusOK {
		t.Errorf("healthz: %d", code)
	}
	l.Close()
	check(t, p.cmd.Process.Signal(syscall.SIGHUP))
	eventually(t, 10*time.Second, "ready again", func() bool { code, _ := s.adminAsk("GET", "/readyz"); return code == 200 })
}

// Ten thousand sensors with as many topics make not one series more.
func TestSensorsAndTopicsMakeNoSeries(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{MaxInbound: -1, Ledger: hubtest.CountOnly}, "press-7")
	s.listen(fmt.Sprintf(`{listen: "unix://%s"}`, s.path("mqtt.sock")))
	s.runAdmin()
	series := func() int { return strings.Count(s.get("/metrics"), "\ngatewayd_") }
	one := func(n int) error {
		c, err := dialLocal(t.Context(), s.path("mqtt.sock"))
		if err != nil {
			return err
		}
		defer c.Close()
		check(t, c.SetDeadline(time.Now().Add(30*time.Second)))
		b := must(packet.Connect{Version: packet.V5, CleanStart: true, ClientID: fmt.Sprintf("sensor-%d", n)}.Append(nil, packet.V5))(t)
		for q, topic := range []string{fmt.Sprintf("sensors/press-7/t%d", n), fmt.Sprintf("a%d/b%d", n, n)} {
			b = must(packet.Publish{Topic: topic, QoS: 1, ID: uint16(q + 1), Payload: []byte("1")}.Append(b, packet.V5))(t)
		}
		if _, err := c.Write(b); err != nil {
			return err
		}
		r := packet.NewReader(c, 1<<10)
		for range 3 { // CONNACK, PUBACK, and a PUBACK that says that there is no route
			if _, err := r.Next(); err != nil {
				return err
			}
		}
		return nil
	}
	check(t, one(0))
	eventually(t, 15*time.Second, "connected and delivered", func() bool { return s.hub.Counters("").Messages >= 1 })
	before := series()
	var running sync.WaitGroup
	for w := range 16 {
		running.Go(func() {
			for n := w; n < 10_000; n += 16 {
				if err := one(n); err != nil {
					t.Errorf("sensor %d: %v", n, err)
					return
				}
			}
		})
	}
	running.Wait()
	if code, _ := s.adminAsk("GET", "/status"); code != 200 {
		t.Errorf("status: %d", code)
	}
	if after := series(); after != before {
		t.Errorf("%d series before 10,000 sensors with 20,000 topics, %d after", before, after)
	}
	body := s.get("/sensors?q=sensor-9999")
	if !strings.Contains(body, `"total":10000,"matching":1,`) {
		t.Errorf("the page finds %.300s", body)
	}
	if n := len(s.get("/status")); n > 200<<10 {
		t.Errorf("a status of %d bytes with 10,000 sensors", n)
	}
}

// An address that other machines reach asks them for the token.
func TestBeyondLoopbackReadersNeedTheToken(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{}, "press-7")
	config := string(must(os.ReadFile(s.path("config.yaml")))(t))
	open := strings.Replace(config, fmt.Sprintf("admin: {listen: %q}", s.admin), `admin: {listen: "0.0.0.0:0"}`, 1)
	s.write("config.yaml", open)
	code, out := s.exitCode("check", "-c", "config.yaml")
	if code != exitOK || !strings.Contains(out, "shows identities and topics to everybody; give admin.token_file") {
		t.Errorf("check exits with %d: %s", code, out)
	}
	s.write("tokens", "a-token-of-enough-length\n")
	s.write("config.yaml", strings.Replace(open, "admin: {", "admin: {token_file: tokens, ", 1))
	if _, out := s.exitCode("check", "-c", "config.yaml"); strings.Contains(out, "to everybody") {
		t.Errorf("check still warns: %s", out)
	}
}
