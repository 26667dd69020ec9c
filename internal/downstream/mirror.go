package downstream

import (
	"slices"
	"time"
)

// mirror is a subscriber of Local that is no client: everything for local clients,
// which a broker is to have too. It takes messages only while it is up. What it was
// given and could not pass on it gives back, unacknowledged; whoever keeps such
// messages is asked to offer them again with renew.
type mirror struct {
	local *Local
	wake  chan struct{} // one-slot: something to take, or another state

	// Guarded by Local.mu:
	isUp    bool
	number  uint64 // as of a session, like since
	since   uint64
	waiting []mirrored
	bytes   int
	refused bool // something did not fit
}

// mirrored is a message that waits to be passed on.
type mirrored struct {
	m     LocalMessage
	acked *acknowledgement
}

func (m *mirrored) size() int { return len(m.m.Payload) + len(m.m.Topic) + 128 }

// addMirror adds a mirror, which is down.
func (l *Local) addMirror() *mirror {
	m := &mirror{local: l, wake: make(chan struct{}, 1)}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mirrors == nil {
		l.mirrors = make(map[*mirror]struct{})
	}
	l.lastSession++
	m.number = l.lastSession
	l.mirrors[m] = struct{}{}
	return m
}

func (l *Local) removeMirror(m *mirror) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.mirrors, m)
}

// mirrorLocked gives a message to the mirrors and returns how many took it.
func (l *Local) mirrorLocked(m LocalMessage, once *acknowledgement) (takers int) {
	for r := range l.mirrors {
		if !r.isUp || m.Azure || m.Offer.hasLocked(r.number) || m.Round.closedLocked(r.number, r.since) {
			continue
		}
		if r.putLocked(mirrored{m, once}) {
			m.Offer.addLocked(r.number)
			takers++
		} else {
			m.Round.missLocked(r.number)
		}
	}
	return takers
}

func (r *mirror) putLocked(m mirrored) bool {
	cfg := &r.local.cfg
	if len(r.waiting) >= cfg.QueueMessages || r.bytes+m.size() > cfg.QueueBytes {
		// Retained values have a bound of their own, of which the last of each topic
		// counts, and are what a broker needs most.
		if !m.m.Retain {
			r.refused = true
			return false
		}
		r.supersedeLocked(m.m.Topic)
	}
	r.waiting = append(r.waiting, m)
	r.bytes += m.size()
	wake(r.wake)
	return true
}

// supersedeLocked lets go of the retained value of a topic that waits.
func (r *mirror) supersedeLocked(topic string) {
	r.waiting = slices.DeleteFunc(r.waiting, func(m mirrored) bool {
		old := m.m.Retain && m.m.Topic == topic
		if old {
			r.bytes -= m.size()
		}
		return old
	})
}

// up begins to take messages, the retained values first.
func (r *mirror) up() {
	l := r.local
	l.mu.Lock()
	r.isUp = true
	for _, m := range l.retained {
		if !m.Azure {
			r.putLocked(mirrored{m: m})
		}
	}
	l.mu.Unlock()
	r.renew()
}

// down lets go of what waits.
func (r *mirror) down() {
	r.local.mu.Lock()
	defer r.local.mu.Unlock()
	for _, m := range r.waiting {
		m.m.Offer.removeLocked(r.number)
	}
	r.isUp, r.waiting, r.bytes, r.refused = false, nil, 0, false
}

// giveBack lets a message that could not be passed on be offered again.
func (r *mirror) giveBack(m mirrored) {
	r.local.mu.Lock()
	defer r.local.mu.Unlock()
	m.m.Offer.removeLocked(r.number)
}

// renew asks for everything that waits for an acknowledgement and was not taken, or
// given back.
func (r *mirror) renew() {
	l := r.local
	l.mu.Lock()
	l.changes++
	r.since, r.refused = l.changes, false
	l.mu.Unlock()
	l.subscribed([]string{LocalPrefix + "#"})
}

// next is the oldest message that waits and has not expired.
func (r *mirror) next() (mirrored, bool) {
	r.local.mu.Lock()
	defer r.local.mu.Unlock()
	for len(r.waiting) > 0 {
		m := r.waiting[0]
		r.waiting[0] = mirrored{}
		r.waiting = r.waiting[1:]
		r.bytes -= m.size()
		if m.m.Expires.IsZero() || time.Now().Before(m.m.Expires) {
			return m, true
		}
	}
	r.waiting = nil
	return mirrored{}, false
}

// overflowed says that everything was passed on and something did not fit before.
func (r *mirror) overflowed() bool {
	r.local.mu.Lock()
	defer r.local.mu.Unlock()
	return r.isUp && r.refused && len(r.waiting) == 0
}
