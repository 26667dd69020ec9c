package cloud

import (
	"context"
	"crypto/sha256"
	"slices"
	"time"

	"go.uber.org/zap"

	"gatewayd/internal/bag"
	"gatewayd/internal/downstream"
	"gatewayd/internal/hub"
	"gatewayd/internal/queue"
)

const (
	sourceC2D  = "c2d"  // a message
	sourceDone = "done" // the note that a message was acknowledged

	// window is how many message ids are remembered, in memory and on disk.
	window = 128
	// noteAge is the longest that the hub keeps a message, and may send it again.
	noteAge = 48 * time.Hour
	// lock is how long the hub waits for an acknowledgement before it sends a message
	// again, with something added for the way.
	lock = 65 * time.Second
	// storeAgain is the wait after the disk or a full queue took nothing.
	storeAgain = time.Second
	// offerAgain is how often what waits is offered to subscribers whose own queues
	// were full, and looked through for what has expired.
	offerAgain = 30 * time.Second
	// offerSoon is the wait when a subscriber that had no room for some has
	// acknowledged others.
	offerSoon = 100 * time.Millisecond
)

// c2d is the state of an identity's C2D messages.
type c2d struct {
	fifo    []*arrival // in the order of delivery
	waiting []*pending // stored, ascending by seq
	seen    idRing
	notes   []uint64 // sequences of the notes on disk, oldest first
	broken  bool     // storing fails; said once
	checkAt time.Time
	round   *downstream.Round // in which messages are offered
}

type arrivalState uint8

const (
	toStore arrivalState = iota
	storing
	stored   // or known already: its acknowledgement may leave
	released // its payload was let go; the hub sends it again
)

// arrival is a message from the hub on its way to the disk.
type arrival struct {
	link    hub.Link
	ack     func()
	bag     []queue.Property
	mid     messageKey
	payload []byte
	at      time.Time
	state   arrivalState
}

// pending is a stored message that nobody has acknowledged.
type pending struct {
	seq     uint64
	mid     messageKey
	id      string // $.mid, "" = none
	expires time.Time
	offer   *downstream.Offer
	done    []func() // called when it is acknowledged durably
	leaving bool     // acknowledged, the note is on its way
}

// messageKey stands for a message id in little memory; zero = none.
type messageKey [16]byte

func keyOf(mid string) (k messageKey) {
	if mid != "" {
		sum := sha256.Sum256([]byte(mid))
		copy(k[:], sum[:])
	}
	return k
}

// idRing holds the latest message ids.
type idRing struct {
	keys []messageKey
	next int
}

func (r *idRing) has(k messageKey) bool { return k != messageKey{} && slices.Contains(r.keys, k) }

func (r *idRing) add(k messageKey) {
	switch {
	case k == messageKey{} || r.has(k):
	case len(r.keys) < window:
		r.keys = append(r.keys, k)
	default:
		r.keys[r.next] = k
		r.next = (r.next + 1) % window
	}
}

// arrived takes a message in, from the connection's goroutine.
func (id *Identity) arrived(link hub.Link, props []queue.Property, payload []byte, ack func()) {
	a := &arrival{link: link, ack: ack, bag: props, mid: keyOf(bag.Lookup(props, "$.mid")), payload: payload, at: time.Now()}
	if id.c.held.Add(int64(len(payload))) > maxHeld {
		id.c.held.Add(-int64(len(payload)))
		a.payload, a.state = nil, released
	}
	id.post(func() {
		id.c2d.fifo = append(id.c2d.fifo, a)
		id.pumpC2D()
	})
}

// pumpC2D stores what has arrived and acknowledges what is stored, both in order.
func (id *Identity) pumpC2D() {
	s := &id.c2d
	now := time.Now()
	s.fifo = slices.DeleteFunc(s.fifo, func(a *arrival) bool {
		// The hub has given up waiting for these and sends them again; those that are
		// being stored are known by then.
		gone := (a.state == toStore || a.state == released) && (ended(a.link) || now.Sub(a.at) > lock)
		if gone {
			id.letGo(a)
		}
		return gone
	})
	for i, a := range s.fifo {
		if a.state == released {
			id.wakeAt(a.at.Add(lock))
			break
		}
		if a.state == toStore && !id.store(a, s.fifo[:i]) {
			id.wakeAt(now.Add(storeAgain))
			break
		}
	}
	n := 0
	for n < len(s.fifo) && s.fifo[n].state == stored {
		s.fifo[n].ack()
		n++
	}
	if s.fifo = slices.Delete(s.fifo, 0, n); len(s.fifo) == 0 {
		s.fifo = nil
	}
}

