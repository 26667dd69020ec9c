package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	collectorpb "go.opentelemetry.io/proto/slim/otlp/collector/metrics/v1"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"gatewayd/internal/config"
)

// Bounds of headers_file and of a collector's answer.
const (
	maxHeaders    = 64 << 10
	maxOTLPAnswer = 64 << 10
)

// otlpExport sends the same metrics as /metrics to a collector, from the same
// registry, so that no counter exists twice. It is OTLP 1 over HTTP with protobuf:
// https://opentelemetry.io/docs/specs/otlp/. The messages are OpenTelemetry's own;
// its SDK would bring gRPC with it, 4 MB of program and 3 MB of memory for everybody.
type otlpExport struct {
	cfg      config.OTLP
	registry *prometheus.Registry
	headers  map[string]string
	client   *http.Client
	started  time.Time
	log      *zap.Logger

	mu sync.Mutex
	st otlpReport // guarded by mu
}

// otlpReport is what the export says of itself.
type otlpReport struct {
	Endpoint string     `json:"endpoint"` // without its query, which may be a secret
	Exports  uint64     `json:"exports"`  // that the collector took
	Failed   uint64     `json:"failed"`
	Latest   *time.Time `json:"latest,omitempty"` // when the collector took the latest
	Fault    string     `json:"fault"`            // of the latest export, "" when it was taken
}

// newOTLP reads the files and connects to nothing.
func newOTLP(cfg config.OTLP, registry *prometheus.Registry, log *zap.Logger) (*otlpExport, error) {
	headers, err := readHeaders(cfg.HeadersFile)
	if err != nil {
		return nil, fmt.Errorf("admin.otlp.headers_file: %w", err)
	}
	endpoint, err := url.Parse(cfg.Endpoint)
	if err != nil {
		return nil, errors.New("admin.otlp.endpoint: is not a URL")
	}
	endpoint.RawQuery = ""
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, MaxIdleConns: 1, IdleConnTimeout: 2 * time.Minute, ForceAttemptHTTP2: true}
	if cfg.CA != "" {
		pem, err := os.ReadFile(cfg.CA)
		roots := x509.NewCertPool()
		if err == nil && !roots.AppendCertsFromPEM(pem) {
			err = fmt.Errorf("%s: no certificate in the file", cfg.CA)
		}
		if err != nil {
			return nil, fmt.Errorf("admin.otlp.ca: %w", err)
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	}
	// Headers go to the endpoint and to nobody whom it names.
	client := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return &otlpExport{cfg: cfg, registry: registry, headers: headers, client: client, started: time.Now(), log: log,
		st: otlpReport{Endpoint: endpoint.String()}}, nil
}

// readHeaders reads "Name: value" lines. Problems are told without the values.
func readHeaders(path string) (map[string]string, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxHeaders+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxHeaders {
		return nil, fmt.Errorf("%s is larger than %d KiB", path, maxHeaders>>10)
	}
	headers := make(map[string]string)
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, maxHeaders+1)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		if name = strings.TrimSpace(name); !ok || name == "" || strings.ContainsAny(name, " \t") {
			return nil, fmt.Errorf("%s: line %d is not \"Name: value\"", path, n)
		}
		headers[http.CanonicalHeaderKey(name)] = strings.TrimSpace(value)
	}
	return headers, lines.Err()
}

// Run exports until ctx ends, and then once more: the last minutes of a gateway are
// the ones that somebody is going to ask for.
func (o *otlpExport) Run(ctx context.Context) error {
	defer o.client.CloseIdleConnections()
	tick := time.NewTicker(o.cfg.Interval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			o.done(o.export(ctx, o.cfg.Timeout))
		case <-ctx.Done():
			o.done(o.export(context.WithoutCancel(ctx), min(o.cfg.Timeout, lastExport)))
			return nil
		}
	}
}

// lastExport bounds what the one at the stop may take.
const lastExport = 2 * time.Second

// export sends once. A failed one is not tried again: the next has the same counters.
func (o *otlpExport) export(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	families, err := o.registry.Gather()
	if err != nil {
		return err
	}
	raw, err := proto.Marshal(otlpRequest(families, o.cfg.Attributes, o.started, time.Now()))
	if err != nil {
		return err
	}
	var body bytes.Buffer
	zip := gzip.NewWriter(&body)
	_, err = zip.Write(raw)
	if err := errors.Join(err, zip.Close()); err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, o.cfg.Endpoint, &body)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "gatewayd/"+readBuild().Version)
	for k, v := range o.headers {
		req.Header.Set(k, v)
	}
	req.Header.Set("Content-Type", "application/x-protobuf")
	req.Header.Set("Content-Encoding", "gzip")
	return o.send(req)
}

func (o *otlpExport) send(req *http.Request) error {
	resp, err := o.client.Do(req)
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		return wrapped.Err // without the query
	}
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxOTLPAnswer))
	if err != nil {
		return err
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return fmt.Errorf("the collector answers %s", resp.Status)
	}
	var result collectorpb.ExportMetricsServiceResponse
	// What is taken and answered with something else is taken all the same.
	if proto.Unmarshal(answer, &result) == nil && result.GetPartialSuccess().GetRejectedDataPoints() > 0 {
		return fmt.Errorf("the collector left out %d values: %.200q", result.PartialSuccess.RejectedDataPoints, result.PartialSuccess.ErrorMessage)
	}
	return nil
}

// done counts, and logs when exports begin or cease to fail.
func (o *otlpExport) done(err error) {
	o.mu.Lock()
	failing := o.st.Fault != ""
	if err != nil {
		o.st.Failed++
		o.st.Fault = err.Error()
	} else {
		now := time.Now()
		o.st.Exports++
		o.st.Fault, o.st.Latest = "", &now
	}
	o.mu.Unlock()
	switch {
	case err != nil && !failing:
		o.log.Warn("metrics not exported, trying again", zap.String("endpoint", o.st.Endpoint), zap.Error(err))
	case err == nil && failing:
		o.log.Info("metrics are exported again", zap.String("endpoint", o.st.Endpoint))
	}
}

func (o *otlpExport) report(now time.Time) *otlpReport {
	if o == nil {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	r := o.st
	if r.Latest != nil {
		r.Latest = timeOrNil(ago(now, *r.Latest))
	}
	return &r
}
