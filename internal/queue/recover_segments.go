package queue

import (
	"cmp"
	"errors"
	"slices"
	"syscall"
	"time"
)

// segments loads the index of every other segment that holds messages.
func (r *recovery) segments() error {
	j := r.j
	if !r.whole {
		for _, x := range r.files { // no snapshot anywhere: everything that checks counts
			if x.ok && !x.used {
				r.segs[x.head.id] = segmentItem{id: x.head.id, slot: x.slot.num, salt: x.head.salt, end: -1, cold: x.head.cold}
			}
		}
	}
	if r.unknown = r.strangers(); r.unknown > 0 {
		r.coldToo()
	}
	if err := r.returned(); err != nil {
		return err
	}
	have := map[uint64]bool{}
	for _, g := range j.segments {
		have[g.id] = true
	}
	for id, it := range r.segs {
		if have[id] {
			continue
		}
		if err := r.segment(it); errors.Is(err, syscall.EIO) {
			r.unreadable(r.files[it.slot], err)
			r.keep(r.files[it.slot], it)
		} else if err != nil {
			return err
		}
		j.nextSeg.Store(max(j.nextSeg.Load(), id))
	}
	r.keepStrangers()
	slices.SortFunc(j.segments, func(a, b *segment) int { return cmp.Compare(a.id, b.id) })
	return nil
}

func (r *recovery) segment(it segmentItem) error {
	j := r.j
	x := r.files[it.slot]
	if x != nil && x.unread {
		r.keep(x, it)
		return nil
	}
	if x == nil || (x.used && x.slot.size == 0) || (x.ok && x.head.id != it.id) {
		if r.unknown == 0 { // otherwise one of these files may say that it was done with
			j.stats.Damaged++
		}
		j.report(Event{Kind: EventMissing, File: slotName(j.o.Dir, it.slot)})
		return nil
	}
	if !x.ok {
		j.report(Event{Kind: EventDamage, File: x.slot.name, Reason: "segment header"})
	}
	x.used = true
	_, late := r.kept[it.slot]
	g := &segment{id: it.id, salt: it.salt, slot: x.slot, cold: it.cold, late: late}
	g.sealed.Store(true)
	g.end.Store(it.end)
	if it.end < 0 && it.cold {
		if err := j.findEnd(g); err != nil {
			return err
		}
	}
	ok, err := j.loadIndex(g, r.adopt)
	if err != nil && !errors.Is(err, syscall.EIO) {
		return err
	}
	if !ok {
		damaged, _, err := j.scanRuns(g, func(qid uint32, class uint8, e extent) { r.adopt(g, qid, class, e) })
		if err != nil {
			return err
		}
		j.stats.Damaged += uint64(damaged) // at least: without an index nothing says how many they were
		if !g.cold {
			j.unindexed = append(j.unindexed, g)
		}
	}
	j.segments = append(j.segments, g)
	return nil
}

// adopt adds an extent to its lane.
func (r *recovery) adopt(g *segment, qid uint32, class uint8, e extent) {
	if r.forgot[qid] || (r.whole && r.names[qid] == "" && r.states[qid] == nil) {
		return // of a queue that was dropped
	}
	e.seg = g
	l := r.queue(qid).laneLocked(class)
	l.ext = append(grown(l.ext), e)
}

// spare keeps files that hold nothing for later use and lets the housekeeper remove the rest.
func (r *recovery) spare() {
	j := r.j
	if j.o.ReadOnly {
		return
	}
	for _, x := range r.files {
		if !x.used {
			j.retired = append(j.retired, &segment{slot: x.slot})
		}
	}
	j.w.lastFlush = time.Now()
}
