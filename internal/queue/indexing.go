package queue

import (
	"cmp"
	"errors"
	"io"
	"slices"
	"syscall"
)

// loadIndex reads the directory of a sealed segment's index; ok is false when there is none that checks.
func (j *Journal) loadIndex(g *segment, adopt func(*segment, uint32, uint8, extent)) (ok bool, err error) {
	f, release, err := j.files.get(g.slot)
	if err != nil {
		return false, err
	}
	defer release()
	end := g.end.Load()
	if end < 0 {
		return false, nil
	}
	place := align(end, frameAlign)
	head := make([]byte, footerHeaderLen)
	if n, err := f.ReadAt(head, place); err != nil && !errors.Is(err, io.EOF) {
		return false, err
	} else if n < len(head) {
		return false, nil
	}
	dir, total, ok := footerSize(head, end)
	if !ok || place+int64(total) > g.slot.size {
		return false, nil
	}
	b := make([]byte, dir)
	if n, err := f.ReadAt(b, place); err != nil && !errors.Is(err, io.EOF) {
		return false, err
	} else if n < dir {
		return false, nil
	}
	if !parseFooter(b, g.salt, total, func(footerRun) {}) {
		return false, nil
	}
	g.footer.Store(place)
	return parseFooter(b, g.salt, total, func(r footerRun) {
		adopt(g, r.qid, r.class, extent{first: r.first, span: uint32(r.last - r.first), count: uint16(r.count), bytes: r.bytes, list: r.list, listLen: uint16(r.listLen)})
	}), nil
}

// runKey names a lane over all queues.
type runKey struct {
	qid   uint32
	class uint8
}

// scanRuns rebuilds what the index would say from the records themselves. It returns how many places are damaged and how many blocks could not
// be read.
func (j *Journal) scanRuns(g *segment, visit func(qid uint32, class uint8, e extent)) (damaged, bad int, err error) {
	f, release, err := j.files.get(g.slot)
	if err != nil {
		return 0, 0, err
	}
	defer release()
	lanes := map[runKey]*lane{}
	s := scanner{f: f, salt: g.salt, size: g.slot.size, end: g.end.Load()}
	s.damage = func(off, end int64) {
		damaged++
		j.damaged(g, off, end)
	}
	s.visit = func(it *scanned) {
		if it.kind != itemMessage {
			return
		}
		k := runKey{it.head.qid, it.head.class}
		l := lanes[k]
		if l == nil {
			l = &lane{class: k.class}
			lanes[k] = l
		}
		l.publish(g, it.head.seq, it.frame, it.item, it.size)
	}
	end, err := s.run()
	if err != nil {
		return damaged, s.bad, err
	}
	g.end.Store(end)
	for k, l := range lanes {
		for _, e := range l.ext {
			visit(k.qid, k.class, e)
		}
	}
	return damaged, s.bad, nil
}

// findEnd walks a segment of which nothing is known but its header.
func (j *Journal) findEnd(g *segment) error {
	f, release, err := j.files.get(g.slot)
	if err != nil {
		return err
	}
	defer release()
	s := scanner{f: f, salt: g.salt, size: g.slot.size, end: -1, visit: func(*scanned) {}, damage: func(int64, int64) {}}
	end, err := s.run()
	g.end.Store(end)
	return err
}

// unfinished: a segment of a compaction whose index does not check; when the originals are there too, they count.
func (s *segment) unfinished() bool { return s.cold && s.footer.Load() == 0 }

// rescan finds the records of one extent without the index: all of them, or at last those that can be read.
func (j *Journal) rescan(g *segment, qid uint32, class uint8, first, last uint64, atLast bool) ([]rec, error) {
	var recs []rec
	_, bad, err := j.scanRuns(g, func(id uint32, c uint8, e extent) {
		if id != qid || c != class {
			return
		}
		for _, r := range e.run.all(e.count) {
			if seq := e.first + uint64(r.seq); seq >= first && seq <= last {
				r.seq = uint32(seq - first)
				recs = append(recs, r)
			}
		}
	})
	slices.SortFunc(recs, func(a, b rec) int { return cmp.Compare(a.seq, b.seq) })
	if err == nil && bad > 0 && !atLast {
		return nil, syscall.EIO
	}
	return recs, err
}