func ended(l hub.Link) bool {
	select {
	case <-l.Done():
		return true
	default:
		return false
	}
}

// letGo forgets the payload of an arrival.
func (id *Identity) letGo(a *arrival) {
	id.c.held.Add(-int64(len(a.payload)))
	a.payload = nil
}

// never is a context for calls that must not block.
func never() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// store hands an arrival to the journal unless its id is known; false when that is
// not possible now.
func (id *Identity) store(a *arrival, before []*arrival) bool {
	s := &id.c2d
	known := s.seen.has(a.mid)
	for _, b := range before {
		known = known || (a.mid != messageKey{} && b.mid == a.mid)
	}
	if known {
		a.state = stored // its turn comes after the first one's
		id.letGo(a)
		return true
	}
	if len(s.waiting) >= maxWaiting {
		id.storeFailed(queue.ErrFull)
		return false
	}
	if id.q == nil {
		if err := id.openQueue(id.opt().Name); err != nil {
			id.storeFailed(err)
			return false
		}
	}
	a.state = storing
	err := id.q.Append(never(), id.message(a), func(seq uint64, err error) {
		id.post(func() { id.stored(a, seq, err) })
	})
	if err != nil {
		a.state = toStore
		id.storeFailed(err)
	}
	return err == nil
}

func (id *Identity) message(a *arrival) queue.Message {
	m := queue.Message{Source: sourceC2D, Topic: string(bag.Append(nil, a.bag)), Payload: a.payload, MaxAge: id.opt().MaxAge}
	now, trusted := id.c.cfg.Clock.Now()
	if exp := expiry(a.bag); !exp.IsZero() && trusted {
		left := max(exp.Sub(now), time.Millisecond)
		if m.MaxAge == 0 || left < m.MaxAge {
			m.MaxAge = left
		}
	}
	return m
}

// storeFailed says once that C2D messages stay at the hub.
func (id *Identity) storeFailed(err error) {
	if !id.c2d.broken {
		id.c2d.broken = true
		id.log().Warn("C2D messages stay at the hub: they cannot be stored", zap.Error(err))
	}
}

// stored follows the sync of an arrival.
func (id *Identity) stored(a *arrival, seq uint64, err error) {
	if err != nil {
		a.state = toStore
		id.storeFailed(err)
		id.wakeAt(time.Now().Add(storeAgain))
		return
	}
	s := &id.c2d
	if s.broken {
		s.broken = false
		id.log().Info("C2D messages are stored again")
	}
	a.state = stored
	s.seen.add(a.mid)
	p := &pending{seq: seq, mid: a.mid, id: bag.Lookup(a.bag, "$.mid"), expires: expiry(a.bag), offer: new(downstream.Offer)}
	s.waiting = append(s.waiting, p)
	id.waiting.Store(int32(len(s.waiting)))
	id.pumpC2D() // the hub first: its lock is running
	if len(s.waiting) == 1 {
		s.round = new(downstream.Round)
	}
	id.offer(p, a.bag, a.payload)
	id.letGo(a)
	id.tellNews()
	id.watchWaiting(time.Now())
}

// watchWaiting sets the next look at what waits.
func (id *Identity) watchWaiting(now time.Time) {
	s := &id.c2d
	if len(s.waiting) == 0 {
		s.checkAt = time.Time{}
		return
	}
	if s.checkAt.IsZero() {
		s.checkAt = now.Add(offerAgain)
	}
	id.wakeAt(s.checkAt)
}

func (id *Identity) tickC2D(now time.Time) {
	s := &id.c2d
	if len(s.fifo) > 0 {
		id.pumpC2D()
	}
	if !s.checkAt.IsZero() && !now.Before(s.checkAt) {
		s.checkAt = time.Time{}
		id.offerAll()
	}
	id.watchWaiting(now)
}

// tellNews wakes HTTP clients that wait for a message.
func (id *Identity) tellNews() {
	id.mu.Lock()
	defer id.mu.Unlock()
	close(id.news)
	id.news = make(chan struct{})
}

// newsLater is closed at the next message.
func (id *Identity) newsLater() <-chan struct{} {
	id.mu.Lock()
	defer id.mu.Unlock()
	return id.news
}
