package queue

import (
	"errors"
	"io"
	"time"
)

// Reader reads one queue: higher priorities first, in order inside one priority. Reading removes nothing; a new reader starts again at the oldest message
// that has not been acknowledged. A Reader is for one goroutine.
type Reader struct {
	q   *Queue
	pos [MaxPriority + 1]uint64 // number of the next entry of each lane
}

// Reader starts at the oldest unacknowledged message of the highest priority.
func (q *Queue) Reader() *Reader { return &Reader{q: q} }

// Next returns the next message. It reads from memory or disk but never waits for something new: ok is false when there is nothing now, Queue.Ready
// says when to look again. An error means that the message cannot be read at the moment (the disk fails, too many open files): try again later.
// Messages that are too old or damaged are skipped and counted.
func (r *Reader) Next() (Message, bool, error) {
	for {
		e, lane, ok, err := r.next()
		if !ok || err != nil {
			return Message{}, false, err
		}
		var m Message
		s, err := r.q.j.readRecord(e, &m)
		e.seg.unpin()
		switch {
		case err == nil && r.q.tooOld(&s, m.MaxAge):
			if r.q.leave(e.seq, dropAge) {
				r.q.reportDrop(dropAge)
			}
			continue
		case err == nil:
			m.Seq = e.seq
			m.Accepted, m.AcceptedTrusted = r.q.j.accepted(&s.base, s.dt)
			return m, true, nil
		case errors.Is(err, errDamaged):
			r.q.lose(e)
			continue
		}
		r.pos[lane]-- // the place of an entry never changes while it waits
		if r.q.givesUp(e.seg, err) {
			r.q.lose(e)
			continue
		}
		return Message{}, false, err
	}
}

// next finds the next entry and pins its segment.
func (r *Reader) next() (entry, uint8, bool, error) {
	q := r.q
	for {
		q.mu.Lock()
		behind := -1
		for c := MaxPriority; c >= 0; c-- {
			l := q.lanes[c]
			if l == nil || l.count == 0 {
				continue
			}
			r.pos[c] = max(r.pos[c], l.base)
			for r.pos[c]-l.base < uint64(len(l.win)) {
				i := int(r.pos[c] - l.base)
				e := l.win[i]
				r.pos[c]++
				if !e.left {
					e.alone = (i == 0 || l.win[i-1].frame != e.frame) && (i+1 == len(l.win) || l.win[i+1].frame != e.frame)
					e.seg.pins.Add(1)
					q.mu.Unlock()
					return e, uint8(c), true, nil
				}
			}
			if l.after(l.seen) != nil {
				behind = c
				break
			}
		}
		q.mu.Unlock()
		if behind < 0 {
			return entry{}, 0, false, nil
		}
		if err := q.fillLane(uint8(behind)); err != nil {
			return entry{}, 0, false, err
		}
	}
}

// fillLane takes the next records of a lane into its window.
func (q *Queue) fillLane(class uint8) error {
	q.fill.Lock()
	defer q.fill.Unlock()
	q.mu.Lock()
	l := q.lanes[class]
	e := l.after(l.seen)
	switch {
	case e == nil:
		q.mu.Unlock()
		return nil
	case e.seg.dead.Load(): // everything there has left
		l.seen = e.last()
		l.forgetAhead()
		l.advance()
		q.mu.Unlock()
		return nil
	case e.run != nil:
		l.pushRun(e)
		q.mu.Unlock()
		return nil
	}
	x := *e
	x.seg.pins.Add(1)
	q.mu.Unlock()
	defer x.seg.unpin()
	recs, err := q.j.readList(q, class, &x)
	if err != nil {
		if !q.givesUp(x.seg, err) {
			return err
		}
		recs, _ = q.j.rescan(x.seg, q.id, class, x.first, x.last(), true)
	}
	q.mu.Lock()
	var emptied *segment
	if e := l.after(l.seen); e != nil && e.seg == x.seg && e.first == x.first && e.span == x.span {
		q.settleLossLocked(l, e, recs)
		if x.seg.live.Load() == 0 {
			emptied = x.seg
		}
		l.pushList(e, recs)
	}
	q.mu.Unlock()
	q.j.noteEmptied(emptied)
	return nil
}

