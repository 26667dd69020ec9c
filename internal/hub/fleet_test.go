package hub

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"gatewayd/internal/certstore"
	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/hub/hubtest"
)

func TestTwoIdentitiesOnOneHostNeverShareATLSSession(t *testing.T) {
	for _, version := range []uint16{0x0303, 0x0304} {
		r := newRig(t, false, hubtest.Options{MinTLS: version, MaxTLS: version})
		var rigs []*rig
		for i := range 2 {
			name := fmt.Sprintf("twin-%d", i)
			if err := r.hub.AddDevice(hubtest.Device{DeviceID: name}); err != nil {
				t.Fatal(err)
			}
			q := *r
			q.box, q.store = newBox(), newStore(r.issue(certtest.Leaf{CN: name}))
			q.cfg.Name, q.cfg.DeviceID = name, name
			q.cfg.Timing = Timing{RetryMin: time.Millisecond, Stable: time.Millisecond, ProofIdle: 10 * time.Millisecond}
			q.start()
			q.connected()
			rigs = append(rigs, &q)
		}
		for range 5 {
			for _, q := range rigs {
				c := q.issue(certtest.Leaf{CN: q.cfg.Name})
				q.store.offer(c)
				q.box.text("x")
				q.await("committed", 10*time.Second, func() bool { return same(q.store.Current(), c) })
				q.hub.DropConnections(q.cfg.Name)
				q.box.text("y")
				q.drained()
			}
		}
		for _, c := range r.hub.Connections() {
			if c.Resumed || c.CommonName != c.Identity && c.Identity != "" {
				t.Errorf("connection of %q with the certificate of %q, resumed %v", c.Identity, c.CommonName, c.Resumed)
			}
		}
	}
}

// renewAll renews n identities at once under load and returns how long it took.
func renewAll(t testing.TB, n int, connects float64) time.Duration {
	r := newRig(t, false, hubtest.Options{})
	r.pacer = NewPacer(Pace{Connects: 10000})
	var all []*rig
	var wg sync.WaitGroup
	for i := range n {
		name := fmt.Sprintf("dev-%03d", i+100)
		if err := r.hub.AddDevice(hubtest.Device{DeviceID: name}); err != nil {
			t.Fatal(err)
		}
		q := *r
		q.box, q.store = newBox(), newStore(r.issue(certtest.Leaf{CN: name}))
		q.cfg.Name, q.cfg.DeviceID = name, name
		q.start()
		all = append(all, &q)
	}
	for _, q := range all {
		q.connected()
	}
	r.pacer.SetRates(connects, 0)
	fresh := make([]*certstore.Credential, n)
	for i, q := range all {
		fresh[i] = q.issue(certtest.Leaf{CN: q.cfg.Name})
	}
	sent := make([]int, n)
	ctx, cancel := context.WithCancel(context.Background())
	for i, q := range all {
		wg.Go(func() {
			for ctx.Err() == nil {
				q.box.text(strconv.Itoa(sent[i]))
				sent[i]++
				time.Sleep(100 * time.Millisecond)
			}
		})
	}
	begin := time.Now()
	for i, q := range all {
		q.store.offer(fresh[i])
	}
	for i, q := range all {
		q.await("committed", 2*time.Minute, func() bool { return same(q.store.Current(), fresh[i]) })
	}
	took := time.Since(begin)
	cancel()
	wg.Wait()
	for i, q := range all {
		q.drained()
		ids := map[string]bool{}
		got := r.hub.MessagesOf(q.cfg.Name)
		for _, m := range got {
			ids[m.ID] = true
		}
		// When the hub takes long to answer, sending goes on over the old connection, and what
		// is then not acknowledged comes again: counted, and under the same id.
		st := q.s.Status()
		if len(ids) != sent[i] || len(got)-len(ids) > int(st.Resent) {
			t.Errorf("%s: %d messages arrived under %d ids, %d sent, %d sent again", q.cfg.Name, len(got), len(ids), sent[i], st.Resent)
		}
		if st.Connects[ResultAccepted] != 2 {
			t.Errorf("%s: %v", q.cfg.Name, st.Connects)
		}
	}
	for _, q := range all {
		q.stop()
	}
	return took
}

func TestManyRenewalsAtOnceFinishAndLoseNothing(t *testing.T) {
	n, rate := 40, 50.0
	if long {
		n = 500
	}
	took := renewAll(t, n, rate)
	t.Logf("%d identities renewed in %s at %g connects per second", n, took, rate)
	if limit := time.Duration(float64(n)/rate*float64(time.Second)) + 20*time.Second; took > limit {
		t.Errorf("took longer than %s", limit)
	}
}

func TestCandidateIsNotTriedTwiceAtATimeAcrossIdentities(t *testing.T) {
	p := NewPacer(Pace{Connects: 1000, Trials: 2})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	a, _ := p.trial(ctx)
	b, _ := p.trial(ctx)
	if _, err := p.trial(ctx); err == nil {
		t.Error("a third trial began while two were running")
	}
	a()
	b()
	if done, err := p.trial(t.Context()); err != nil {
		t.Error(err)
	} else {
		done()
	}
}
