package queue

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
)

// slot is one file of the folder. A slot is used by one segment after another; its name never changes, so that taking it into use needs no sync of the folder.
type slot struct {
	num  uint32
	name string // full path
	size int64  // owned by whoever owns the slot: a segment, or the list of free slots
	warm int64  // up to here every block has been written once; owned as size is
}

const slotSuffix = ".jnl"

func slotName(dir string, num uint32) string {
	return filepath.Join(dir, fmt.Sprintf("%08x%s", num, slotSuffix))
}

// segment is one life of a slot.
type segment struct {
	id   uint64
	salt uint32
	cold bool
	slot *slot

	absent bool // cannot be read since the start; kept as it is
	late   bool // could not be read at an earlier start

	end    atomic.Int64 // where the synced groups end
	footer atomic.Int64 // where the index stands; 0 = there is none yet
	sealed atomic.Bool  // nothing is appended any more

	live      atomic.Int64 // messages that still wait or are kept aside
	liveBytes atomic.Int64 // their size

	pins atomic.Int32 // reads under way; a pinned slot is not used again
	dead atomic.Bool  // holds nothing; reads that come too late look elsewhere
	gone atomic.Bool  // the file was removed
	bad  atomic.Int64 // when compaction could not read it, Unix seconds
}

func (s *segment) unpin() { s.pins.Add(-1) }

// drop notes that one message of the segment left.
func (s *segment) drop(size uint32) (empty bool) {
	s.liveBytes.Add(-int64(size))
	return s.live.Add(-1) == 0
}

// maxReadFiles bounds the descriptors that reading keeps open.
const maxReadFiles = 32

// fileCache keeps the files of recently read slots open.
type fileCache struct {
	fs filesys

	mu    sync.Mutex
	open  map[*slot]*readFile
	clock uint64
}

type readFile struct {
	f    file
	pins int
	used uint64
}

// get returns the open file of a slot and a function that lets go of it.
func (c *fileCache) get(s *slot) (file, func(), error) {
	c.mu.Lock()
	r := c.open[s]
	if r != nil {
		r.pins++
		c.clock++
		r.used = c.clock
		c.mu.Unlock()
		return r.f, func() { c.put(r) }, nil
	}
	c.mu.Unlock()
	f, err := c.openFile(s.name, openRead)
	if err != nil {
		return nil, nil, err
	}
	c.mu.Lock()
	if other := c.open[s]; other != nil {
		other.pins++
		c.mu.Unlock()
		f.Close()
		return other.f, func() { c.put(other) }, nil
	}
	c.clock++
	r = &readFile{f: f, pins: 1, used: c.clock}
	c.open[s] = r
	victim := c.victim()
	c.mu.Unlock()
	if victim != nil {
		victim.Close()
	}
	return f, func() { c.put(r) }, nil
}

// openFile opens a file. When the process has too many open, those that were only kept for later reads are given up first.
func (c *fileCache) openFile(name string, mode openMode) (file, error) {
	f, err := c.fs.open(name, mode)
	if tooManyOpen(err) && c.shed() {
		f, err = c.fs.open(name, mode)
	}
	return f, err
}

// syncDir does the same for syncing a folder.
func (c *fileCache) syncDir(dir string) error {
	err := c.fs.syncDir(dir)
	if tooManyOpen(err) && c.shed() {
		err = c.fs.syncDir(dir)
	}
	return err
}

func tooManyOpen(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}

// shed closes what no read is using and says whether there was something.
func (c *fileCache) shed() bool {
	c.mu.Lock()
	var idle []file
	for s, r := range c.open {
		if r.pins == 0 {
			idle = append(idle, r.f)
			delete(c.open, s)
		}
	}
	c.mu.Unlock()
	for _, f := range idle {
		f.Close()
	}
	return len(idle) > 0
}

func (c *fileCache) put(r *readFile) {
	c.mu.Lock()
	r.pins--
	c.mu.Unlock()
}

// victim takes the longest unused file out of a cache that is too large.
func (c *fileCache) victim() file {
	if len(c.open) <= maxReadFiles {
		return nil
	}
	var old *slot
	for s, r := range c.open {
		if r.pins == 0 && (old == nil || r.used < c.open[old].used) {
			old = s
		}
	}
	if old == nil {
		return nil
	}
	f := c.open[old].f
	delete(c.open, old)
	return f
}

// forget closes the file of a slot that is about to be removed.
func (c *fileCache) forget(s *slot) {
	c.mu.Lock()
	r := c.open[s]
	if r != nil && r.pins > 0 {
		r = nil // a reader has it; the next eviction closes it
	}
	if r != nil {
		delete(c.open, s)
	}
	c.mu.Unlock()
	if r != nil {
		r.f.Close()
	}
}

func (c *fileCache) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s, r := range c.open {
		r.f.Close()
		delete(c.open, s)
	}
}
