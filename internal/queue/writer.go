package queue

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

const (
	groupTarget    = 1 << 20  // bytes of one write
	controlReserve = 16 << 10 // of every segment, kept for acknowledgements
	minBackoff     = 250 * time.Millisecond
	maxBackoff     = 5 * time.Second
)

// writer is the state of the goroutine that writes; nobody else touches it.
type writer struct {
	b       *builder
	seg     *segment // in use; nil = the next group opens a new one
	f       file
	off     int64 // where the next group goes
	group   uint64
	records int // for the room that the index needs
	runs    int
	named   []*Queue // got their name written in the group under way

	mean      int64     // size of a group, smoothed
	lastFlush time.Time // of acknowledgements
	lastSync  time.Time
	retryAt   time.Time
	backoff   time.Duration
	zombies   []*slot // a header was written there and may or may not be on the disk; removed once a newer snapshot is
}

// Run writes: it takes what all queues have waiting, writes and syncs it as one group, and calls back. Beside it a housekeeper prunes, compacts and
// prepares files. Run returns nil after ctx has ended, everything pending is synced (or refused, when the disk is in trouble) and both goroutines
// are done. Call it once.
func (j *Journal) Run(ctx context.Context) error {
	if j.o.ReadOnly {
		return ErrReadOnly
	}
	keeper := make(chan struct{})
	kctx, stop := context.WithCancel(context.Background())
	go func() {
		defer close(keeper)
		j.keep(kctx)
	}()
	tick := time.NewTicker(flushInterval / 2)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-j.wake:
			j.holdBack(ctx)
		case <-tick.C:
		}
		j.commit(false)
	}
	stop()
	<-keeper
	j.pend.mu.Lock()
	j.pend.closed = true
	j.pend.mu.Unlock()
	j.commit(true)
	if j.w.f != nil {
		j.w.f.Close()
		j.w.f = nil
	}
	return nil
}

