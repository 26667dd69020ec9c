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
	there := func(s *slot) bool { return slices.Contains(names, filepath.Base(s.name)) }
	j.mu.Lock()
	others := slices.ContainsFunc(j.segments, func(o *segment) bool { return there(o.slot) }) || slices.ContainsFunc(j.free, there) || slices.ContainsFunc(j.reserve, there)
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
	n, size := l.expects(e)
	var have uint32
	for i := range recs {
		have += recs[i].size
		if seq := e.first + uint64(recs[i].seq); l.waits(seq) && seq > l.seen {
			n--
			size -= int64(recs[i].size)
		}
	}
	e.count, e.bytes = uint16(len(recs)), have
	q.takeLostLocked(l, e.seg, max(n, 0), max(size, 0))
}

// expects is how much of e waits beyond the window. Where some of it left out of order the size is a guess, which squareLocked makes up for.
func (l *lane) expects(e *extent) (n, size int64) {
	if e.last() <= l.seen {
		return 0, 0
	}
	if e.first > l.seen {
		return l.beyond(e)
	}
	n, size = l.count, l.bytes // of which the rest is elsewhere
	for i := range l.win {
		if !l.win[i].left {
			n--
			size -= int64(l.win[i].size)
		}
	}
	for i := range l.ext {
		if x := &l.ext[i]; x.first > e.first {
			m, b := l.beyond(x)
			n -= m
			size -= b
		}
	}
	return min(n, int64(e.count)), min(size, int64(e.bytes))
}

// beyond is expects for an extent of which nothing is in the window.
func (l *lane) beyond(e *extent) (n, size int64) {
	n = int64(e.count)
	for s := range l.ahead {
		if s >= e.first && s <= e.last() && n > 0 {
			n--
		}
	}
	return n, int64(e.bytes) * n / max(int64(e.count), 1)
}

// squareLocked takes what a guess left over out of the books of a lane that is empty.
func (q *Queue) squareLocked(l *lane) {
	if l.count != 0 || l.bytes == 0 {
		return
	}
	if l.class != asideClass {
		q.bytes -= l.bytes
	}
	q.j.liveBytes.Add(-l.bytes)
	l.bytes = 0
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

// missing lists what waits in the window and is in none of recs, which is what is left of e.
func (l *lane) missing(e *extent, recs []rec) (lost []uint64) {
	for i := range l.win {
		w := &l.win[i]
		if w.left || w.seg != e.seg || w.seq < e.first || w.seq > e.last() {
			continue
		}
		if !slices.ContainsFunc(recs, func(r rec) bool { return e.first+uint64(r.seq) == w.seq }) {
			lost = append(lost, w.seq)
		}
	}
	return lost
}
