package main

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/hub/hubtest"
)

func TestStatusNamesTheFirstFault(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{}, "fine", "nocert", "unknown", "wrongca", "disabled")
	check(t, os.Remove(s.path("nocert.pem")))
	s.hub.RemoveDevice("unknown")
	other := must(certtest.NewCA("another CA"))(t)
	check(t, must(other.Issue(certtest.Leaf{CN: "wrongca"}))(t).Write(s.path("wrongca.pem"), s.path("wrongca.key")))
	check(t, s.hub.SetDisabled("disabled", true))
	s.run()
	want := map[string]string{
		"fine": "", "nocert": "nocert.pem does not exist", "unknown": "not authorized", "wrongca": "not authorized", "disabled": "not authorized",
	}
	for name, text := range want {
		eventually(t, 15*time.Second, fmt.Sprintf("%s says %q", name, text), func() bool {
			id, ok := s.identityStatus(name)
			return ok && (text == "" && id.Connected && id.FirstFault == "" || text != "" && !id.Connected && strings.Contains(id.FirstFault, text))
		})
	}
	r := must(s.status())(t)
	if r.Healthy || !strings.HasPrefix(r.FirstFault, "nocert: ") {
		t.Errorf("healthy %v, first fault %q; want the first identity in the file that is in trouble", r.Healthy, r.FirstFault)
	}
	code, out := s.exitCode("status", "-c", "config.yaml")
	if code != exitRunning || !strings.Contains(out, "nocert.pem does not exist") {
		t.Errorf("status exits with %d:\n%s", code, out)
	}
}

// metricNames are promised to dashboards and alerts.
var metricNames = []string{
	"gatewayd_identity_connected", "gatewayd_certificate_not_after_seconds", "gatewayd_rotations_total", "gatewayd_connects_total",
	"gatewayd_messages_received_total", "gatewayd_messages_refused_total", "gatewayd_messages_delivered_total",
	"gatewayd_messages_resent_total", "gatewayd_messages_dropped_total", "gatewayd_queue_messages", "gatewayd_queue_bytes",
	"gatewayd_certificate_not_before_seconds", "gatewayd_certificate_info", "gatewayd_certificate_left_seconds", "gatewayd_certificate_candidate",
	"gatewayd_queue_oldest_seconds", "gatewayd_queue_sync_seconds", "gatewayd_queue_disk_written_bytes_total",
	"go_goroutines", "process_resident_memory_bytes",
}

func TestMetricsAreThePromisedOnes(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{}, "press-7")
	s.run()
	f := s.fleet(1, 1, 64, 10*time.Millisecond)
	eventually(t, 15*time.Second, "messages arrive", func() bool { return s.hub.Counters("").Messages > 10 })
	f.end()
	s.drained(10 * time.Second)
	large := must(http.Post("http://"+s.http+"/v1/messages/sensors/press-7/x", "text/plain", strings.NewReader(strings.Repeat("x", 300<<10))))(t)
	large.Body.Close()
	if large.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("300 KiB are answered with %s", large.Status)
	}
	text := s.get("/metrics")
	for _, name := range metricNames {
		if !strings.Contains(text, "\n"+name+"{") && !strings.Contains(text, "\n"+name+" ") && !strings.Contains(text, "\n"+name+"_bucket") {
			t.Errorf("no metric %s", name)
		}
	}
	for _, line := range []string{
		`gatewayd_identity_connected{identity="press-7"} 1`, `gatewayd_rotations_total{identity="press-7",result="committed"} 0`,
		`gatewayd_connects_total{identity="press-7",result="accepted"} 1`, fmt.Sprintf(`gatewayd_messages_received_total{source="mqtt"} %d`, f.acked()),
		fmt.Sprintf(`gatewayd_messages_delivered_total{identity="press-7"} %d`, f.acked()), `gatewayd_queue_messages{identity="press-7"} 0`,
		`gatewayd_messages_refused_total{reason="no_route",source="mqtt"} 0`, `gatewayd_messages_refused_total{reason="too_large",source="http"} 1`,
		`gatewayd_certificate_candidate{identity="press-7",reason="",state="none"} 1`,
	} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("no line %q", line)
		}
	}
	for _, path := range []string{"/healthz", "/readyz"} {
		if got := strings.TrimSpace(s.get(path)); got != "ok" && got != "ready" {
			t.Errorf("%s answers %q", path, got)
		}
	}
}

