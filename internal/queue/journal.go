package queue

import (
	"context"
	"io"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	defaultSegment = 16 << 20
	minSegment     = 64 << 10
	defaultPending = 8 << 20
	cacheBudget    = 512 << 10
	flushInterval  = time.Second // how long acknowledgements may wait for the disk
	tickInterval   = 5 * time.Second
)

// Journal stores the queues of all identities of one folder. Its methods are safe for concurrent use.
type Journal struct {
	o        Options
	fs       filesys
	clock    Clock
	boot     bootClock
	instance [16]byte // random, of the folder
	machine  [16]byte
	origin   uint64 // random, of this Open
	lockFile io.Closer
	files    *fileCache
	cache    *frameCache
	pieces   pieceCache
	lones    sync.Pool
	names    *interner

	wake  chan struct{} // the writer looks again
	chore chan struct{} // the housekeeper looks again

	mu         sync.Mutex // guards what follows; taken before no other lock, after a queue's
	queues     map[string]*Queue
	byID       map[uint32]*Queue
	nextQID    uint32
	segments   []*segment        // ascending id
	free       []*slot           // preallocated and safe to overwrite
	leastFree  int               // fewest of them since trimmed
	trimmed    time.Time         //
	reserve    []*slot           // kept for acknowledgements when the disk is full
	emptied    []*segment        // hold nothing; to be noted on disk
	retired    []*segment        // noted; their slots are used again once no read holds them
	unindexed  []*segment        // sealed, the index is still to be written
	absent     []string          // files that cannot be read, since Open
	held       map[uint32][]byte // states of the queues when the first of them could not; since Open
	nextSlot   uint32
	slotBytes  int64 // of all slots
	boots      map[[16]byte]int64
	bootsDirty bool
	stats      JournalStats
	broken     string // what is wrong; "" = nothing
	readBroken string
	readAt     time.Time // of the last read that worked
	damagedN   int       // files kept for inspection
	rolling    bool      // at Open the newest segment had no whole snapshot

	pend   pending
	dirtyM sync.Mutex
	dirty  []*Queue // with acknowledgements that are not on disk

	w writer

	turns      atomic.Uint64 // of the writer
	chores     atomic.Uint64 // of the housekeeper
	nextSeg    atomic.Uint64
	liveBytes  atomic.Int64 // size of all that waits or is kept aside, with overhead
	shared     atomic.Int32 // whether frames read for a lone record serve others too
	lone       atomic.Uint32
	lastList   atomic.Pointer[recList]
	full       atomic.Bool // appends are refused for want of space
	clearing   atomic.Bool // somebody drops messages for that
	spaceFreed atomic.Bool // the writer, in trouble, tries again at once
}

// pending is what waits for the writer.
type pending struct {
	mu     sync.Mutex
	recs   []*pend
	ctl    []*control
	arena  *arena
	spare  []*pend // the other half of the double buffer
	spareA *arena
	free   []*pend       // to be used again
	chunks [][]byte      // the same of arenas
	bytes  int64         // accepted and not yet synced
	room   chan struct{} // closed and replaced when bytes shrinks
	goal   int           // the writer waits for so many records; 0 = it does not
	closed bool
	stop   error // why appends are refused at the moment; nil = they are not
}

// pend is one message on its way to the disk.
type pend struct {
	q      *Queue
	done   func(uint64, error)
	m      Message // Payload and Properties are in the arena
	mono   int64
	class  uint8
	id     string
	orig   uint64
	reason string
	leaves uint64 // sequence of the copy that this one replaces; 0 = none
	from   uint8  // its lane
	based  *base  // of a message that was accepted earlier; nil = now
	dt     int64

	seq         uint64
	frame, item uint32
	size        uint32
}

// control is a change of state that is written with the next group and takes effect when that is synced.
type control struct {
	size   int // bounds what encode writes
	encode func(*builder)
	apply  func() // in the writer, after the sync
	failed func() // in the writer; the record may be on the disk all the same
	done   func(error)
}

