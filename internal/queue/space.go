package queue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"slices"
	"syscall"
	"time"
)

// errBound: the folder has reached Options.MaxBytes.
var errBound = errors.New("the folder has reached its bound")

// makeRoom sees to it that a group of est bytes with so many records fits the segment in use, opening a new one when it does not. Groups with records
// leave room for acknowledgements, in the segment and in a reserve of their own, so that a full disk can always be drained.
func (j *Journal) makeRoom(est int64, recs int) error {
	w := &j.w
	if recs > 0 {
		if err := j.keepReserve(); err != nil {
			return err
		}
	}
	need := est + indexRoom(w.runs+recs, w.records+recs) + blockBytes
	if recs > 0 {
		need += controlReserve
	}
	if w.seg != nil && w.off+need <= w.seg.slot.size {
		return nil
	}
	return j.roll(est+indexRoom(recs, recs)+blockBytes+controlReserve, recs > 0)
}

func isFull(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, errBound) }

// reclaim frees at once what holds nothing instead of waiting for the next flush. It reports whether there was something.
func (j *Journal) reclaim() bool {
	ctl := j.upkeep()
	if len(ctl) == 0 || j.writeGroup(nil, ctl, nil, int64(len(ctl)*1024)) != nil {
		return false
	}
	for _, c := range ctl {
		if c.apply != nil {
			c.apply()
		}
	}
	j.recycle()
	return true
}

// createSlot preallocates a file. When the disk has no room for size, smaller ones down to least are tried; least 0 means size or nothing.
func (j *Journal) createSlot(size, least int64) (*slot, error) {
	if least == 0 {
		least = size
	}
	for {
		s, err := j.createSlotOf(size)
		if err == nil {
			return s, nil
		}
		if !isFull(err) || size/2 < least {
			return nil, err
		}
		size /= 2
	}
}

func (j *Journal) createSlotOf(size int64) (*slot, error) { return j.create(size, j.o.MaxBytes) }

func (j *Journal) create(size, bound int64) (*slot, error) {
	j.mu.Lock()
	if bound > 0 && j.slotBytes+size > bound {
		j.mu.Unlock()
		return nil, errBound
	}
	num := j.nextSlot
	j.nextSlot++
	j.slotBytes += size
	j.mu.Unlock()
	s := &slot{num: num, name: slotName(j.o.Dir, num), size: size}
	err := j.allocate(s)
	if err != nil {
		j.mu.Lock()
		j.slotBytes -= size
		j.mu.Unlock()
		return nil, err
	}
	return s, nil
}

// allocate makes the file of a slot durable: its blocks, its size and its name.
func (j *Journal) allocate(s *slot) error {
	f, err := j.files.openFile(s.name, createNew)
	if err != nil {
		return err
	}
	if err = f.allocate(s.size); err == nil {
		err = f.sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = j.files.syncDir(j.o.Dir)
	}
	if err != nil {
		j.fs.remove(s.name)
	}
	return err
}

// takeSlot finds a file for the next segment. Acknowledgements may take a reserve, messages may not, nor the last free file: a full disk is only made empty
// again by compaction where a queue that is not drained has messages in every file.
func (j *Journal) takeSlot(need int64, data bool) (*slot, error) {
	if s := j.takeFree(need, 1); s != nil {
		return s, nil
	}
	poke(j.chore)
	size := max(j.o.SegmentBytes, align(need, blockBytes))
	least := max(align(need, blockBytes), min(reserveBytes, j.o.SegmentBytes))
	if data && !j.hasFree() {
		least = size // what is left of the disk is for compaction
	}
	s, err := j.createSlot(size, least)
	if isFull(err) && j.giveUpFree(need) {
		s, err = j.createSlot(size, least)
	}
	if err == nil || data {
		return s, err
	}
	j.mu.Lock()
	if i := slices.IndexFunc(j.reserve, func(r *slot) bool { return r.size >= need }); i >= 0 {
		s = j.reserve[i]
		j.reserve = slices.Delete(j.reserve, i, i+1)
	}
	j.mu.Unlock()
	if s == nil {
		s = j.takeFree(need, 0)
	}
	if s == nil && errors.Is(err, errBound) { // made lower than what is stored: nothing may leave without it
		return j.create(max(reserveBytes, align(need, blockBytes)), 0)
	}
	if s == nil {
		return nil, err
	}
	return s, nil
}