func TestNoSecretLeaves(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{}, "press-7")
	const token, password, sak = "token-5f3a9e2b7c1d", "password-9d8e7f6a5b4c", "c2VjcmV0LWtleS1vZi10aGUtZGV2aWNl"
	s.write("tokens", "ci "+token+"\n"+token+"\n")
	_, line := s.passwd(t, "anna", password)
	s.write("users", line)
	config := string(must(os.ReadFile(s.path("config.yaml")))(t))
	config = strings.Replace(config, ";x509=true", ";x509=true;SharedAccessKey="+sak, 1)
	config = strings.Replace(config, fmt.Sprintf("mqtt: [{listen: %q}]", s.mqtt), fmt.Sprintf("mqtt: [{listen: %q, users_file: users}]", s.mqtt), 1)
	config = strings.Replace(config, fmt.Sprintf("http: [{listen: %q}]", s.http), fmt.Sprintf("http: [{listen: %q, token_file: tokens}]", s.http), 1)
	config += "log: {level: debug}\n"
	s.write("config.yaml", config)
	p := s.run()
	eventually(t, 15*time.Second, "connected", func() bool { id, ok := s.identityStatus("press-7"); return ok && id.Connected })
	req := must(http.NewRequest("POST", "http://"+s.http+"/v1/messages/sensors/press-7/x", strings.NewReader("body-of-a-reading")))(t)
	req.Header.Set("Authorization", "Bearer "+token)
	resp := must(http.DefaultClient.Do(req))(t)
	resp.Body.Close()
	if resp.StatusCode != http.StatusAccepted {
		t.Errorf("with the token: %s", resp.Status)
	}
	// A bad renewal writes about the files too.
	pair := must(s.ca.Issue(certtest.Leaf{CN: "somebody-else"}))(t)
	check(t, pair.Write(s.path("press-7.pem"), s.path("press-7.key")))
	eventually(t, 15*time.Second, "the candidate is refused", func() bool { return strings.Contains(p.log.String(), "somebody-else") })
	_, checked := s.exitCode("check", "-c", "config.yaml")
	all := p.log.String() + s.get("/status") + s.get("/metrics") + s.get("/") + checked
	secrets := map[string]string{"token": token, "password": password, "shared access key": sak, "a reading": "body-of-a-reading",
		"key file": strings.Split(string(pair.KeyPEM), "\n")[1]}
	for what, secret := range secrets {
		if strings.Contains(all, secret) {
			t.Errorf("the %s is told", what)
		}
		if strings.Contains(all, base64.StdEncoding.EncodeToString([]byte(secret))) {
			t.Errorf("the %s is told in base64", what)
		}
	}
}

// passwd makes a line for a users file.
func (s *plant) passwd(t *testing.T, name, password string) (int, string) {
	t.Helper()
	var out, errs strings.Builder
	code := run(t.Context(), []string{"passwd", name}, strings.NewReader(password+"\n"), &out, &errs)
	if code != exitOK || !strings.HasPrefix(out.String(), name+":$2") {
		t.Fatalf("passwd exits with %d: %s%s", code, &out, &errs)
	}
	return code, out.String()
}

