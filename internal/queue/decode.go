package queue

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strconv"
	"time"
)

// errDamaged: a checksum failed or the bytes contradict themselves. The record is lost; its neighbours are not.
var errDamaged = errors.New("damaged record")

// shortError: the record goes on behind the bytes at hand.
type shortError struct{ need int }

func (e *shortError) Error() string { return "record goes on behind the bytes at hand" }

// msgHead is the part of a message item that places it.
type msgHead struct {
	class, priority uint8
	qid             uint32
	seq             uint64
	dt              int64
	base, meta      int
	id, reason      string
	orig, leaves    uint64
	from            uint8
	payload         []byte // aliases the frame
}

func parseMessage(body []byte) (h msgHead, ok bool) {
	c := cursor{b: body}
	cl := c.byte()
	h.class = cl & msgClassMask
	h.priority = min(h.class, MaxPriority)
	h.qid = uint32(c.uvarint())
	h.seq = c.uvarint()
	h.dt = c.varint()
	base, meta := c.uvarint(), c.uvarint()
	if cl&msgHasID != 0 {
		h.orig, h.leaves, h.from = c.uvarint(), c.uvarint(), c.byte()
		h.id = string(c.take(c.uvarint()))
		h.reason = string(c.take(c.uvarint()))
		h.priority = c.byte()
		if h.orig == 0 {
			h.orig = h.seq // set aside from the start
		}
	}
	if base > maxItemBytes || meta > maxItemBytes {
		c.bad = true
	}
	h.base, h.meta, h.payload = int(base), int(meta), c.b
	return h, !c.bad && h.class < classes && h.seq > 0 && h.priority <= MaxPriority && h.from < classes
}

// frameView decodes items out of one frame's bytes, header included. Every item is checked on every read.
type frameView struct {
	b     []byte
	salt  uint32
	lone  *loneRead // not nil: b is only the start of the frame, and this knows more
	names *interner // may be nil
}

// at returns what is there from off on.
func (v frameView) at(off int) []byte {
	if v.lone != nil && off >= v.lone.from && off < v.lone.from+len(v.lone.part) {
		return v.lone.part[off-v.lone.from:]
	}
	if off > len(v.b) {
		return nil
	}
	return v.b[off:]
}

// item finds the item of a kind at off, or the copy of one that is damaged.
func (v frameView) item(off int, kind byte) ([]byte, error) {
	body, err := v.itemAt(off, kind)
	if err == nil || kind == itemMessage || v.lone != nil {
		return body, err
	}
	if copied, ok := v.again(off, kind); ok {
		return copied, nil
	}
	if h, ok := parseFrameHeader(v.b, v.salt); ok && frameHeaderLen+int(h.bodyLen) > len(v.b) {
		return nil, &shortError{frameHeaderLen + int(h.bodyLen)} // copies stand at the end
	}
	return nil, err
}

// again looks for the copy of the item at off. The way there may lead through damage, so every place is tried.
func (v frameView) again(off int, kind byte) ([]byte, bool) {
	for p := frameHeaderLen; p+itemHeaderLen <= len(v.b); p++ {
		i := bytes.IndexByte(v.b[p+4:], itemAgain)
		if i < 0 {
			break
		}
		p += i
		_, body, ok, _ := parseItem(v.b[p:], v.salt)
		if !ok {
			continue
		}
		c := cursor{b: body}
		if c.uvarint() != uint64(off) {
			continue
		}
		if k, inner, ok, _ := parseItem(c.b, v.salt); ok && k == kind {
			return inner, true
		}
	}
	return nil, false
}

func (v frameView) itemAt(off int, kind byte) ([]byte, error) {
	if off < frameHeaderLen {
		return nil, errDamaged
	}
	b := v.at(off)
	k, body, ok, short := parseItem(b, v.salt)
	if short && v.lone != nil {
		b = v.lone.more(off)
		k, body, ok, short = parseItem(b, v.salt)
	}
	switch {
	case short && len(b) < itemHeaderLen:
		return nil, &shortError{off + blockBytes}
	case short:
		return nil, &shortError{off + itemHeaderLen + (int(b[5]) | int(b[6])<<8 | int(b[7])<<16)}
	case !ok || k != kind:
		return nil, errDamaged
	}
	return body, nil
}

func (v frameView) base(off int) (ba base, err error) {
	body, err := v.item(off, itemBase)
	if err != nil {
		return ba, err
	}
	c := cursor{b: body}
	ba.origin = c.uint64()
	ba.wall = c.varint()
	ba.trusted = c.byte() != 0
	copy(ba.boot[:], c.take(16))
	ba.mono = c.varint()
	if c.bad {
		return ba, errDamaged
	}
	return ba, nil
}

// meta fills in the strings of m.
func (v frameView) meta(off int, m *Message) error {
	body, err := v.item(off, itemMeta)
	if err != nil {
		return err
	}
	c := cursor{b: body}
	for _, dst := range [...]*string{&m.Source, &m.Topic, &m.Route, &m.ContentType, &m.ContentEncoding, &m.Output} {
		if err := v.ref(&c, dst); err != nil {
			return err
		}
	}
	m.MaxAge = time.Duration(c.uvarint()) * time.Millisecond
	n := c.uvarint()
	if n > uint64(len(c.b)) {
		return errDamaged
	}
	m.Properties = nil
	if n > 0 {
		m.Properties = make([]Property, n)
	}
	for i := range m.Properties {
		if err := v.ref(&c, &m.Properties[i].Key); err != nil {
			return err
		}
		if err := v.ref(&c, &m.Properties[i].Value); err != nil {
			return err
		}
	}
	m.Pack.parse(&c)
	if c.bad {
		return errDamaged
	}
	return nil
}

func (v frameView) ref(c *cursor, dst *string) error {
	n := c.uvarint()
	var b []byte
	if n&1 == 0 {
		b = c.take(n >> 1)
	} else {
		var err error
		if n>>1 > maxItemBytes {
			return errDamaged
		}
		if b, err = v.item(int(n>>1), itemString); err != nil {
			return err
		}
	}
	if c.bad {
		return errDamaged
	}
	*dst = v.names.get(b)
	return nil
}

// head finds the message item at off.
func (v frameView) head(off int) (msgHead, error) {
	body, err := v.item(off, itemMessage)
	if err != nil {
		return msgHead{}, err
	}
	h, ok := parseMessage(body)
	if !ok {
		return h, errDamaged
	}
	return h, nil
}

// messageID is the id every resend carries. The origin is random per Open, so a folder restored from a backup never mints an id that was used after
// the backup was taken.
func messageID(origin uint64, qid uint32, seq uint64) string {
	var o [8]byte
	for i := range o {
		o[i] = byte(origin >> (56 - 8*i))
	}
	var buf [40]byte
	b := hex.AppendEncode(buf[:0], o[:])
	b = append(b, '-')
	b = strconv.AppendUint(b, uint64(qid), 36)
	b = append(b, '-')
	b = strconv.AppendUint(b, seq, 36)
	return string(b)
}
