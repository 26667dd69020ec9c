package hub

import (
	"context"
	"crypto/x509"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"gatewayd/internal/certstore"
	"gatewayd/internal/certstore/certtest"
)

func TestStepOfTheClockEndsTheWaitForATrustedServer(t *testing.T) {
	for _, tt := range []struct {
		kind Kind
		wake bool
	}{{Untrusted, true}, {Refused, false}} {
		t.Run(string(tt.kind), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				clock := certstore.OpenClock(certstore.ClockOptions{})
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				go func() { _ = clock.Run(ctx) }() // it only ever returns nil
				store := &memoryStore{changed: make(chan struct{}, 1)}
				s := newSession(Config{Identity: Identity{Name: "press-7"}, Clock: clock}, newBox(), store, NewPacer(Pace{}), zap.NewNop())
				synctest.Wait()
				go func() {
					before := clock.Generation()
					clock.Observed(&x509.Certificate{NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)})
					for clock.Generation() == before && ctx.Err() == nil {
						time.Sleep(time.Second)
					}
					poke(store.changed)
				}()
				start := time.Now()
				s.pause(ctx, 30*time.Minute, tt.kind)
				if woken := time.Since(start) < 20*time.Minute; woken != tt.wake {
					t.Errorf("waited %v", time.Since(start))
				}
			})
		})
	}
}

func TestOtherRootsEndTheWaitForATrustedServer(t *testing.T) {
	for _, tt := range []struct {
		kind Kind
		wake bool
	}{{Untrusted, true}, {Refused, false}} {
		synctest.Test(t, func(t *testing.T) {
			var pool atomic.Pointer[x509.CertPool]
			pool.Store(x509.NewCertPool())
			s := newSession(Config{Identity: Identity{Name: "press-7"}, Roots: pool.Load}, newBox(), &memoryStore{changed: make(chan struct{}, 1)}, NewPacer(Pace{}), zap.NewNop())
			time.AfterFunc(time.Minute, func() { pool.Store(x509.NewCertPool()) }) // the same
			time.AfterFunc(5*time.Minute, func() { pool.Store(must(certtest.NewCA("the hub's")).Pool()) })
			start := time.Now()
			s.pause(t.Context(), 30*time.Minute, tt.kind)
			if d := time.Since(start); tt.wake != (d >= 5*time.Minute && d < 6*time.Minute) {
				t.Errorf("%s: waited %v", tt.kind, d)
			}
		})
	}
}
