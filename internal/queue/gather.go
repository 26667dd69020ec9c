package queue

import (
	"errors"
	"time"
)

// lane moves what waits of one lane. Neighbouring extents become one, so that moving again and again does not scatter a lane.
func (c *compaction) lane(q *Queue, class uint8) error {
	// What is not known may lie between two extents: then they stay two.
	whole := len(c.j.absent) == 0
	q.mu.Lock()
	l := q.lanes[class]
	var todo []extent
	var joins []bool
	if l != nil {
		prev := false
		for _, e := range l.ext {
			if c.from[e.seg] && !e.seg.dead.Load() {
				todo = append(todo, e)
				joins = append(joins, prev)
				prev = whole
			} else {
				prev = false
			}
		}
	}
	q.mu.Unlock()
	join := false // stays so over extents of which nothing is moved
	for i := range todo {
		join = join && joins[i]
		if err := c.extent(q, class, &todo[i], &join); err != nil {
			return err
		}
	}
	return nil
}

func (c *compaction) extent(q *Queue, class uint8, e *extent, join *bool) error {
	recs, err := q.recsOf(q.lanes[class], e)
	if err != nil {
		e.seg.bad.Store(time.Now().Unix())
		return err
	}
	q.mu.Lock()
	l := q.lanes[class]
	for i := range l.ext {
		if x := &l.ext[i]; x.seg == e.seg && x.first == e.first && len(recs) < int(x.count) {
			q.settleLossLocked(l, x, recs)
		}
	}
	var live []rec
	for _, r := range recs {
		if l.waits(e.first + uint64(r.seq)) {
			live = append(live, r)
		}
	}
	lost := l.missing(e, recs)
	q.mu.Unlock()
	for _, seq := range lost {
		q.remove(class, seq, dropDamage)
		c.j.countDamage(1)
	}
	for _, r := range live {
		if err := c.record(q, class, e, r, join); err != nil {
			return err
		}
	}
	return nil
}

func (c *compaction) record(q *Queue, class uint8, e *extent, r rec, join *bool) error {
	seq := e.first + uint64(r.seq)
	var m Message
	s, err := c.j.readRecord(entry{seq: seq, seg: e.seg, frame: r.frame, item: r.item, size: r.size}, &m)
	if errors.Is(err, errDamaged) {
		if !q.leave(seq, dropDamage) {
			q.lookup(seq, dropDamage)
		}
		c.j.countDamage(1)
		c.j.keepDamaged(e.seg, int64(r.frame)+int64(r.item), int(r.size)+blockBytes)
		return nil
	}
	if err != nil {
		e.seg.bad.Store(time.Now().Unix())
		return err
	}
	h := &s.head
	if h.id == "" && h.qid != q.id { // its queue was made anew while this could not be read: the id stays
		h.id = m.ID
	}
	frame, item := c.b.message(&s.base, &record{qid: q.id, class: class, seq: seq, dt: s.dt, m: &m, id: h.id, orig: h.orig, leaves: h.leaves, from: h.from, reason: h.reason})
	c.note(q, class, *join, seq, rec{frame: frame + uint32(c.off), item: item, size: r.size})
	*join = true
	if len(c.b.buf) >= coldGroup {
		return c.write()
	}
	return nil
}

// note adds a moved record to the run of its lane, or begins a new run.
func (c *compaction) note(q *Queue, class uint8, join bool, seq uint64, r rec) {
	var moved *movedRun
	if n := len(c.runs); n > 0 {
		moved = &c.runs[n-1]
	}
	if moved == nil || !join || moved.q != q || moved.class != class || moved.e.count >= maxRun || seq-moved.e.first > maxSpan {
		c.runs = append(c.runs, movedRun{q: q, class: class, e: extent{seg: c.g, first: seq, run: new(run)}})
		moved = &c.runs[len(c.runs)-1]
	}
	r.seq = uint32(seq - moved.e.first)
	moved.e.run.add(r)
	moved.e.span = r.seq
	moved.e.count++
	moved.e.bytes += r.size
}

func (c *compaction) write() error {
	buf := c.b.finish(c.off)
	if c.off+int64(len(buf)) > c.g.slot.size {
		return errBound // the estimate was too small: the next pass picks anew
	}
	if _, err := c.f.WriteAt(buf, c.off); err != nil {
		return err
	}
	c.j.wrote(c.off, len(buf))
	c.off += int64(len(buf))
	c.b.reset(c.g.salt, c.b.group+1)
	return nil
}

// complete writes the index and makes everything durable.
func (c *compaction) complete() error {
	if len(c.b.buf) > 0 {
		if err := c.write(); err != nil {
			return err
		}
	}
	c.g.end.Store(c.off)
	for i := range c.runs {
		r := &c.runs[i]
		c.ft.add(c.g.salt, r.q.id, r.class, &r.e)
	}
	size := align(c.off+c.ft.size(), blockBytes)
	if size > c.g.slot.size {
		return errBound
	}
	if err := c.ft.write(c.f, c.off, c.g.salt, c.off); err != nil {
		return err
	}
	c.j.wrote(c.off, int(c.ft.size()))
	if err := c.f.truncate(size); err != nil {
		return err
	}
	if err := c.f.sync(); err != nil {
		return err
	}
	c.j.mu.Lock()
	c.j.slotBytes -= c.g.slot.size - size
	c.j.mu.Unlock()
	c.g.slot.size = size
	c.g.footer.Store(c.off)
	err := c.f.Close()
	c.f = nil
	return err
}

// discard gives the file back; nothing in the journal knows of it.
func (c *compaction) discard() {
	if c.f != nil {
		c.f.Close()
	}
	if c.g == nil {
		return
	}
	c.j.mu.Lock()
	c.j.retired = append(c.j.retired, &segment{slot: c.g.slot})
	c.j.mu.Unlock()
}
