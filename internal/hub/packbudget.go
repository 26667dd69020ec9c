package hub

import (
	"sync"
	"sync/atomic"
	"time"

	"gatewayd/internal/queue"
)

const (
	// packsMost bounds the bodies of the open packs of all sessions: eight routes of 500 identities with packs of 4 KiB,
	// the unit that the hub bills, are half of it. Beyond it the largest of all is closed early, again and again.
	packsMost = 32 << 20
	// packsHard bounds them and those that wait to be sent or are put together again. It is reached when the hub is slow
	// to take what is closed. Then whoever has a closed pack reads no more, and whoever has none closes his largest one,
	// so that each session adds one reading at most.
	packsHard = 48 << 20
	// shedEvery is how long a session has to close a pack before another one is asked.
	shedEvery = 50 * time.Millisecond
)

// packBudget counts the memory of the packs of all sessions. It is safe for concurrent use.
type packBudget struct {
	most, hard int64
	open       atomic.Int64 // bytes in open packs
	used       atomic.Int64 // and in the others
	asked      atomic.Int64 // when a session was asked to close a pack, Unix time in ns; 0: it has

	mu  sync.Mutex
	all map[*packs]struct{} // guarded by mu
}

func (b *packBudget) join(ps *packs) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.all == nil {
		b.all = map[*packs]struct{}{}
	}
	b.all[ps] = struct{}{}
}

func (b *packBudget) leave(ps *packs) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.all, ps)
}

// over says that closing packs was of no help.
func (b *packBudget) over() bool { return b.used.Load() > b.hard }

// ease asks whoever has the largest open pack to close it, when that is needed.
func (b *packBudget) ease() {
	if b.open.Load() <= b.most {
		return
	}
	now := time.Now().UnixNano()
	if last := b.asked.Load(); now-last < int64(shedEvery) || !b.asked.CompareAndSwap(last, now) {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	var who *packs
	for ps := range b.all {
		if n := ps.largest.Load(); n > 0 && !ps.shed.Load() && (who == nil || n > who.largest.Load()) {
			who = ps
		}
	}
	if who != nil {
		who.shed.Store(true)
		poke(who.wake)
	}
}

// hold counts n more bytes, or less.
func (ps *packs) hold(n int) {
	ps.held += n
	ps.budget.used.Add(int64(n))
}

// grow puts one more reading into p and says how much more memory it takes.
func (ps *packs) grow(p *pack, m *queue.Message, element []byte) (by int) {
	before := cap(p.body)
	p.add(m, element)
	by = cap(p.body) - before
	ps.hold(by)
	return by
}

// release gives the body of a pack back that is not open.
func (ps *packs) release(p *pack) {
	ps.hold(-cap(p.body))
	p.body = nil
}

// opened notes by how much an open pack has grown.
func (ps *packs) opened(p *pack, by int) {
	ps.budget.open.Add(int64(by))
	if n := int64(cap(p.body)); n > ps.largest.Load() {
		ps.largest.Store(n)
	}
}

// shut takes a pack out of the open ones.
func (ps *packs) shut(place packPlace, p *pack) {
	delete(ps.open, place)
	ps.budget.open.Add(-int64(cap(p.body)))
	ps.measure()
}

// biggest is the largest open pack; nil when none is open.
func (ps *packs) biggest() (place packPlace, p *pack) {
	for at, o := range ps.open {
		if p == nil || cap(o.body) > cap(p.body) || cap(o.body) == cap(p.body) && o.unit() < p.unit() {
			place, p = at, o
		}
	}
	return place, p
}

// measure finds the largest open pack anew, after one was closed.
func (ps *packs) measure() {
	_, p := ps.biggest()
	if p == nil {
		ps.largest.Store(0)
		return
	}
	ps.largest.Store(int64(cap(p.body)))
}

// makeRoom closes the largest open pack when all sessions' packs take too much memory: when this session was asked to, or
// when nothing else helps.
func (s *Session) makeRoom() {
	ps := s.packs
	asked := ps.shed.Swap(false)
	if !asked && (!ps.budget.over() || len(ps.closed) > 0) {
		return
	}
	if place, p := ps.biggest(); p != nil {
		s.finish(place, p)
	}
	if asked {
		ps.budget.asked.Store(0)
		ps.budget.ease()
	}
}
