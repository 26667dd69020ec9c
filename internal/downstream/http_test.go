package downstream

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	ce "github.com/cloudevents/sdk-go/v2"
	"github.com/cloudevents/sdk-go/v2/binding"
	"go.uber.org/zap"

	"gatewayd/internal/queue"
)

type httpBench struct {
	t    testing.TB
	sink *fakeSink
	gate *Gate
	url  string
}

func startHTTP(t testing.TB, cfg HTTPConfig, routes []Route) *httpBench {
	t.Helper()
	b := &httpBench{t: t, sink: newFakeSink(t, 0)}
	if routes == nil {
		routes = defaultRoutes()
	}
	router, err := NewRouter(routes, []string{"press-7", "press-8"})
	if err != nil {
		t.Fatal(err)
	}
	b.gate = NewGate(router, b.sink, NewLedger(0, 0), GateLimits{}, zap.NewNop())
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}
	h, err := NewHTTP(cfg, b.gate, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := h.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	b.url = "http://" + h.Addr().String()
	return b
}

func (b *httpBench) post(path, body string, headers ...string) (*http.Response, string) {
	b.t.Helper()
	r, err := http.NewRequest(http.MethodPost, b.url+path, strings.NewReader(body))
	if err != nil {
		b.t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Host" {
			r.Host = headers[i+1]
		}
		r.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	return resp, string(text)
}

