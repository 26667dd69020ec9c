package queue

import (
	"maps"
	"slices"
	"sort"
)

const (
	maxRun     = 1024 // records of one extent: what filling a window decodes at once
	maxSpan    = 1 << 31
	maxList    = maxRun * 20 // bytes of its list, with room
	windowFill = 8           // records looked up ahead of a reader
	maxAhead   = 8192        // acknowledgements over a gap that are kept on disk per lane; more are only sent again after a crash
)

// lane is one priority class of one queue. Sequences ascend in it. Guarded by the queue's lock.
//
// What is stored is known by extents (sparse, one per run of records); only the records between the oldest unacknowledged one and the furthest reader
// are known one by one, in win.
type lane struct {
	class uint8
	water uint64   // every record of the lane up to here has left
	ext   []extent // ascending; may begin with extents below water

	win  []entry // from the oldest unacknowledged record to the furthest reader
	base uint64  // number of win[0], counted over the life of the lane: what readers' positions refer to
	seen uint64  // sequence of the last record that went into win

	ahead map[uint64]struct{} // acknowledged beyond seen

	count int64
	bytes int64
}

// entry is one record that a reader has seen or will see next.
type entry struct {
	seq         uint64
	seg         *segment
	frame, item uint32
	size        uint32
	left        bool // acknowledged or dropped
	alone       bool // set for a read: its neighbours lie in other frames
}

// publish adds a record that is durable now.
func (l *lane) publish(seg *segment, seq uint64, frame, item, size uint32) (newRun bool) {
	e := l.last()
	if e == nil || e.seg != seg || e.run == nil || e.count >= maxRun || seq <= e.last() || seq-e.first > maxSpan {
		l.ext = append(grown(l.ext), extent{seg: seg, first: seq, run: new(run)})
		e = l.last()
		newRun = true
	}
	e.run.add(rec{seq: uint32(seq - e.first), frame: frame, item: item, size: size})
	e.span = uint32(seq - e.first)
	e.count++
	e.bytes += size
	l.count++
	l.bytes += int64(size)
	return newRun
}

// grown makes room for one more, by a quarter at a time: with doubling, thousands of lanes would hold as much for nothing as for what they keep.
func grown[E any](s []E) []E {
	if len(s) < cap(s) {
		return s
	}
	return append(make([]E, 0, len(s)+len(s)/4+1), s...)
}

func (l *lane) last() *extent {
	if len(l.ext) == 0 {
		return nil
	}
	return &l.ext[len(l.ext)-1]
}

// after returns the first extent that may hold a sequence above seq.
func (l *lane) after(seq uint64) *extent {
	i := sort.Search(len(l.ext), func(i int) bool { return l.ext[i].last() > seq })
	if i == len(l.ext) {
		return nil
	}
	return &l.ext[i]
}

// pushList takes the next records of e into the window, where recs are all of it.
func (l *lane) pushList(e *extent, recs []rec) {
	i := sort.Search(len(recs), func(i int) bool { return e.first+uint64(recs[i].seq) > l.seen })
	n := min(i+windowFill, len(recs))
	l.push(e, recs[i:n], n == len(recs))
}

// pushRun does the same for an extent whose records are in memory.
func (l *lane) pushRun(e *extent) {
	recs, whole := e.run.ahead(make([]rec, 0, windowFill), e.first, l.seen)
	l.push(e, recs, whole)
}

// push takes records above seen into the window; whole: e ends with them. Those that left already keep their place so that the watermark can pass them.
func (l *lane) push(e *extent, recs []rec, whole bool) {
	if free := cap(l.win) - len(l.win); free < len(recs) { // exactly at first: most windows never hold more
		l.win = append(make([]entry, 0, len(l.win)+len(l.win)/4+len(recs)), l.win...)
	}
	for _, r := range recs {
		seq := e.first + uint64(r.seq)
		_, left := l.ahead[seq]
		if left {
			delete(l.ahead, seq)
		}
		l.win = append(l.win, entry{seq: seq, seg: e.seg, frame: r.frame, item: r.item, size: r.size, left: left})
		l.seen = seq
	}
	if whole {
		l.seen = e.last() // also when damage made the list end early: never look there again
		l.forgetAhead()
	}
	l.advance()
}

