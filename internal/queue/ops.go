package queue

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"
)

// lookup takes a record out of the books that no reader has reached; reason -1 is an acknowledgement.
func (q *Queue) lookup(seq uint64, reason int) bool {
	q.fill.Lock()
	defer q.fill.Unlock()
	for c := uint8(0); c <= MaxPriority; c++ {
		e, size, err := q.place(c, seq)
		if err != nil || e == nil {
			continue
		}
		q.mu.Lock()
		l := q.lanes[c]
		if !l.waits(seq) || seq <= l.seen {
			q.mu.Unlock()
			return true
		}
		q.countLocked(l, size, reason)
		emptied := l.leaveAhead(l.after(seq-1).seg, seq, size) // compaction may have moved it meanwhile
		q.mu.Unlock()
		q.j.noteEmptied(emptied)
		return true
	}
	return q.leave(seq, reason) // a reader may have come by before the lock was had
}

// place finds the segment and size of a waiting record beyond the window of its lane. The caller holds q.fill.
func (q *Queue) place(class uint8, seq uint64) (*segment, uint32, error) {
	q.mu.Lock()
	l := q.lanes[class]
	if l == nil || seq <= l.seen {
		q.mu.Unlock()
		return nil, 0, nil
	}
	e := l.after(seq - 1)
	if e == nil || e.first > seq || e.seg.dead.Load() {
		q.mu.Unlock()
		return nil, 0, nil
	}
	x := *e
	var recs []rec
	if x.run != nil {
		recs = x.run.all(x.count)
	}
	x.seg.pins.Add(1)
	q.mu.Unlock()
	defer x.seg.unpin()
	if x.run == nil {
		var err error
		if recs, err = q.j.readList(q, class, &x); err != nil {
			return nil, 0, err
		}
	}
	i, ok := slices.BinarySearchFunc(recs, uint32(seq-x.first), func(r rec, s uint32) int { return cmp.Compare(r.seq, s) })
	if !ok {
		return nil, 0, nil
	}
	return x.seg, recs[i].size, nil
}

// head returns the oldest waiting entry of a lane.
func (q *Queue) head(class uint8) (entry, bool, error) {
	for {
		q.mu.Lock()
		l := q.lanes[class]
		if l == nil || l.count == 0 {
			q.mu.Unlock()
			return entry{}, false, nil
		}
		for i := range l.win {
			if !l.win[i].left {
				e := l.win[i]
				q.mu.Unlock()
				return e, true, nil
			}
		}
		more := l.after(l.seen) != nil
		q.mu.Unlock()
		if !more {
			return entry{}, false, nil
		}
		if err := q.fillLane(class); err != nil {
			return entry{}, false, err
		}
	}
}

// leaveCopy takes the copy out of the books that a durable one has replaced.
func (q *Queue) leaveCopy(class uint8, seq uint64) {
	q.mu.Lock()
	l := q.lanes[class]
	var emptied *segment
	if l != nil {
		if i, ok := l.find(seq); ok && !l.win[i].left {
			if class == asideClass {
				q.asides--
			} else {
				q.msgs--
				q.bytes -= int64(l.win[i].size)
				q.drops[dropAside]++
			}
			q.j.liveBytes.Add(-int64(l.win[i].size) - recordOverhead)
			emptied = l.leave(i)
			q.markDirtyLocked()
		}
	}
	q.mu.Unlock()
	q.j.noteEmptied(emptied)
}

// find looks a waiting record up by sequence, reading ahead as far as needed, and pins its segment.
func (q *Queue) find(class uint8, match func(entry) (bool, error)) (entry, bool, error) {
	var after uint64
	for {
		q.mu.Lock()
		l := q.lanes[class]
		if l == nil || l.count == 0 {
			q.mu.Unlock()
			return entry{}, false, nil
		}
		var todo []entry
		for _, e := range l.win {
			if e.seq > after && !e.left {
				e.seg.pins.Add(1)
				todo = append(todo, e)
			}
		}
		after = max(after, l.seen)
		more := l.after(l.seen) != nil
		q.mu.Unlock()
		var hit *entry
		var err error
		for i := range todo {
			ok := false
			if hit == nil && err == nil {
				if ok, err = match(todo[i]); ok {
					hit = &todo[i]
					continue // stays pinned
				}
			}
			todo[i].seg.unpin()
		}
		if hit != nil || err != nil {
			if hit == nil {
				return entry{}, false, err
			}
			return *hit, true, nil
		}
		if !more {
			return entry{}, false, nil
		}
		if err := q.fillLane(class); err != nil {
			return entry{}, false, err
		}
	}
}

// SetAside takes a message that cannot be delivered out of the way and keeps it. It is durable on return: copy and removal are one record, so that a
// crash leaves the message in one of the two places. ErrNotFound: it has left already.
func (q *Queue) SetAside(seq uint64, reason string) error {
	for c := uint8(0); c <= MaxPriority; c++ {
		e, ok, err := q.find(c, func(e entry) (bool, error) { return e.seq == seq, nil })
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		var m Message
		s, err := q.j.readRecord(e, &m)
		e.seg.unpin()
		if err != nil {
			return err
		}
		orig := seq
		if s.head.id != "" {
			orig = s.head.orig
		}
		err = q.move(&pend{q: q, m: m, class: asideClass, id: m.ID, orig: orig, reason: reason, leaves: seq, from: c, based: &s.base, dt: s.dt, size: e.size})
		if err == nil {
			q.j.report(Event{Kind: EventAside, Identity: q.name, Seq: seq, Reason: reason})
		}
		return err
	}
	return ErrNotFound
}

