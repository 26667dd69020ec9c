package main

import (
	"time"
)

// stallLimit is how long a component may take to answer before the watchdog is
// starved. A slow card takes seconds for a sync; that is not a stall.
const stallLimit = 20 * time.Second

// stalled names the component that makes no progress, or "". Each one is asked for
// its state, which needs its lock: one that holds it for ever is found here.
func (g *gateway) stalled() string {
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
		a := g.now.Load()
		say("queue")
		g.journal.Stats()
		for _, id := range a.identities {
			say("queue of " + id.cfg.Name)
			id.queue.Stats()
			say("session " + id.cfg.Name)
			id.session.Status()
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
		return <-asked + " does not answer"
	}
}