// hasFree says whether there is a free file, or nothing yet that compaction could need one for.
func (j *Journal) hasFree() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.free) > 0 || len(j.segments) == 0
}

// openSlot takes a file for the next segment and opens it. One that was removed meanwhile is forgotten.
func (j *Journal) openSlot(need int64, data bool) (*slot, file, error) {
	for {
		s, err := j.takeSlot(need, data)
		if err != nil {
			return nil, nil, err
		}
		f, err := j.files.openFile(s.name, openWrite)
		switch {
		case err == nil:
			return s, f, nil
		case errors.Is(err, fs.ErrNotExist):
			j.forgetSlot(s)
		default:
			j.mu.Lock()
			j.free = append(j.free, s)
			j.mu.Unlock()
			return nil, nil, err
		}
	}
}

// takeFree takes the free file that was written furthest, so that few files serve again and again. It leaves some.
func (j *Journal) takeFree(need int64, leave int) *slot {
	j.mu.Lock()
	defer j.mu.Unlock()
	best, fit := -1, 0
	for i, s := range j.free {
		if s.size < need {
			continue
		}
		fit++
		if best < 0 || s.warm > j.free[best].warm {
			best = i
		}
	}
	if fit <= leave {
		return nil
	}
	s := j.free[best]
	j.free = slices.Delete(j.free, best, best+1)
	j.leastFree = min(j.leastFree, len(j.free))
	return s
}

// giveUpFree removes the free files when none is large enough, and says whether there were any.
func (j *Journal) giveUpFree(need int64) bool {
	j.mu.Lock()
	var gone []*slot
	if !slices.ContainsFunc(j.free, func(s *slot) bool { return s.size >= need }) {
		gone, j.free, j.leastFree = j.free, nil, 0
	}
	j.mu.Unlock()
	j.removeSlots(gone)
	return len(gone) > 0
}

// roll opens a new segment that begins with a snapshot of all state, synced before anything else goes there. The segment that was in use is sealed.
func (j *Journal) roll(need int64, data bool) error {
	w := &j.w
	snap, _ := j.snapshot(w.b, j.nextSeg.Load()+1) // laid out for its size only; the salt is not known yet
	s, f, err := j.openSlot(segDataStart+int64(snap)+2*blockBytes+need, data)
	if err != nil {
		return err
	}
	if s.warm == 0 { // new, or of an earlier run
		s.warm = f.written()
	}
	g := &segment{id: j.nextSeg.Add(1), salt: rand.Uint32(), slot: s}
	h := segHeader{version: formatVersion, id: g.id, salt: g.salt, instance: j.instance, machine: j.machine, created: time.Now().UnixMilli()}
	// From here on the new header may be on the disk, with a snapshot that says where the old segment ends: nothing goes there any more.
	j.seal()
	w.b.reset(g.salt, 0)
	_, emptied := j.snapshot(w.b, g.id)
	buf := append(h.block(), w.b.finish(segDataStart)...)
	w.f, w.seg = f, g
	if err := j.writeSync(buf, 0); err != nil {
		w.f, w.seg = nil, nil
		f.Close()
		w.zombies = append(w.zombies, s)
		return err
	}
	w.off, w.group, w.records, w.runs = int64(len(buf)), 1, 0, 0
	g.end.Store(w.off)
	j.mu.Lock()
	j.segments = append(j.segments, g)
	j.retired = append(j.retired, emptied...)
	j.emptied = slices.DeleteFunc(j.emptied, func(e *segment) bool { return slices.Contains(emptied, e) })
	for _, z := range w.zombies {
		j.retired = append(j.retired, &segment{slot: z})
	}
	j.mu.Unlock()
	w.zombies = nil
	poke(j.chore)
	return nil
}

