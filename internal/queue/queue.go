package queue

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// Queue is one identity's queue. Its methods are safe for concurrent use.
type Queue struct {
	j     *Journal
	name  string
	id    uint32
	ready chan struct{}

	wnext  uint64 // writer only: next sequence of the group under way
	wnamed bool   // writer only: the name is in the segment in use

	fill sync.Mutex // serialises looking records up; held across reads

	mu        sync.Mutex // guards what follows; never held across I/O
	limits    Limits
	lanes     [classes]*lane
	next      uint64
	stored    atomic.Bool // has state on disk
	held      int64
	msgs      int64
	bytes     int64 // waiting
	asides    int64
	appended  uint64
	acked     uint64
	drops     [len(dropReasons)]uint64
	dirty     bool
	gone      bool             // being dropped: takes nothing
	forgotten bool             // dropped: nothing about it is written any more
	oldest    map[uint8]oldest // by class; most queues have none
	aging     bool             // a message with a bound of its own was appended since start
	failing   *readFailure
	failed    uint64
	dropping  *[len(dropReasons)]time.Time // when drops of a reason were last reported
}

// oldest remembers the age of the head so that Stats need not read it again and again.
type oldest struct {
	seq    uint64
	base   base
	dt     int64
	maxAge time.Duration
}

// dropReasons are the reasons in the order of their numbers on disk; only ever appended to.
var dropReasons = [...]string{DropAge, DropSize, DropAside, DropDamage, DropRemoved}

const (
	dropAge = iota
	dropSize
	dropAside
	dropDamage
	dropRemoved
)

func (q *Queue) noteOldestLocked(class uint8, o oldest) {
	if q.oldest == nil {
		q.oldest = map[uint8]oldest{}
	}
	q.oldest[class] = o
}

func (q *Queue) laneLocked(class uint8) *lane {
	l := q.lanes[class]
	if l == nil {
		l = &lane{class: class}
		q.lanes[class] = l
	}
	return l
}

// Name of the identity.
func (q *Queue) Name() string { return q.name }

// Ready delivers when there may be something new for a reader: look again.
func (q *Queue) Ready() <-chan struct{} { return q.ready }

// Append hands m over for writing. When it returns nil, done is called exactly once, from the journal's goroutine, in the order of the appends to this
// queue: after the sync, with the message's sequence, or with the error that kept it from the disk. done must not block. done may be nil.
//
// ErrFull, ErrTooLarge, ErrClosed and ErrDisk are returned at once, and done is never called. Append blocks only while Options.PendingBytes is used up,
// until ctx ends. What m refers to may be used again as soon as Append has returned.
func (q *Queue) Append(ctx context.Context, m Message, done func(seq uint64, err error)) error {
	size := m.size()
	if size > MaxMessageBytes || m.Priority > MaxPriority || m.MaxAge < 0 || m.Pack.invalid() {
		return ErrTooLarge
	}
	if q.j.o.ReadOnly {
		return ErrReadOnly
	}
	if err := q.j.stopped(); err != nil { // before anything is dropped in vain
		q.makeWay()
		return err
	}
	if err := q.admit(int64(size)); err != nil {
		return err
	}
	err := q.j.enqueue(ctx, &pend{q: q, done: done, m: m, class: m.Priority, size: uint32(size)})
	if err != nil {
		q.mu.Lock()
		q.held -= int64(size)
		q.mu.Unlock()
	}
	return err
}

// admit checks the bounds of the queue and of the folder and holds room for size bytes.
func (q *Queue) admit(size int64) error {
	for {
		q.mu.Lock()
		if q.gone {
			q.mu.Unlock()
			return ErrClosed
		}
		if q.limits.MaxBytes > 0 && size > q.limits.MaxBytes {
			q.mu.Unlock()
			return ErrTooLarge // whatever were dropped
		}
		over := q.limits.MaxBytes > 0 && q.bytes+q.held+size > q.limits.MaxBytes
		over = over || !q.limits.Always && !q.j.fits(size)
		if !over {
			q.held += size
			q.mu.Unlock()
			return nil
		}
		drop := q.limits.WhenFull == DropOldest && q.bytes > 0
		q.mu.Unlock()
		if !drop {
			return ErrFull
		}
		if _, ok, err := q.dropHead(dropSize, nil); err != nil || !ok {
			return ErrFull
		}
	}
}

// makeWay drops the oldest messages when the disk is full and the policy is to prefer the newest: all that the oldest file has of this queue, as only whole
// files become free. Space comes free, and appends are taken again, once what else is in there has left or was moved.
func (q *Queue) makeWay() {
	j := q.j
	if !j.full.Load() || j.makesWay() || !j.clearing.CompareAndSwap(false, true) {
		return
	}
	defer j.clearing.Store(false)
	q.mu.Lock()
	drop := q.limits.WhenFull == DropOldest && q.bytes > 0
	q.mu.Unlock()
	var from *segment
	for drop && !j.makesWay() {
		e, ok, err := q.dropHead(dropSize, from)
		if !ok || err != nil {
			break // what cannot be read now stays
		}
		from = e.seg
	}
	if j.makesWay() {
		poke(j.wake) // to note it
	}
}

// makesWay says that a file is on its way to be used again, so that nothing more need be dropped for now.
func (j *Journal) makesWay() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.emptied)+len(j.retired) > 0 || len(j.free) > 1
}

