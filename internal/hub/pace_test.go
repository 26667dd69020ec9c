package hub

import (
	"testing"
	"testing/synctest"
	"time"

	"gatewayd/internal/hub/hubtest"
)

// TestLateAcknowledgementsReduceWhatIsInFlightAndItRecovers has a hub that throttles
// without cutting, and then no more.
func TestLateAcknowledgementsReduceWhatIsInFlightAndItRecovers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, true, hubtest.Options{})
		r.start()
		r.connected()
		r.box.text(numbered(0, 100)...)
		r.drained()
		if st := r.s.Status(); st.Throttled || st.Window != 16 {
			t.Errorf("before: %+v", st)
		}
		r.hub.Throttle(2)
		r.box.text(numbered(100, 500)...)
		begin := time.Now()
		r.await("noticed", time.Minute, func() bool { return r.s.Status().Throttled })
		r.drained()
		if took := time.Since(begin); took > 210*time.Second {
			t.Errorf("400 messages at 2 per second took %v", took)
		}
		if st := r.s.Status(); st.Window > 8 {
			t.Errorf("window %d under throttling", st.Window)
		}
		r.hub.Throttle(0)
		r.await("recovered", 10*time.Minute, func() bool { st := r.s.Status(); return !st.Throttled && st.Window == 16 })
		if n := len(r.hub.Connections()); n != 1 {
			t.Errorf("%d connections", n)
		}
		r.checkStream(500)
	})
}

// TestSlowLinkIsNoThrottling delays every acknowledgement by the same time: at most
// half of the throughput may be lost to the mistake.
func TestSlowLinkIsNoThrottling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, true, hubtest.Options{})
		r.start()
		r.connected()
		r.box.text(numbered(0, 50)...)
		r.drained()
		r.hub.DelayPuback(5 * time.Second)
		time.Sleep(time.Minute)
		r.box.text(numbered(50, 1050)...)
		begin := time.Now()
		for r.box.waiting() > 0 {
			time.Sleep(time.Second)
			if w := r.s.Status().Window; w < 8 {
				t.Fatalf("window %d", w)
			}
		}
		if took := time.Since(begin); took > 2*1000/16*5*time.Second {
			t.Errorf("took %v", took)
		}
		r.checkStream(1050)
	})
}

func TestPaceFallsOnlyWhileThatHelps(t *testing.T) {
	now := time.Now()
	p := pace{limit: 64, most: 64}
	p.begin(now)
	for _, step := range []struct {
		delay time.Duration
		limit int
	}{
		{100 * time.Millisecond, 64},
		{2 * time.Second, 64},  // not yet
		{12 * time.Second, 32}, // late
		{5 * time.Second, 16},  // it helps
		{5 * time.Second, 16},  // it does not
		{time.Second, 16},
		{6 * time.Second, 8}, // late again
	} {
		now = now.Add(20 * time.Second)
		if p.acked(now, step.delay); p.limit != step.limit {
			t.Errorf("after %v: %d, want %d", step.delay, p.limit, step.limit)
		}
	}
	p = pace{limit: 64, most: 64}
	p.begin(now)
	for range 10 {
		now = now.Add(time.Minute)
		p.acked(now, 10*time.Second)
	}
	if p.limit != 64 {
		t.Errorf("a link that was always slow: %d", p.limit)
	}
}