// holdBack waits for the sync interval to pass since the last sync.
func (j *Journal) holdBack(ctx context.Context) {
	d := j.o.SyncInterval - time.Since(j.w.lastSync)
	if j.o.SyncInterval <= 0 || d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// commit writes all that waits. last: everything must go now, no group follows.
func (j *Journal) commit(last bool) {
	recs, ctl, arena := j.take()
	var states []*Queue
	if last || time.Since(j.w.lastFlush) >= flushInterval {
		states = j.takeDirty()
		ctl = append(ctl, j.upkeep()...)
	}
	if j.stopped() != nil && (j.spaceFreed.Swap(false) || time.Now().After(j.w.retryAt)) {
		j.probe()
	}
	if err := j.stopped(); err != nil {
		j.settle(recs, nil, nil, err)
		recs = nil
	}
	for len(recs) > 0 || len(ctl) > 0 || len(states) > 0 {
		n, err := j.commitGroup(recs, ctl, states)
		if err != nil {
			n = len(recs)
		}
		j.settle(recs[:n], ctl, states, err)
		recs, ctl, states = recs[n:], nil, nil
	}
	j.giveBack(arena)
}

// take swaps the double buffer.
func (j *Journal) take() ([]pend, []*control, *arena) {
	p := &j.pend
	p.mu.Lock()
	defer p.mu.Unlock()
	recs, ctl, a := p.recs, p.ctl, p.arena
	p.recs, p.ctl, p.arena = p.spare[:0], nil, p.spareA
	p.spare, p.spareA = recs, nil
	return recs, ctl, a
}

func (j *Journal) giveBack(a *arena) {
	a.reset()
	p := &j.pend
	p.mu.Lock()
	defer p.mu.Unlock()
	if cap(p.spare) > 16<<10 {
		p.spare = nil
	}
	clear(p.spare)
	p.spareA = a
}

func (j *Journal) takeDirty() []*Queue {
	j.dirtyM.Lock()
	defer j.dirtyM.Unlock()
	d := j.dirty
	j.dirty = nil
	return d
}

// commitGroup writes a first part of recs with all of ctl and states as one group and returns how many records went.
func (j *Journal) commitGroup(recs []pend, ctl []*control, states []*Queue) (int, error) {
	est := int64(frameHeaderLen * 2)
	for _, c := range ctl {
		est += int64(c.size)
	}
	for _, q := range states {
		est += int64(q.stateBytes())
	}
	n := 0
	for n < len(recs) && (n == 0 || est+recordRoom(&recs[n]) <= min(groupTarget, j.o.SegmentBytes/4)) {
		est += recordRoom(&recs[n])
		n++
	}
	err := j.writeGroup(recs[:n], ctl, states, est)
	var w *writeError
	if errors.As(err, &w) {
		// What is in the page cache now may claim to be clean and not be on the disk, so this file is left as of its last good sync and the group goes
		// to another one.
		j.report(Event{Kind: EventRewritten, File: w.file, Err: w.err})
		err = j.writeGroup(recs[:n], ctl, states, est)
	}
	if err != nil {
		j.trouble(err)
		return len(recs), ErrDisk
	}
	return n, nil
}

// recordRoom bounds what a record takes in a group.
func recordRoom(p *pend) int64 {
	return int64(p.size) + int64(len(p.id)+len(p.reason)+len(p.q.name)) + int64(len(p.m.Properties)*20) + 320
}

// writeError: a write or sync failed, nothing since the last good sync of that file counts.
type writeError struct {
	file string
	err  error
}

func (e *writeError) Error() string { return fmt.Sprintf("write %s: %v", e.file, e.err) }
func (e *writeError) Unwrap() error { return e.err }

func (j *Journal) writeGroup(recs []pend, ctl []*control, states []*Queue, est int64) error {
	w := &j.w
	if err := j.makeRoom(est, len(recs)); err != nil {
		return err
	}
	w.b.reset(w.seg.salt, w.group)
	// States come first: they tell of what was published before this group.
	for _, q := range states {
		q.mu.Lock()
		q.dirty = false
		body, forgotten := q.stateLocked(nil), q.forgotten
		q.mu.Unlock()
		if forgotten {
			continue
		}
		if q.nameDue() {
			j.nameQueue(q)
		}
		w.b.item(itemState, body)
	}
	for _, c := range ctl {
		c.encode(w.b)
	}
	j.buildRecords(recs)
	buf := w.b.finish(w.off)
	if w.off+int64(len(buf)) > w.seg.slot.size {
		return fmt.Errorf("group of %d bytes does not fit a segment of %d: %w", len(buf), w.seg.slot.size, ErrTooLarge)
	}
	if err := j.writeSync(buf, w.off); err != nil {
		j.abandon()
		for i := range recs {
			recs[i].q.rewind()
		}
		return err
	}
	w.named = w.named[:0]
	w.mean += (int64(len(buf)) - w.mean) / 16
	j.publish(recs, buf)
	w.off += int64(len(buf))
	w.seg.end.Store(w.off)
	w.group++
	return nil
}

// buildRecords lays records out and gives them their sequences. The queues learn of them in publish.
func (j *Journal) buildRecords(recs []pend) {
	w := &j.w
	wall, trusted := j.clock.Now()
	now := base{origin: j.origin, wall: wall.UnixMilli(), mono: j.boot.now(), trusted: trusted, boot: j.boot.id}
	for i := range recs {
		p := &recs[i]
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
	j.w.named = append(j.w.named, q)
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
	w.lastSync = time.Now()
	d := w.lastSync.Sub(begin)
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

const (
	zeroBelow = 32 << 10  // mean size of a group below which zeros are written ahead
	zeroAhead = 128 << 10 // how many
)

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
func (j *Journal) publish(recs []pend, buf []byte) {
	w := &j.w
	j.cacheFrames(recs, buf)
	var q *Queue
	var payload, live int64
	for i := range recs {
		p := &recs[i]
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
		q.stored = true
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
func (j *Journal) cacheFrames(recs []pend, buf []byte) {
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

// settle tells the waiting what became of their group, then lets others in.
func (j *Journal) settle(recs []pend, ctl []*control, states []*Queue, err error) {
	w := &j.w
	if err == nil {
		if len(states) > 0 {
			w.lastFlush = time.Now()
		}
		for _, c := range ctl {
			if c.apply != nil {
				c.apply()
			}
		}
	} else {
		j.putBack(recs, states)
	}
	for _, q := range states {
		if err == nil {
			q.mu.Lock()
			q.stored = true
			q.mu.Unlock()
		}
	}
	var bytes int64
	for i := range recs {
		p := &recs[i]
		bytes += int64(p.size) + pendCost
		if p.leaves != 0 && err == nil {
			p.q.leaveCopy(p.from, p.leaves)
		}
		if p.done != nil {
			p.done(p.seq, err)
		}
		if err == nil && (i == len(recs)-1 || recs[i+1].q != p.q) {
			poke(p.q.ready)
		}
	}
	for _, c := range ctl {
		if err != nil && c.failed != nil {
			c.failed()
		}
		if c.done != nil {
			c.done(err)
		}
	}
	if bytes > 0 {
		p := &j.pend
		p.mu.Lock()
		p.bytes -= bytes
		close(p.room)
		p.room = make(chan struct{})
		p.mu.Unlock()
	}
}

// putBack undoes what building a group that failed assumed.
func (j *Journal) putBack(recs []pend, states []*Queue) {
	for i := range recs {
		p := &recs[i]
		p.q.mu.Lock()
		p.q.wnext = p.q.next
		if p.leaves == 0 {
			p.q.held -= int64(p.size)
		}
		p.q.mu.Unlock()
		p.seq = 0
	}
	for _, q := range states {
		q.mu.Lock()
		q.dirty = true
		q.mu.Unlock()
	}
	if len(states) > 0 {
		j.dirtyM.Lock()
		j.dirty = append(j.dirty, states...)
		j.dirtyM.Unlock()
	}
}
