package hub

import (
	"testing"
	"time"

	"gatewayd/internal/hub/hubtest"
)

// Who supervises a session sees from its turns whether it hangs: an idle one goes
// round when it is asked, one that is held does not, one without a hub is excused.
func TestTurnsTellAHangingSession(t *testing.T) {
	r := newRig(t, false, hubtest.Options{})
	r.start()
	r.await("connected", 10*time.Second, func() bool { _, connected := r.s.Turns(); return connected })
	for range 3 {
		before, _ := r.s.Turns()
		r.await("an idle session goes round", 10*time.Second, func() bool { n, _ := r.s.Turns(); return n > before })
	}

	// The session is held in the middle of its next turn.
	r.box.mu.Lock()
	poke(r.box.ready)
	var before uint64
	r.await("it stands still", 10*time.Second, func() bool {
		n, _ := r.s.Turns()
		time.Sleep(50 * time.Millisecond)
		before, _ = r.s.Turns()
		return n == before
	})
	if _, connected := r.s.Turns(); !connected {
		t.Error("a session that hangs is excused")
	}
	r.box.mu.Unlock()
	r.await("it goes on", 10*time.Second, func() bool { n, _ := r.s.Turns(); return n > before })

	r.hub.StopListening()
	r.hub.DropConnections("dev-1")
	r.await("without a hub it is excused", 10*time.Second, func() bool { _, connected := r.s.Turns(); return !connected })
}