// stamp is when a record was accepted, as stored.
type stamp struct {
	base base
	dt   int64
	head msgHead
}

// readRecord decodes the record at e into m: everything but sequence and time.
func (j *Journal) readRecord(e entry, m *Message) (stamp, error) {
	if s, err, ok := j.readAlone(e, m); ok {
		return s, err
	}
	// The size counts names that neighbours share, so the record may be smaller: it
	// says how much to read, not what must be there.
	need, want := int(e.item)+itemHeaderLen, int(e.item)+itemHeaderLen+int(e.size)
	for {
		c, err := j.frameAt(e.seg, e.frame, need, want)
		if err != nil {
			return stamp{}, err
		}
		s, err := decodeRecord(frameView{b: c.buf, salt: e.seg.salt, names: j.names}, int(e.item), e.seq, m)
		j.cache.release(c)
		if err == nil {
			return s, nil
		}
		var short *shortError
		if !errors.As(err, &short) {
			return s, err
		}
		if int64(e.frame)+int64(short.need) > e.seg.end.Load()+blockBytes || short.need <= need {
			return s, errDamaged
		}
		need = short.need
	}
}

// decodeRecord copies one message out of its frame. seq is what the index promised.
func decodeRecord(v frameView, item int, seq uint64, m *Message) (s stamp, err error) {
	if s.head, err = v.head(item); err != nil {
		return s, err
	}
	if s.head.seq != seq {
		return s, errDamaged
	}
	if s.base, err = v.base(s.head.base); err != nil {
		return s, err
	}
	if err = v.meta(s.head.meta, m); err != nil {
		return s, err
	}
	s.dt = s.head.dt
	m.Priority = s.head.priority
	m.Payload = append(make([]byte, 0, len(s.head.payload)), s.head.payload...)
	m.ID = s.head.id
	if m.ID == "" {
		m.ID = messageID(s.base.origin, s.head.qid, seq)
	}
	s.head.payload = nil
	return s, nil
}

// frameAt returns at least need bytes of a frame, from memory or, where it reads want and more, from the disk; fewer only where the segment ends.
func (j *Journal) frameAt(s *segment, frame uint32, need, want int) (*cached, error) {
	k := frameKey{s.id, frame}
	if c := j.cache.get(k); c != nil {
		if len(c.buf) >= need {
			return c, nil
		}
		j.cache.release(c)
	}
	f, release, err := j.files.get(s.slot)
	if err != nil && j.gone(s, err) {
		return nil, errDamaged
	}
	if err != nil {
		return nil, j.readFailed(err)
	}
	defer release()
	n := min(int64(max(need, want, frameRead)), s.end.Load()-int64(frame))
	if n < frameHeaderLen {
		return nil, errDamaged
	}
	b := j.cache.alloc(int(n))
	got, err := f.ReadAt(b, int64(frame))
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, j.readFailed(err)
	}
	b = b[:got]
	if h, ok := parseFrameHeader(b, s.salt); ok && frameHeaderLen+int(h.bodyLen) < len(b) && frameHeaderLen+int(h.bodyLen) >= need {
		b = b[:frameHeaderLen+h.bodyLen]
	}
	j.readWorks()
	return j.cache.add(k, b), nil
}

// lose counts a record that damage took and keeps its bytes for inspection.
func (q *Queue) lose(e entry) {
	if !q.leave(e.seq, dropDamage) {
		return
	}
	q.j.countDamage(1)
	q.j.keepDamaged(e.seg, int64(e.frame)+int64(e.item), int(e.size)+blockBytes)
	q.reportDrop(dropDamage)
}

// tooOld applies the message's own bound or else the queue's.
func (q *Queue) tooOld(s *stamp, own time.Duration) bool {
	q.mu.Lock()
	limit := q.limits.MaxAge
	q.mu.Unlock()
	if own > 0 {
		limit = own
	}
	if limit <= 0 {
		return false
	}
	age, ok := q.j.age(&s.base, s.dt)
	return ok && age > limit
}