// forgetAhead drops what is noted about records that have been passed: those that compaction left out because they had left.
func (l *lane) forgetAhead() {
	for s := range l.ahead {
		if s <= l.seen {
			delete(l.ahead, s)
		}
	}
}

// forgetLeftOut drops what is noted about records within e that compaction left out.
func (l *lane) forgetLeftOut(e *extent, recs []rec) {
	for s := range l.ahead {
		if s < e.first || s > e.last() {
			continue
		}
		if i := sort.Search(len(recs), func(i int) bool { return e.first+uint64(recs[i].seq) >= s }); i == len(recs) || e.first+uint64(recs[i].seq) != s {
			delete(l.ahead, s)
		}
	}
}

// find returns the place of seq in the window.
func (l *lane) find(seq uint64) (int, bool) {
	return slices.BinarySearchFunc(l.win, seq, func(e entry, s uint64) int {
		switch {
		case e.seq < s:
			return -1
		case e.seq > s:
			return 1
		}
		return 0
	})
}

// leave takes the entry at i out of the lane's books and moves the watermark over the contiguous run that has left.
func (l *lane) leave(i int) (emptied *segment) {
	e := &l.win[i]
	e.left = true
	l.count--
	l.bytes -= int64(e.size)
	if e.seg.drop(e.size) {
		emptied = e.seg
	}
	if i == 0 {
		l.advance()
	}
	return emptied
}

// leaveAhead does the same for a record that no reader has reached.
func (l *lane) leaveAhead(seg *segment, seq uint64, size uint32) (emptied *segment) {
	if l.ahead == nil {
		l.ahead = map[uint64]struct{}{}
	}
	l.ahead[seq] = struct{}{}
	l.count--
	l.bytes -= int64(size)
	if seg.drop(size) {
		return seg
	}
	return nil
}

func (l *lane) advance() {
	n := 0
	for n < len(l.win) && l.win[n].left {
		l.water = l.win[n].seq
		n++
	}
	l.base += uint64(n)
	if n == len(l.win) {
		l.win = nil
		l.water = max(l.water, l.seen)
	} else if n > 0 {
		l.win = l.win[n:]
	}
	d := 0
	for d < len(l.ext) && l.ext[d].last() <= l.water {
		l.ext[d] = extent{}
		d++
	}
	l.ext = l.ext[d:]
	if len(l.ext) == 0 && d > 0 {
		l.ext = nil
	}
}

// waits reports whether the record is still needed.
func (l *lane) waits(seq uint64) bool {
	if seq <= l.water {
		return false
	}
	if i, ok := l.find(seq); ok {
		return !l.win[i].left
	}
	if seq <= l.seen {
		return false
	}
	_, left := l.ahead[seq]
	return !left
}

// gaps lists what left above the watermark, ascending, for the disk.
func (l *lane) gaps() []uint64 {
	var g []uint64
	for i := range l.win {
		if l.win[i].left {
			g = append(g, l.win[i].seq)
		}
	}
	if len(l.ahead) > 0 {
		g = append(g, slices.Sorted(maps.Keys(l.ahead))...)
	}
	if len(g) > maxAhead {
		g = g[:maxAhead]
	}
	return g
}

// replace puts the extents of moved records in the place of those in from. moved is ascending and lies within the range of from.
func (l *lane) replace(from map[*segment]bool, moved []extent) {
	l.ext = slices.DeleteFunc(l.ext, func(e extent) bool { return from[e.seg] })
	l.ext = append(l.ext, moved...)
	sort.Slice(l.ext, func(i, j int) bool { return l.ext[i].first < l.ext[j].first })
	for k := range moved {
		m := &moved[k]
		i, _ := l.find(m.first)
		for _, r := range m.run.all(m.count) {
			seq := m.first + uint64(r.seq)
			for i < len(l.win) && l.win[i].seq < seq {
				i++
			}
			if i == len(l.win) {
				return
			}
			if e := &l.win[i]; e.seq == seq && from[e.seg] && !e.left {
				e.seg, e.frame, e.item = m.seg, r.frame, r.item
			}
		}
	}
}
