package statuspage

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
)

// fakeGateway is a gateway whose view a test sets.
type fakeGateway struct {
	mu      sync.Mutex
	view    View
	sensors []Sensor
	views   int
}

func (f *fakeGateway) View() View {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.views++
	v := f.view
	v.Now = time.Now()
	v.Identities = append([]Identity(nil), f.view.Identities...)
	return v
}

func (f *fakeGateway) Sensors() []Sensor { return append([]Sensor(nil), f.sensors...) }

func (f *fakeGateway) Detail(name string) (any, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range f.view.Identities {
		if id.Name == name {
			return id, true
		}
	}
	return nil, false
}

func (f *fakeGateway) change(do func(*View)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	do(&f.view)
}

func (f *fakeGateway) asked() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.views
}

func fleetOf(n int) *fakeGateway {
	f := &fakeGateway{view: View{Head: Head{Machine: "gw-1", Version: "v1"}}}
	for i := range n {
		f.view.Identities = append(f.view.Identities, Identity{Name: fmt.Sprintf("d%d", i), State: "connected", Connected: true, Since: time.Unix(1e9, 0)})
	}
	return f
}

// serve runs a page behind a real server.
func serve(t *testing.T, o Options) (*Page, string) {
	t.Helper()
	if o.Events == nil {
		o.Events = NewRecorder()
	}
	if o.Guard == nil {
		o.Guard = NewGuard(nil)
	}
	p := New(o)
	mux := http.NewServeMux()
	p.Register(mux)
	s := httptest.NewServer(o.Guard.Local("gw-1", mux))
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := p.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait(); s.Close() })
	return p, s.URL
}

// stream reads events of a live page.
type stream struct {
	t    *testing.T
	r    *bufio.Scanner
	body io.Closer
}

func openStream(t *testing.T, url string) *stream {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%s answers %s", url, resp.Status)
	}
	s := &stream{t: t, r: bufio.NewScanner(resp.Body), body: resp.Body}
	s.r.Buffer(nil, 8<<20)
	return s
}

func (s *stream) next() (name string, data []byte) {
	s.t.Helper()
	for s.r.Scan() {
		line := s.r.Text()
		if v, ok := strings.CutPrefix(line, "event: "); ok {
			name = v
		}
		if v, ok := strings.CutPrefix(line, "data: "); ok {
			data = []byte(v)
		}
		if line == "" {
			return name, data
		}
	}
	s.t.Fatalf("the stream has ended: %v", s.r.Err())
	return "", nil
}

func TestReadersGetTheWholeAndThenOnlyWhatHasChanged(t *testing.T) {
	t.Parallel()
	g := fleetOf(50)
	_, url := serve(t, Options{Gateway: g})
	s := openStream(t, url+"/live")
	kind, data := s.next()
	var m message
	if err := json.Unmarshal(data, &m); err != nil || kind != "full" || len(m.Identities) != 50 || len(m.Order) != 50 || len(m.Charts) != 50 {
		t.Fatalf("first event: %s with %d identities, %v", kind, len(m.Identities), err)
	}
	g.change(func(v *View) { v.Identities[7].Received = 12 })
	kind, data = s.next()
	m = message{}
	if err := json.Unmarshal(data, &m); err != nil || kind != "delta" || len(m.Identities) != 1 || m.Order != nil || m.Others != nil {
		t.Fatalf("%s %s, %v; want one identity", kind, data, err)
	}
	var id Identity
	if err := json.Unmarshal(m.Identities[0], &id); err != nil || id.Name != "d7" || id.Received != 12 {
		t.Errorf("changed: %+v, %v", id, err)
	}
	g.change(func(v *View) { v.Identities = v.Identities[1:] })
	_, data = s.next()
	m = message{}
	if err := json.Unmarshal(data, &m); err != nil || len(m.Order) != 49 || len(m.Identities) != 0 {
		t.Errorf("%s, %v; want the names that are left", data, err)
	}
}

func TestNothingIsComputedWhileNobodyLooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := fleetOf(3)
		p := New(Options{Gateway: g, Events: NewRecorder(), Guard: NewGuard(nil)})
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { _ = p.Run(ctx) })
		time.Sleep(10*time.Minute + time.Second)
		synctest.Wait()
		if n := g.asked(); n > 11 {
			t.Errorf("%d views in ten minutes without a reader, want one per minute", n)
		}
		r, _ := p.join()
		<-r.next
		before := g.asked()
		time.Sleep(20*time.Second + time.Millisecond)
		synctest.Wait()
		if n := g.asked() - before; n < 9 || n > 11 {
			t.Errorf("%d views in 20 s with a reader, want 10", n)
		}
		p.leave(r)
		time.Sleep(5 * time.Second)
		before = g.asked()
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if n := g.asked() - before; n > 1 {
			t.Errorf("%d views in 30 s after the last reader has left", n)
		}
		cancel()
		running.Wait()
	})
}