func TestPostIsAnsweredAfterTheSync(t *testing.T) {
	b := startHTTP(t, HTTPConfig{}, nil)
	resp, body := b.post("/v1/messages/sensors/a/telemetry?p.unit=%C2%B0C&p.line=1", `{"t":1}`, "Content-Type", "text/plain; charset=UTF-8", "X-Property-Batch-ID", "9")
	if resp.StatusCode != 202 {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	m := b.sink.messages()[0] // stored already: the fake answers after storing
	if string(m.Payload) != `{"t":1}` || m.Topic != "sensors/a/telemetry" || m.Source != "127.0.0.1" || m.ContentType != "application/json" ||
		fmt.Sprint(m.Properties) != "[{batch-id 9} {line 1} {unit °C} {sensor a} {identity press-7}]" {
		t.Errorf("stored %+v", m)
	}
}

func TestPostRefusals(t *testing.T) {
	large := strings.Repeat("x", 256<<10+1)
	for name, tc := range map[string]struct {
		path, body string
		headers    []string
		refuse     error
		status     int
		retry      bool
	}{
		"no route":                {path: "/v1/messages/nowhere", status: 404},
		"no topic":                {path: "/v1/messages/", status: 400},
		"wildcard":                {path: "/v1/messages/a/%23", status: 400},
		"gateway's own topic":     {path: "/v1/messages/gateway/press-7/status", status: 400},
		"not UTF-8":               {path: "/v1/messages/%ff", status: 400},
		"topic too long":          {path: "/v1/messages/" + strings.Repeat("x", 1100), status: 400},
		"too large":               {path: "/v1/messages/sensors/a/telemetry", body: large, status: 413},
		"too large for the queue": {path: "/v1/messages/sensors/a/telemetry", refuse: queue.ErrTooLarge, status: 413},
		"queue full":              {path: "/v1/messages/sensors/a/telemetry", refuse: queue.ErrFull, status: 503, retry: true},
		"disk in trouble":         {path: "/v1/messages/sensors/a/telemetry", refuse: queue.ErrDisk, status: 503, retry: true},
		"system property":         {path: "/v1/messages/sensors/a/telemetry?p.$.mid=1", status: 400},
		"hub's limit":             {path: "/v1/messages/sensors/a/telemetry", body: large[:256<<10-100], status: 413},
		"hub's limit, properties": {path: "/v1/messages/sensors/a/telemetry?p.k=" + strings.Repeat("x", 300), body: large[:256<<10-500], status: 413},
		"from a web page":         {path: "/v1/messages/sensors/a/telemetry", headers: []string{"Origin", "http://evil.example"}, status: 403},
		"rebound name":            {path: "/v1/messages/sensors/a/telemetry", headers: []string{"Host", "evil.example"}, status: 403},
		"elsewhere":               {path: "/v2/messages/a", status: 404},
	} {
		t.Run(name, func(t *testing.T) {
			b := startHTTP(t, HTTPConfig{}, nil)
			b.sink.set(func() { b.sink.refuse = tc.refuse })
			resp, body := b.post(tc.path, tc.body, tc.headers...)
			var p problem
			if err := json.Unmarshal([]byte(body), &p); err != nil || resp.StatusCode != tc.status || p.Status != tc.status || p.Detail == "" {
				t.Errorf("%d %s, want %d", resp.StatusCode, body, tc.status)
			}
			if got := resp.Header.Get("Retry-After") != ""; got != tc.retry {
				t.Errorf("Retry-After: %v, want %v", got, tc.retry)
			}
			if len(b.sink.messages()) > 0 {
				t.Error("stored")
			}
		})
	}
	t.Run("sync fails", func(t *testing.T) {
		b := startHTTP(t, HTTPConfig{}, nil)
		b.sink.set(func() { b.sink.failing = queue.ErrDisk })
		if resp, body := b.post("/v1/messages/sensors/a/telemetry", "x"); resp.StatusCode != 503 {
			t.Errorf("%d %s", resp.StatusCode, body)
		}
	})
	t.Run("GET", func(t *testing.T) {
		b := startHTTP(t, HTTPConfig{}, nil)
		resp, err := http.Get(b.url + "/v1/messages/sensors/a/telemetry")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != 405 || resp.Header.Get("Allow") != "POST" {
			t.Errorf("%d", resp.StatusCode)
		}
	})
}

func TestRateLimitIsPerClient(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tokens")
	os.WriteFile(path, []byte("# sensors\na aaaaaaaaaaaaaaaa\nb bbbbbbbbbbbbbbbb\ncccccccccccccccc\n"), 0o600)
	tokens, err := LoadTokens(path)
	if err != nil {
		t.Fatal(err)
	}
	b := startHTTP(t, HTTPConfig{Tokens: tokens, Rate: 1}, nil)
	send := func(token string) *http.Response {
		resp, _ := b.post("/v1/messages/sensors/a/telemetry", "x", "Authorization", "Bearer "+token)
		return resp
	}
	if got := send("aaaaaaaaaaaaaaaa").StatusCode; got != 202 {
		t.Errorf("first: %d", got)
	}
	if resp := send("aaaaaaaaaaaaaaaa"); resp.StatusCode != 429 || resp.Header.Get("Retry-After") == "" {
		t.Errorf("second: %d", resp.StatusCode)
	}
	if got := send("bbbbbbbbbbbbbbbb").StatusCode; got != 202 {
		t.Errorf("another client: %d", got)
	}
	if resp := send("dddddddddddddddd"); resp.StatusCode != 401 || resp.Header.Get("WWW-Authenticate") != "Bearer" {
		t.Errorf("wrong token: %d", resp.StatusCode)
	}
	if got := b.sink.messages(); got[0].Source != "a" || got[1].Source != "b" {
		t.Errorf("sources %q %q", got[0].Source, got[1].Source)
	}
}

func TestBatchAnswersPerItem(t *testing.T) {
	array := `[{"topic":"sensors/a/telemetry","payload":{"t": 1},"properties":{"k":"v"}},
		{"topic":"nowhere","payload":"x"},
		{"topic":"sensors/b/telemetry","payload_base64":"AAE="},
		{"topic":"sensors/b/telemetry","payload":"text"},
		{"topic":"sensors/b/telemetry"},
		{"topik":"sensors/b/telemetry","payload":1}]`
	lines := strings.ReplaceAll(strings.Trim(array, "[]"), "},\n", "}\n")
	for name, body := range map[string]string{"array": array, "NDJSON": lines} {
		t.Run(name, func(t *testing.T) {
			b := startHTTP(t, HTTPConfig{}, nil)
			resp, text := b.post("/v1/batch", body)
			var answers []accepted
			if err := json.Unmarshal([]byte(text), &answers); err != nil {
				t.Fatalf("%d %s", resp.StatusCode, text)
			}
			var got []int
			for _, a := range answers {
				got = append(got, a.Status)
			}
			if fmt.Sprint(got) != "[202 404 202 202 400 400]" || resp.StatusCode != 404 {
				t.Errorf("%d %s", resp.StatusCode, text)
			}
			var payloads []string
			for _, m := range b.sink.messages() {
				payloads = append(payloads, string(m.Payload))
			}
			if strings.Join(payloads, "|") != "{\"t\": 1}|\x00\x01|text" {
				t.Errorf("payloads %q", payloads)
			}
		})
	}
}

func TestBatchIsAnsweredAsAWhole(t *testing.T) {
	t.Run("all stored", func(t *testing.T) {
		b := startHTTP(t, HTTPConfig{}, nil)
		if resp, text := b.post("/v1/batch", `[{"topic":"sensors/a/telemetry","payload":1}]`); resp.StatusCode != 202 {
			t.Errorf("%d %s", resp.StatusCode, text)
		}
	})
	t.Run("queue full", func(t *testing.T) {
		b := startHTTP(t, HTTPConfig{}, nil)
		b.sink.set(func() { b.sink.refuse = queue.ErrFull })
		resp, text := b.post("/v1/batch", `[{"topic":"sensors/a/telemetry","payload":1},{"topic":"nowhere","payload":1}]`)
		if resp.StatusCode != 503 || resp.Header.Get("Retry-After") == "" {
			t.Errorf("%d %s", resp.StatusCode, text)
		}
	})
	for name, tc := range map[string]struct {
		body   string
		status int
	}{
		"empty":     {"", 400},
		"no items":  {"[]", 400},
		"cut":       {`[{"topic":"a","payload":1}`, 400},
		"trailing":  {`[{"topic":"a","payload":1}] x`, 400},
		"too many":  {"[" + strings.Repeat("1,", 10) + "1]", 413},
		"too large": {"[" + strings.Repeat(" ", 5000) + "1]", 413},
	} {
		t.Run(name, func(t *testing.T) {
			b := startHTTP(t, HTTPConfig{MaxItems: 10, MaxBatch: 4096}, nil)
			if resp, text := b.post("/v1/batch", tc.body); resp.StatusCode != tc.status {
				t.Errorf("%d %s", resp.StatusCode, text)
			}
		})
	}
}

func TestCloudEventsOfTheOfficialSDKAreAccepted(t *testing.T) {
	for name, mode := range map[string]func(context.Context) context.Context{
		"binary":     binding.WithForceBinary,
		"structured": binding.WithForceStructured,
	} {
		t.Run(name, func(t *testing.T) {
			b := startHTTP(t, HTTPConfig{}, []Route{{Match: "events", To: "press-7"}})
			client, err := ce.NewClientHTTP(ce.WithTarget(b.url + "/v1/messages/events"))
			if err != nil {
				t.Fatal(err)
			}
			e := ce.NewEvent()
			e.SetID("1")
			e.SetSource("/press")
			e.SetType("reading")
			e.SetTime(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
			e.SetExtension("line", "seven")
			if err := e.SetData("application/json", map[string]int{"t": 1}); err != nil {
				t.Fatal(err)
			}
			if r := client.Send(mode(context.Background()), e); !ce.IsACK(r) {
				t.Fatalf("not accepted: %v", r)
			}
			m := b.sink.messages()[0]
			want := "[{cloudEvents_specversion 1.0} {cloudEvents_id 1} {cloudEvents_source /press} {cloudEvents_type reading} {cloudEvents_time 2026-01-02T03:04:05Z} {cloudEvents_line seven} {identity press-7}]"
			if string(m.Payload) != `{"t":1}` || m.ContentType != "application/json" || fmt.Sprint(m.Properties) != want {
				t.Errorf("stored %s %s %v", m.Payload, m.ContentType, m.Properties)
			}
		})
	}
	t.Run("broken", func(t *testing.T) {
		b := startHTTP(t, HTTPConfig{}, []Route{{Match: "events", To: "press-7"}})
		for _, body := range []string{"", "{", `{"specversion":"1.0"}`, `{"specversion":"9","id":"1"}`} {
			if resp, text := b.post("/v1/messages/events", body, "Content-Type", "application/cloudevents+json"); resp.StatusCode != 400 {
				t.Errorf("%q: %d %s", body, resp.StatusCode, text)
			}
		}
	})
}

func TestOpenAPIDescribesWhatIsServed(t *testing.T) {
	b := startHTTP(t, HTTPConfig{}, nil)
	resp, err := http.Get(b.url + "/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var doc struct {
		OpenAPI    string
		Paths      map[string]map[string]struct{ Responses map[string]any }
		Components map[string]map[string]any
	}
	text, _ := io.ReadAll(resp.Body)
	if err := json.Unmarshal(text, &doc); err != nil || doc.OpenAPI != "3.1.0" {
		t.Fatalf("%v %q", err, doc.OpenAPI)
	}
	// Every path answers to its method as something that is there. What comes down from
	// the cloud is mounted by the process, whose tests look at it.
	for path, methods := range doc.Paths {
		if strings.Contains(path, "{identity}") {
			continue
		}
		for method := range methods {
			r, _ := http.NewRequest(strings.ToUpper(method), b.url+strings.ReplaceAll(path, "{topic}", "sensors/a/telemetry"), strings.NewReader(`[{"topic":"sensors/a/telemetry","payload":1}]`))
			resp, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if _, described := methods[method].Responses[fmt.Sprint(resp.StatusCode)]; !described || resp.StatusCode >= 400 {
				t.Errorf("%s %s: %d", method, path, resp.StatusCode)
			}
		}
	}
	for _, path := range []string{messagesPath + "{topic}", batchPath, openAPIPath} {
		if doc.Paths[path] == nil {
			t.Errorf("%s is not described", path)
		}
	}
	// Every status that can be answered is described, and every reference leads somewhere.
	for _, err := range []error{ErrNoRoute, ErrTopic, ErrProperty, ErrNotAllowed, queue.ErrTooLarge, queue.ErrFull, queue.ErrDisk, errMalformed} {
		for _, path := range []string{messagesPath + "{topic}", batchPath} {
			if doc.Paths[path]["post"].Responses[fmt.Sprint(verdict(err))] == nil {
				t.Errorf("%s does not describe %d", path, verdict(err))
			}
		}
	}
	for _, part := range strings.Split(string(text), `"$ref": "#/components/`)[1:] {
		kind, rest, _ := strings.Cut(part, "/")
		name, _, _ := strings.Cut(rest, `"`)
		if doc.Components[kind][name] == nil {
			t.Errorf("reference to %s/%s leads nowhere", kind, name)
		}
	}
}
