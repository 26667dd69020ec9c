package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"gatewayd/internal/hub/hubtest"
)

func TestWireBytesGoToTheMonthThatTheClockKnows(t *testing.T) {
	at := func(s string) time.Time { return must(time.Parse(time.RFC3339, s))(t) }
	type step struct {
		now     string
		trusted bool
		bytes   uint64
	}
	for _, tt := range []struct {
		name                string
		steps               []step
		month               string
		this, last, undated uint64
	}{
		{"one month", []step{{"2026-11-01T00:00:00Z", true, 5}, {"2026-11-30T23:59:59Z", true, 6}}, "2026-11", 11, 0, 0},
		{"the next", []step{{"2026-11-30T23:59:59Z", true, 6}, {"2026-12-01T00:00:01Z", true, 7}}, "2026-12", 7, 6, 0},
		{"over the year, on the 31st", []step{{"2026-12-31T12:00:00Z", true, 6}, {"2027-01-31T12:00:00Z", true, 7}}, "2027-01", 7, 6, 0},
		{"a month without the gateway", []step{{"2026-11-30T12:00:00Z", true, 6}, {"2027-01-02T12:00:00Z", true, 7}}, "2027-01", 7, 0, 0},
		{"boot in 1970", []step{{"1970-01-01T00:01:00Z", false, 3}}, "", 0, 0, 3},
		{"boot in 1970, then the time", []step{{"1970-01-01T00:01:00Z", false, 3}, {"2026-11-05T00:00:00Z", true, 4}}, "2026-11", 7, 0, 0},
		{"reboot in 1970 in a known month", []step{{"2026-11-05T00:00:00Z", true, 4}, {"1970-01-01T00:01:00Z", false, 3}}, "2026-11", 4, 0, 3},
		{"the clock had run ahead", []step{{"2038-01-01T00:00:00Z", true, 4}, {"2026-11-05T00:00:00Z", true, 3}}, "2026-11", 7, 0, 0},
		{"set back over the turn of the month", []step{{"2026-12-01T00:00:01Z", true, 4}, {"2026-11-30T23:59:59Z", true, 3}, {"2026-12-01T00:00:01Z", true, 2}}, "2026-12", 2, 7, 0},
		{"another zone", []step{{"2026-12-01T00:30:00+02:00", true, 4}}, "2026-11", 4, 0, 0},
	} {
		var r wireRecord
		for _, s := range tt.steps {
			r.book(traffic{Sent: s.bytes}, at(s.now), s.trusted)
		}
		if r.Month != tt.month || r.ThisMonth.Sent != tt.this || r.LastMonth.Sent != tt.last || r.Undated.Sent != tt.undated {
			t.Errorf("%s: %+v", tt.name, r)
		}
	}
}

// TestWireFileIsWrittenRarelyAndReadAgain counts the writes of a day.
func TestWireFileIsWrittenRarelyAndReadAgain(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		now := func() (time.Time, bool) { return time.Now(), true }
		b := openWireBook(dir, now, zap.NewNop())
		run := newLifetime(func(error) {})
		run.start("wire", b.Run)
		a := b.of("press-7")
		var seen string
		writes := 0
		for range 24 * 60 {
			a.wire.Add(10, 1)
			time.Sleep(time.Minute)
			if raw, _ := os.ReadFile(b.path); string(raw) != seen {
				seen = string(raw)
				writes++
			}
		}
		if writes < 20 || writes > 25 {
			t.Errorf("%d writes in a day", writes)
		}
		a.wire.Add(1, 1)
		run.stop()
		r := openWireBook(dir, now, zap.NewNop()).of("press-7").report()
		if r.ThisMonth != (traffic{24*60*10 + 1, 24*60 + 1}) || r.Sent != 0 {
			t.Errorf("after a restart %+v", r)
		}
	})
}

