package queue

import (
	"sync"
	"sync/atomic"
)

// frameCache holds the frames that were just written or read. What a sensor just sent is sent on from here and never read back from the disk.
// Its memory is bounded by budget whatever is stored.
type frameCache struct {
	budget int

	mu    sync.Mutex
	m     map[frameKey]*cached
	head  cached // ring of entries, most recent first
	bytes int
	used  bool // since trim last looked
	pool  [cacheClasses][][]byte
}

type frameKey struct {
	seg   uint64
	frame uint32
}

type cached struct {
	key        frameKey
	buf        []byte
	refs       atomic.Int32
	prev, next *cached
}

const (
	cacheClasses  = 8 // buffers of 1 KiB to 128 KiB are recycled, larger ones are left to the collector
	cacheSmallest = 1 << 10
	cacheOverhead = 160 // of an entry, for the budget
)

func newFrameCache(budget int) *frameCache {
	c := &frameCache{budget: budget, m: map[frameKey]*cached{}}
	c.head.prev, c.head.next = &c.head, &c.head
	return c
}

// get returns the frame with one reference more, or nil. The caller releases it.
func (c *frameCache) get(k frameKey) *cached {
	c.mu.Lock()
	c.used = true
	e := c.m[k]
	if e != nil {
		e.refs.Add(1)
		if c.head.next != e {
			c.unlink(e)
			c.link(e)
		}
	}
	c.mu.Unlock()
	return e
}

func (c *frameCache) has(k frameKey) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.m[k] != nil
}

// free takes a buffer from alloc back that was not added.
func (c *frameCache) free(b []byte) {
	c.mu.Lock()
	c.recycle(b)
	c.mu.Unlock()
}

// put stores a copy of b.
func (c *frameCache) put(k frameKey, b []byte) {
	if len(b) > c.budget/4 {
		return
	}
	buf := c.alloc(len(b))
	copy(buf, b)
	c.release(c.add(k, buf))
}

// alloc returns a buffer to be filled and given to add.
func (c *frameCache) alloc(n int) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.buffer(n)
}

// add stores buf, which came from alloc, and returns it with a reference for the caller.
func (c *frameCache) add(k frameKey, buf []byte) *cached {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.m[k]; old != nil {
		c.evict(old)
	}
	c.used = true
	e := &cached{key: k, buf: buf}
	e.refs.Store(2)
	c.m[k] = e
	c.link(e)
	c.bytes += cap(buf) + cacheOverhead
	for c.bytes > c.budget && c.head.prev != e {
		c.evict(c.head.prev)
	}
	return e
}

func (c *frameCache) release(e *cached) {
	if e.refs.Add(-1) > 0 {
		return
	}
	c.mu.Lock()
	c.recycle(e.buf)
	c.mu.Unlock()
}

func (c *frameCache) evict(e *cached) {
	delete(c.m, e.key)
	c.unlink(e)
	c.bytes -= cap(e.buf) + cacheOverhead
	if e.refs.Add(-1) == 0 {
		c.recycle(e.buf)
	}
}

// trim lets go of everything when nobody has used the cache since it was last called.
func (c *frameCache) trim() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.used {
		c.used = false
		return
	}
	for c.head.prev != &c.head {
		c.evict(c.head.prev)
	}
	c.pool = [cacheClasses][][]byte{}
	c.m = map[frameKey]*cached{}
}

func (c *frameCache) link(e *cached) {
	e.prev, e.next = &c.head, c.head.next
	e.prev.next, e.next.prev = e, e
}

func (c *frameCache) unlink(e *cached) {
	e.prev.next, e.next.prev = e.next, e.prev
}

func cacheClass(n int) int {
	cl := 0
	for size := cacheSmallest; size < n; size <<= 1 {
		cl++
	}
	return cl
}

func (c *frameCache) buffer(n int) []byte {
	cl := cacheClass(n)
	if cl >= cacheClasses {
		return make([]byte, n)
	}
	if p := c.pool[cl]; len(p) > 0 {
		b := p[len(p)-1]
		c.pool[cl] = p[:len(p)-1]
		return b[:n]
	}
	return make([]byte, n, cacheSmallest<<cl)
}

// recycle keeps at most a sixteenth of the budget, or one, of each size.
func (c *frameCache) recycle(b []byte) {
	cl := cacheClass(cap(b))
	if cl < cacheClasses && cap(b) == cacheSmallest<<cl && (len(c.pool[cl])+1)*cap(b) <= max(c.budget/16, cap(b)) {
		c.pool[cl] = append(c.pool[cl], b)
	}
}
