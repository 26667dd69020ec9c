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
	call *call         // the latest; guarded by mu
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

// call is one round of questions.
type call struct {
	began    time.Time
	finished chan struct{}

	mu    sync.Mutex
	asked part // guarded by mu
}

func (c *call) say(what, name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = part{what, name}
}

func (c *call) ask(g *gateway) {
	defer close(c.finished)
	a := g.now.Load()
	c.say("queue", "")
	g.journal.Stats()
	c.say("commands", "")
	g.cloud.Steps()
	c.say("certificates", "")
	g.watcher.Rounds()
	for _, id := range a.identities {
		c.say("queue of ", id.cfg.Name)
		id.queue.Stats()
		c.say("session ", id.cfg.Name)
		id.session.Turns()
		c.say("certificates of ", id.cfg.Name)
		id.store.Current()
	}
	for _, m := range a.mqtt {
		c.say("mqtt listener ", m.Addr().String())
		m.Stats()
	}
}

// latestCall begins a call unless one is still under way: a component that hangs for
// days holds one of them, however often it is asked for.
func (r *rollCall) latestCall() *call {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.call != nil {
		select {
		case <-r.call.finished:
		default:
			return r.call
		}
	}
	c := &call{began: time.Now(), finished: make(chan struct{})}
	r.call = c
	go c.ask(r.g) // nobody can wait for one that hangs
	return c
}

// unanswered asks everybody, and names who holds its lock for ever.
func (r *rollCall) unanswered() string {
	c := r.latestCall()
	limit := time.NewTimer(stallLimit - time.Since(c.began))
	defer limit.Stop()
	select {
	case <-c.finished:
		return ""
	case <-limit.C:
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.asked.String()
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
