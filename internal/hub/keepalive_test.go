package hub

import (
	"context"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"gatewayd/internal/hub/hubtest"
)

// forgetful is a connection through a box that forgets it after so much silence, and
// swallows what comes later.
type forgetful struct {
	net.Conn
	after time.Duration

	mu   sync.Mutex
	last time.Time
	gone bool
}

func (f *forgetful) passes() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	f.gone = f.gone || now.Sub(f.last) > f.after
	f.last = now
	return !f.gone
}

func (f *forgetful) Write(p []byte) (int, error) {
	if !f.passes() {
		return len(p), nil
	}
	return f.Conn.Write(p)
}

func (f *forgetful) Read(p []byte) (int, error) {
	for {
		n, err := f.Conn.Read(p)
		if err != nil || f.passes() {
			return n, err
		}
	}
}

// keepRig is a session with keepalive: auto whose links forget after so much silence.
func keepRig(t *testing.T, after time.Duration) *rig {
	r := newRig(t, true, hubtest.Options{})
	r.cfg.KeepAliveAuto = true
	dial := r.cfg.DialContext
	r.cfg.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &forgetful{Conn: c, after: after, last: time.Now()}, nil
	}
	return r
}

func TestKeepAliveGrowsWhileTheLinkHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := keepRig(t, 24*time.Hour)
		r.start()
		r.connected()
		if got := r.s.Status().KeepAlive; got != time.Minute {
			t.Errorf("begins at %v", got)
		}
		time.Sleep(10 * time.Minute)
		if got := r.s.Status().KeepAlive; got != 4*time.Minute {
			t.Errorf("after ten minutes %v", got)
		}
		time.Sleep(3 * time.Hour)
		if st := r.s.Status(); st.KeepAlive != MaxKeepAlive || st.KeepAliveLimit != 0 {
			t.Errorf("in the end %v, limit %v", st.KeepAlive, st.KeepAliveLimit)
		}
		if all := r.hub.ConnectionsOf("dev-1"); len(all) != 1 || all[0].KeepAlive != MaxKeepAlive {
			t.Errorf("%d connections, %v promised", len(all), all[0].KeepAlive)
		}
		r.strict()
		r.stop()
	})
}

// TestKeepAliveFindsWhatTheLinkBears has boxes that forget after various times: after
// the first hours no link dies any more for most of a day.
func TestKeepAliveFindsWhatTheLinkBears(t *testing.T) {
	for _, after := range []time.Duration{5 * time.Second, 40 * time.Second, 2 * time.Minute, 5 * time.Minute, 14 * time.Minute} {
		t.Run(after.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := keepRig(t, after)
				r.start()
				time.Sleep(4 * time.Hour)
				early := len(r.hub.ConnectionsOf("dev-1"))
				time.Sleep(12 * time.Hour)
				st := r.s.Status()
				if st.State != StateConnected || pingAfter(st.KeepAlive) > after || st.KeepAlive < after/2 && st.KeepAlive < MaxKeepAlive/2 {
					t.Errorf("%s with %v, limit %v", st.State, st.KeepAlive, st.KeepAliveLimit)
				}
				if late := len(r.hub.ConnectionsOf("dev-1")) - early; early > 8 || late > 1 {
					t.Errorf("%d connections in four hours, %d in twelve more", early, late)
				}
				r.box.text("still there")
				r.drained()
				r.stop()
			})
		})
	}
}

// TestKeepAliveIsNoMatterOfWhoHangsUp keeps it when the hub closes.
func TestKeepAliveIsNoMatterOfWhoHangsUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := keepRig(t, 24*time.Hour)
		r.start()
		r.connected()
		time.Sleep(10 * time.Minute)
		before := r.s.Status()
		for range 3 {
			r.hub.DropConnections("dev-1")
			time.Sleep(5 * time.Minute)
		}
		if st := r.s.Status(); st.KeepAlive < before.KeepAlive || st.KeepAliveLimit != 0 {
			t.Errorf("from %v to %v, limit %v", before.KeepAlive, st.KeepAlive, st.KeepAliveLimit)
		}
		r.stop()
	})
}
