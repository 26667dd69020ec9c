package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/hub/hubtest"
)

// stream reads Server-Sent Events of an identity in the background until the
// connection ends; each message's id is handed to got.
func (s *plant) stream(path string, got func(id string)) (ended <-chan struct{}) {
	s.t.Helper()
	r := must(http.NewRequestWithContext(s.t.Context(), "GET", "http://"+s.http+path, nil))(s.t)
	r.Header.Set("Accept", "text/event-stream")
	resp := must(http.DefaultClient.Do(r))(s.t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer resp.Body.Close()
		for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
			data, ok := strings.CutPrefix(lines.Text(), "data: ")
			if !ok {
				continue
			}
			var m struct{ ID string }
			if json.Unmarshal([]byte(data), &m) == nil {
				got(m.ID)
			}
		}
	}()
	return done
}

// mosquittoSub is a subscriber that can be killed; its session stays.
func (s *plant) mosquittoSub(got func(line string)) (kill func()) {
	s.t.Helper()
	host, port, err := net.SplitHostPort(s.mqtt)
	check(s.t, err)
	cmd := exec.Command("mosquitto_sub", "-h", host, "-p", port, "-i", "plc", "-c", "-q", "1", "-t", "gateway/press-7/c2d/#")
	out := must(cmd.StdoutPipe())(s.t)
	check(s.t, cmd.Start())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			got(lines.Text())
		}
		_ = cmd.Wait() // it was killed
	}()
	kill = sync.OnceFunc(func() { _ = cmd.Process.Kill(); <-done })
	s.t.Cleanup(kill)
	return kill
}

