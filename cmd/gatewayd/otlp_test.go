package main

import (
	"compress/gzip"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	collectorpb "go.opentelemetry.io/proto/slim/otlp/collector/metrics/v1"
	metrics "go.opentelemetry.io/proto/slim/otlp/metrics/v1"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"gatewayd/internal/config"
	"gatewayd/internal/hub/hubtest"
)

// otlpReceiver is a collector that keeps the latest export.
type otlpReceiver struct {
	mu       sync.Mutex
	code     int // to answer with; 0 = 200
	requests int
	header   http.Header
	latest   *metrics.ResourceMetrics
}

func (r *otlpReceiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests++
	r.header = req.Header.Clone()
	if r.code != 0 {
		w.WriteHeader(r.code)
		return
	}
	body, err := gzip.NewReader(req.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	raw, err := io.ReadAll(body)
	var export collectorpb.ExportMetricsServiceRequest
	if err == nil {
		err = proto.Unmarshal(raw, &export)
	}
	if err != nil || len(export.ResourceMetrics) != 1 {
		http.Error(w, fmt.Sprint(err), http.StatusBadRequest)
		return
	}
	r.latest = export.ResourceMetrics[0]
	answer, _ := proto.Marshal(&collectorpb.ExportMetricsServiceResponse{})
	w.Header().Set("Content-Type", "application/x-protobuf")
	_, _ = w.Write(answer)
}

func (r *otlpReceiver) answer(code int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.code, r.requests = code, 0
}

func (r *otlpReceiver) asked() (int, http.Header) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.requests, r.header
}

// value finds a number by name and labels, in the words of Prometheus.
func (r *otlpReceiver) value(name string, labels ...string) (float64, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, scope := range r.latest.GetScopeMetrics() {
		for _, m := range scope.Metrics {
			points := append(m.GetSum().GetDataPoints(), m.GetGauge().GetDataPoints()...)
			for _, p := range points {
				if m.Name == name && hasLabels(p, labels) {
					return p.GetAsDouble(), true
				}
			}
			if h := m.GetHistogram().GetDataPoints(); m.Name == name && len(h) == 1 {
				if total := uint64(0); len(h[0].BucketCounts) == len(h[0].ExplicitBounds)+1 {
					for _, n := range h[0].BucketCounts {
						total += n
					}
					return float64(h[0].Count), total == h[0].Count
				}
			}
		}
	}
	return 0, false
}

func hasLabels(p *metrics.NumberDataPoint, labels []string) bool {
	found := 0
	for _, a := range p.Attributes {
		for i := 0; i < len(labels); i += 2 {
			if a.Key == labels[i] && a.Value.GetStringValue() == labels[i+1] {
				found++
			}
		}
	}
	return found == len(labels)/2
}

