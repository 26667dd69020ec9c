package queue

import (
	"encoding/binary"
	"time"
)

// buildRecords lays records out and gives them their sequences. The queues learn of them in publish.
func (j *Journal) buildRecords(recs []*pend) {
	w := &j.w
	wall, trusted := j.clock.Now()
	now := base{origin: j.origin, wall: wall.UnixMilli(), mono: j.boot.now(), trusted: trusted, boot: j.boot.id}
	for i := range recs {
		p := recs[i]
		p.seq = p.q.wnext
		p.q.wnext++
		if p.q.nameDue() {
			j.nameQueue(p.q)
		}
		b, dt := &now, p.mono-now.mono
		if p.based != nil {
			b, dt = p.based, p.dt
		}
		p.frame, p.item = w.b.message(b, &record{qid: p.q.id, class: p.class, seq: p.seq, dt: dt, m: &p.m, id: p.id, orig: p.orig, leaves: p.leaves, from: p.from, reason: p.reason})
		p.frame += uint32(w.off)
	}
}

func (q *Queue) nameDue() bool { return !q.wnamed }

// rewind takes back the sequences that a group which failed had given out.
func (q *Queue) rewind() {
	q.mu.Lock()
	q.wnext = q.next
	q.mu.Unlock()
}

func (j *Journal) nameQueue(q *Queue) {
	j.w.b.item(itemQueue, appendName(nil, q))
	q.wnamed = true
}

func appendName(b []byte, q *Queue) []byte {
	return append(binary.AppendUvarint(b, uint64(q.id)), q.name...)
}

// writeSync is the one write and the one sync of a group.
func (j *Journal) writeSync(buf []byte, off int64) error {
	w := &j.w
	if _, err := w.f.WriteAt(buf, off); err != nil {
		return &writeError{w.seg.slot.name, err}
	}
	if err := j.warm(off + int64(len(buf))); err != nil {
		return &writeError{w.seg.slot.name, err}
	}
	begin := time.Now()
	if err := w.f.sync(); err != nil {
		return &writeError{w.seg.slot.name, err}
	}
	if !w.f.linked() {
		return &writeError{w.seg.slot.name, errUnlinked}
	}
	w.lastSync = time.Now()
	d := w.lastSync.Sub(begin)
	w.linger.sync = d
	j.mu.Lock()
	j.stats.Syncs++
	j.stats.SyncTime += d
	j.stats.LastSync = d
	j.stats.DiskWritten += uint64(align(off+int64(len(buf)), blockBytes) - off&^(blockBytes-1))
	j.mu.Unlock()
	if j.o.ObserveSync != nil {
		j.o.ObserveSync(d)
	}
	return nil
}

// zeros is only ever read.
var zeros [2 * zeroAhead]byte

// warm writes zeros ahead of small groups. On ext4 and the like the first write to a reserved block changes the file's extents, and the sync of such a
// group writes and flushes the file system's journal too, which for a small group costs more than the group. Groups behind the first then only overwrite.
// For large groups the zeros would cost more. Files that were used before are warm already.
func (j *Journal) warm(end int64) error {
	w := &j.w
	s := w.seg.slot
	if end <= s.warm {
		return nil
	}
	from := align(end, blockBytes)
	to := from
	if w.mean < zeroBelow {
		to = min(align(from+zeroAhead, zeroAhead), s.size)
	}
	s.warm = max(end, to)
	if to <= from {
		return nil
	}
	j.wrote(from, int(to-from))
	_, err := w.f.WriteAt(zeros[:to-from], from)
	return err
}

// publish makes records that are durable now visible to readers.
func (j *Journal) publish(recs []*pend, buf []byte) {
	w := &j.w
	j.cacheFrames(recs, buf)
	var q *Queue
	var payload, live int64
	for i := range recs {
		p := recs[i]
		if p.q != q {
			if q != nil {
				q.mu.Unlock()
			}
			q = p.q
			q.mu.Lock()
		}
		l := q.laneLocked(p.class)
		if l.publish(w.seg, p.seq, p.frame, p.item, p.size) {
			w.runs++
		}
		q.next = p.seq + 1
		q.stored.Store(true)
		q.aging = q.aging || p.m.MaxAge > 0
		if p.class == asideClass {
			q.asides++
		} else {
			q.msgs++
			q.bytes += int64(p.size)
		}
		if p.leaves == 0 {
			q.appended++
			q.held -= int64(p.size)
			payload += int64(len(p.m.Payload))
		}
		w.seg.live.Add(1)
		w.seg.liveBytes.Add(int64(p.size))
		live += int64(p.size) + recordOverhead
	}
	if q != nil {
		q.mu.Unlock()
	}
	w.records += len(recs)
	j.liveBytes.Add(live)
	j.mu.Lock()
	j.stats.PayloadBytes += uint64(payload)
	j.mu.Unlock()
}

// cacheFrames keeps the frames that hold messages at hand for readers.
func (j *Journal) cacheFrames(recs []*pend, buf []byte) {
	last := uint32(0)
	for i := range recs {
		f := recs[i].frame
		if f == last {
			continue
		}
		last = f
		b := buf[int64(f)-j.w.off:]
		h, _ := parseFrameHeader(b, j.w.seg.salt)
		j.cache.put(frameKey{j.w.seg.id, f}, b[:frameHeaderLen+h.bodyLen])
	}
}
