package queue

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
)

// A file that may not be read at a start (it belongs to somebody else, say) is named and left alone, and stays listed. The watermarks of that moment are kept
// beside it: once a later start can read it, its messages are judged by them and delivered, although the queues have moved on meanwhile.

const (
	flagCold   = 1 // of a segment item
	flagAbsent = 2

	// What a file of which nothing is known may hold: how far numbers are moved on so that its own are never given again.
	skipSeqs     = 1 << 20
	skipSegments = 1 << 16
	skipQueues   = 1 << 16
)

// keep lists a segment that cannot be read at the moment. id 0: nothing is known of it but that it is not older than end.
func (r *recovery) keep(x *found, it segmentItem) {
	g := &segment{id: it.id, salt: it.salt, slot: x.slot, cold: it.cold, absent: true}
	g.end.Store(it.end)
	g.sealed.Store(true)
	g.live.Store(1) // whatever leaves, it stays
	r.j.segments = append(r.j.segments, g)
	r.j.absent = append(r.j.absent, x.slot.name)
	x.used = true
}

// strangers are unreadable files that no list names: they may be the newest of all. It says how many there are that were not there at the last start.
func (r *recovery) strangers() (n int) {
	for slot, x := range r.files {
		if x.unread && !r.listed(slot) {
			n++
		}
	}
	return n
}

func (r *recovery) listed(slot uint32) bool {
	for _, s := range r.segs {
		if s.slot == slot {
			return true
		}
	}
	_, ok := r.kept[slot]
	return ok
}

// keepStrangers lists them, and moves all numbers on.
func (r *recovery) keepStrangers() {
	for slot, x := range r.files {
		if !x.unread || slices.ContainsFunc(r.j.segments, func(g *segment) bool { return g.slot == x.slot }) {
			continue
		}
		it, ok := r.kept[slot]
		if !ok {
			it = segmentItem{slot: slot, end: int64(r.root)}
		}
		r.keep(x, it)
	}
	if r.unknown > 0 {
		r.j.nextSeg.Add(skipSegments)
		r.j.nextQID += skipQueues
	}
}

// coldToo lists what only a stranger may list: what compaction wrote since the newest snapshot that can be read.
func (r *recovery) coldToo() {
	for _, x := range r.files {
		if x.ok && !x.used && x.head.cold && x.head.id > r.root && !r.freed[x.head.id] {
			if _, ok := r.segs[x.head.id]; !ok {
				r.segs[x.head.id] = segmentItem{id: x.head.id, slot: x.slot.num, salt: x.head.salt, end: -1, cold: true}
			}
		}
	}
}

// returned reads the strangers of earlier starts that can be read now.
func (r *recovery) returned() error {
	var back []*found
	for slot, it := range r.kept {
		x := r.files[slot]
		if x == nil || x.unread {
			continue
		}
		since := it.id // a listed file may have been used again before it could not be read
		if it.id == 0 {
			since = uint64(it.end)
		}
		if x.ok && !x.used && !x.head.cold && x.head.id > since && !r.freed[x.head.id] {
			back = append(back, x)
			delete(r.segs, it.id)
		}
	}
	slices.SortFunc(back, func(a, b *found) int { return cmp.Compare(a.head.id, b.head.id) })
	for _, x := range back {
		if err := r.readLate(x); err != nil {
			return err
		}
	}
	return nil
}

func (r *recovery) readLate(x *found) error {
	j := r.j
	f, release, err := j.files.get(x.slot)
	if err != nil {
		return err
	}
	defer release()
	g := &segment{id: x.head.id, salt: x.head.salt, slot: x.slot, late: true}
	g.sealed.Store(true)
	s := scanner{f: f, salt: g.salt, size: x.slot.size, end: -1}
	s.visit = func(it *scanned) { r.applyLate(g, it) }
	s.damage = func(off, end int64) { j.damaged(g, off, end) }
	end, err := s.run()
	if err != nil {
		return err
	}
	g.end.Store(end)
	x.used = true
	j.segments = append(j.segments, g)
	j.unindexed = append(j.unindexed, g)
	return nil
}

