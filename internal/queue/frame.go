package queue

import (
	"encoding/binary"
	"hash/maphash"
	"maps"
	"slices"
	"time"
)

// base is what the messages of one group share: who minted their ids and what the clocks said.
type base struct {
	origin  uint64 // random per Open; with the queue number and the sequence it makes the message id
	wall    int64  // Unix milliseconds
	mono    int64  // milliseconds of the boot clock
	trusted bool
	boot    [16]byte
}

// record is a message on its way into a frame.
type record struct {
	qid    uint32
	class  uint8
	seq    uint64
	dt     int64 // milliseconds after the base
	m      *Message
	id     string // spelled-out id of a message that was set aside or put back; "" = derived
	orig   uint64 // with id: its first sequence; 0 = seq
	leaves uint64 // with id: the sequence of the copy that this one replaces, in the lane from
	from   uint8
	reason string // with id: why it was set aside
}

// builder lays out one group of frames for one segment. It is reused from group to group.
type builder struct {
	salt  uint32
	group uint64
	buf   []byte
	frame int // where the open frame starts in buf; -1 = none
	index uint16

	seed    maphash.Seed
	base    base
	baseOff int
	metas   map[uint64]metaRef
	lastRef metaRef
	strs    map[string]int
	shared  []sharedItem // bases and metas of the open frame
	baseUse int          // place of the base in shared
}

type metaRef struct {
	m   *Message
	off int
	use int // place in shared
}

// sharedItem is an item that messages refer to.
type sharedItem struct{ off, uses int }

const (
	shareLeast   = 8       // an item that so many messages of a frame share is written twice
	shareStrings = 1 << 10 // bytes of strings up to which they are
)

func newBuilder() *builder {
	return &builder{seed: maphash.MakeSeed(), metas: map[uint64]metaRef{}, strs: map[string]int{}, frame: -1}
}

func (b *builder) reset(salt uint32, group uint64) {
	b.salt, b.group, b.buf, b.frame, b.index = salt, group, b.buf[:0], -1, 0
}

// open makes sure that a frame with room for n more bytes is open.
func (b *builder) open(n int) {
	if b.frame >= 0 && len(b.buf)-b.frame+n > frameTarget {
		b.closeFrame(0)
	}
	if b.frame >= 0 {
		return
	}
	b.frame = len(b.buf)
	b.buf = append(b.buf, make([]byte, frameHeaderLen)...)
	b.baseOff, b.lastRef = -1, metaRef{}
	clear(b.metas)
	clear(b.strs)
	b.shared = b.shared[:0]
}

// again writes what many messages of the frame share a second time, so that damage to it takes none of them.
func (b *builder) again() {
	many, strs := false, 0
	for _, s := range b.shared {
		if s.uses >= shareLeast {
			b.appendAgain(s.off)
			many = true
		}
	}
	for s := range b.strs {
		strs += len(s)
	}
	if !many || strs > shareStrings {
		return
	}
	for _, off := range slices.Sorted(maps.Values(b.strs)) {
		b.appendAgain(off)
	}
}

func (b *builder) appendAgain(off int) {
	it := b.buf[b.frame+off:]
	it = it[:itemLen(it)]
	start := len(b.buf)
	b.buf = append(binary.AppendUvarint(beginItem(b.buf, itemAgain), uint64(off)), it...)
	endItem(b.buf, start, b.salt)
}

func (b *builder) closeFrame(flags uint16) {
	b.again()
	body := b.buf[b.frame+frameHeaderLen:]
	h := frameHeader{group: b.group, bodyLen: uint32(len(body)), bodyCRC: checksum(b.salt, body), index: b.index, flags: flags}
	b.buf = append(b.buf, make([]byte, int(align(int64(len(b.buf)), frameAlign))-len(b.buf))...)
	h.span = uint32(len(b.buf) - b.frame)
	h.put(b.buf[b.frame:], b.salt)
	b.index++
	b.frame = -1
}

// finish closes the group for writing at off. The end is padded to a block when that wastes at most a quarter of the group: the block is then never
// written again by a later group, and synced bytes stay untouched; small groups go on in the same block, so that a slow sensor does not use a block
// per message.
func (b *builder) finish(off int64) []byte {
	if b.frame < 0 {
		b.open(0)
	}
	start := b.frame
	b.closeFrame(frameLast)
	end := off + int64(len(b.buf))
	if pad := align(end, blockBytes) - end; pad*4 <= int64(len(b.buf)) {
		b.buf = append(b.buf, make([]byte, pad)...)
		h, _ := parseFrameHeader(b.buf[start:], b.salt)
		h.span += uint32(pad)
		h.put(b.buf[start:], b.salt)
	}
	return b.buf
}

// item appends an item whose body fill writes.
func (b *builder) item(kind byte, body []byte) {
	b.open(itemHeaderLen + len(body))
	start := len(b.buf)
	b.buf = append(beginItem(b.buf, kind), body...)
	endItem(b.buf, start, b.salt)
}

