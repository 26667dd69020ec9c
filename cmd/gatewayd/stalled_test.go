package main

import (
	"context"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"gatewayd/internal/config"
	"gatewayd/internal/hub/hubtest"
	"gatewayd/internal/queue"
)

// The watchdog is starved by a component that hangs although it answers, and only
// by that.
func TestWatchdogFindsWhoStandsStill(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{}, "press-7")
	cfg := must(config.Load(s.path("config.yaml")))(t)
	g := must(newGateway(cfg, zap.NewNop(), zap.NewAtomicLevel()))(t)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- g.Run(ctx) }()
	defer func() { stop(); check(t, <-ended) }()
	eventually(t, 10*time.Second, "connected", func() bool { return s.hub.Connected("press-7") })
	id := g.now.Load().byName["press-7"]
	eventually(t, 10*time.Second, "the session knows", func() bool { _, connected := id.session.Turns(); return connected })

	roll := g.roll
	if what := roll.stalled(); what != "" {
		t.Fatal(what)
	}
	// An hour later everybody counts as hanging who has not gone round since the last
	// call.
	in := func(d time.Duration) string { return roll.stuck(time.Now().Add(d)) }
	eventually(t, 10*time.Second, "everybody goes round", func() bool { return in(time.Hour) == "" })

	blocked, release := make(chan struct{}), make(chan struct{})
	check(t, id.queue.Append(t.Context(), queue.Message{Topic: "a", Payload: []byte("a")}, func(uint64, error) {
		close(blocked)
		<-release
	}))
	<-blocked
	eventually(t, 10*time.Second, "the queue is found", func() bool {
		return strings.HasPrefix(in(time.Hour+2*stallLimit), "queue has stood still for ") && roll.unanswered() == ""
	})
	if what := in(time.Hour + stallLimit/2); what != "" {
		t.Errorf("too early: %s", what)
	}
	close(release)
	eventually(t, 10*time.Second, "it goes on", func() bool { return in(2*time.Hour) == "" })

	// Whoever does not answer is named at once, and asked no second time.
	hung := &call{began: time.Now().Add(-2 * stallLimit), finished: make(chan struct{}), asked: part{"queue of ", "press-7"}}
	roll.mu.Lock()
	roll.call = hung
	roll.mu.Unlock()
	for range 3 {
		if what := roll.stalled(); what != "queue of press-7 does not answer" {
			t.Errorf("named %q", what)
		}
		if roll.latestCall() != hung {
			t.Error("asked again although there is no answer yet")
		}
	}
	close(hung.finished)
	if what := roll.unanswered(); what != "" {
		t.Errorf("%s does not answer, after it did", what)
	}
}
