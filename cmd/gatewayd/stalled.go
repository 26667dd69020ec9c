package main

import (
	"fmt"
	"maps"
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
	last map[part]turn // guarded by mu
}

// part names a component without putting a text together: all are named every few
// seconds, and hardly one is ever told of.
type part struct{ what, name string }

func (p part) String() string { return p.what + p.name }

// turn is what a loop said last time.
type turn struct {
	count uint64
	since time.Time // when the count was first seen
	asked time.Time
}

func newRollCall(g *gateway) *rollCall { return &rollCall{g: g, last: make(map[part]turn)} }

// stalled names the component that makes no progress, or "".
func (r *rollCall) stalled() string {
	if who := r.unanswered(); who != "" {
		return who + " does not answer"
	}
	return r.stuck(time.Now())
}

// unanswered asks everybody, and names who holds its lock for ever.
func (r *rollCall) unanswered() string {
	asked := make(chan part, 1)
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		say := func(what, name string) {
			select {
			case <-asked:
			default:
			}
			asked <- part{what, name}
		}
		a := r.g.now.Load()
		say("queue", "")
		r.g.journal.Stats()
		say("commands", "")
		r.g.cloud.Steps()
		say("certificates", "")
		r.g.watcher.Rounds()
		for _, id := range a.identities {
			say("queue of ", id.cfg.Name)
			id.queue.Stats()
			say("session ", id.cfg.Name)
			id.session.Turns()
			say("certificates of ", id.cfg.Name)
			id.store.Current()
		}
		for _, m := range a.mqtt {
			say("mqtt listener ", m.Addr().String())
			m.Stats()
		}
	}()
	limit := time.NewTimer(stallLimit)
	defer limit.Stop()
	select {
	case <-finished:
		return ""
	case <-limit.C:
		return (<-asked).String()
	}
}

// stuck looks at the loops, which have been woken.
func (r *rollCall) stuck(now time.Time) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	what := ""
	look := func(who part, count uint64, limit time.Duration) {
		t, known := r.last[who]
		if !known || t.count != count {
			t = turn{count: count, since: now}
		}
		t.asked = now
		r.last[who] = t
		if stands := now.Sub(t.since); stands > limit && what == "" {
			what = fmt.Sprintf("%s has stood still for %s", who, stands.Round(time.Second))
		}
	}
	a := r.g.now.Load()
	writer, housekeeper := r.g.journal.Turns()
	look(part{what: "queue"}, writer, stallLimit+a.cfg.Queue.SyncInterval)
	look(part{what: "housekeeping of the queue"}, housekeeper, choreLimit)
	look(part{what: "certificates"}, r.g.watcher.Rounds(), stallLimit)
	if steps, waiting := r.g.cloud.Steps(); waiting {
		look(part{what: "commands"}, steps, sessionLimit)
	}
	for _, id := range a.identities {
		// One that is not connected waits for others.
		if turns, connected := id.session.Turns(); connected {
			look(part{"session ", id.cfg.Name}, turns, sessionLimit)
		}
	}
	maps.DeleteFunc(r.last, func(_ part, t turn) bool { return t.asked != now })
	return what
}
