package queue

import (
	"context"
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

	mean      int64     // size of a group, smoothed
	lastFlush time.Time // of acknowledgements
	lastSync  time.Time
	rewritten time.Time // when that was last reported
	retryAt   time.Time
	backoff   time.Duration
	linger    linger
	rested    uint64  // syncs when rest last looked
	idle      int     // ticks without a sync since
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
			j.gather(ctx)
		case <-tick.C:
			j.rest()
		}
		j.commit(false)
		j.turns.Add(1)
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
	if last || time.Since(j.w.lastFlush) >= flushInterval || j.wantsSlots() {
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
		if n == len(recs) { // who is answered may send again at once, and is to find room
			j.pend.reuseArena(arena)
		}
		crowd := n + j.waiting()
		j.settle(recs[:n], ctl, states, err)
		if n > 0 {
			j.w.linger.crowd, j.w.linger.answered = crowd, time.Now()
		}
		recs, ctl, states = recs[n:], nil, nil
	}
	j.pend.reuseArena(arena)
}

// take swaps the double buffer.
func (j *Journal) take() ([]*pend, []*control, *arena) {
	p := &j.pend
	p.mu.Lock()
	defer p.mu.Unlock()
	recs, ctl, a := p.recs, p.ctl, p.arena
	p.recs, p.ctl, p.arena = p.spare[:0], nil, p.spareA
	p.spare, p.spareA = recs, nil
	return recs, ctl, a
}

func (j *Journal) takeDirty() []*Queue {
	j.dirtyM.Lock()
	defer j.dirtyM.Unlock()
	d := j.dirty
	j.dirty = nil
	return d
}

// commitGroup writes a first part of recs with all of ctl and states as one group and returns how many records went.
func (j *Journal) commitGroup(recs []*pend, ctl []*control, states []*Queue) (int, error) {
	est := int64(frameHeaderLen * 2)
	for _, c := range ctl {
		est += int64(c.size)
	}
	for _, q := range states {
		est += int64(q.stateBytes())
	}
	n := 0
	for n < len(recs) && (n == 0 || est+recordRoom(recs[n]) <= min(groupTarget, j.o.SegmentBytes/4)) {
		est += recordRoom(recs[n])
		n++
	}
	err := j.writeGroup(recs[:n], ctl, states, est)
	var w *writeError
	if errors.As(err, &w) {
		// What is in the page cache now may claim to be clean and not be on the disk, so this file is left as of its last good sync and the group goes
		// to another one.
		if now := time.Now(); now.Sub(j.w.rewritten) > time.Minute {
			j.w.rewritten = now
			j.report(Event{Kind: EventRewritten, File: w.file, Err: w.err})
		}
		err = j.writeGroup(recs[:n], ctl, states, est)
	}
	if isFull(err) && j.reclaim() {
		err = j.writeGroup(recs[:n], ctl, states, est)
	}
	if err != nil {
		j.trouble(err)
		return len(recs), j.stopped()
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

func (j *Journal) writeGroup(recs []*pend, ctl []*control, states []*Queue, est int64) error {
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
	w.mean += (int64(len(buf)) - w.mean) / 16
	// A reader looks as soon as a record is published, and reads up to the end.
	w.seg.end.Store(w.off + int64(len(buf)))
	j.publish(recs, buf)
	w.off += int64(len(buf))
	w.group++
	return nil
}

const (
	zeroBelow = 32 << 10  // mean size of a group below which zeros are written ahead
	zeroAhead = 128 << 10 // how many
)

// settle tells the waiting what became of their group, then lets others in.
func (j *Journal) settle(recs []*pend, ctl []*control, states []*Queue, err error) {
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
			q.stored.Store(true)
			q.mu.Unlock()
		}
	}
	var bytes int64
	for i := range recs {
		p := recs[i]
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
		if i%reusePends == reusePends-1 || i == len(recs)-1 {
			j.pend.reuse(recs[i-i%reusePends : i+1])
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
func (j *Journal) putBack(recs []*pend, states []*Queue) {
	for i := range recs {
		p := recs[i]
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