// writeIndex writes the index of a sealed segment behind its groups and lets go of what memory holds of it. It is not synced: an index that a crash
// tore fails its checksum and is rebuilt. A segment whose disk refuses keeps its index in memory.
func (j *Journal) writeIndex(g *segment) {
	g.pins.Add(1) // the writer may hand slots on meanwhile; one that is pinned stays
	defer g.unpin()
	if g.dead.Load() || g.footer.Load() != 0 {
		return
	}
	j.mu.Lock()
	queues := make([]*Queue, 0, len(j.byID))
	for _, q := range j.byID {
		queues = append(queues, q)
	}
	j.mu.Unlock()
	// They are counted first: what grows to megabytes by doubling leaves twice that behind.
	runs, bytes := 0, 0
	eachRun(queues, g, func(_ *Queue, _ uint8, e *extent) { runs, bytes = runs+1, bytes+4+len(e.run.list) })
	ft := footer{runs: make([]footerRun, 0, runs), lists: make([]byte, 0, bytes)}
	eachRun(queues, g, func(q *Queue, class uint8, e *extent) { ft.add(g.salt, q.id, class, e) })
	end := g.end.Load()
	place := align(end, frameAlign)
	size := ft.size()
	if place+size > g.slot.size {
		return
	}
	f, err := j.files.openFile(g.slot.name, openWrite)
	if err != nil {
		return // the records stay known in memory; the trouble shows where appends meet it
	}
	err = ft.write(f, place, g.salt, end)
	if err == nil && place+size < g.slot.size/2 { // else it is used again as it is
		least := align(place+size, blockBytes)
		if f.truncate(least) == nil {
			j.mu.Lock()
			j.slotBytes -= g.slot.size - least
			j.mu.Unlock()
			g.slot.size = least
		}
	}
	f.Close()
	if err != nil {
		return
	}
	j.wrote(place, int(size))
	j.adoptIndex(g, place, &ft)
}

// eachRun visits what queues have in g and its index has not.
func eachRun(queues []*Queue, g *segment, visit func(*Queue, uint8, *extent)) {
	for _, q := range queues {
		q.mu.Lock()
		for _, l := range &q.lanes {
			x := l.of(g)
			for i := range x {
				if x[i].seg == g && x[i].run != nil {
					visit(q, l.class, &x[i])
				}
			}
		}
		q.mu.Unlock()
	}
}

// of returns the extents of a lane that lie in g; they need not be neighbours after compaction, so callers go over all and look at seg.
func (l *lane) of(g *segment) []extent {
	if l == nil {
		return nil
	}
	i, n := 0, len(l.ext)
	for i < n && l.ext[i].seg != g {
		i++
	}
	for n > i && l.ext[n-1].seg != g {
		n--
	}
	return l.ext[i:n]
}

// adoptIndex replaces the records in memory by their places in the index.
func (j *Journal) adoptIndex(g *segment, place int64, ft *footer) {
	g.footer.Store(place)
	for i := range ft.runs {
		r := &ft.runs[i]
		j.mu.Lock()
		q := j.byID[r.qid]
		j.mu.Unlock()
		if q == nil {
			continue
		}
		q.mu.Lock()
		l := q.lanes[r.class]
		x := l.of(g)
		for k := range x {
			if x[k].seg == g && x[k].first == r.first {
				x[k].run, x[k].list, x[k].listLen = nil, r.list, uint16(r.listLen)
			}
		}
		q.mu.Unlock()
	}
}

// wrote counts bytes handed to the device.
func (j *Journal) wrote(off int64, n int) {
	j.mu.Lock()
	j.stats.DiskWritten += uint64(align(off+int64(n), blockBytes) - off&^(blockBytes-1))
	j.mu.Unlock()
}
