package statuspage

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
)

func TestChartsCountWholeMinutesAndForgetAfterAnHour(t *testing.T) {
	h := newHistory()
	id := Identity{Name: "a", Received: 1000, Delivered: 900}
	h.minute([]Identity{id})
	if c := h.chart("a"); len(c.In) != 0 || c.In0 != 1000 {
		t.Errorf("before the first minute: %+v", c)
	}
	for i := range 100 {
		id.Received += uint64(i)
		id.Delivered += 2
		h.minute([]Identity{id})
	}
	c := h.chart("a")
	want := make([]uint32, 0, 60)
	for i := 40; i < 100; i++ {
		want = append(want, uint32(i))
	}
	if !slices.Equal(c.In, want) || len(c.Out) != 60 || c.Out[0] != 2 || c.In0 != id.Received || c.Out0 != id.Delivered {
		t.Errorf("after 100 minutes: %+v", c)
	}
	// A session that begins anew counts from zero.
	id.Delivered = 5
	h.minute([]Identity{id})
	if c := h.chart("a"); c.Out[59] != 5 {
		t.Errorf("after a counter began anew: %d", c.Out[59])
	}
	h.minute(nil)
	if h.chart("a") != nil {
		t.Error("an identity that is gone is kept")
	}
}

func TestALateIdentityHasOnlyItsOwnMinutes(t *testing.T) {
	h := newHistory()
	for range 70 {
		h.minute([]Identity{{Name: "a"}})
	}
	for i := range 3 {
		h.minute([]Identity{{Name: "a"}, {Name: "b", Received: uint64(10 * i)}})
	}
	if c := h.chart("b"); !slices.Equal(c.In, []uint32{10, 10}) {
		t.Errorf("%+v", c)
	}
}

// A thousand identities with a full hour and full rings of events stay small.
func TestMemoryOfAThousandIdentitiesIsBounded(t *testing.T) {
	before := heap()
	h, r := newHistory(), NewRecorder()
	log := zap.New(r.Core())
	all := make([]Identity, 1000)
	for i := range all {
		all[i].Name = fmt.Sprintf("identity-%d", i)
	}
	for range 70 {
		h.minute(all)
	}
	for range 100 {
		for i := range all {
			log.Info("certificate committed", zap.String("identity", all[i].Name), zap.String("fingerprint", strings.Repeat("a", 64)),
				zap.String("sha256", strings.Repeat("b", 64)), zap.Duration("gap", time.Millisecond))
		}
	}
	used := heap() - before
	t.Logf("%d KiB for 1,000 identities", used>>10)
	if used > 24<<20 {
		t.Errorf("%d MiB", used>>20)
	}
	if n := len(r.of("identity-7")); n != MaxIdentityEvents {
		t.Errorf("%d events of one identity", n)
	}
	if n := len(r.since(0)); n != MaxEvents {
		t.Errorf("%d events", n)
	}
	r.keep(map[string]bool{"identity-7": true})
	if n := len(r.identities); n != 1 {
		t.Errorf("%d identities remembered after a reload left one", n)
	}
	runtime.KeepAlive(h)
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

func TestEventsAreTheLatestLinesOfTheLog(t *testing.T) {
	r := NewRecorder()
	log := zap.New(r.Core()).Named("hub").With(zap.String("identity", "press-7"))
	log.Debug("not a change of state")
	log.Warn("not connected to the hub", zap.Error(fmt.Errorf("refused")), zap.Duration("wait", 1500*time.Millisecond), zap.String("long", strings.Repeat("ä", 400)))
	zap.New(r.Core()).Info("started", zap.Int("identities", 2))
	all := r.since(0)
	if len(all) != 2 || all[0].Identity != "press-7" || all[0].Level != "warn" || all[0].Part != "hub" || all[1].Identity != "" {
		t.Fatalf("%+v", all)
	}
	if f := all[0].Fields; f[0] != (Field{"error", "refused"}) || f[1] != (Field{"wait", "1.5s"}) || len(f[2].Value) > maxEventText+3 || !strings.HasSuffix(f[2].Value, "ä…") {
		t.Errorf("%+v", f)
	}
	if own := r.of("press-7"); len(own) != 1 || own[0].Seq != 1 {
		t.Errorf("own events %+v", own)
	}
	if later := r.since(1); len(later) != 1 || later[0].Text != "started" {
		t.Errorf("after the first: %+v", later)
	}
}
