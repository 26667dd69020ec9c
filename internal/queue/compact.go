package queue

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"math/rand/v2"
	"slices"
	"time"
)

// Compaction moves the messages that still wait out of segments that hold little else into a segment of their own, so that an identity that is down
// for a month holds the space of its messages and nobody else's. The new segment is written and synced completely before one record in the journal
// puts it in the place of the old ones; until then a crash finds the old ones untouched.

const (
	coldGroup   = 256 << 10
	sparse      = 50  // per cent of a segment in use below which it is worth moving
	sparseTight = 90  // the same when the folder is near its bound or the disk is full
	mergeFiles  = 16  // so many small segments are merged even when that frees nothing
	leaveBad    = 600 // seconds that a segment which cannot be read is left out, for the sake of the others
	keepRecent  = 2   // segments sealed last are left alone: what waits there is most likely on its way
)

// compact makes at most one pass.
func (j *Journal) compact(ctx context.Context) {
	if ctx.Err() == nil {
		j.compactWith(func(c *control) error { return j.submitWait(ctx, c) })
	}
}

// compactWith makes one pass; submit makes its outcome durable. Where the disk has no room for much, less is moved.
func (j *Journal) compactWith(submit func(*control) error) {
	for room := j.o.SegmentBytes / 10 * 9; isFull(j.compactInto(room, submit)) && room > minSegment; room /= 4 {
	}
}

func (j *Journal) compactInto(room int64, submit func(*control) error) error {
	sources := j.sparseSegments(room)
	if len(sources) == 0 {
		return nil
	}
	c := &compaction{j: j, from: map[*segment]bool{}, b: newBuilder()}
	for _, s := range sources {
		c.from[s] = true
		s.pins.Add(1)
		defer s.unpin()
	}
	if err := c.run(); err != nil {
		c.discard()
		return err // the next pass tries again; what keeps the disk from being written shows at the appends
	}
	if len(c.runs) == 0 {
		c.discard()
		return nil
	}
	if err := submit(c.control(sources)); err != nil && !errors.Is(err, context.Canceled) {
		j.report(Event{Kind: EventTrouble, Reason: "compaction", Err: err})
	}
	return nil
}

// use is what the messages of a segment that wait take on disk, about.
func (s *segment) use() int64 { return s.liveBytes.Load() + s.live.Load()*(recordOverhead+64) }

// sparseSegments picks what to move, the emptiest first, as much as fits the room, and only when it pays.
func (j *Journal) sparseSegments(room int64) []*segment {
	j.mu.Lock()
	defer j.mu.Unlock()
	limit, gain := int64(sparse), j.o.SegmentBytes
	if j.broken != "" || (j.o.MaxBytes > 0 && j.slotBytes+2*j.o.SegmentBytes > j.o.MaxBytes) {
		limit, gain = sparseTight, j.o.SegmentBytes/2
	}
	var sealed, pick []*segment
	for _, s := range j.segments {
		if s.sealed.Load() && !s.dead.Load() && !s.absent && time.Now().Unix()-s.bad.Load() > leaveBad {
			sealed = append(sealed, s)
		}
	}
	if limit == sparse {
		slices.SortFunc(sealed, func(a, b *segment) int { return cmp.Compare(a.id, b.id) })
		sealed = sealed[:max(0, len(sealed)-keepRecent)]
	}
	slices.SortFunc(sealed, func(a, b *segment) int { return cmp.Compare(a.use(), b.use()) })
	var used, size, small int64
	for _, s := range sealed {
		if s.use()*100 > limit*s.slot.size && s.slot.size > j.o.SegmentBytes/4 {
			continue
		}
		if used+s.use() > room {
			break
		}
		pick = append(pick, s)
		used += s.use()
		size += s.slot.size
		if s.slot.size <= j.o.SegmentBytes/4 {
			small++
		}
	}
	if size-used < gain && small < mergeFiles {
		return nil
	}
	return pick
}

// compaction is one pass.
type compaction struct {
	j    *Journal
	from map[*segment]bool
	b    *builder
	g    *segment
	f    file
	off  int64
	runs []movedRun
	ft   footer
}

// movedRun is an extent of the new segment.
type movedRun struct {
	q     *Queue
	class uint8
	e     extent
}