// move writes a copy that replaces another and waits until it is durable.
func (q *Queue) move(p *pend) error {
	if q.j.o.ReadOnly {
		return ErrReadOnly
	}
	ch := make(chan error, 1)
	p.done = func(_ uint64, err error) { ch <- err }
	if err := q.j.enqueue(context.Background(), p); err != nil {
		return err
	}
	return <-ch
}

// asideAt reads what was set aside at e.
func (q *Queue) asideAt(e entry) (AsideMessage, stamp, error) {
	var m Message
	s, err := q.j.readRecord(e, &m)
	if errors.Is(err, errDamaged) && !q.j.o.ReadOnly {
		q.remove(asideClass, e.seq, dropDamage)
		q.j.countDamage(1)
		q.j.keepDamaged(e.seg, int64(e.frame)+int64(e.item), int(e.size)+blockBytes)
	}
	if err != nil {
		return AsideMessage{}, s, err
	}
	m.Seq = s.head.orig
	m.Accepted, m.AcceptedTrusted = q.j.accepted(&s.base, s.dt)
	return AsideMessage{Message: m, Reason: s.head.reason}, s, nil
}

// Aside lists what was set aside, oldest first. Seq is the sequence that the message had when it was first appended.
func (q *Queue) Aside() ([]AsideMessage, error) {
	var list []AsideMessage
	_, _, err := q.find(asideClass, func(e entry) (bool, error) {
		a, _, err := q.asideAt(e)
		if errors.Is(err, errDamaged) {
			return false, nil
		}
		if err == nil {
			list = append(list, a)
		}
		return false, err
	})
	return list, err
}

// Requeue puts a message that was set aside back at the end of its priority, with its old id. It is durable on return.
func (q *Queue) Requeue(seq uint64) error {
	e, a, s, err := q.findAside(seq)
	if err != nil {
		return err
	}
	return q.move(&pend{q: q, m: a.Message, class: a.Priority, id: a.ID, orig: seq, leaves: e.seq, from: asideClass, based: &s.base, dt: s.dt, size: e.size})
}

// findAside looks up what was set aside under the sequence that it had first. Its segment is not pinned.
func (q *Queue) findAside(seq uint64) (e entry, a AsideMessage, s stamp, err error) {
	e, ok, err := q.find(asideClass, func(e entry) (ok bool, err error) {
		if a, s, err = q.asideAt(e); errors.Is(err, errDamaged) {
			return false, nil
		}
		return err == nil && a.Seq == seq, err
	})
	switch {
	case err != nil:
	case !ok:
		err = fmt.Errorf("message %d is not set aside: %w", seq, ErrNotFound)
	default:
		e.seg.unpin()
	}
	return e, a, s, err
}

func (q *Queue) dropAside(seq uint64) error {
	e, _, _, err := q.findAside(seq)
	if err == nil {
		q.remove(asideClass, e.seq, dropRemoved)
	}
	return err
}

// Drop forgets the queue of an identity with everything in it, set-aside messages included. Appends to it fail from now on.
func (j *Journal) Drop(identity string) error {
	j.mu.Lock()
	q := j.queues[identity]
	j.mu.Unlock()
	if q == nil {
		return fmt.Errorf("queue %q: %w", identity, ErrNotFound)
	}
	if j.o.ReadOnly {
		return ErrReadOnly
	}
	q.mu.Lock()
	q.gone = true
	q.mu.Unlock()
	for c := range uint8(classes) {
		for {
			e, ok, err := q.head(c)
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			q.remove(c, e.seq, dropRemoved)
		}
	}
	body := binary.AppendUvarint(nil, uint64(q.id))
	return j.submitWait(context.Background(), &control{size: 64, encode: func(b *builder) { b.item(itemForgot, body) }, apply: func() {
		q.mu.Lock()
		q.forgotten = true
		q.mu.Unlock()
		j.mu.Lock()
		defer j.mu.Unlock()
		delete(j.byID, q.id)
		if j.queues[identity] == q {
			delete(j.queues, identity)
		}
	}})
}

// remove takes an entry in the window of a lane, any lane, out of the books.
func (q *Queue) remove(class uint8, seq uint64, reason int) {
	q.mu.Lock()
	l := q.lanes[class]
	var emptied *segment
	if i, ok := l.find(seq); ok && !l.win[i].left {
		q.countLocked(l, l.win[i].size, reason)
		emptied = l.leave(i)
	}
	q.mu.Unlock()
	q.j.noteEmptied(emptied)
}

// oldestAge reads when the oldest waiting message was accepted and says how long ago that is.
func (q *Queue) oldestAge() time.Duration {
	var age time.Duration
	for c := uint8(0); c <= MaxPriority; c++ {
		e, ok, err := q.head(c)
		if err != nil || !ok {
			continue
		}
		q.mu.Lock()
		o := q.oldest[c]
		if o.seq != e.seq {
			l := q.lanes[c]
			i, found := l.find(e.seq)
			if !found || l.win[i].left {
				q.mu.Unlock()
				continue
			}
			e = l.win[i]
			e.seg.pins.Add(1)
			q.mu.Unlock()
			var m Message
			s, err := q.j.readRecord(e, &m)
			e.seg.unpin()
			if err != nil {
				continue
			}
			o = oldest{e.seq, s.base, s.dt, m.MaxAge}
			q.mu.Lock()
			q.noteOldestLocked(c, o)
		}
		q.mu.Unlock()
		if a, ok := q.j.age(&o.base, o.dt); ok {
			age = max(age, a)
		}
	}
	return age
}
