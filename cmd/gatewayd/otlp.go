package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	bridge "go.opentelemetry.io/contrib/bridges/prometheus"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/resource"
	"go.uber.org/zap"

	"gatewayd/internal/config"
)

// maxHeaders bounds headers_file.
const maxHeaders = 64 << 10

// otlpExport sends the same metrics as /metrics to a collector, from the same
// registry, so that no counter exists twice.
type otlpExport struct {
	cfg      config.OTLP
	exporter sdk.Exporter
	provider *sdk.MeterProvider
	reader   *sdk.ManualReader
	log      *zap.Logger

	mu sync.Mutex
	st otlpReport // guarded by mu
}

// otlpReport is what the export says of itself.
type otlpReport struct {
	Endpoint string     `json:"endpoint"`
	Exports  uint64     `json:"exports"` // that the collector took
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
	options := []otlpmetrichttp.Option{
		otlpmetrichttp.WithEndpointURL(cfg.Endpoint), otlpmetrichttp.WithHeaders(headers), otlpmetrichttp.WithTimeout(cfg.Timeout),
		otlpmetrichttp.WithCompression(otlpmetrichttp.GzipCompression),
		// The next export has the same counters: sending an old one again is of no use.
		otlpmetrichttp.WithRetry(otlpmetrichttp.RetryConfig{Enabled: false}),
	}
	if cfg.CA != "" {
		pem, err := os.ReadFile(cfg.CA)
		roots := x509.NewCertPool()
		if err == nil && !roots.AppendCertsFromPEM(pem) {
			err = fmt.Errorf("%s: no certificate in the file", cfg.CA)
		}
		if err != nil {
			return nil, fmt.Errorf("admin.otlp.ca: %w", err)
		}
		options = append(options, otlpmetrichttp.WithTLSClientConfig(&tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}))
	}
	exporter, err := otlpmetrichttp.New(context.Background(), options...)
	if err != nil {
		return nil, fmt.Errorf("admin.otlp: %w", err)
	}
	reader := sdk.NewManualReader(sdk.WithProducer(bridge.NewMetricProducer(bridge.WithGatherer(registry))))
	attributes := []attribute.KeyValue{attribute.String("service.name", "gatewayd"), attribute.String("service.version", readBuild().Version),
		attribute.String("host.name", machineName())}
	for _, k := range slices.Sorted(maps.Keys(cfg.Attributes)) {
		attributes = append(attributes, attribute.String(k, cfg.Attributes[k]))
	}
	return &otlpExport{cfg: cfg, exporter: exporter, reader: reader, log: log, st: otlpReport{Endpoint: cfg.Endpoint},
		provider: sdk.NewMeterProvider(sdk.WithReader(reader), sdk.WithResource(resource.NewSchemaless(attributes...)))}, nil
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
	// What the library has to say besides errors of an export, such as values that the
	// collector left out. It has one place for that in the process.
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { o.done(err) }))
	tick := time.NewTicker(o.cfg.Interval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			o.export(ctx)
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			defer cancel()
			o.export(last)
			return errors.Join(o.provider.Shutdown(last), o.exporter.Shutdown(last))
		}
	}
}

func (o *otlpExport) export(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, o.cfg.Timeout)
	defer cancel()
	var all metricdata.ResourceMetrics
	err := o.reader.Collect(ctx, &all)
	if err == nil {
		err = o.exporter.Export(ctx, &all)
	}
	o.done(err)
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
		o.log.Warn("metrics not exported, trying again", zap.String("endpoint", o.cfg.Endpoint), zap.Error(err))
	case err == nil && failing:
		o.log.Info("metrics are exported again", zap.String("endpoint", o.cfg.Endpoint))
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