func TestReadersAreBounded(t *testing.T) {
	t.Parallel()
	p := New(Options{Gateway: fleetOf(1), Events: NewRecorder(), Guard: NewGuard(nil)})
	var last *reader
	for range MaxReaders {
		r, ok := p.join()
		if !ok {
			t.Fatal("refused below the bound")
		}
		last = r
	}
	w := httptest.NewRecorder()
	p.live(w, httptest.NewRequest("GET", "/live", nil))
	if w.Code != http.StatusServiceUnavailable {
		t.Errorf("one more is answered with %d", w.Code)
	}
	p.leave(last)
	if _, ok := p.join(); !ok {
		t.Error("a place that became free is not given")
	}
}

func TestStreamsEndWithThePage(t *testing.T) {
	t.Parallel()
	p := New(Options{Gateway: fleetOf(1), Events: NewRecorder(), Guard: NewGuard(nil)})
	mux := http.NewServeMux()
	p.Register(mux)
	server := httptest.NewServer(mux)
	defer server.Close()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	s := openStream(t, server.URL+"/live")
	s.next()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	for s.r.Scan() { // what is under way, and then the end
	}
	if err := s.r.Err(); err != nil {
		t.Errorf("the stream breaks: %v", err)
	}
}

// What a hostile sensor or file may put into a name must come out as text.
const hostile = `<script>alert(1)</script>"'><img src=x onerror=alert(2)>{{.}}&#x3c;` + "\u2028"

func TestHostileNamesStayText(t *testing.T) {
	t.Parallel()
	g := fleetOf(1)
	g.change(func(v *View) {
		v.Machine, v.FirstFault, v.FaultHint, v.Identities[0].Name, v.Identities[0].Fault = hostile, hostile, hostile, hostile, hostile
	})
	g.sensors = []Sensor{{Source: "mqtt", Name: hostile}}
	events := NewRecorder()
	zap.New(events.Core()).Warn("x", zap.String("identity", hostile), zap.String("topic", hostile))
	tokens := func(string) (string, bool) { return "", false }
	_, base := serve(t, Options{Gateway: g, Events: events, Guard: NewGuard(tokens)})
	for _, path := range []string{"/", "/identity?name=" + url.QueryEscape(hostile), "/identity?name=" + url.QueryEscape(hostile+"x"),
		"/login?next=" + url.QueryEscape("/"+hostile), "/sensors"} {
		resp, err := http.Get(base + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		for _, bad := range []string{"<script>alert", "<img src=x", `"'><`} {
			if strings.Contains(string(body), bad) {
				t.Errorf("%s holds %s:\n%s", path, bad, body)
			}
		}
		csp := resp.Header.Get("Content-Security-Policy")
		if !strings.Contains(csp, "default-src 'none'") || !strings.Contains(csp, "script-src 'self'") || strings.Contains(csp, "unsafe") {
			t.Errorf("%s: policy %q", path, csp)
		}
	}
	_, data := openStream(t, base+"/live").next()
	if strings.Contains(string(data), "<") || strings.Contains(string(data), "\u2028") {
		t.Errorf("markup in the stream: %s", data)
	}
	var m message
	if err := json.Unmarshal(data, &m); err != nil || m.Order[0] != hostile || m.Events[0].Identity != hostile || m.Events[0].Fields[0].Value != hostile {
		t.Errorf("the name does not survive: %+v, %v", m, err)
	}
}

// Every file that a page names is there, and no page names anything else.
func TestPagesNeedOnlyTheirOwnFiles(t *testing.T) {
	t.Parallel()
	_, base := serve(t, Options{Gateway: fleetOf(1), Guard: NewGuard(func(string) (string, bool) { return "", false })})
	for _, path := range []string{"/", "/identity?name=d0", "/identity?name=nobody", "/login"} {
		resp, err := http.Get(base + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if path == "/identity?name=nobody" && resp.StatusCode != http.StatusNotFound {
			t.Errorf("an unknown identity is answered with %s", resp.Status)
		}
		text := string(body)
		if strings.Contains(text, "http://") || strings.Contains(text, "https://") || strings.Contains(text, "style=") || strings.Contains(text, "onclick") {
			t.Errorf("%s has something from elsewhere, or inline", path)
		}
		for _, part := range strings.Split(text, "/assets/")[1:] {
			name, _, _ := strings.Cut(part, `"`)
			file, err := http.Get(base + "/assets/" + name)
			if err != nil {
				t.Fatal(err)
			}
			file.Body.Close()
			if file.StatusCode != http.StatusOK || file.Header.Get("ETag") == "" {
				t.Errorf("%s: %s is answered with %s", path, name, file.Status)
			}
			again, _ := http.NewRequest("GET", base+"/assets/"+name, nil)
			again.Header.Set("If-None-Match", file.Header.Get("ETag"))
			if same, err := http.DefaultClient.Do(again); err != nil || same.StatusCode != http.StatusNotModified {
				t.Errorf("%s is sent twice: %v", name, err)
			}
		}
	}
}
