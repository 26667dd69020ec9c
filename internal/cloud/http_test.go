package cloud

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"gatewayd/internal/hub/hubtest"
	"gatewayd/internal/packet"
)

func (s *site) do(method, path, body string) (int, string) {
	s.Helper()
	r := must(http.NewRequestWithContext(s.Context(), method, s.url(path), strings.NewReader(body)))(s.T)
	resp := must(http.DefaultClient.Do(r))(s.T)
	return resp.StatusCode, text(s.T, resp)
}

func TestC2DOverHTTPStaysUntilItIsAcknowledged(t *testing.T) {
	s := newSite(t, hubtest.Options{}, everything("press-7"))
	s.start()
	if status, body := s.get("/v1/c2d/press-7?wait=50ms"); status != 204 || body != "" {
		t.Fatalf("nothing there: %d %s", status, body)
	}
	go func() {
		time.Sleep(50 * time.Millisecond)
		s.send("press-7", "m-1", `{"go":true}`)
	}()
	status, body := s.get("/v1/c2d/press-7?wait=20s")
	want := `{"sequence":1,"id":"m-1","properties":{"$.mid":"m-1","$.to":"/devices/press-7/messages/deviceBound","k":"v w+x/y"},"body":{"go":true}}`
	if status != 200 || body != want {
		t.Fatalf("%d %s", status, body)
	}
	if _, again := s.get("/v1/c2d/press-7"); again != want {
		t.Errorf("without an acknowledgement: %s", again)
	}
	if status, _ := s.get("/v1/c2d/press-7?wait=0s&after=1"); status != 204 {
		t.Errorf("after the one it has: %d", status)
	}
	if status, body := s.do("DELETE", "/v1/c2d/press-7/1", ""); status != 204 {
		t.Fatalf("%d %s", status, body)
	}
	if status, _ := s.do("DELETE", "/v1/c2d/press-7/1", ""); status != 404 {
		t.Errorf("acknowledged twice: %d", status)
	}
	s.stop()
	s.start()
	if status, _ := s.get("/v1/c2d/press-7?wait=0s"); status != 204 {
		t.Errorf("acknowledged and there again: %d", status)
	}
	// Bodies of any kind.
	s.send("press-7", "m-2", "text")
	s.send("press-7", "m-3", "\xff\x00")
	for seq, want := range map[string]string{"0": `"body":"text"`, "3": `"body_base64":"/wA="`} {
		if status, body := s.get("/v1/c2d/press-7?after=" + seq); status != 200 || !strings.Contains(body, want) {
			t.Errorf("after %s: %d %s", seq, status, body)
		}
	}
}

func TestC2DStreamsToHTTPClients(t *testing.T) {
	s := newSite(t, hubtest.Options{}, everything("press-7"))
	s.start()
	s.send("press-7", "m-1", "1")
	open := func(last string) *bufio.Scanner {
		r := must(http.NewRequestWithContext(t.Context(), "GET", s.url("/v1/c2d/press-7"), nil))(t)
		r.Header.Set("Accept", "text/event-stream")
		if last != "" {
			r.Header.Set("Last-Event-ID", last)
		}
		resp := must(http.DefaultClient.Do(r))(t)
		t.Cleanup(func() { resp.Body.Close() })
		return bufio.NewScanner(resp.Body)
	}
	next := func(events *bufio.Scanner) (id, mid string) {
		for events.Scan() {
			line := events.Text()
			if v, ok := strings.CutPrefix(line, "id: "); ok {
				id = v
			}
			if v, ok := strings.CutPrefix(line, "data: "); ok {
				var m message
				check(t, json.Unmarshal([]byte(v), &m))
				return id, m.ID
			}
		}
		t.Fatal("the stream ended")
		return "", ""
	}
	first := open("")
	if id, mid := next(first); id != "1" || mid != "m-1" {
		t.Errorf("got %s %s", id, mid)
	}
	s.send("press-7", "m-2", "2")
	if id, mid := next(first); id != "2" || mid != "m-2" {
		t.Errorf("got %s %s", id, mid)
	}
	if id, mid := next(open("1")); id != "2" || mid != "m-2" {
		t.Errorf("a second client, from where it was: %s %s", id, mid)
	}
	begun := time.Now()
	s.stop()
	if d := time.Since(begun); d > 4*time.Second {
		t.Errorf("the stop took %v with streams open", d)
	}
}