// Identities lists the names that have state on disk, configured or not.
func (j *Journal) Identities() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	var names []string
	for n, q := range j.queues {
		if q.stored.Load() {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	return names
}

// Queue opens or creates the queue of an identity; called again it changes the limits. A queue that was never appended to leaves nothing on disk.
func (j *Journal) Queue(identity string, l Limits) (*Queue, error) {
	if len(identity) == 0 || len(identity) > 1024 {
		return nil, ErrNotFound
	}
	j.mu.Lock()
	q := j.queues[identity]
	if q == nil {
		q = j.newQueueLocked(identity, j.nextQID)
		j.nextQID++
	}
	j.mu.Unlock()
	q.mu.Lock()
	q.limits = l
	q.mu.Unlock()
	return q, nil
}

func (j *Journal) newQueueLocked(name string, qid uint32) *Queue {
	first := 1 + uint64(len(j.absent))*skipSeqs // a file that cannot be read may hold a queue of this name
	q := &Queue{j: j, name: name, id: qid, next: first, wnext: first, ready: make(chan struct{}, 1)}
	j.queues[name] = q
	j.byID[qid] = q
	return q
}

// Turns counts how often the writer and the housekeeper have gone round. While Run runs, the writer does so every second, but for a group that it
// writes or a SyncInterval that it waits for, and the housekeeper every few seconds, but for a chore. A count that stands still means a disk that
// hangs or a callback that blocks.
func (j *Journal) Turns() (writer, housekeeper uint64) { return j.turns.Load(), j.chores.Load() }

func (j *Journal) report(e Event) {
	if j.o.Report != nil {
		j.o.Report(e)
	}
}

// Stats describe the journal.
func (j *Journal) Stats() JournalStats {
	j.pend.mu.Lock()
	pending := j.pend.bytes
	j.pend.mu.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	s := j.stats
	s.Pending = pending
	s.DiskBytes = j.slotBytes
	s.Segments = len(j.segments)
	s.Free = len(j.free)
	for _, g := range j.segments {
		s.LiveBytes += g.liveBytes.Load()
	}
	s.Trouble = j.broken
	if s.Trouble == "" {
		s.Trouble = j.readBroken
	}
	s.Unreadable = len(j.absent)
	if s.Trouble == "" {
		s.Trouble = j.absentText()
	}
	return s
}

// submit hands a change of state to the writer.
func (j *Journal) submit(c *control) error {
	j.pend.mu.Lock()
	if j.pend.closed {
		j.pend.mu.Unlock()
		return ErrClosed
	}
	j.pend.ctl = append(j.pend.ctl, c)
	j.pend.mu.Unlock()
	poke(j.wake)
	return nil
}

// submitWait hands a change of state to the writer and waits until it is durable.
func (j *Journal) submitWait(ctx context.Context, c *control) error {
	ch := make(chan error, 1)
	c.done = func(err error) { ch <- err }
	if err := j.submit(c); err != nil {
		return err
	}
	select {
	case err := <-ch:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (j *Journal) path(name string) string { return filepath.Join(j.o.Dir, name) }

// emptyLocked notes segments that hold nothing any more.
func (j *Journal) noteEmptied(s *segment) {
	if s == nil || !s.sealed.Load() {
		return // the segment in use is looked at when it is sealed
	}
	j.mu.Lock()
	j.retireLocked(s)
	j.mu.Unlock()
}

// retireLocked moves a sealed segment without messages to the list of those whose slot can be had.
func (j *Journal) retireLocked(s *segment) {
	if s.live.Load() > 0 || s.dead.Load() || j.o.ReadOnly {
		return
	}
	i := slices.Index(j.segments, s)
	if i < 0 {
		return
	}
	s.dead.Store(true)
	j.segments = slices.Delete(j.segments, i, i+1)
	j.emptied = append(j.emptied, s)
	poke(j.chore)
}