// seal ends the use of the segment in use.
func (j *Journal) seal() {
	w := &j.w
	if w.seg == nil {
		return
	}
	w.f.Close()
	g := w.seg
	w.f, w.seg = nil, nil
	g.sealed.Store(true)
	j.mu.Lock()
	if g.live.Load() > 0 {
		j.unindexed = append(j.unindexed, g)
	}
	j.retireLocked(g)
	j.mu.Unlock()
	poke(j.chore)
}

// abandon leaves a segment whose last write or sync failed as of its last good sync.
func (j *Journal) abandon() { j.seal() }

// upkeep returns the changes of state that are due beside acknowledgements.
func (j *Journal) upkeep() []*control {
	j.mu.Lock()
	defer j.mu.Unlock()
	var cs []*control
	if len(j.emptied) > 0 {
		gone := slices.Clone(j.emptied)
		cs = append(cs, &control{size: 32 + 10*len(gone), encode: func(b *builder) {
			var body []byte
			for _, s := range gone {
				body = binary.AppendUvarint(body, s.id)
			}
			b.item(itemFreed, body)
		}, apply: func() { j.freed(gone) }})
	}
	if j.bootsDirty {
		j.bootsDirty = false
		boot, off := j.boot.id, j.boots[j.boot.id]
		cs = append(cs, &control{size: 64, encode: func(b *builder) { b.item(itemBoot, appendBoot(nil, boot, off)) }})
	}
	return cs
}

// freed hands the slots of segments that are no longer part of the journal to the housekeeper.
func (j *Journal) freed(gone []*segment) {
	j.mu.Lock()
	for _, s := range gone {
		if i := slices.Index(j.emptied, s); i >= 0 {
			j.emptied = slices.Delete(j.emptied, i, i+1)
			j.retired = append(j.retired, s)
		}
	}
	j.mu.Unlock()
	poke(j.chore)
}

// wantsSlots: the next segment would need a new file although there are some that could be had after a flush.
func (j *Journal) wantsSlots() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.emptied) > 0 && len(j.free) <= 1 && len(j.retired) == 0
}

func (j *Journal) stopped() error {
	j.pend.mu.Lock()
	defer j.pend.mu.Unlock()
	return j.pend.stop
}

// trouble refuses appends until a probe succeeds. Reading and acknowledging go on.
func (j *Journal) trouble(err error) {
	w := &j.w
	stop, text := ErrDisk, err.Error()
	switch {
	case errors.Is(err, errBound):
		stop = ErrFull
	case errors.Is(err, syscall.ENOSPC):
		text = "disk full: " + text
	case errors.Is(err, syscall.EROFS) || errors.Is(err, fs.ErrPermission):
		text = "disk read-only: " + text
	}
	j.full.Store(isFull(err))
	w.backoff = min(max(w.backoff*2, minBackoff), maxBackoff)
	w.retryAt = time.Now().Add(w.backoff)
	j.pend.mu.Lock()
	began := j.pend.stop == nil
	j.pend.stop = fmt.Errorf("%w: %s", stop, text)
	j.pend.mu.Unlock()
	j.mu.Lock()
	j.broken = text
	j.mu.Unlock()
	if began {
		j.report(Event{Kind: EventTrouble, Reason: text, Err: err})
	}
}

// probe tries whether messages can be stored again.
func (j *Journal) probe() {
	if err := j.makeRoom(min(64<<10, j.o.SegmentBytes/4), 1); err != nil {
		j.trouble(err)
		return
	}
	j.w.backoff = 0
	j.full.Store(false)
	j.pend.mu.Lock()
	j.pend.stop = nil
	j.pend.mu.Unlock()
	j.mu.Lock()
	j.broken = ""
	j.mu.Unlock()
	j.report(Event{Kind: EventRecovered})
}
