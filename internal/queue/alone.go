package queue

import (
	"errors"
	"io"
	"math/rand/v2"
	"sync"
)

const (
	aloneHead   = 512 // bytes of the frame's start, where what records share stands
	aloneBefore = 512 // bytes before the record, where its meta stands when it is the first of its kind
	aloneAfter  = 128
	aloneProbe  = 64 // every so many lone reads take the whole frame
	aloneShare  = 64
)

// readAlone reads a record whose neighbours in the lane lie in other frames, in two small pieces instead of a frame of 64 KiB of which this lane needs
// nothing else. Other lanes may need it, when they are drained in step: so it watches whether frames that were read for a lone record are found in memory
// by others, and leaves the read to the cache when they are. ok is false when the cache is the better way or the pieces do not suffice.
func (j *Journal) readAlone(e entry, m *Message) (stamp, error, bool) {
	if !e.alone || e.item < aloneHead*2 {
		return stamp{}, nil, false
	}
	if j.cache.has(frameKey{e.seg.id, e.frame}) {
		j.shared.Store(min(j.shared.Load()+1, aloneShare))
		return stamp{}, nil, false
	}
	if n := j.shared.Load(); n > 0 {
		j.shared.Store(max(n-aloneShare/4, 0))
		return stamp{}, nil, false
	}
	if j.lone.Add(1)%aloneProbe == 0 {
		return stamp{}, nil, false
	}
	f, release, err := j.files.get(e.seg.slot)
	if err != nil {
		return stamp{}, nil, false
	}
	defer release()
	from := int(e.item) - aloneBefore
	b := j.cache.alloc(aloneHead + aloneBefore + itemHeaderLen + int(e.size) + aloneAfter)
	defer j.cache.free(b)
	head, part := b[:aloneHead], b[aloneHead:]
	if k := (frameKey{e.seg.id, e.frame}); !j.heads.get(k, head) {
		if n, err := f.ReadAt(head, int64(e.frame)); n < len(head) {
			return stamp{}, err, false
		}
		j.heads.put(k, head)
	}
	n, err := f.ReadAt(part, int64(e.frame)+int64(from))
	if err != nil && !errors.Is(err, io.EOF) {
		return stamp{}, nil, false
	}
	s, err := decodeRecord(frameView{b: head, salt: e.seg.salt, part: part[:n], from: from}, int(e.item), e.seq, m)
	if err != nil {
		return stamp{}, nil, false // the whole frame decides
	}
	return s, nil, true
}

const (
	headSlots  = 256 // as many frames as a segment of 16 MiB has
	headEvery  = 8   // one in so many takes the place of another: what goes round in a larger circle would only ever find the others'
	headFrames = 16  // bits of a frame's place that do not matter
)

// headCache holds the starts of frames that lone records were read from: the next queue finds its record in the same frames. It takes 140 KiB once it is used.
type headCache struct {
	mu    sync.Mutex
	slots []headSlot
}

type headSlot struct {
	key frameKey
	buf [aloneHead]byte
}

func (c *headCache) slot(k frameKey) *headSlot {
	return &c.slots[(uint64(k.frame>>headFrames)+k.seg*37)%headSlots]
}

// get fills b, which has aloneHead bytes.
func (c *headCache) get(k frameKey, b []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.slots == nil {
		return false
	}
	s := c.slot(k)
	if s.key != k {
		return false
	}
	copy(b, s.buf[:])
	return true
}

func (c *headCache) put(k frameKey, b []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.slots == nil {
		c.slots = make([]headSlot, headSlots)
	}
	s := c.slot(k)
	if s.key == (frameKey{}) || rand.N(headEvery) == 0 {
		s.key = k
		copy(s.buf[:], b)
	}
}

// forget gives the memory back.
func (c *headCache) forget() {
	c.mu.Lock()
	c.slots = nil
	c.mu.Unlock()
}
