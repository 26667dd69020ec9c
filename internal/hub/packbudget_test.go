package hub

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/hub/hubtest"
	"gatewayd/internal/queue"
)

// packFleet is several sessions over one journal with one budget for their packs.
type packFleet struct {
	*packRig
	queues []*queue.Queue
	sess   []*Session
}

func newPackFleet(t *testing.T, n int, opt hubtest.Options) *packFleet {
	f := &packFleet{packRig: newPackRig(t, opt)}
	for i := range n {
		name := fmt.Sprintf("line-%d", i)
		if err := f.hub.AddDevice(hubtest.Device{DeviceID: name}); err != nil {
			t.Fatal(err)
		}
		cfg := f.cfg
		cfg.Name, cfg.DeviceID = name, name
		cfg.Packs = func() (*queue.Queue, error) {
			return f.journal.Queue(name+"/packs", queue.Limits{Always: true})
		}
		q := must(f.journal.Queue(name, queue.Limits{}))
		f.queues = append(f.queues, q)
		f.sess = append(f.sess, NewSession(cfg, q, newStore(f.issue(certtest.Leaf{CN: name})), f.pacer, zap.NewNop()))
	}
	f.s = f.sess[0]
	return f
}

func (f *packFleet) start() {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, s := range f.sess {
		wg.Go(func() { _ = s.Run(ctx) })
	}
	f.end = sync.OnceFunc(func() { cancel(); wg.Wait() })
}

// give puts a reading of 1 KiB into the queue of a session, for one of its routes, whose packs are large and wait long.
func (f *packFleet) give(who, route int) {
	f.t.Helper()
	m := queue.Message{Source: "s", Topic: "t", Route: fmt.Sprintf("routes[%d]", route), ContentType: "application/json", ContentEncoding: "utf-8",
		Payload: []byte(`"` + strings.Repeat("x", 1<<10-2) + `"`), Pack: queue.Pack{MaxBytes: 200 << 10, MaxDelay: time.Hour}}
	if _, err := f.queues[who].AppendWait(f.t.Context(), m); err != nil {
		f.t.Fatal(err)
	}
}

// TestOpenPacksOfAllAreBounded: when all packs take too much the largest goes early and small ones stay; nothing is lost,
// and all is given back.
func TestOpenPacksOfAllAreBounded(t *testing.T) {
	const sessions, most = 6, 128 << 10
	f := newPackFleet(t, sessions, hubtest.Options{})
	b := &f.pacer.packs
	b.most, b.hard = most, 2*most
	f.start()
	for i := range sessions {
		f.give(i, 0) // a small one each, which has nothing to do with what follows
	}
	n := 0
	for range 150 {
		for route := range 4 {
			f.give(0, 1+route)
			f.give(1, 1+route)
			n += 2
		}
		// A session needs a moment to hear that it shall close one.
		f.await("few bytes in open packs", 10*time.Second, func() bool { return b.open.Load() <= most })
	}
	f.await("packs that went early", 10*time.Second, func() bool { return len(f.hub.Messages()) > n/100 })
	for _, m := range f.hub.Messages() {
		if got := len(elements(t, m)); got < 8 {
			t.Errorf("a pack of %d went early", got)
		}
		if m.Identity != "line-0" && m.Identity != "line-1" {
			t.Errorf("a small pack of %s went early", m.Identity)
		}
	}
	f.end()
	if open, used := b.open.Load(), b.used.Load(); open != 0 || used != 0 || len(b.all) > 0 {
		t.Errorf("%d bytes open, %d in all, %d sessions are left", open, used, len(b.all))
	}
}

// TestPacksOfASlowHubAreBounded: the hub takes nothing, so that closing packs is of no help.
func TestPacksOfASlowHubAreBounded(t *testing.T) {
	const sessions, most, hard, readings = 4, 64 << 10, 96 << 10, 400
	f := newPackFleet(t, sessions, hubtest.Options{})
	b := &f.pacer.packs
	b.most, b.hard = most, hard
	for i := range sessions {
		f.sess[i].cfg.Window = 1
	}
	f.hub.WithholdPuback(-1)
	f.start()
	highest := int64(0)
	for range readings {
		for i := range sessions {
			f.give(i, 0)
		}
		highest = max(highest, b.used.Load())
	}
	// An element may double the body that it joins.
	if bound := int64(hard + sessions*8<<10); highest > bound || highest < most {
		t.Errorf("%d bytes at most, the bound is %d", highest, bound)
	}
	f.hub.WithholdPuback(0)
	f.end()
	if open, used := b.open.Load(), b.used.Load(); open != 0 || used != 0 {
		t.Errorf("%d bytes open, %d in all are left", open, used)
	}
}
