package queue

import (
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

var errUnlinked = errors.New("the file was removed")

// gone says whether a failed read means that the file of a sealed segment was removed, which takes its messages with it: they are counted as damage, and the
// queue goes on behind them. Where no other file of the journal is there either, the folder is what is missing, and may come back.
func (j *Journal) gone(g *segment, err error) bool {
	if j.o.ReadOnly || g.dead.Load() || !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	if g.gone.Load() {
		return true
	}
	names, err := j.fs.list(j.o.Dir)
	if err != nil || slices.Contains(names, filepath.Base(g.slot.name)) {
		return false
	}
	j.mu.Lock()
	others := slices.ContainsFunc(j.segments, func(o *segment) bool { return slices.Contains(names, filepath.Base(o.slot.name)) })
	j.mu.Unlock()
	if others && !g.gone.Swap(true) {
		j.report(Event{Kind: EventMissing, File: g.slot.name})
	}
	return others
}

// forgetSlot takes a file that was removed out of the books.
func (j *Journal) forgetSlot(s *slot) {
	j.files.forget(s)
	j.mu.Lock()
	j.slotBytes -= s.size
	j.mu.Unlock()
}

// readFailure remembers since when a file cannot be read.
type readFailure struct {
	seg   *segment
	since time.Time
}

const (
	giveUpAfter = time.Minute // how long what fails with an I/O error is tried while others can be read
	probeFiles  = 4
)

// givesUp decides about something of a segment that cannot be read: while the disk as a whole fails, never; when others are read and this file has failed for
// a minute, its block is bad, and what else cannot be read there is not waited for again.
func (q *Queue) givesUp(g *segment, err error) bool {
	q.mu.Lock()
	q.failed++
	if q.failing == nil || q.failing.seg != g {
		q.failing = &readFailure{g, time.Now()}
	}
	due := time.Since(q.failing.since) > giveUpAfter
	q.mu.Unlock()
	if !due || errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) || tooManyOpen(err) || errors.Is(err, syscall.ENOMEM) {
		return false // or it says nothing about the record: it may not be opened at the moment
	}
	j := q.j
	return j.stopped() == nil && (time.Since(j.lastRead()) < giveUpAfter/2 || j.canRead())
}

// canRead tries whether the disk reads at all: the beginning of some files, from the device.
func (j *Journal) canRead() bool {
	j.mu.Lock()
	n := len(j.segments)
	segs := slices.Clone(j.segments[max(0, n-probeFiles):])
	for _, g := range segs {
		g.pins.Add(1)
	}
	j.mu.Unlock()
	ok := false
	for _, g := range slices.Backward(segs) {
		ok = ok || j.probeSlot(g.slot)
		g.unpin()
	}
	return ok
}

func (j *Journal) probeSlot(s *slot) bool {
	f, release, err := j.files.get(s)
	if err != nil {
		return false
	}
	defer release()
	f.uncache(0, blockBytes)
	_, err = f.ReadAt(make([]byte, blockBytes), 0)
	return err == nil || errors.Is(err, io.EOF)
}

// settleLossLocked takes records that an extent promised and damage took out of the books. recs is what is left of it.
func (q *Queue) settleLossLocked(l *lane, e *extent, recs []rec) {
	if len(recs) >= int(e.count) {
		return
	}
	var haveBytes uint32
	n, size := int64(e.count), int64(e.bytes)
	for i := range recs {
		haveBytes += recs[i].size
	}
	if e.first <= l.seen || len(l.ahead) > 0 {
		n, size = l.expectsLocked(e)
	}
	e.count, e.bytes = uint16(len(recs)), haveBytes
	for i := range recs {
		if seq := e.first + uint64(recs[i].seq); l.waits(seq) && seq > l.seen {
			n--
			size -= int64(recs[i].size)
		}
	}
	q.takeLostLocked(l, e.seg, max(n, 0), max(size, 0))
}

// expectsLocked is how much of e waits and is not in the window yet: what the lane counts and does not have elsewhere. Sizes are about right only where some
// left out of order.
func (l *lane) expectsLocked(e *extent) (n, size int64) {
	n, size = l.count, l.bytes
	for i := range l.win {
		if !l.win[i].left {
			n--
			size -= int64(l.win[i].size)
		}
	}
	for i := range l.ext {
		x := &l.ext[i]
		if x.first == e.first || x.first <= l.seen {
			continue
		}
		left := int64(0)
		for s := range l.ahead {
			if s >= x.first && s <= x.last() {
				left++
			}
		}
		n -= max(int64(x.count)-left, 0)
		size -= int64(x.bytes)
	}
	return min(n, int64(e.count)), min(size, int64(e.bytes))
}

func (q *Queue) takeLostLocked(l *lane, g *segment, n, size int64) {
	if n == 0 {
		return
	}
	l.count -= n
	l.bytes -= size
	if l.class != asideClass {
		q.msgs -= n
		q.bytes -= size
	} else {
		q.asides -= n
	}
	q.drops[dropDamage] += uint64(n)
	q.j.liveBytes.Add(-size - n*recordOverhead)
	g.live.Add(-n)
	g.liveBytes.Add(-size)
	q.markDirtyLocked()
	q.j.countDamage(uint64(n))
}
