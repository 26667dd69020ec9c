package main

import (
	"maps"
	"slices"
	"time"

	dto "github.com/prometheus/client_model/go"
	collectorpb "go.opentelemetry.io/proto/slim/otlp/collector/metrics/v1"
	commonpb "go.opentelemetry.io/proto/slim/otlp/common/v1"
	metricspb "go.opentelemetry.io/proto/slim/otlp/metrics/v1"
	resourcepb "go.opentelemetry.io/proto/slim/otlp/resource/v1"
)

// otlpRequest is what was gathered, in OpenTelemetry's form. Names stay those of
// /metrics, so that dashboards work with both.
func otlpRequest(families []*dto.MetricFamily, attributes map[string]string, started, now time.Time) *collectorpb.ExportMetricsServiceRequest {
	resource := &resourcepb.Resource{Attributes: []*commonpb.KeyValue{
		otlpText("service.name", "gatewayd"), otlpText("service.version", readBuild().Version), otlpText("host.name", machineName())}}
	for _, k := range slices.Sorted(maps.Keys(attributes)) {
		resource.Attributes = append(resource.Attributes, otlpText(k, attributes[k]))
	}
	// The start by the clock of now: the machine may have started in 1970.
	at := otlpTimes{start: uint64(ago(now, started).UnixNano()), now: uint64(now.UnixNano())}
	scope := &metricspb.ScopeMetrics{Scope: &commonpb.InstrumentationScope{Name: "gatewayd", Version: readBuild().Version}}
	for _, f := range families {
		if m := at.metric(f); m != nil {
			scope.Metrics = append(scope.Metrics, m)
		}
	}
	return &collectorpb.ExportMetricsServiceRequest{ResourceMetrics: []*metricspb.ResourceMetrics{{Resource: resource, ScopeMetrics: []*metricspb.ScopeMetrics{scope}}}}
}

func otlpText(key, value string) *commonpb.KeyValue {
	return &commonpb.KeyValue{Key: key, Value: &commonpb.AnyValue{Value: &commonpb.AnyValue_StringValue{StringValue: value}}}
}

func otlpLabels(m *dto.Metric) []*commonpb.KeyValue {
	var all []*commonpb.KeyValue
	for _, l := range m.GetLabel() {
		all = append(all, otlpText(l.GetName(), l.GetValue()))
	}
	return all
}

// otlpTimes are in Unix nanoseconds.
type otlpTimes struct{ start, now uint64 }

const cumulative = metricspb.AggregationTemporality_AGGREGATION_TEMPORALITY_CUMULATIVE

// metric is nil for a kind that nothing here has.
func (t otlpTimes) metric(f *dto.MetricFamily) *metricspb.Metric {
	out := &metricspb.Metric{Name: f.GetName(), Description: f.GetHelp()}
	switch f.GetType() {
	case dto.MetricType_COUNTER:
		sum := &metricspb.Sum{IsMonotonic: true, AggregationTemporality: cumulative}
		for _, m := range f.GetMetric() {
			p := t.number(m, m.GetCounter().GetValue())
			p.StartTimeUnixNano = t.start
			sum.DataPoints = append(sum.DataPoints, p)
		}
		out.Data = &metricspb.Metric_Sum{Sum: sum}
	case dto.MetricType_GAUGE, dto.MetricType_UNTYPED:
		gauge := &metricspb.Gauge{}
		for _, m := range f.GetMetric() {
			gauge.DataPoints = append(gauge.DataPoints, t.number(m, m.GetGauge().GetValue()+m.GetUntyped().GetValue()))
		}
		out.Data = &metricspb.Metric_Gauge{Gauge: gauge}
	case dto.MetricType_HISTOGRAM:
		histogram := &metricspb.Histogram{AggregationTemporality: cumulative}
		for _, m := range f.GetMetric() {
			histogram.DataPoints = append(histogram.DataPoints, t.histogram(m))
		}
		out.Data = &metricspb.Metric_Histogram{Histogram: histogram}
	case dto.MetricType_SUMMARY:
		summary := &metricspb.Summary{}
		for _, m := range f.GetMetric() {
			summary.DataPoints = append(summary.DataPoints, t.summary(m))
		}
		out.Data = &metricspb.Metric_Summary{Summary: summary}
	default:
		return nil
	}
	return out
}

func (t otlpTimes) number(m *dto.Metric, v float64) *metricspb.NumberDataPoint {
	return &metricspb.NumberDataPoint{Attributes: otlpLabels(m), TimeUnixNano: t.now, Value: &metricspb.NumberDataPoint_AsDouble{AsDouble: v}}
}

// histogram: Prometheus counts what is at most a bound, OpenTelemetry what is between
// two, with one bucket more for what is above all.
func (t otlpTimes) histogram(m *dto.Metric) *metricspb.HistogramDataPoint {
	h := m.GetHistogram()
	sum := h.GetSampleSum()
	p := &metricspb.HistogramDataPoint{Attributes: otlpLabels(m), StartTimeUnixNano: t.start, TimeUnixNano: t.now, Count: h.GetSampleCount(), Sum: &sum}
	below := uint64(0)
	for _, b := range h.GetBucket() {
		p.ExplicitBounds = append(p.ExplicitBounds, b.GetUpperBound())
		p.BucketCounts = append(p.BucketCounts, b.GetCumulativeCount()-below)
		below = b.GetCumulativeCount()
	}
	p.BucketCounts = append(p.BucketCounts, h.GetSampleCount()-below)
	return p
}

func (t otlpTimes) summary(m *dto.Metric) *metricspb.SummaryDataPoint {
	s := m.GetSummary()
	p := &metricspb.SummaryDataPoint{Attributes: otlpLabels(m), StartTimeUnixNano: t.start, TimeUnixNano: t.now, Count: s.GetSampleCount(), Sum: s.GetSampleSum()}
	for _, q := range s.GetQuantile() {
		p.QuantileValues = append(p.QuantileValues, &metricspb.SummaryDataPoint_ValueAtQuantile{Quantile: q.GetQuantile(), Value: q.GetValue()})
	}
	return p
}