// recordOverhead is about what a record takes on disk beside its size.
const recordOverhead = 40

// fits checks the bound of the folder: what waits may take three quarters of it, so that compaction always finds room for a segment that pays.
func (j *Journal) fits(size int64) bool {
	if j.o.MaxBytes <= 0 {
		return true
	}
	return j.liveBytes.Load()+size+recordOverhead <= j.o.MaxBytes/4*3-2*j.o.SegmentBytes
}

// enqueue puts p behind all that waits.
func (j *Journal) enqueue(ctx context.Context, p *pend) error {
	cost := int64(p.size) + pendCost
	w := &j.pend
	w.mu.Lock()
	for {
		if w.closed {
			w.mu.Unlock()
			return ErrClosed
		}
		if w.stop != nil {
			err := w.stop
			w.mu.Unlock()
			return err
		}
		if w.bytes == 0 || w.bytes+cost <= j.o.PendingBytes {
			break
		}
		room := w.room
		w.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
			return ctx.Err()
		}
		w.mu.Lock()
	}
	w.bytes += cost
	p.mono = j.boot.now()
	w.add(p)
	look := len(w.recs) == 1 || len(w.recs) == w.goal
	w.mu.Unlock()
	if look {
		poke(j.wake)
	}
	return nil
}

// pendCost is what a waiting message takes beside its bytes.
const pendCost = 384

// AppendWait appends and waits for the sync. When ctx ends first the message may still become durable.
func (q *Queue) AppendWait(ctx context.Context, m Message) (uint64, error) {
	type result struct {
		seq uint64
		err error
	}
	c := make(chan result, 1)
	if err := q.Append(ctx, m, func(seq uint64, err error) { c <- result{seq, err} }); err != nil {
		return 0, err
	}
	select {
	case r := <-c:
		return r.seq, r.err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// Ack notes that the hub has taken seq. Any order, gaps allowed, idempotent. Memory changes at once, the disk within a second; a crash in between only
// causes resends.
func (q *Queue) Ack(seq uint64) {
	if q.leave(seq, -1) {
		return
	}
	// Not in a window: a record that no reader of this process has reached. Look it up.
	q.lookup(seq, -1)
}

// leave takes a record that is in a window out of the books; reason -1 is an acknowledgement.
func (q *Queue) leave(seq uint64, reason int) bool {
	q.mu.Lock()
	var emptied *segment
	found := false
	for _, l := range &q.lanes {
		if l == nil || l.class == asideClass || seq <= l.water || seq > l.seen {
			continue
		}
		i, ok := l.find(seq)
		if !ok {
			continue
		}
		found = true
		if !l.win[i].left {
			q.countLocked(l, l.win[i].size, reason)
			emptied = l.leave(i)
		}
		break
	}
	q.mu.Unlock()
	q.j.noteEmptied(emptied)
	return found
}

// countLocked books a departure.
func (q *Queue) countLocked(l *lane, size uint32, reason int) {
	if l.class == asideClass {
		q.asides--
	} else {
		q.msgs--
		q.bytes -= int64(size)
	}
	q.j.liveBytes.Add(-int64(size) - recordOverhead)
	if reason < 0 {
		q.acked++
	} else {
		q.drops[reason]++
	}
	q.markDirtyLocked()
}

func (q *Queue) markDirtyLocked() {
	if q.dirty {
		return
	}
	q.dirty = true
	q.j.dirtyM.Lock()
	q.j.dirty = append(q.j.dirty, q)
	q.j.dirtyM.Unlock()
}

// reportDrop tells of the first drop of a reason after a quiet minute.
func (q *Queue) reportDrop(reason int) {
	q.mu.Lock()
	if q.dropping == nil {
		q.dropping = new([len(dropReasons)]time.Time)
	}
	last := q.dropping[reason]
	now := time.Now()
	q.dropping[reason] = now
	q.mu.Unlock()
	if last.IsZero() || now.Sub(last) > time.Minute {
		q.j.report(Event{Kind: EventDropping, Identity: q.name, Reason: dropReasons[reason]})
	}
}

// dropHead removes the oldest message of the lowest class; with from only when that is the segment it lies in.
func (q *Queue) dropHead(reason int, from *segment) (entry, bool, error) {
	for c := uint8(0); c <= MaxPriority; c++ {
		e, ok, err := q.head(c)
		if err != nil {
			return entry{}, false, err
		}
		if ok && from != nil && e.seg != from {
			return entry{}, false, nil
		}
		if ok && q.leave(e.seq, reason) {
			q.reportDrop(reason)
			return e, true, nil
		}
	}
	return entry{}, false, nil
}

// Messages counts what waits.
func (q *Queue) Messages() int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.msgs
}

// Stats describe the queue. OldestAge may cost one read.
func (q *Queue) Stats() Stats {
	age := q.oldestAge()
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, l := range &q.lanes {
		if l != nil {
			q.squareLocked(l)
		}
	}
	s := Stats{Messages: q.msgs, Bytes: q.bytes, OldestAge: age, Appended: q.appended, Acked: q.acked, Aside: q.asides, NextSeq: q.next, DamagedReads: q.failed, Dropped: map[string]uint64{}}
	for i, n := range q.drops {
		s.Dropped[dropReasons[i]] = n
	}
	return s
}
