package downstream

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
