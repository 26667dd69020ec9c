package hub

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"gatewayd/internal/hub/hubtest"
)

// TestTwoGatewaysWithOneIdentityDoNotFight has two of them, idle and busy. Each must
// name it within minutes, and together they must not displace each other faster than
// once a minute each; when one goes, the other works.
func TestTwoGatewaysWithOneIdentityDoNotFight(t *testing.T) {
	for _, busy := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, true, hubtest.Options{})
			rival := newSession(r.cfg, newBox(), newStore(r.store.Current()), NewPacer(Pace{}), zap.NewNop())
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan struct{})
			r.start()
			r.connected()
			if busy {
				stop := feed(r)
				defer stop()
			}
			go func() { defer close(ended); _ = rival.Run(ctx) }()
			r.await("recognised by both", 5*time.Minute, func() bool {
				return r.s.Status().State == string(Contested) || rival.Status().State == string(Contested)
			})
			if n := len(r.hub.ConnectionsOf("dev-1")); n > 12 {
				t.Errorf("%d connections until it was recognised", n)
			}
			time.Sleep(10 * time.Minute) // the other one, too
			before := len(r.hub.ConnectionsOf("dev-1"))
			time.Sleep(30 * time.Minute)
			n := len(r.hub.ConnectionsOf("dev-1")) - before
			if n < 1 || n > 15 {
				t.Errorf("%d connections in half an hour", n)
			}
			cancel()
			<-ended
			r.await("works alone", 15*time.Minute, func() bool { return r.s.Status().State == StateConnected })
			if f := r.s.Status().Fault; f != nil {
				t.Errorf("fault %v", f)
			}
			if len(r.store.missed) > 0 {
				t.Errorf("the certificate was blamed: %v", r.store.missed)
			}
			r.stop()
		})
	}
}
