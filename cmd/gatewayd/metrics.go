package main

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

// syncObserver is the histogram of sync times; it exists before the registry
// because the journal reports to it from its opening on.
type syncObserver struct{ prometheus.Histogram }

func newSyncObserver() *syncObserver {
	return &syncObserver{prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "gatewayd_queue_sync_seconds", Help: "Time that one sync of the queue took.",
		// 0.25 ms, a good disk, to 8 s, a dying card.
		Buckets: prometheus.ExponentialBuckets(0.00025, 2, 16),
	})}
}

func (s *syncObserver) observe(d time.Duration) { s.Observe(d.Seconds()) }

// metric is one family that is read from a report.
type metric struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
}

func gauge(name, help string, labels ...string) metric {
	return metric{prometheus.NewDesc("gatewayd_"+name, help, labels, nil), prometheus.GaugeValue}
}

func counter(name, help string, labels ...string) metric {
	return metric{prometheus.NewDesc("gatewayd_"+name, help, labels, nil), prometheus.CounterValue}
}

// collector turns reports into metrics at the moment of a scrape, so that no
// counter exists twice. Labels are bounded by the configuration and by fixed
// lists of reasons.
type collector struct {
	g *gateway

	connected, notAfter, rotations, connects             metric
	received, refused, delivered, resent, dropped        metric
	wire, wireMonth, wireAll, keepAlive                  metric
	messages, bytes, oldest, aside, inFlight             metric
	diskWritten, payload, diskBytes, healthy, clockTrust metric
	notBefore, left, cert, candidate                     metric
	rotated, gap, retry                                  metric
}

func newCollector(g *gateway) *collector {
	return &collector{
		g:           g,
		connected:   gauge("identity_connected", "1 while the identity's connection to the hub is up.", "identity"),
		notAfter:    gauge("certificate_not_after_seconds", "Unix time at which the certificate in use expires.", "identity"),
		rotations:   counter("rotations_total", "Changes of certificate by result: committed, missed, rejected.", "identity", "result"),
		connects:    counter("connects_total", "Connects to the hub by result: accepted, or the kind of fault.", "identity", "result"),
		received:    counter("messages_received_total", "Messages accepted from local sources.", "source"),
		refused:     counter("messages_refused_total", "Messages refused at the local side.", "source", "reason"),
		wire:        counter("identity_wire_bytes_total", "Bytes to (sent) and from (received) the hub since the start, TLS, WebSocket and proxy included.", "identity", "direction"),
		wireMonth:   gauge("identity_wire_month_bytes", "The same in this month of UTC, kept over restarts.", "identity", "direction"),
		wireAll:     gauge("wire_month_bytes", "The same of all identities, those included that are not configured any more.", "direction"),
		keepAlive:   gauge("identity_keepalive_seconds", "Keep-alive towards the hub.", "identity"),
		delivered:   counter("messages_delivered_total", "Readings that the hub acknowledged; those of a pack count each.", "identity"),
		resent:      counter("messages_resent_total", "Readings sent again after a connection ended without their acknowledgement.", "identity"),
		dropped:     counter("messages_dropped_total", "Messages that left the queue without the hub's acknowledgement.", "identity", "reason"),
		messages:    gauge("queue_messages", "Messages that wait for the hub.", "identity"),
		bytes:       gauge("queue_bytes", "Bytes of the messages that wait for the hub.", "identity"),
		oldest:      gauge("queue_oldest_seconds", "Age of the oldest message that waits.", "identity"),
		aside:       gauge("queue_aside_messages", "Messages set aside for inspection.", "identity"),
		inFlight:    gauge("messages_in_flight", "Messages sent to the hub and not yet acknowledged.", "identity"),
		diskWritten: counter("queue_disk_written_bytes_total", "Bytes that the queue wrote to the device, in whole blocks."),
		payload:     counter("queue_payload_bytes_total", "Payload bytes stored in the queue; the ratio to the bytes written is the write amplification."),
		diskBytes:   gauge("queue_disk_bytes", "Size of the queue's folder."),
		healthy:     gauge("healthy", "1 while nothing is wrong; /status names the first fault."),
		notBefore:   gauge("certificate_not_before_seconds", "Unix time from which the certificate in use is valid.", "identity"),
		cert:        gauge("certificate_info", "1; the labels are the certificate in use.", "identity", "fingerprint", "serial"),
		candidate:   gauge("certificate_candidate", "1; the labels are the state of the newest certificate and why: none when it is in use.", "identity", "state", "reason"),
		left:        gauge("certificate_left_seconds", "Time until the certificate in use expires, by the clock that dials use; a day has 86400.", "identity"),
		rotated:     gauge("rotation_last_seconds", "Unix time of the last change of certificate.", "identity"),
		gap:         gauge("rotation_gap_seconds", "Time without an acknowledged message at the last change of certificate.", "identity"),
		retry:       gauge("certificate_next_retry_seconds", "Unix time at which a certificate that failed is tried again.", "identity"),
		clockTrust:  gauge("clock_trusted", "1 while the machine's clock is believed."),
	}
}