func TestBrokenWireFileStopsNobody(t *testing.T) {
	dir := t.TempDir()
	check(t, os.WriteFile(filepath.Join(dir, "wire.json"), []byte(`{"press-7":`), 0o600))
	core, logs := observer.New(zap.WarnLevel)
	b := openWireBook(dir, func() (time.Time, bool) { return time.Now(), true }, zap.New(core))
	b.of("press-7").wire.Add(1, 1)
	var failing bool
	b.save(&failing)
	if logs.Len() != 1 || failing {
		t.Errorf("%d lines, failing %v", logs.Len(), failing)
	}
	if saved, err := readWire(b.path); err != nil || saved["press-7"].ThisMonth.Sent != 1 {
		t.Errorf("%+v, %v", saved, err)
	}
}

// TestWireBookForgetsWhoIsGone: names come and go, the file stays small and the month's total what it is.
func TestWireBookForgetsWhoIsGone(t *testing.T) {
	dir := t.TempDir()
	at := must(time.Parse(time.RFC3339, "2026-11-05T00:00:00Z"))(t)
	now := func() (time.Time, bool) { return at, true }
	open := func() *wireBook { return openWireBook(dir, now, zap.NewNop()) }
	b := open()
	var failing bool
	b.of("press-7").wire.Add(1_000_000, 0)
	const names = 3 * wireGone
	sum := uint64(1_000_000)
	for i := range uint64(names) {
		name := fmt.Sprintf("trial-%d", i)
		b.of(name).wire.Add(int(i), 1)
		sum += i
		b.leave(name)
	}
	check := func(b *wireBook, records int, sent, received uint64) {
		t.Helper()
		b.save(&failing)
		saved, err := readWire(b.path)
		if err != nil || failing || len(saved) != records || len(b.accounts) != records {
			t.Errorf("%d records on disk, %d in memory, %v; want %d", len(saved), len(b.accounts), err, records)
		}
		if got := b.total(); got.ThisMonth.plus(got.LastMonth) != (traffic{sent, received}) {
			t.Errorf("total %+v, want %d sent, %d received", got, sent, received)
		}
	}
	check(b, 1+wireGone+1, sum, names)
	// Who comes back goes on where he was, when he was one of those with much.
	if r := b.of(fmt.Sprintf("trial-%d", names-1)).report(); r.ThisMonth.Sent != names-1 {
		t.Errorf("back with %+v", r)
	}
	// After a restart nobody is configured but press-7.
	b = open()
	b.of("press-7").wire.Add(5, 0)
	check(b, 1+wireGone+1, sum+5, names)
	// A month later their bytes are last month's, and after another one they are gone.
	at = at.AddDate(0, 1, 0)
	check(b, 1+wireGone+1, sum+5, names)
	at = at.AddDate(0, 1, 0)
	b.of("press-7").wire.Add(7, 0)
	check(b, 2, 7, 0)
}

// TestWireBytesAreShownAndKept has a real gateway send, stop and start.
func TestWireBytesAreShownAndKept(t *testing.T) {
	s := newPlant(t, hubtest.Options{}, "press-7")
	p := s.run()
	wire := func() (w wireReport) {
		eventually(t, 20*time.Second, "connected", func() bool {
			r, err := s.status()
			if err != nil || len(r.Identities) == 0 || !r.Identities[0].Connected {
				return false
			}
			w = r.Identities[0].Wire
			return true
		})
		return w
	}
	first := wire()
	if first.Sent < 1000 || first.Received < 1000 || first.Sent > 20_000 || first.Received > 20_000 {
		t.Errorf("a handshake has %+v", first)
	}
	resp := must(http.Post("http://"+s.http+"/v1/messages/sensors/press-7/x", "text/plain", strings.NewReader(strings.Repeat("x", 100_000))))(t)
	resp.Body.Close()
	eventually(t, 20*time.Second, "counted", func() bool { return wire().Sent > first.Sent+100_000 })
	metrics := s.get("/metrics")
	for _, want := range []string{`gatewayd_identity_wire_bytes_total{direction="sent",identity="press-7"} 1`, `gatewayd_identity_wire_month_bytes{direction="received",identity="press-7"}`} {
		if !strings.Contains(metrics, want) {
			t.Errorf("no %s in the metrics", want)
		}
	}
	before := wire()
	if code := p.stop(); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	s.run()
	after := wire()
	kept := after.ThisMonth.plus(after.Undated)
	if kept.Sent < before.Sent || after.Sent > 20_000 {
		t.Errorf("before %+v, after %+v", before, after)
	}
}