func (c *compaction) run() error {
	j := c.j
	need := int64(segDataStart + 8*blockBytes)
	records := 0
	for s := range c.from {
		need += s.use() + s.use()/8
		records += int(s.live.Load())
	}
	need = align(need+indexRoom(len(j.byIDCopy())*classes/4+records/maxRun+64, records), blockBytes)
	slot, err := j.coldSlot(need)
	if err != nil {
		return err
	}
	c.g = &segment{id: j.nextSeg.Add(1), salt: rand.Uint32(), slot: slot, cold: true}
	c.g.sealed.Store(true)
	if c.f, err = j.files.openFile(slot.name, openWrite); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			j.forgetSlot(slot)
			c.g = nil
		}
		return err
	}
	h := segHeader{version: formatVersion, id: c.g.id, salt: c.g.salt, cold: true, instance: j.instance, machine: j.machine, created: time.Now().UnixMilli()}
	if _, err := c.f.WriteAt(h.block(), 0); err != nil {
		return err
	}
	c.off = segDataStart
	c.b.reset(c.g.salt, 0)
	for _, q := range j.byIDCopy() {
		for class := range uint8(classes) {
			if err := c.lane(q, class); err != nil {
				return err
			}
		}
	}
	return c.complete()
}

// byIDCopy lists the queues in the order of their numbers.
func (j *Journal) byIDCopy() []*Queue {
	j.mu.Lock()
	defer j.mu.Unlock()
	queues := make([]*Queue, 0, len(j.byID))
	for _, q := range j.byID {
		queues = append(queues, q)
	}
	slices.SortFunc(queues, func(a, b *Queue) int { return cmp.Compare(a.id, b.id) })
	return queues
}

// coldSlot finds room for need bytes: a new file, or when there is no room for one a prepared file.
func (j *Journal) coldSlot(need int64) (*slot, error) {
	s, err := j.createSlotOf(need)
	if err == nil {
		return s, nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for i, s := range j.free {
		if s.size >= need {
			j.free = slices.Delete(j.free, i, i+1)
			return s, nil
		}
	}
	return nil, err
}

// control is the record that puts the new segment in the place of the old ones.
func (c *compaction) control(sources []*segment) *control {
	return &control{size: 128 + 10*len(sources), encode: func(b *builder) {
		b.item(itemSegment, appendSegment(nil, c.g))
		var body []byte
		for _, s := range sources {
			body = binary.AppendUvarint(body, s.id)
		}
		b.item(itemFreed, body)
	}, apply: func() { c.apply(sources) }, failed: func() {
		// The record may be on the disk all the same, so the file has to stay until a newer snapshot is.
		c.j.w.zombies = append(c.j.w.zombies, c.g.slot)
	}}
}

// apply swaps in memory what the record has swapped on disk.
func (c *compaction) apply(sources []*segment) {
	j := c.j
	moved := map[runKey][]extent{}
	var records uint64
	for i := range c.runs {
		r := &c.runs[i]
		k := runKey{r.q.id, r.class}
		r.e.list, r.e.listLen = c.ft.runs[i].list, uint16(c.ft.runs[i].listLen)
		moved[k] = append(moved[k], r.e)
		records += uint64(r.e.count)
	}
	for _, q := range j.byIDCopy() {
		q.mu.Lock()
		for _, l := range &q.lanes {
			if l == nil || len(l.ext) == 0 {
				continue
			}
			x := moved[runKey{q.id, l.class}]
			l.replace(c.from, x)
			for i := range x {
				recs := x[i].run.all(x[i].count)
				for _, r := range recs {
					if l.waits(x[i].first + uint64(r.seq)) {
						c.g.live.Add(1)
						c.g.liveBytes.Add(int64(r.size))
					}
				}
				l.forgetLeftOut(&x[i], recs)
			}
			for i := range l.ext {
				if l.ext[i].seg == c.g {
					l.ext[i].run = nil // the index has them
				}
			}
		}
		q.mu.Unlock()
	}
	j.mu.Lock()
	for _, s := range sources {
		if i := slices.Index(j.segments, s); i >= 0 {
			j.segments = slices.Delete(j.segments, i, i+1)
			j.retired = append(j.retired, s)
		} else if i := slices.Index(j.emptied, s); i >= 0 {
			j.emptied = slices.Delete(j.emptied, i, i+1)
			j.retired = append(j.retired, s)
		}
		s.dead.Store(true)
	}
	j.segments = append(j.segments, c.g)
	j.stats.Compacted += records
	j.retireLocked(c.g)
	j.mu.Unlock()
	poke(j.chore)
}