// message appends a record and says where it stands, relative to the start of the group.
func (b *builder) message(ba *base, r *record) (frame, item uint32) {
	b.open(itemHeaderLen*2 + 64 + r.m.size())
	if b.baseOff < 0 || b.base != *ba {
		b.appendBase(ba)
	}
	b.shared[b.baseUse].uses++
	meta := b.meta(r.m)
	start := len(b.buf)
	buf := beginItem(b.buf, itemMessage)
	cl := r.class
	if r.id != "" {
		cl |= msgHasID
	}
	buf = append(buf, cl)
	buf = binary.AppendUvarint(buf, uint64(r.qid))
	buf = binary.AppendUvarint(buf, r.seq)
	buf = binary.AppendVarint(buf, r.dt)
	buf = binary.AppendUvarint(buf, uint64(b.baseOff))
	buf = binary.AppendUvarint(buf, uint64(meta))
	if r.id != "" {
		buf = binary.AppendUvarint(buf, r.orig)
		buf = binary.AppendUvarint(buf, r.leaves)
		buf = append(buf, r.from)
		buf = appendString(buf, r.id)
		buf = appendString(buf, r.reason)
		buf = append(buf, r.m.Priority)
	}
	b.buf = append(buf, r.m.Payload...)
	endItem(b.buf, start, b.salt)
	return uint32(b.frame), uint32(start - b.frame)
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func (b *builder) appendBase(ba *base) {
	start := len(b.buf)
	buf := beginItem(b.buf, itemBase)
	buf = binary.LittleEndian.AppendUint64(buf, ba.origin)
	buf = binary.AppendVarint(buf, ba.wall)
	if ba.trusted {
		buf = append(buf, 1)
	} else {
		buf = append(buf, 0)
	}
	buf = append(buf, ba.boot[:]...)
	buf = binary.AppendVarint(buf, ba.mono)
	endItem(buf, start, b.salt)
	b.buf, b.base, b.baseOff = buf, *ba, start-b.frame
	b.baseUse = len(b.shared)
	b.shared = append(b.shared, sharedItem{off: b.baseOff})
}

// meta returns where the frame spells out what m says beside its payload, appending it when it is the first of its kind.
func (b *builder) meta(m *Message) int {
	if b.lastRef.m != nil && sameMeta(b.lastRef.m, m) {
		b.shared[b.lastRef.use].uses++
		return b.lastRef.off
	}
	h := maphash.String(b.seed, m.Topic) ^ maphash.String(b.seed, m.Source)*31
	for i := range m.Properties {
		h = h*31 + maphash.String(b.seed, m.Properties[i].Value)
	}
	r, ok := b.metas[h]
	if !ok || !sameMeta(r.m, m) {
		r = metaRef{m: m, off: b.appendMeta(m), use: len(b.shared)}
		b.shared = append(b.shared, sharedItem{off: r.off})
		b.metas[h] = r
	}
	b.shared[r.use].uses++
	b.lastRef = r
	return r.off
}

func sameMeta(a, b *Message) bool {
	return a.Topic == b.Topic && a.Source == b.Source && a.Route == b.Route && a.ContentType == b.ContentType && a.ContentEncoding == b.ContentEncoding &&
		a.Output == b.Output && a.MaxAge == b.MaxAge && a.Pack == b.Pack && slices.Equal(a.Properties, b.Properties)
}

func (b *builder) appendMeta(m *Message) int {
	for _, s := range [...]string{m.Route, m.ContentType, m.ContentEncoding, m.Output} {
		b.share(s)
	}
	for i := range m.Properties {
		b.share(m.Properties[i].Key)
	}
	start := len(b.buf)
	buf := beginItem(b.buf, itemMeta)
	for _, s := range [...]string{m.Source, m.Topic, m.Route, m.ContentType, m.ContentEncoding, m.Output} {
		buf = b.appendRef(buf, s)
	}
	buf = binary.AppendUvarint(buf, uint64(m.MaxAge/time.Millisecond))
	buf = binary.AppendUvarint(buf, uint64(len(m.Properties)))
	for i := range m.Properties {
		buf = b.appendRef(buf, m.Properties[i].Key)
		buf = b.appendRef(buf, m.Properties[i].Value)
	}
	if m.Pack != (Pack{}) {
		buf = m.Pack.append(buf)
	}
	endItem(buf, start, b.salt)
	b.buf = buf
	return start - b.frame
}

// Flags of a pack in a meta item.
const (
	packLines = 1
	packGzip  = 2
)

func (p *Pack) append(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(p.MaxBytes))
	b = binary.AppendUvarint(b, uint64(p.MaxDelay/time.Millisecond))
	flags := byte(0)
	if p.Lines {
		flags |= packLines
	}
	if p.Gzip {
		flags |= packGzip
	}
	return append(b, flags)
}

// parse reads what append wrote; nothing is the pack of a message that travels alone.
func (p *Pack) parse(c *cursor) {
	*p = Pack{}
	if len(c.b) == 0 {
		return
	}
	bytes, delay, flags := c.uvarint(), c.uvarint(), c.byte()
	if bytes > maxItemBytes || delay > uint64(maxPackDelay/time.Millisecond) {
		c.bad = true
		return
	}
	*p = Pack{MaxBytes: int(bytes), MaxDelay: time.Duration(delay) * time.Millisecond, Lines: flags&packLines != 0, Gzip: flags&packGzip != 0}
}

// maxPackDelay is beyond every delay that makes sense.
const maxPackDelay = 1000 * time.Hour

// share spells a string out once per frame when a reference is shorter.
func (b *builder) share(s string) {
	if len(s) < 4 {
		return
	}
	if _, ok := b.strs[s]; ok {
		return
	}
	start := len(b.buf)
	b.buf = append(beginItem(b.buf, itemString), s...)
	endItem(b.buf, start, b.salt)
	b.strs[s] = start - b.frame
}

// appendRef writes a shared string as its odd-coded place and any other in full, even-coded.
func (b *builder) appendRef(buf []byte, s string) []byte {
	if off, ok := b.strs[s]; ok {
		return binary.AppendUvarint(buf, uint64(off)<<1|1)
	}
	buf = binary.AppendUvarint(buf, uint64(len(s))<<1)
	return append(buf, s...)
}
