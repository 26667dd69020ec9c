package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gatewayd/internal/hub/hubtest"
)

// packedRoute makes the plant's route pack.
func (s *plant) packedRoute(more string) {
	s.writeConfig("hub: {trust: [hub-ca.pem], system_roots: false, connect_rate: 200, window: 16}\n")
	b := string(must(os.ReadFile(s.path("config.yaml")))(s.t))
	s.write("config.yaml", strings.Replace(b, `properties: {sensor: "{2}"}}`, `properties: {sensor: "{2}"}, `+more+"}", 1))
}

// unpacked are the readings that arrived, each as a message of its own under the id
// of its pack.
func unpacked(t testing.TB, messages []hubtest.Message) (all []hubtest.Message, packs int) {
	t.Helper()
	ids := map[string]bool{}
	for _, m := range messages {
		ids[m.ID] = true
		var elements []struct {
			Body json.RawMessage `json:"body"`
			Text string          `json:"text"`
		}
		if err := json.Unmarshal(m.Body, &elements); err != nil {
			t.Fatalf("%v: %q", err, m.Body)
		}
		times := map[string]int{}
		for _, e := range elements {
			one := m
			one.Body = append([]byte(e.Text), e.Body...)
			one.ID = fmt.Sprint(m.ID, "#", times[string(one.Body)])
			times[string(one.Body)]++
			all = append(all, one)
		}
	}
	return all, len(ids)
}

// Sensors send, the hub loses acknowledgements and cuts connections, and the gateway
// is killed again and again: every acknowledged reading arrives, in order, and in one
// pack only, however often that is sent.
func TestPackedReadingsAreNeitherLostNorDoubledOverKills(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{MaxInbound: -1}, "press-1")
	s.packedRoute("pack: {max_bytes: 4KiB, max_delay: 20ms}")
	s.hub.DelayPuback(20 * time.Millisecond)
	var arrived atomic.Int64
	s.hub.Judge(func(hubtest.Message) hubtest.Fate {
		switch n := arrived.Add(1); {
		case n%97 == 0:
			return hubtest.KeepAndCut
		case n%31 == 0:
			return hubtest.KeepOnly
		}
		return hubtest.Keep
	})
	p := s.run()
	f := s.fleet(20, 20, 100, 0)
	for range kills {
		acked, packs := f.acked(), arrived.Load()
		eventually(t, 30*time.Second, "acknowledgements, and packs at the hub", func() bool { return f.acked() > acked+500 && arrived.Load() > packs+5 })
		p.kill()
		p = s.run()
	}
	f.end()
	s.hub.Judge(nil)
	p.kill() // what was sent without an acknowledgement is sent again
	s.run()
	s.drained(time.Minute)
	readings, packs := unpacked(t, s.hub.Messages())
	resent := f.account(t, readings)
	if resent == 0 || packs == 0 || len(readings) < 3*packs {
		t.Errorf("%d readings in %d packs, %d resent: that was no test", len(readings), packs, resent)
	}
	t.Logf("%d kills, %d readings acknowledged, in %d packs, %d resent with the same id", kills+1, f.acked(), packs, resent)
	if out := s.get("/metrics"); !strings.Contains(out, `gatewayd_messages_delivered_total{identity="press-1"}`) {
		t.Error("no count of readings")
	}
}

func TestReloadChangesPacking(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{}, "press-1")
	s.run()
	s.post("sensors/press-1/a", `{"n":1}`, "")
	s.packedRoute("pack: {max_bytes: 4KiB, max_delay: 50ms, format: ndjson}, compress: gzip")
	if code, out := s.exitCode("reload", "-c", "config.yaml"); code != 0 {
		t.Fatal(out)
	}
	s.post("sensors/press-1/a", `{"n":2}`, "")
	s.drained(20 * time.Second)
	var got []string
	for _, m := range s.hub.Messages() {
		got = append(got, fmt.Sprintf("%s %s", m.Properties["$.ct"], bytes.TrimSpace(m.Body)[:1]))
	}
	slices.Sort(got)
	if want := []string{"application/json {", "application/x-ndjson {"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// BenchmarkPacked is the way of readings of 100 bytes through a real process to a hub
// that is 50 ms away, with window 16: one by one, and packed to 4 KiB.
func BenchmarkPacked(b *testing.B) {
	const length = 8 * time.Second
	rate := func(b *testing.B, pack string) float64 {
		s := newPlant(b, hubtest.Options{MaxInbound: -1, Ledger: hubtest.CountOnly}, "press-7")
		s.packedRoute(pack)
		s.hub.DelayPuback(50 * time.Millisecond)
		p := s.run()
		f := s.fleet(50, 100, 100, 0)
		delivered := func() float64 {
			r, err := s.status()
			check(b, err)
			return float64(r.Identities[0].Delivered)
		}
		time.Sleep(2 * time.Second) // connected, a backlog has come together
		from, messages := delivered(), s.hub.Counters("").Messages
		time.Sleep(length)
		readings := delivered() - from
		b.ReportMetric(readings/float64(s.hub.Counters("").Messages-messages), "readings/message")
		f.end()
		p.kill()
		return readings / length.Seconds()
	}
	var alone float64
	for _, c := range []struct{ name, pack string }{{"alone", "max_age: 0s"}, {"packed", "pack: {max_bytes: 4KiB, max_delay: 1s}"}} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				r := rate(b, c.pack)
				b.ReportMetric(r, "readings/s")
				if c.name == "alone" {
					alone = r
				} else if alone > 0 {
					b.ReportMetric(r/alone, "times")
				}
			}
		})
	}
}