// applyLate takes what a stranger says. The state of the journal has moved on without it, so that only its messages count, and what is needed to judge them.
func (r *recovery) applyLate(g *segment, it *scanned) {
	c := cursor{b: it.body}
	switch it.kind {
	case itemBoot:
		r.apply(g, it)
	case itemQueue:
		if qid := uint32(c.uvarint()); !c.bad {
			r.nameLate(qid, string(c.b))
		}
	case itemSegment:
		if s, flags, ok := parseSegment(it.body); ok && flags&flagAbsent == 0 {
			k, known := r.kept[s.slot]
			if x := r.files[s.slot]; known && k.id != s.id && x != nil && x.ok && !x.used && x.head.id == s.id {
				r.segs[s.id] = s
			}
		}
	case itemState:
		if s, ok := parseState(it.body); ok && !r.forgot[s.qid] {
			s.qid = r.lateQueue(s.qid)
			older := slices.ContainsFunc(r.j.segments, func(g *segment) bool { return g.absent })
			for _, k := range r.kept {
				older = older || k.id != 0
			}
			if !older { // the state that is kept is of a moment before; others that are missing still need it
				r.held[s.qid] = &s
			}
			r.state(s.qid)
		}
	case itemMessage:
		h := &it.head
		if r.forgot[h.qid] {
			return
		}
		qid := r.lateQueue(h.qid)
		if s := r.state(qid); h.leaves == 0 {
			s.appended++
		} else {
			r.left = append(r.left, leftItem{qid, h.from, h.leaves})
		}
		r.queue(qid).laneLocked(h.class).publish(g, h.seq, it.frame, it.item, it.size)
	}
}

// nameLate takes the name of a queue that a stranger gives. When a queue of that name was made again since, it gets the messages; their sequences were left
// free for them.
func (r *recovery) nameLate(qid uint32, name string) {
	if r.names[qid] != "" || r.forgot[qid] {
		return
	}
	for other, n := range r.names {
		if n == name {
			r.alias[qid] = other
			return
		}
	}
	r.names[qid] = name
}

func (r *recovery) lateQueue(qid uint32) uint32 {
	if other, ok := r.alias[qid]; ok {
		return other
	}
	return qid
}

// rewindLate sets the watermarks of lanes that get messages back to where they were when those could not be read. Everything else there that had left until now
// stays out.
func (q *Queue) rewindLate(held *queueState) error {
	for _, l := range &q.lanes {
		if l == nil || !slices.ContainsFunc(l.ext, func(e extent) bool { return e.seg.late }) {
			continue
		}
		h := laneState{class: l.class}
		if held != nil {
			if i := slices.IndexFunc(held.lanes, func(x laneState) bool { return x.class == l.class }); i >= 0 {
				h = held.lanes[i]
			}
		}
		if h.water >= l.water {
			continue
		}
		if l.ahead == nil {
			l.ahead = map[uint64]struct{}{}
		}
		var rest []extent
		for _, e := range l.ext {
			if !e.seg.late && e.last() <= l.water {
				continue
			}
			if !e.seg.late && e.first <= l.water {
				recs, err := q.recsOf(l, &e)
				if err != nil {
					return err
				}
				for _, x := range recs {
					if seq := e.first + uint64(x.seq); seq <= l.water {
						l.ahead[seq] = struct{}{}
					}
				}
			}
			rest = append(rest, e)
		}
		l.ext, l.water, l.seen = rest, h.water, h.water
		for _, s := range h.gaps {
			if s > l.water {
				l.ahead[s] = struct{}{}
			}
		}
	}
	return nil
}

// hold keeps the watermarks of the moment at which a file first could not be read, until none is missing.
func (r *recovery) hold() {
	j := r.j
	if len(j.absent) == 0 {
		return
	}
	j.held = map[uint32][]byte{}
	for qid, b := range r.heldRaw {
		j.held[qid] = b
	}
	if len(r.kept) > 0 {
		return // known since an earlier start
	}
	for qid, q := range j.byID {
		q.mu.Lock()
		j.held[qid] = q.stateLocked(nil)
		q.mu.Unlock()
	}
}

// applyHeld takes a kept state.
func (r *recovery) applyHeld(it *scanned) {
	if s, ok := parseState(it.body); ok {
		r.held[s.qid] = &s
		r.heldRaw[s.qid] = bytes.Clone(it.body)
	}
}

func parseSegment(b []byte) (s segmentItem, flags byte, ok bool) {
	c := cursor{b: b}
	s = segmentItem{id: c.uvarint(), slot: uint32(c.uvarint()), salt: c.uint32(), end: int64(c.uvarint())}
	flags = c.byte()
	s.cold = flags&flagCold != 0
	return s, flags, !c.bad
}

// absentText is what status says about files that cannot be read.
func (j *Journal) absentText() string {
	if len(j.absent) == 0 {
		return ""
	}
	return fmt.Sprintf("%d file(s) cannot be read and wait for a restart that can: %s", len(j.absent), j.absent[0])
}
