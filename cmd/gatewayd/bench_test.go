package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/hub/hubtest"
)

// usage is what the kernel says about a process.
type usage struct {
	cpu time.Duration
	rss int64 // bytes
}

func (p *process) usage(b testing.TB) usage {
	b.Helper()
	var u usage
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	for _, i := range []int{11, 12} { // utime, stime in hundredths of a second
		ticks, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			b.Fatal(err)
		}
		u.cpu += time.Duration(ticks) * 10 * time.Millisecond
	}
	pages, err := strconv.ParseInt(fields[21], 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	u.rss = pages * int64(os.Getpagesize())
	return u
}

// BenchmarkEndToEnd sends 256 byte readings from 50 sensors with 100 in flight
// through a real process to the stand-in hub, with window 1000. Sensors, gateway
// and hub share the machine; CPU and memory are the gateway's alone.
func BenchmarkEndToEnd(b *testing.B) {
	const length = 10 * time.Second
	for b.Loop() {
		s := newPlant(b, hubtest.Options{MaxInbound: -1, Ledger: hubtest.CountOnly}, "press-7")
		s.writeConfig("hub: {trust: [hub-ca.pem], system_roots: false, window: 1000}\n")
		p := s.run()
		f := s.fleet(50, 100, 256, 0)
		time.Sleep(2 * time.Second) // connected, buffers grown
		acked, delivered, before := f.acked(), s.hub.Counters("").Messages, p.usage(b)
		time.Sleep(length)
		ackedNow, deliveredNow, after := f.acked(), s.hub.Counters("").Messages, p.usage(b)
		f.end()
		s.drained(time.Minute)
		r := must(s.status())(b)
		p.kill()
		seconds := length.Seconds()
		b.ReportMetric(float64(ackedNow-acked)/seconds, "acked/s")
		b.ReportMetric(float64(deliveredNow-delivered)/seconds, "delivered/s")
		b.ReportMetric(float64((after.cpu-before.cpu).Microseconds())/float64(deliveredNow-delivered), "cpu-µs/msg")
		b.ReportMetric(float64(after.rss)/(1<<20), "MiB-RSS")
		b.ReportMetric(r.Disk.Amplification, "disk-B/payload-B")
	}
}

// BenchmarkOneSensor is one sensor with 1,000 in flight against one that waits
// for each acknowledgement.
func BenchmarkOneSensor(b *testing.B) {
	for _, window := range []int{1, 1000} {
		b.Run(fmt.Sprintf("in-flight=%d", window), func(b *testing.B) {
			for b.Loop() {
				s := newPlant(b, hubtest.Options{MaxInbound: -1, Ledger: hubtest.CountOnly}, "press-7")
				s.writeConfig("hub: {trust: [hub-ca.pem], system_roots: false, window: 1000}\n")
				p := s.run()
				f := s.fleet(1, window, 256, 0)
				time.Sleep(time.Second)
				acked := f.acked()
				time.Sleep(5 * time.Second)
				now := f.acked()
				f.end()
				p.kill()
				b.ReportMetric(float64(now-acked)/5, "acked/s")
			}
		})
	}
}

// BenchmarkIdleIdentities is what 500 connected identities with nothing to send cost.
func BenchmarkIdleIdentities(b *testing.B) {
	for b.Loop() {
		one := idleRSS(b, 1)
		many := idleRSS(b, 501)
		b.ReportMetric(float64(many-one)/500/1024, "KiB-RSS/identity")
		b.ReportMetric(float64(many)/(1<<20), "MiB-RSS")
	}
}

func idleRSS(b *testing.B, identities int) int64 {
	b.Helper()
	names := make([]string, identities)
	for i := range names {
		names[i] = fmt.Sprintf("d%d", i)
	}
	s := newPlant(b, hubtest.Options{Ledger: hubtest.CountOnly}, names...)
	s.writeConfig("hub: {trust: [hub-ca.pem], system_roots: false, connect_rate: 500}\n")
	p := s.run()
	// The hub is asked, not /status: reports for many identities are no idling.
	eventually(b, time.Minute, "all identities connect", func() bool { return s.hub.Live() == identities })
	time.Sleep(30 * time.Second) // the collector has run and burst buffers are gone
	rss := p.usage(b).rss
	p.kill()
	return rss
}

// BenchmarkRenewal500 renews the certificates of 500 identities within a second
// and waits until the hub has seen every new one.
func BenchmarkRenewal500(b *testing.B) {
	for b.Loop() {
		names := make([]string, 500)
		for i := range names {
			names[i] = fmt.Sprintf("d%d", i)
		}
		s := newPlant(b, hubtest.Options{Ledger: hubtest.CountOnly, MaxInbound: -1}, names...)
		s.writeConfig("hub: {trust: [hub-ca.pem], system_roots: false, connect_rate: 50}\n")
		p := s.run()
		eventually(b, time.Minute, "all identities connect", func() bool { return s.hub.Live() == len(names) })
		pairs := make([]*certtest.Pair, len(names))
		for i, name := range names {
			pairs[i] = must(s.ca.Issue(certtest.Leaf{CN: name}))(b)
		}
		start := time.Now()
		for i, name := range names {
			check(b, pairs[i].Write(filepath.Join(s.dir, name+".pem"), filepath.Join(s.dir, name+".key")))
		}
		written := time.Since(start)
		left := make(map[string]*certtest.Pair, len(names))
		for i, name := range names {
			left[name] = pairs[i]
		}
		eventually(b, 5*time.Minute, "all identities are on the new certificate", func() bool {
			for name, pair := range left {
				if s.serialSeen(name, pair.Leaf) {
					delete(left, name)
				}
			}
			return len(left) == 0
		})
		b.ReportMetric(time.Since(start).Seconds(), "s-until-all-renewed")
		b.ReportMetric(written.Seconds(), "s-to-write")
		p.kill()
	}
}