// What Prometheus would scrape also comes to a collector, over TLS with a CA and a
// secret header of its own. Its outage is told once and hurts nobody.
func TestMetricsGoToACollector(t *testing.T) {
	t.Parallel()
	r := &otlpReceiver{}
	server := httptest.NewTLSServer(r)
	defer server.Close()
	s := newPlant(t, hubtest.Options{}, "press-7")
	s.write("ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
	const secret = "otlp-secret-0123456789"
	s.write("headers", "# for the collector\nAuthorization: Bearer "+secret+"\n")
	config := string(must(os.ReadFile(s.path("config.yaml")))(t))
	s.write("config.yaml", strings.Replace(config, "admin: {", fmt.Sprintf(
		"admin: {otlp: {endpoint: %q, interval: 1s, timeout: 1s, ca: ca.pem, headers_file: headers, attributes: {site: north}}, ", server.URL+"/v1/metrics?key="+secret), 1))
	p := s.run()
	f := s.fleet(2, 4, 64, 10*time.Millisecond)
	eventually(t, 15*time.Second, "messages arrive", func() bool { return s.hub.Counters("").Messages > 20 })
	f.end()
	s.drained(10 * time.Second)
	eventually(t, 15*time.Second, "the collector has what was delivered", func() bool {
		n, ok := r.value("gatewayd_messages_delivered_total", "identity", "press-7")
		return ok && n == float64(f.acked())
	})
	for name, want := range map[string]float64{"gatewayd_identity_connected": 1, "gatewayd_queue_messages": 0} {
		if got, ok := r.value(name, "identity", "press-7"); !ok || got != want {
			t.Errorf("%s is %v, %v", name, got, ok)
		}
	}
	if n, ok := r.value("gatewayd_queue_sync_seconds"); !ok || n == 0 {
		t.Errorf("%v syncs in the histogram", n)
	}
	if n, ok := r.value("process_resident_memory_bytes"); !ok || n == 0 {
		t.Errorf("memory %v", n)
	}
	attributes := map[string]string{}
	r.mu.Lock()
	for _, a := range r.latest.GetResource().GetAttributes() {
		attributes[a.Key] = a.Value.GetStringValue()
	}
	r.mu.Unlock()
	if attributes["service.name"] != "gatewayd" || attributes["site"] != "north" || attributes["host.name"] == "" || attributes["service.version"] == "" {
		t.Errorf("resource %v", attributes)
	}
	if _, header := r.asked(); header.Get("Authorization") != "Bearer "+secret {
		t.Error("the header does not come")
	}
	r.answer(http.StatusServiceUnavailable)
	eventually(t, 15*time.Second, "several exports fail", func() bool { n, _ := r.asked(); return n >= 3 })
	st := must(s.status())(t)
	if st.OTLP == nil || st.OTLP.Fault == "" || st.OTLP.Failed < 2 || !st.Healthy {
		t.Errorf("status while the collector is away: %+v, healthy %v", st.OTLP, st.Healthy)
	}
	r.answer(0)
	eventually(t, 15*time.Second, "exports are taken again", func() bool { st, err := s.status(); return err == nil && st.OTLP.Fault == "" })
	before, _ := r.asked()
	if code := p.stop(); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	if after, _ := r.asked(); after <= before {
		t.Error("no last export at the stop")
	}
	log := p.log.String()
	if n := strings.Count(log, "metrics not exported"); n != 1 || strings.Count(log, "metrics are exported again") != 1 {
		t.Errorf("the outage is told %d times", n)
	}
	if all := log + fmt.Sprintf("%+v", st.OTLP); strings.Contains(all, secret) {
		t.Error("a secret is told")
	}
	for _, line := range strings.Split(strings.TrimSpace(log), "\n") {
		if !strings.HasPrefix(line, "{") {
			t.Errorf("written past the log: %s", line)
		}
	}
}

// Redirects are not followed, because the headers are for one address, and what a
// collector leaves out is told.
func TestACollectorsAnswerIsUnderstood(t *testing.T) {
	t.Parallel()
	answer := func(w http.ResponseWriter) {}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { answer(w) }))
	defer server.Close()
	o := must(newOTLP(config.OTLP{Endpoint: server.URL + "/v1/metrics", Interval: time.Minute, Timeout: 10 * time.Second}, prometheus.NewRegistry(), zap.NewNop()))(t)
	defer o.client.CloseIdleConnections()
	partial := must(proto.Marshal(&collectorpb.ExportMetricsServiceResponse{PartialSuccess: &collectorpb.ExportMetricsPartialSuccess{RejectedDataPoints: 3, ErrorMessage: "too old"}}))(t)
	for want, do := range map[string]func(http.ResponseWriter){
		"<nil>": func(w http.ResponseWriter) {},
		`the collector left out 3 values: "too old"`: func(w http.ResponseWriter) { _, _ = w.Write(partial) },
		"the collector answers 307 Temporary Redirect": func(w http.ResponseWriter) {
			w.Header().Set("Location", "http://127.0.0.1:1/")
			w.WriteHeader(http.StatusTemporaryRedirect)
		},
		"the collector answers 400 Bad Request": func(w http.ResponseWriter) { w.WriteHeader(400) },
	} {
		answer = do
		if got := fmt.Sprint(o.export(t.Context(), 10*time.Second)); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestHeadersFileIsUnderstoodOrRefused(t *testing.T) {
	for text, want := range map[string]string{
		"A: b\n\n# c\nx-y:  z:1 \r\n": "map[A:b X-Y:z:1] <nil>", "": "map[] <nil>",
		"A b\n": `map[] FILE: line 1 is not "Name: value"`, "ok: 1\nsecret value: x": `map[] FILE: line 2 is not "Name: value"`,
		strings.Repeat("x", maxHeaders+1): "map[] FILE is larger than 64 KiB",
	} {
		file := t.TempDir() + "/headers"
		check(t, os.WriteFile(file, []byte(text), 0o600))
		got, err := readHeaders(file)
		if s := strings.ReplaceAll(fmt.Sprint(got, " ", err), file, "FILE"); s != want {
			t.Errorf("%.40q: %s, want %s", text, s, want)
		}
	}
}

func FuzzHeadersFile(f *testing.F) {
	f.Add("A: b\n# c\nx-y: z")
	f.Fuzz(func(t *testing.T, text string) {
		file := t.TempDir() + "/headers"
		check(t, os.WriteFile(file, []byte(text), 0o600))
		all, err := readHeaders(file)
		for name := range all {
			if err != nil || name == "" || strings.ContainsAny(name, " \t\n") {
				t.Errorf("%q gives %q, %v", text, name, err)
			}
		}
	})
}
