package queue

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"slices"
	"time"
)

// keep is the housekeeper: it writes indexes, prepares files, hands on those that are free, drops what is too old and compacts. None of it is on the way
// of an append.
func (j *Journal) keep(ctx context.Context) {
	tick := time.NewTicker(tickInterval)
	defer tick.Stop()
	for ; ; j.chores.Add(1) {
		select {
		case <-ctx.Done():
			return
		case <-j.chore:
			j.index()
			j.recycle()
			j.prepare()
			j.compact(ctx)
		case <-tick.C:
			j.learnBoot()
			j.expire(ctx)
			j.index()
			j.recycle()
			j.trim()
			j.prepare()
			j.compact(ctx)
		}
	}
}

// index writes the indexes that are due.
func (j *Journal) index() {
	j.mu.Lock()
	due := j.unindexed
	j.unindexed = nil
	j.mu.Unlock()
	for _, g := range due {
		j.writeIndex(g)
	}
}

const (
	spareSlots = 2           // so many full-sized files are kept for the next segments in any case
	trimAfter  = time.Minute // others are removed when they were not needed for so long
)

// recycle takes the slots of segments that hold nothing and that no read holds. Files of the common size stay, whatever their number: they have been written
// once, so that writing them again costs the device half of what a new file would. trim removes those that turn out to be too many.
func (j *Journal) recycle() {
	j.mu.Lock()
	var remove, odd []*slot
	size := j.reserveSize()
	over := int64(0) // a bound that was made lower
	if j.o.MaxBytes > 0 {
		over = j.slotBytes - j.o.MaxBytes
	}
	later := j.retired[:0]
	changed := false
	for _, g := range j.retired {
		s := g.slot
		switch {
		case g.pins.Load() > 0:
			later = append(later, g)
			continue
		case g.gone.Load(), over > 0 && len(j.reserve)+len(odd) == reserves:
			remove = append(remove, s)
			over -= s.size
		case s.size == j.o.SegmentBytes && s.size > size:
			j.free = append(j.free, s)
		case len(j.reserve)+len(odd) < reserves && s.size >= size:
			odd = append(odd, s)
		case s.size == j.o.SegmentBytes:
			j.free = append(j.free, s)
		default:
			remove = append(remove, s)
		}
		changed = true
	}
	clear(j.retired[len(later):])
	j.retired = later
	j.mu.Unlock()
	for _, s := range odd {
		if j.cut(s, size) == nil {
			j.mu.Lock()
			j.reserve = append(j.reserve, s)
			j.mu.Unlock()
		}
	}
	j.removeSlots(remove)
	if changed {
		j.spaceFreed.Store(true)
		if j.stopped() != nil {
			poke(j.wake)
		}
	}
}

func (j *Journal) removeSlots(gone []*slot) {
	for _, s := range gone {
		j.files.forget(s)
		if err := j.fs.remove(s.name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			j.mu.Lock()
			j.retired = append(j.retired, &segment{slot: s})
			j.mu.Unlock()
			continue
		}
		j.mu.Lock()
		j.slotBytes -= s.size
		j.mu.Unlock()
	}
}

// trim removes the files that were free all the time since it last did, but for spareSlots of them, those first that were never written.
func (j *Journal) trim() {
	j.mu.Lock()
	if time.Since(j.trimmed) < trimAfter {
		j.mu.Unlock()
		return
	}
	slices.SortStableFunc(j.free, func(a, b *slot) int { return cmp.Compare(b.warm, a.warm) })
	n := len(j.free) - min(j.leastFree, max(len(j.free)-spareSlots, 0))
	gone := slices.Clone(j.free[n:])
	clear(j.free[n:])
	j.free = j.free[:n]
	j.trimmed, j.leastFree = time.Now(), n
	j.mu.Unlock()
	j.removeSlots(gone)
}

// prepare makes the next file before it is needed, so that opening a segment costs the writer no allocation.
func (j *Journal) prepare() {
	j.mu.Lock()
	j.leastFree = min(j.leastFree, len(j.free))
	// One that may be taken and one for compaction, which a single segment does not need.
	need := len(j.free) < min(len(j.segments), 2) && len(j.reserve) == reserves && j.stats.Syncs > 0
	j.mu.Unlock()
	if !need || j.stopped() != nil {
		return
	}
	s, err := j.createSlotOf(j.o.SegmentBytes)
	if err != nil {
		return // the writer meets the same error when it needs the file, and reports it
	}
	j.mu.Lock()
	j.free = append(j.free, s)
	j.mu.Unlock()
}

// expire drops from the head of every queue what is too old, so that age frees space while nobody reads.
func (j *Journal) expire(ctx context.Context) {
	j.mu.Lock()
	queues := make([]*Queue, 0, len(j.queues))
	for _, q := range j.queues {
		queues = append(queues, q)
	}
	j.mu.Unlock()
	slices.SortFunc(queues, func(a, b *Queue) int { return cmp.Compare(a.id, b.id) })
	for _, q := range queues {
		for c := uint8(0); c <= MaxPriority && ctx.Err() == nil; c++ {
			q.expireLane(ctx, c)
		}
	}
}

func (q *Queue) expireLane(ctx context.Context, class uint8) {
	for ctx.Err() == nil {
		q.mu.Lock()
		l := q.lanes[class]
		idle := l == nil || l.count == 0 || (q.limits.MaxAge == 0 && !q.aging)
		q.mu.Unlock()
		if idle {
			return
		}
		e, ok, err := q.head(class)
		if err != nil || !ok {
			return
		}
		q.mu.Lock()
		i, found := l.find(e.seq)
		if !found || l.win[i].left {
			q.mu.Unlock()
			continue
		}
		e = l.win[i]
		o := q.oldest[class]
		e.seg.pins.Add(1)
		q.mu.Unlock()
		if o.seq != e.seq {
			var m Message
			s, err := q.j.readRecord(e, &m)
			if err != nil {
				e.seg.unpin()
				return // its reader decides
			}
			o = oldest{e.seq, s.base, s.dt, m.MaxAge}
			q.mu.Lock()
			q.noteOldestLocked(class, o)
			q.mu.Unlock()
		}
		e.seg.unpin()
		if !q.tooOld(&stamp{base: o.base, dt: o.dt}, o.maxAge) {
			return
		}
		if q.leave(e.seq, dropAge) {
			q.reportDrop(dropAge)
		}
	}
}
