package hub

import (
	"testing"
	"testing/synctest"
	"time"

	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/hub/hubtest"
)

// cutting lets the hub end every connection that brings a message under one of the
// certificates.
func (r *rig) cutting(fate hubtest.Fate, thumbprints ...string) {
	r.hub.Judge(func(m hubtest.Message) hubtest.Fate {
		for _, p := range thumbprints {
			if m.Fingerprint == p {
				return fate
			}
		}
		return hubtest.Keep
	})
}

// An idle identity adopts what the hub accepts. When the first message shows that it
// was not good after all, the one before it carries on at once.
func TestCertificateThatFailsAtTheFirstMessageGivesWayToTheOneBefore(t *testing.T) {
	for name, fate := range map[string]hubtest.Fate{"cut": hubtest.Cut, "never acknowledged": hubtest.Lose} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, true, hubtest.Options{})
				old := r.store.Current()
				r.start()
				r.connected()
				r.box.text("0")
				r.drained()
				// Two renewals without a message between them: the one that has
				// carried messages is what counts.
				for range 2 {
					bad := r.issue(certtest.Leaf{})
					r.cutting(fate, bad.SHA256())
					r.store.offer(bad)
					r.await("committed", time.Minute, func() bool { return same(r.store.Current(), bad) })
				}
				bad := r.store.Current()
				begin := time.Now()
				r.box.text("1", "2", "3")
				r.drained()
				if took, limit := time.Since(begin), 3*time.Second; fate == hubtest.Cut && took > limit {
					t.Errorf("the messages took %s, limit %s", took, limit)
				}
				r.await("old one current", time.Minute, func() bool { return same(r.store.Current(), old) })
				if r.store.missReason(bad) == "" {
					t.Error("no miss")
				}
				r.checkStream(4)
				r.connected()
			})
		})
	}
}

func TestOutageAfterARotationTakesNothingBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, true, hubtest.Options{})
		old := r.store.Current()
		r.start()
		r.connected()
		fresh := r.issue(certtest.Leaf{})
		r.store.offer(fresh)
		r.await("committed", time.Minute, func() bool { return same(r.store.Current(), fresh) })
		// Everything that carries a message is ended, whatever its certificate: a
		// quota that is spent.
		r.cutting(hubtest.Cut, old.SHA256(), fresh.SHA256())
		r.box.text(numbered(0, 5)...)
		time.Sleep(10 * time.Minute)
		if !same(r.store.Current(), fresh) || r.store.missReason(fresh) != "" {
			t.Errorf("taken back in an outage: %q", r.store.missReason(fresh))
		}
		tried := func() map[string]int {
			n := map[string]int{}
			for _, c := range r.hub.Connections() {
				n[c.Fingerprint]++
			}
			return n
		}
		if n := tried(); n[old.SHA256()] < 2 || n[fresh.SHA256()] < 2 {
			t.Errorf("they do not take turns: %v", n)
		}
		// The old one is what works no more, as after its expiry.
		r.cutting(hubtest.Cut, old.SHA256())
		r.drained()
		if !same(r.store.Current(), fresh) || r.store.missReason(fresh) != "" {
			t.Errorf("taken back although it works: %q", r.store.missReason(fresh))
		}
		r.checkStream(5)
		// From here on nothing is left of the old one.
		r.connected()
		before := tried()[old.SHA256()]
		r.cutting(hubtest.Cut, old.SHA256(), fresh.SHA256())
		r.box.text("5")
		time.Sleep(10 * time.Minute)
		if after := tried()[old.SHA256()]; after != before {
			t.Errorf("the old one was dialled again: %d times, then %d", before, after)
		}
	})
}