// The subscriber and the gateway are killed while C2D messages come, and the
// certificate is renewed: what the hub was told yes for arrives, and nothing that was
// acknowledged well before a kill arrives again.
func TestC2DThroughKillsOfBothAndARotation(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("mosquitto_sub"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	s := newPlant(t, hubtest.Options{}, "press-7")
	p := s.run()
	var mu sync.Mutex
	times := map[string]int{}
	count := func() int { mu.Lock(); defer mu.Unlock(); return len(times) }
	got := func(line string) { mu.Lock(); times[line]++; mu.Unlock() }
	kill := s.mosquittoSub(got)
	online := func() {
		t.Helper()
		eventually(t, 20*time.Second, "subscribed", func() bool { return len(s.hub.Subscribed("press-7")) == 4 })
	}
	online()
	const n = 60
	for i := range n {
		check(t, s.hub.SendC2D(t.Context(), "press-7", hubtest.C2D{MessageID: fmt.Sprint("m-", i), Body: fmt.Append(nil, i)}))
		switch i {
		case 15:
			kill()
			kill = s.mosquittoSub(got)
		case 30:
			s.issue("press-7", certtest.Leaf{CN: "press-7", NotAfter: time.Now().Add(99 * time.Hour)})
			eventually(t, 20*time.Second, "rotated", func() bool { r, err := s.status(); return err == nil && r.Identities[0].Rotations == 1 })
		case 45:
			eventually(t, 20*time.Second, "what came so far is delivered", func() bool { return count() == i+1 })
			time.Sleep(500 * time.Millisecond) // for the notes of the acknowledgements to be synced
			p.kill()
			p = s.run()
			kill()
			kill = s.mosquittoSub(got)
			online()
			// The hub sends one again whose acknowledgement it lost.
			check(t, s.hub.SendC2D(t.Context(), "press-7", hubtest.C2D{MessageID: "m-40", Body: []byte("again")}))
		}
	}
	eventually(t, 20*time.Second, "all are delivered", func() bool { return count() >= n })
	eventually(t, 20*time.Second, "all are acknowledged to the hub", func() bool {
		for _, c := range s.hub.C2DStates("press-7") {
			if c.State != hubtest.C2DCompleted {
				return false
			}
		}
		return true
	})
	mu.Lock()
	defer mu.Unlock()
	for i := range n {
		// A kill -9 of the subscriber may lose its last acknowledgements on the way.
		if k := times[fmt.Sprint(i)]; k == 0 || k > 1 && (i < 8 || i > 15) {
			t.Errorf("message %d came %d times", i, k)
		}
	}
	if times["again"] != 0 {
		t.Error("a message with a known id was delivered again after a restart")
	}
}

// Programs without MQTT: long poll, stream and explicit acknowledgement, methods to a
// callback and a program, the twin, with a kill and a renewal in the middle.
func TestCommandsOverHTTPThroughAKillAndARotation(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{}, "press-7")
	slow := make(chan struct{})
	callback := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body) // what is missing shows in the answer
		if r.URL.Path == "/slow" {
			<-slow
		}
		w.WriteHeader(202)
		fmt.Fprintf(w, `{"for":%q,"got":%s}`, r.Header.Get("Gatewayd-Method"), body)
	}))
	t.Cleanup(callback.Close)
	t.Cleanup(func() { close(slow) })
	file := string(must(os.ReadFile(s.path("config.yaml")))(t))
	s.write("config.yaml", strings.Replace(file, "    certificate:", fmt.Sprintf(`    methods:
      start: {url: "%s/start"}
      slow: {url: "%s/slow", timeout: 1s}
      cat: {exec: [cat]}
      sleep: {exec: [sleep, "60"], timeout: 1s}
    allow_methods: [local]
    certificate:`, callback.URL, callback.URL), 1))
	p := s.run()
	online := func() {
		t.Helper()
		eventually(t, 20*time.Second, "subscribed", func() bool { return len(s.hub.Subscribed("press-7")) == 4 })
	}
	online()
	methods := func() {
		t.Helper()
		for method, want := range map[string]string{
			"start": `202 {"for":"start","got":{"a":1}}`, "cat": `200 {"a":1}`, "slow": "504 ", "sleep": "504 ", "local": "404 ", "forbidden": "404 ",
		} {
			status, body, err := s.hub.InvokeMethod(t.Context(), "press-7", method, []byte(`{"a":1}`), 20*time.Second)
			if got := fmt.Sprint(status, " ", string(body)); err != nil || !strings.HasPrefix(got, want) || status > 299 && !strings.Contains(got, `{"error":`) {
				t.Errorf("method %s: %s %v", method, got, err)
			}
		}
	}
	methods()
	poll := make(chan string, 1)
	go func() {
		_, body := s.ask("GET", "/v1/c2d/press-7?wait=20s", "")
		poll <- body
	}()
	var mu sync.Mutex
	var streamed []string
	see := func(id string) { mu.Lock(); streamed = append(streamed, id); mu.Unlock() }
	seen := func(want string) {
		t.Helper()
		eventually(t, 10*time.Second, "streamed "+want, func() bool { mu.Lock(); defer mu.Unlock(); return fmt.Sprint(streamed) == want })
		mu.Lock()
		streamed = nil
		mu.Unlock()
	}
	ended := s.stream("/v1/c2d/press-7", see)
	for _, id := range []string{"m-1", "m-2", "m-3"} {
		check(t, s.hub.SendC2D(t.Context(), "press-7", hubtest.C2D{MessageID: id, Body: []byte(id), Properties: map[string]string{"k": "v"}}))
	}
	if body := <-poll; !strings.Contains(body, `"id":"m-1"`) || !strings.Contains(body, `"k":"v"`) || !strings.Contains(body, `"body":"m-1"`) {
		t.Errorf("long poll: %s", body)
	}
	seen("[m-1 m-2 m-3]")
	for path, want := range map[string]int{"/v1/c2d/press-7/1": 204, "/v1/c2d/press-7/x": 400, "/v1/c2d/nobody/1": 404} {
		if status, body := s.ask("DELETE", path, ""); status != want {
			t.Errorf("DELETE %s: %d %s", path, status, body)
		}
	}
	if status, _ := s.ask("DELETE", "/v1/c2d/press-7/1", ""); status != 404 {
		t.Errorf("acknowledged twice: %d", status)
	}
	// While the uplink is down the twin takes changes, which outlive a kill.
	s.hub.StopListening()
	s.hub.DropConnections("press-7")
	if status, body := s.ask("PATCH", "/v1/twin/press-7", `{"reported":{"a":1}}`); status != 202 {
		t.Errorf("PATCH: %d %s", status, body)
	}
	p.kill()
	<-ended
	p = s.run()
	if status, body := s.ask("GET", "/v1/twin/press-7", ""); status != 200 || !strings.Contains(body, `"a":1`) || !strings.Contains(body, `"unsent":1`) {
		t.Errorf("GET: %d %s", status, body)
	}
	s.stream("/v1/c2d/press-7", see)
	seen("[m-2 m-3]")
	check(t, s.hub.Resume())
	online()
	eventually(t, 20*time.Second, "reported", func() bool { return strings.Contains(string(s.hub.Twin("press-7").Reported), `"a":1`) })
	s.issue("press-7", certtest.Leaf{CN: "press-7", NotAfter: time.Now().Add(99 * time.Hour)})
	eventually(t, 20*time.Second, "rotated", func() bool { r, err := s.status(); return err == nil && r.Identities[0].Rotations == 1 })
	check(t, s.hub.SendC2D(t.Context(), "press-7", hubtest.C2D{MessageID: "m-1", Body: []byte("known")}))
	check(t, s.hub.SendC2D(t.Context(), "press-7", hubtest.C2D{MessageID: "m-4", Body: []byte("m-4")}))
	seen("[m-4]")
	methods()
	// One that nobody takes in its time goes. Sequence 4 is the note about the first one, 5 is m-4.
	eventually(t, 15*time.Second, "the clock is trusted", func() bool { r, err := s.status(); return err == nil && r.Clock == "trusted" })
	check(t, s.hub.SendC2D(t.Context(), "press-7", hubtest.C2D{MessageID: "m-5", Body: []byte("soon over"), TTL: 2 * time.Second}))
	after := func(want string) {
		t.Helper()
		eventually(t, 10*time.Second, "waits "+want, func() bool {
			_, body := s.ask("GET", "/v1/c2d/press-7?wait=0s&after=5", "")
			return strings.Contains(body, `"id"`) == (want != "") && strings.Contains(body, want)
		})
	}
	after("m-5")
	after("")
	eventually(t, 5*time.Second, "the log tells", func() bool { return strings.Contains(p.log.String(), "expired before a local client") })
}
