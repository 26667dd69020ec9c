package main

import (
	"fmt"
	"sync"
	"time"
)

// How long a component may take before the watchdog is starved. A slow card takes
// seconds for a sync, and a session up to a minute for a write: neither is a stall.
const (
	stallLimit   = 20 * time.Second // to answer, and for the queue to go round
	sessionLimit = 2 * time.Minute
	choreLimit   = 5 * time.Minute // housekeeping of the queue
)

// rollCall finds the component that makes no progress. Each one is asked for its
// state, which needs its lock, and its loop is woken and has to have gone round by
// the next call.
type rollCall struct {
	g    *gateway
	mu   sync.Mutex
	last map[string]turn // guarded by mu
}

// turn is what a loop said last time.
type turn struct {
	count uint64
	since time.Time // when the count was first seen
}

func newRollCall(g *gateway) *rollCall { return &rollCall{g: g, last: make(map[string]turn)} }

// stalled names the component that makes no progress, or "".
func (r *rollCall) stalled() string {
	if who := r.unanswered(); who != "" {
		return who + " does not answer"
	}
	return r.stuck(time.Now())
}

// unanswered asks everybody, and names who holds its lock for ever.
func (r *rollCall) unanswered() string {
	asked := make(chan string, 1)
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		say := func(name string) {
			select {
			case <-asked:
			default:
			}
			asked <- name
		}
		a := r.g.now.Load()
		say("queue")
		r.g.journal.Stats()
		say("commands")
		r.g.cloud.Steps()
		say("certificates")
		r.g.watcher.Rounds()
		for _, id := range a.identities {
			say("queue of " + id.cfg.Name)
			id.queue.Stats()
			say("session " + id.cfg.Name)
			id.session.Turns()
			say("certificates of " + id.cfg.Name)
			id.store.Status()
		}
		for _, m := range a.mqtt {
			say("mqtt listener " + m.Addr().String())
			m.Stats()
		}
	}()
	limit := time.NewTimer(stallLimit)
	defer limit.Stop()
	select {
	case <-finished:
		return ""
	case <-limit.C:
		return <-asked
	}
}

// stuck looks at the loops, which have been woken.
func (r *rollCall) stuck(now time.Time) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	what := ""
	seen := make(map[string]turn, len(r.last))
	look := func(name string, count uint64, limit time.Duration) {
		t, known := r.last[name]
		if !known || t.count != count {
			t = turn{count: count, since: now}
		}
		seen[name] = t
		if stands := now.Sub(t.since); stands > limit && what == "" {
			what = fmt.Sprintf("%s has stood still for %s", name, stands.Round(time.Second))
		}
	}
	a := r.g.now.Load()
	writer, housekeeper := r.g.journal.Turns()
	look("queue", writer, stallLimit+a.cfg.Queue.SyncInterval)
	look("housekeeping of the queue", housekeeper, choreLimit)
	look("certificates", r.g.watcher.Rounds(), stallLimit)
	if steps, waiting := r.g.cloud.Steps(); waiting {
		look("commands", steps, sessionLimit)
	}
	for _, id := range a.identities {
		// One that is not connected waits for others.
		if turns, connected := id.session.Turns(); connected {
			look("session "+id.cfg.Name, turns, sessionLimit)
		}
	}
	r.last = seen
	return what
}
