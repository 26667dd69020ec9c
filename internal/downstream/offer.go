package downstream

import "sync/atomic"

// Offer makes publishing one message again and again harmless: through the same
// Offer each session is given it once. It is for what waits until somebody has
// acknowledged it and is published again whenever somebody subscribes. The zero
// value is ready; it belongs to one Local.
type Offer struct {
	given map[uint64]struct{} // numbers of sessions; guarded by Local.mu
}

// hasLocked tells whether a session was given the message already. A nil Offer
// remembers nothing.
func (o *Offer) hasLocked(number uint64) bool {
	if o == nil {
		return false
	}
	_, has := o.given[number]
	return has
}

func (o *Offer) addLocked(number uint64) {
	if o == nil {
		return
	}
	if o.given == nil {
		o.given = make(map[uint64]struct{})
	}
	o.given[number] = struct{}{}
}

// removeLocked lets a session be given the message again.
func (o *Offer) removeLocked(number uint64) {
	if o != nil {
		delete(o.given, number)
	}
}

// Round keeps what is offered in it in order: a session that had no room for one
// message, or subscribed after the first, gets none of the later ones. It gets them in
// the next round, which begins with the oldest message that waits. The zero value is
// ready; it belongs to one Local.
type Round struct {
	behind atomic.Bool

	// Guarded by Local.mu:
	begun   bool
	changes uint64              // Local's when it began
	missed  map[uint64]struct{} // numbers of sessions
}

// Behind tells whether a session had no room for a message; a nil Round knows none.
func (r *Round) Behind() bool { return r != nil && r.behind.Load() }

func (r *Round) beginLocked(changes uint64) {
	if r != nil && !r.begun {
		r.begun, r.changes = true, changes
	}
}

// closedLocked tells whether a session has to wait for the next round.
func (r *Round) closedLocked(number, since uint64) bool {
	if r == nil {
		return false
	}
	_, missed := r.missed[number]
	return missed || since > r.changes
}

func (r *Round) missLocked(number uint64) {
	if r == nil {
		return
	}
	if r.missed == nil {
		r.missed = make(map[uint64]struct{})
	}
	r.missed[number] = struct{}{}
	r.behind.Store(true)
}

// SubscriptionWatcher is what the Commands given to NewLocal may be besides.
type SubscriptionWatcher interface {
	// Subscribed is called after a client was granted a subscription and was sent
	// the retained values. It must not block.
	Subscribed(filter string)
}

// subscribed tells the watcher, if there is one.
func (l *Local) subscribed(filters []string) {
	w, ok := l.commands.(SubscriptionWatcher)
	if !ok {
		return
	}
	for _, f := range filters {
		w.Subscribed(f)
	}
}
