package queue

import (
	"cmp"
	"errors"
	"maps"
	"slices"
	"strconv"
	"syscall"
)

// queues puts the state of every queue together and counts what waits.
func (r *recovery) queues() error {
	j := r.j
	for qid := range r.states {
		if r.names[qid] != "" || !r.whole {
			r.queue(qid)
		}
	}
	for qid := range r.names {
		r.queue(qid)
	}
	for _, l := range r.left {
		s := r.state(l.qid)
		i := slices.IndexFunc(s.lanes, func(x laneState) bool { return x.class == l.from })
		if i < 0 {
			s.lanes = append(s.lanes, laneState{class: l.from})
			i = len(s.lanes) - 1
		}
		s.lanes[i].gaps = append(s.lanes[i].gaps, l.seq)
	}
	for qid, q := range j.byID {
		q.name = r.names[qid]
		if q.name == "" || j.queues[q.name] != nil {
			q.name = "lost-and-found-" + strconv.FormatUint(uint64(qid), 10)
		}
		j.queues[q.name] = q
		j.nextQID = max(j.nextQID, qid+1)
		if err := q.restore(r.state(qid), r.held[qid]); err != nil {
			return err
		}
		q.next += uint64(r.unknown) * skipSeqs
		q.wnext = q.next
	}
	r.hold()
	if !j.o.ReadOnly {
		for _, g := range slices.Clone(j.segments) {
			j.retireLocked(g)
		}
	}
	return nil
}

// restore sets counters and acknowledgements and counts what waits.
func (q *Queue) restore(s, held *queueState) error {
	q.next, q.wnext, q.appended, q.acked, q.drops = s.next, s.next, s.appended, s.acked, s.drops
	for _, ls := range s.lanes {
		l := q.laneLocked(ls.class)
		l.water, l.seen = ls.water, ls.water
		for _, g := range ls.gaps {
			if g > l.water {
				if l.ahead == nil {
					l.ahead = map[uint64]struct{}{}
				}
				l.ahead[g] = struct{}{}
			}
		}
	}
	if err := q.rewindLate(held); err != nil {
		return err
	}
	for _, l := range &q.lanes {
		if l == nil {
			continue
		}
		if err := q.recount(l); err != nil {
			return err
		}
		for i := range l.ext {
			q.next = max(q.next, l.ext[i].last()+1)
		}
	}
	q.wnext = q.next
	q.aging = true // whether a stored message has a bound of its own is not known
	return nil
}

// recount sorts the extents of a lane, resolves copies that a compaction under way left, and counts.
func (q *Queue) recount(l *lane) error {
	slices.SortFunc(l.ext, func(a, b extent) int {
		return cmp.Or(cmp.Compare(a.first, b.first), cmp.Compare(a.span, b.span), cmp.Compare(a.seg.id, b.seg.id))
	})
	l.ext = slices.DeleteFunc(l.ext, func(e extent) bool { return e.last() <= l.water })
	for i := 1; i < len(l.ext); {
		if l.ext[i].first > l.ext[i-1].last() {
			i++
			continue
		}
		drop := i // of two copies the younger was complete before it counted
		if a, b := l.ext[i-1].seg, l.ext[i].seg; !b.unfinished() && (b.id > a.id || a.unfinished()) {
			drop = i - 1
		}
		l.ext = slices.Delete(l.ext, drop, drop+1)
		i = max(i-1, 1)
	}
	l.count, l.bytes = 0, 0
	gaps := slices.Sorted(maps.Keys(l.ahead))
	for i := range l.ext {
		if err := q.recountExtent(l, &l.ext[i], gaps); err != nil {
			return err
		}
	}
	return nil
}

func (q *Queue) recountExtent(l *lane, e *extent, gaps []uint64) error {
	n, bytes := int64(e.count), int64(e.bytes)
	k, _ := slices.BinarySearch(gaps, e.first)
	if e.first <= l.water || (k < len(gaps) && gaps[k] <= e.last()) {
		recs, err := q.recsOf(l, e)
		if errors.Is(err, syscall.EIO) {
			recs, err = q.j.rescan(e.seg, q.id, l.class, e.first, e.last(), true)
		}
		if err != nil {
			return err
		}
		if lost := int(e.count) - len(recs); lost > 0 {
			e.count = uint16(len(recs))
			q.j.stats.Damaged += uint64(lost)
		}
		n, bytes = 0, 0
		for _, r := range recs {
			seq := e.first + uint64(r.seq)
			if _, left := l.ahead[seq]; !left && seq > l.water {
				n++
				bytes += int64(r.size)
			}
		}
		l.forgetLeftOut(e, recs)
	}
	l.count += n
	l.bytes += bytes
	if l.class == asideClass {
		q.asides += n
	} else {
		q.msgs += n
		q.bytes += bytes
	}
	e.seg.live.Add(n)
	e.seg.liveBytes.Add(bytes)
	q.j.liveBytes.Add(bytes + n*recordOverhead)
	return nil
}

// recsOf returns the records of an extent from memory or disk.
func (q *Queue) recsOf(l *lane, e *extent) ([]rec, error) {
	if e.run != nil {
		return e.run.all(e.count), nil
	}
	return q.j.readList(q, l.class, e)
}
