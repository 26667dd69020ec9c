package downstream

import (
	"context"
	"slices"
	"sync"
	"testing"

	"gatewayd/internal/packet"
)

func TestAnOfferReachesEachSessionOnce(t *testing.T) {
	b := start(t, benchOptions{})
	first := b.connect(packet.V311, "first")
	first.subscribe("gateway/press-7/c2d/#", 1)
	m := c2d(1)
	m.Offer = new(Offer)
	if takers, err := b.local.Publish(m); takers != 1 || err != nil {
		t.Fatalf("%d takers, %v", takers, err)
	}
	late := b.connect(packet.V5, "late")
	late.subscribe("gateway/#", 1)
	if takers, err := b.local.Publish(m); takers != 1 || err != nil {
		t.Fatalf("%d takers of the second round, %v", takers, err)
	}
	for _, c := range []*client{first, late} {
		if got := c.receive(); string(got.Payload) != "1" {
			t.Errorf("got %q", got.Payload)
		}
		c.quiet()
	}
	// A new session under an old client id has forgotten what it was given.
	again := b.connect(packet.V311, "first")
	again.subscribe("gateway/press-7/c2d/#", 1)
	if takers, _ := b.local.Publish(m); takers != 1 {
		t.Errorf("%d takers after a new session", takers)
	}
}

func TestARoundKeepsTheOrderOfASession(t *testing.T) {
	b := start(t, benchOptions{local: LocalConfig{QueueMessages: 2}})
	slow := b.connect(packet.V311, "slow")
	slow.subscribe("gateway/press-7/c2d/#", 1)
	all := make([]LocalMessage, 5)
	for i := range all {
		all[i] = c2d(i)
		all[i].Offer = new(Offer)
	}
	round := new(Round)
	offer := func(want int, messages ...int) {
		t.Helper()
		takers := 0
		for _, i := range messages {
			all[i].Round = round
			n, err := b.local.Publish(all[i])
			if err != nil {
				t.Fatal(err)
			}
			takers += n
		}
		if takers != want {
			t.Errorf("%d took %v, want %d", takers, messages, want)
		}
	}
	offer(2, 0, 1, 2) // there is no room for the third
	if !round.Behind() {
		t.Error("nobody knows")
	}
	first := slow.receive()
	slow.ack(first.ID)
	slow.receive()
	slow.quiet()
	late := b.connect(packet.V311, "late")
	late.subscribe("gateway/press-7/c2d/#", 1)
	offer(0, 3) // one was not given the third yet, the other none of the earlier ones
	round = new(Round)
	offer(3, 1, 2, 3, 4)
	for c, want := range map[*client]string{slow: "2", late: "1"} {
		if p := c.receive(); string(p.Payload) != want {
			t.Errorf("got %s, want %s", p.Payload, want)
		}
	}
}

type watcher struct {
	mu      sync.Mutex
	filters []string
}

func (w *watcher) Do(context.Context, Command, func(error)) error { return ErrNoRoute }

func (w *watcher) Subscribed(filter string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.filters = append(w.filters, filter)
}

func TestSubscriptionsAreToldWhenGranted(t *testing.T) {
	w := new(watcher)
	b := start(t, benchOptions{commands: w})
	c := b.connect(packet.V311, "a")
	c.subscribe("gateway/+/c2d/#", 1)
	c.subscribe("elsewhere/#", 1)
	c.quiet()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.Equal(w.filters, []string{"gateway/+/c2d/#"}) {
		t.Errorf("told of %q", w.filters)
	}
}