func TestTwinOverHTTP(t *testing.T) {
	s := newSite(t, hubtest.Options{}, everything("press-7"), Options{Name: "bare"})
	must(s.hub.PatchDesired("press-7", `{"speed":1}`))(t)
	s.start()
	s.desiredIs(`{"speed":1,"$version":2}`)
	if status, body := s.do("PATCH", "/v1/twin/press-7", `{"reported":{"a":1}}`); status != 202 {
		t.Fatalf("%d %s", status, body)
	}
	s.eventually("the hub has it", func() bool { return strings.Contains(string(s.hub.Twin("press-7").Reported), `"a":1`) })
	s.eventually("nothing is unsent", func() bool {
		_, body := s.get("/v1/twin/press-7")
		return sameJSON(body, `{"desired":{"speed":1,"$version":2},"reported":{"a":1},"unsent":0}`)
	})
	for _, tc := range []struct {
		method, path, body string
		status             int
		reason             string
	}{
		{"PATCH", "/v1/twin/press-7", `{"desired":{"a":1}}`, 400, "a device writes nothing else"},
		{"PATCH", "/v1/twin/press-7", `{"reported":{"a.b":1}}`, 400, "is not allowed in names"},
		{"PATCH", "/v1/twin/press-7", `{"reported":{"a":"` + strings.Repeat("x", maxSection) + `"}}`, 400, "32768"},
		{"PATCH", "/v1/twin/press-7", `{"reported":{"a":"` + strings.Repeat("x", 2*maxSection) + `"}}`, 413, "32768"},
		{"PUT", "/v1/twin/press-7", ``, 405, "GET, PATCH"},
		{"GET", "/v1/twin/oven", ``, 404, "no such identity"},
		{"GET", "/v1/twin/bare", ``, 404, "switched off"},
		{"GET", "/v1/c2d/bare", ``, 404, "switched off"},
		{"POST", "/v1/c2d/press-7", ``, 405, "only GET"},
		{"GET", "/v1/c2d/press-7/1", ``, 405, "only DELETE"},
		{"DELETE", "/v1/c2d/press-7/x", ``, 400, "not a sequence"},
		{"GET", "/v1/c2d/press-7?after=x", ``, 400, "not a sequence"},
		{"GET", "/v1/c2d/press-7?wait=1y", ``, 400, "not a duration"},
	} {
		if status, body := s.do(tc.method, tc.path, tc.body); status != tc.status || !strings.Contains(body, tc.reason) || !json.Valid([]byte(body)) {
			t.Errorf("%s %s: %d %s", tc.method, tc.path, status, body)
		}
	}
}

// A poll and a stream outlast the limits that a listener sets for a request.
func TestPollsOutlastTheLimitsOfTheListener(t *testing.T) {
	s := newSite(t, hubtest.Options{}, everything("press-7"))
	s.start()
	short := httptest.NewUnstartedServer(s.g.cloud)
	short.Config.ReadTimeout, short.Config.WriteTimeout = 100*time.Millisecond, 100*time.Millisecond
	short.Start()
	defer short.Close()
	go func() {
		time.Sleep(500 * time.Millisecond)
		s.send("press-7", "m-1", "late")
	}()
	resp := must(http.Get(short.URL + "/v1/c2d/press-7?wait=1m"))(t)
	if body := text(t, resp); resp.StatusCode != 200 || !strings.Contains(body, "late") {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

// MQTT and HTTP share what waits: whoever acknowledges first has it.
func TestTheFirstAcknowledgementCounts(t *testing.T) {
	s := newSite(t, hubtest.Options{}, everything("press-7"))
	s.start()
	c := s.connect(packet.V311, "plc", true)
	c.subscribe("gateway/press-7/c2d/#")
	for i := range 5 {
		s.send("press-7", fmt.Sprint("m-", i), "x")
		p := c.receive()
		if status, _ := s.get("/v1/c2d/press-7"); status != 200 {
			t.Errorf("message %d is not there for HTTP: %d", i, status)
		}
		c.send(packet.Ack{Type: packet.PUBACK, ID: p.ID})
		s.eventually("gone for HTTP too", func() bool {
			status, _ := s.get("/v1/c2d/press-7?wait=0s")
			return status == 204
		})
	}
}
