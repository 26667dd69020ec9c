package queue

import (
	"errors"
	"io"
	"math/rand/v2"
	"sync"
)

const (
	aloneHead   = 512 // bytes of the frame's start, where what records share stands
	aloneBefore = 256 // bytes before the record, where its meta stands when it is the first of its kind
	aloneAfter  = 128
	alonePart   = 2512 // bytes read from there on: what follows belongs to the queues that are likely next
	aloneProbe  = 256  // every so many lone reads take the whole frame
	aloneShare  = 64
)

// readAlone reads a record whose neighbours in the lane lie in other frames, in two small pieces instead of a frame of 64 KiB of which this lane needs
// nothing else. Other lanes may need it, when they are drained in step: so it watches whether frames that were read for a lone record are found in memory
// by others, and leaves the read to the cache when they are. ok is false when the cache is the better way or the pieces do not suffice.
func (j *Journal) readAlone(e entry, m *Message) (stamp, error, bool) {
	if !e.alone {
		return stamp{}, nil, false
	}
	k := frameKey{e.seg.id, e.frame}
	if j.cache.has(k) {
		j.shared.Store(min(j.shared.Load()+1, aloneShare))
		return stamp{}, nil, false
	}
	if n := j.shared.Load(); n > aloneShare/4 {
		j.shared.Store(n - aloneShare/4)
		return stamp{}, nil, false
	} else if n > 0 { // a find now and then, as when one lane is drained after the other, is not worth a frame
		j.shared.Store(n - 1)
	}
	if j.lone.Add(1)%aloneProbe == 0 {
		return stamp{}, nil, false
	}
	from := max(int(e.item)-aloneBefore, 0)
	need := aloneBefore + itemHeaderLen + int(e.size) + aloneAfter
	b := j.cache.alloc(aloneHead + max(need, alonePart))
	defer j.cache.free(b)
	head, part := b[:aloneHead], b[aloneHead:]
	hasHead, hasPart := j.pieces.get(k, head, from, part[:need])
	if hasPart {
		part = part[:need]
	} else {
		n, ok := j.readPieces(e, head, hasHead, from, part)
		if !ok {
			return stamp{}, nil, false
		}
		part = part[:n]
		j.pieces.put(k, head, from, part)
	}
	lone, _ := j.lones.Get().(*loneRead)
	if lone == nil {
		lone = new(loneRead)
	}
	lone.j, lone.seg, lone.frame, lone.part, lone.from, lone.n = j, e.seg, e.frame, part, from, 0
	s, err := decodeRecord(frameView{b: head, salt: e.seg.salt, lone: lone, names: j.names}, int(e.item), e.seq, m)
	lone.seg, lone.part = nil, nil
	j.lones.Put(lone)
	if err != nil {
		return stamp{}, nil, false // the whole frame decides
	}
	return s, nil, true
}

// readPieces reads the start of e's frame, unless it is there, and what stands in the frame at from; n is how much of part there is.
func (j *Journal) readPieces(e entry, head []byte, hasHead bool, from int, part []byte) (n int, ok bool) {
	f, release, err := j.files.get(e.seg.slot)
	if err != nil {
		return 0, false
	}
	defer release()
	if !hasHead {
		if n, _ := f.ReadAt(head, int64(e.frame)); n < len(head) {
			return 0, false
		}
	}
	off := int64(e.frame) + int64(from)
	n, err = f.ReadAt(part, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, false
	}
	return int(max(min(int64(n), e.seg.end.Load()-off), 0)), true // what stands behind the end may change
}

// loneRead is what is at hand of a frame beside its start.
type loneRead struct {
	j     *Journal
	seg   *segment
	frame uint32
	part  []byte
	from  int // where part stands
	n     int
	extra [loneExtras][loneExtra]byte
}

const (
	loneExtras = 4
	loneExtra  = 1 << 10 // bytes
)

// more reads what stands at off: names that came first with another record. Nil when that has been done too often.
func (r *loneRead) more(off int) []byte {
	if r.n == loneExtras {
		return nil
	}
	f, release, err := r.j.files.get(r.seg.slot)
	if err != nil {
		return nil
	}
	defer release()
	b := r.extra[r.n][:]
	r.n++
	n, _ := f.ReadAt(b, int64(r.frame)+int64(off)) // what is missing does not check
	return b[:n]
}

const (
	pieceSlots  = 288 // more than the frames of a segment of 16 MiB
	pieceSample = 3   // the longest unused of so many makes room: what goes round in a larger circle still finds some, as with the longest unused of all it would not
)

// pieceCache holds what lone records were read from: the next queue finds its record in the same frames, mostly right behind. It takes 900 KiB at most.
type pieceCache struct {
	mu    sync.Mutex
	at    map[frameKey]int
	slots []*piece
	clock uint64
}

type piece struct {
	key     frameKey
	used    uint64
	from, n int
	head    [aloneHead]byte
	part    [alonePart]byte
}

// get fills head, and part when it has that too from there on.
func (c *pieceCache) get(k frameKey, head []byte, from int, part []byte) (hasHead, hasPart bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i, ok := c.at[k]
	if !ok {
		return false, false
	}
	p := c.slots[i]
	c.clock++
	p.used = c.clock
	copy(head, p.head[:])
	if from < p.from || from+len(part) > p.from+p.n {
		return true, false
	}
	copy(part, p.part[from-p.from:p.n])
	return true, true
}

func (c *pieceCache) put(k frameKey, head []byte, from int, part []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i, ok := c.at[k]
	switch {
	case ok:
	case len(c.slots) < pieceSlots:
		if c.at == nil {
			c.at = map[frameKey]int{}
		}
		i = len(c.slots)
		c.slots = append(c.slots, new(piece))
	default:
		i = rand.N(pieceSlots)
		for range pieceSample - 1 {
			if x := rand.N(pieceSlots); c.slots[x].used < c.slots[i].used {
				i = x
			}
		}
		delete(c.at, c.slots[i].key)
	}
	p := c.slots[i]
	c.clock++
	c.at[k], p.key, p.from, p.used = i, k, from, c.clock
	copy(p.head[:], head)
	p.n = copy(p.part[:], part)
}

// forget gives the memory back.
func (c *pieceCache) forget() {
	c.mu.Lock()
	c.at, c.slots = nil, nil
	c.mu.Unlock()
}
