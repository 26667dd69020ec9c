package main

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"gatewayd/internal/hub/hubtest"
)

// BenchmarkOpenPacks is what large packs cost that are open at the same time: 500 identities with eight routes each, and
// 24 KiB in the pack of each, which may have 200 KiB and an hour. The hub is in this process, the gateway in another.
func BenchmarkOpenPacks(b *testing.B) {
	const identities, routes, parts, part = 500, 8, 6, 4 << 10
	for b.Loop() {
		names := make([]string, identities)
		for i := range names {
			names[i] = fmt.Sprintf("d%d", i)
		}
		s := newPlant(b, hubtest.Options{Ledger: hubtest.CountOnly}, names...)
		config := string(must(os.ReadFile(s.path("config.yaml")))(b))
		head, _, _ := strings.Cut(config, "routes:\n")
		head += "routes:\n"
		for i := range routes {
			head += fmt.Sprintf("  - {match: sensors/+/r%d, to: \"{1}\", pack: {max_bytes: 200KiB, max_delay: 1h}}\n", i)
		}
		s.write("config.yaml", head)
		p := s.run()
		eventually(b, 2*time.Minute, "all identities connect", func() bool { return s.hub.Live() == identities })
		before := p.usage(b)
		body := `"` + strings.Repeat("x", part-2) + `"`
		work := make(chan string, 64)
		var posting sync.WaitGroup
		for range 32 {
			posting.Go(func() {
				for topic := range work {
					if code := s.post(topic, body, ""); code != http.StatusAccepted {
						b.Errorf("%d for %s", code, topic)
					}
				}
			})
		}
		for range parts {
			for r := range routes {
				for _, name := range names {
					work <- fmt.Sprintf("sensors/%s/r%d", name, r)
				}
			}
		}
		close(work)
		posting.Wait()
		time.Sleep(15 * time.Second) // the collector has run
		after := p.usage(b)
		b.ReportMetric(float64(before.rss)/(1<<20), "MiB-before")
		b.ReportMetric(float64(after.rss)/(1<<20), "MiB-with-packs")
		b.ReportMetric(float64(identities*routes*parts*part)/(1<<20), "MiB-of-readings")
		b.ReportMetric(float64(s.hub.Counters("").Messages), "packs-early")
		p.kill()
	}
}