// Describe sends nothing: the families depend on the configuration.
func (c *collector) Describe(chan<- *prometheus.Desc) {}

// Collect reads one report.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	r := c.g.report()
	send := func(m metric, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(m.desc, m.kind, v, labels...)
	}
	send(c.diskWritten, float64(r.Disk.WrittenBytes))
	send(c.payload, float64(r.Disk.PayloadBytes))
	send(c.diskBytes, float64(r.Disk.Bytes))
	send(c.healthy, truth(r.Healthy))
	send(c.clockTrust, truth(r.Clock == "trusted"))
	send(c.wireAll, float64(r.Wire.ThisMonth.Sent), "sent")
	send(c.wireAll, float64(r.Wire.ThisMonth.Received), "received")
	for _, s := range r.Sources {
		send(c.received, float64(s.Received), s.Source)
		for reason, n := range s.Refused {
			send(c.refused, float64(n), s.Source, reason)
		}
	}
	for _, id := range r.Identities {
		send(c.connected, truth(id.Connected), id.Name)
		if cert := id.Certificate.Current; cert != nil {
			send(c.notAfter, float64(cert.NotAfter.Unix()), id.Name)
			send(c.notBefore, float64(cert.NotBefore.Unix()), id.Name)
			send(c.left, cert.DaysLeft*86400, id.Name)
			send(c.cert, 1, id.Name, cert.Fingerprint, cert.Serial)
		}
		send(c.candidate, 1, id.Name, string(id.Certificate.CandidateState), id.Certificate.CandidateReason)
		if id.Rotation != nil {
			send(c.rotated, float64(id.Rotation.At.Unix()), id.Name)
			send(c.gap, id.Rotation.GapMS/1000, id.Name)
		}
		if at := id.Certificate.NextRetry; !at.IsZero() {
			send(c.retry, float64(at.Unix()), id.Name)
		}
		send(c.rotations, float64(id.Certificate.Committed), id.Name, "committed")
		send(c.rotations, float64(id.Certificate.MissedTrials), id.Name, "missed")
		send(c.rotations, float64(id.Certificate.RejectedTotal), id.Name, "rejected")
		for result, n := range id.Connects {
			send(c.connects, float64(n), id.Name, result)
		}
		send(c.wire, float64(id.Wire.Sent), id.Name, "sent")
		send(c.wire, float64(id.Wire.Received), id.Name, "received")
		send(c.wireMonth, float64(id.Wire.ThisMonth.Sent), id.Name, "sent")
		send(c.wireMonth, float64(id.Wire.ThisMonth.Received), id.Name, "received")
		send(c.keepAlive, id.KeepAlive, id.Name)
		send(c.delivered, float64(id.Delivered), id.Name)
		send(c.resent, float64(id.Resent), id.Name)
		for reason, n := range id.Queue.Dropped {
			send(c.dropped, float64(n), id.Name, reason)
		}
		send(c.messages, float64(id.Queue.Messages), id.Name)
		send(c.bytes, float64(id.Queue.Bytes), id.Name)
		send(c.oldest, id.Queue.OldestSeconds, id.Name)
		send(c.aside, float64(id.Queue.Aside), id.Name)
		send(c.inFlight, float64(id.InFlight), id.Name)
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// openMetrics has the gateway's own metrics beside those of Go and the process.
func (g *gateway) openMetrics(a *arrangement) error {
	g.registry = prometheus.NewRegistry()
	g.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), g.syncs, newCollector(g))
	if a.cfg.Admin.OTLP.Endpoint == "" {
		return nil
	}
	var err error
	if g.otlp, err = newOTLP(a.cfg.Admin.OTLP, g.registry, g.log.Named("otlp")); err != nil {
		return &exitError{exitUsage, err}
	}
	return nil
}