func TestOneIdentitysTroubleIsItsOwn(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{MaxInbound: -1}, "good", "refused", "silent")
	check(t, s.hub.RefuseIdentity("refused", hubtest.ConnackFive))
	s.run()
	eventually(t, 15*time.Second, "silent is connected", func() bool { return s.hub.Connected("silent") })
	s.hub.GoSilent("silent")
	f := s.fleet(6, 20, 256, 5*time.Millisecond)
	time.Sleep(5 * time.Second)
	delivered := int(s.hub.Counters("good").Messages)
	f.end()
	most, least, good := 0, f.sensors[0].acked, 0
	for _, one := range f.sensors {
		most, least = max(most, one.acked), min(least, one.acked)
		if strings.HasPrefix(one.topic, "sensors/good/") {
			good += one.acked
		}
	}
	if least < 100 || least < most*2/3 {
		t.Errorf("sensors got from %d to %d acknowledgements in 5 s; the queue of their identity is not their business", least, most)
	}
	if delivered < good*2/3 {
		t.Errorf("the good identity delivered %d of %d messages beside two in trouble", delivered, good)
	}
	check(t, s.hub.RefuseIdentity("refused", 0))
}

func TestRefusalsAreClear(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{}, "press-7")
	busy := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer busy.Close()
	s.write("file", "")
	good := string(must(os.ReadFile(s.path("config.yaml")))(t))
	tests := []struct {
		name, config string
		code         int
		want         string
	}{
		{"broken YAML", "identities: [", exitUsage, "config.yaml"},
		{"an unknown key", good + "statedir: x\n", exitUsage, `statedir`},
		{"a wrong type", strings.Replace(good, "window: 64", "window: many", 1), exitUsage, "hub.window"},
		{"a route to nobody", strings.Replace(good, `to: "{1}"`, "to: press-8", 1), exitUsage, "routes[0].to"},
		{"a busy MQTT port", strings.Replace(good, s.mqtt, busy.Addr().String(), 1), exitRunning, "downstream.mqtt[0]"},
		{"a busy HTTP port", strings.Replace(good, s.http, busy.Addr().String(), 1), exitRunning, "downstream.http[0]"},
		{"a busy admin port", strings.Replace(good, s.admin, busy.Addr().String(), 1), exitRunning, "admin.listen"},
		{"a state folder below a file", strings.Replace(good, "state_dir: state", "state_dir: file/state", 1), exitRunning, "state_dir"},
		{"no file", "", exitUsage, "config.yaml"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.config == "" {
				check(t, os.Remove(s.path("config.yaml")))
			} else {
				s.write("config.yaml", tt.config)
			}
			code, out := s.exitCode("run", "-c", "config.yaml")
			if code != tt.code || !strings.Contains(out, tt.want) {
				t.Errorf("exit code %d, want %d and %q in:\n%s", code, tt.code, tt.want, out)
			}
			if n := strings.Count(out, "gatewayd:"); n != 1 {
				t.Errorf("%d messages, want one:\n%s", n, out)
			}
		})
	}
}

func TestSecondInstanceLeavesTheFirstAlone(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{}, "press-7")
	s.run()
	post := func(text string) (int, []byte) {
		resp := must(http.Post("http://"+s.http+"/v1/messages/sensors/press-7/x", "text/plain", strings.NewReader(text)))(t)
		defer resp.Body.Close()
		return resp.StatusCode, must(io.ReadAll(resp.Body))(t)
	}
	post("the queue has its files now")
	s.drained(10 * time.Second)
	// The first one still writes what it has learned; a second one that changes
	// something does it every time.
	eventually(t, 20*time.Second, "a second instance changes nothing in the state folder", func() bool {
		before := listing(t, s.path("state"))
		code, out := s.exitCode("run", "-c", "config.yaml")
		if code != exitRunning || !strings.Contains(out, "another gatewayd is running on state_dir") {
			t.Fatalf("exit code %d:\n%s", code, out)
		}
		return listing(t, s.path("state")) == before
	})
	status, body := post("still there")
	var answer struct{ Sequence uint64 }
	if err := json.Unmarshal(body, &answer); err != nil || status != http.StatusAccepted || answer.Sequence != 2 {
		t.Errorf("the first instance answers %d: %s", status, body)
	}
}

func listing(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	check(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		fmt.Fprintln(&b, path)
		return err
	}))
	return b.String()
}
