package queue

import (
	"encoding/binary"
	"hash/crc32"
)

// The numbers below are the on-disk format; doc.go specifies it.
const (
	formatVersion = 1

	blockBytes    = 4096
	segHeaderLen  = 96
	segHeaderCopy = 2048       // where the second copy of the segment header stands
	segDataStart  = blockBytes // where the first frame stands

	frameMagic     = 0x4d465747 // "GWFM"
	frameHeaderLen = 32
	frameTarget    = 62 << 10 // a frame is closed when it reaches this
	frameRead      = 64 << 10 // what is read of a frame of which the length is not known: header, body and copies of what many share
	frameAlign     = 8

	frameLast = 1 // flag: the last frame of its group

	itemHeaderLen = 8
	maxItemBytes  = 1<<24 - 1

	footerMagic     = 0x58495747 // "GWIX"
	footerHeaderLen = 32
	footerRunLen    = 48
)

// frameMagicBytes is frameMagic as it stands in a file; only ever read.
var frameMagicBytes = []byte("GWFM")

// segMagic opens every segment; the line ending shows damage by text conversion.
const segMagic = "GWJRNL\r\n"

// Kinds of items.
const (
	itemBase     = 1  // what the messages of a frame share: origin, clock
	itemString   = 2  // a string that several metas refer to
	itemMeta     = 3  // source, topic and the like, shared by messages
	itemMessage  = 4  //
	itemQueue    = 5  // name of a queue number
	itemState    = 6  // counters and acknowledgements of one queue, absolute
	itemSegment  = 7  // a segment that holds messages, absolute
	itemFreed    = 8  // segments that hold nothing any more
	itemSnapshot = 9  // opens a snapshot
	itemEnd      = 10 // closes a snapshot
	itemBoot     = 11 // offset between wall and boot clock of one boot
	itemForgot   = 12 // a queue was dropped
	itemHeld     = 13 // state of a queue when files first could not be read
	itemAgain    = 14 // a copy of an item that many messages of the frame share
	itemKinds    = 15
)

// Flags of a message item, in the high bits of its class byte.
const (
	msgClassMask = 0x0f
	msgHasID     = 0x10 // id and reason are spelled out: the message was set aside or put back
)

// asideClass is the lane of messages that were set aside; readers do not serve it.
const (
	asideClass = MaxPriority + 1
	classes    = asideClass + 1
)

// castagnoli is a read-only table; the polynomial has instructions on amd64 and arm64.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum is CRC-32C seeded with the segment's random salt: bytes that an earlier use of the same file left behind never pass.
func checksum(salt uint32, b []byte) uint32 { return crc32.Update(salt, castagnoli, b) }

func align(n, to int64) int64 { return (n + to - 1) &^ (to - 1) }

// segHeader identifies a segment and how to check it.
type segHeader struct {
	version  uint32
	id       uint64
	salt     uint32
	cold     bool // written by compaction: no snapshot, complete before it counts
	instance [16]byte
	machine  [16]byte
	created  int64 // Unix milliseconds
}

func (h *segHeader) append(b []byte) []byte {
	start := len(b)
	b = append(b, segMagic...)
	b = binary.LittleEndian.AppendUint32(b, h.version)
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint64(b, h.id)
	b = binary.LittleEndian.AppendUint32(b, h.salt)
	flags := uint32(0)
	if h.cold {
		flags = 1
	}
	b = binary.LittleEndian.AppendUint32(b, flags)
	b = append(b, h.instance[:]...)
	b = append(b, h.machine[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(h.created))
	b = append(b, make([]byte, segHeaderLen-(len(b)-start))...)
	binary.LittleEndian.PutUint32(b[start+12:], crc32.Checksum(b[start+16:], castagnoli))
	return b
}

// parseSegHeader reads one copy. A header of a newer version passes as long as its checksum does: the layout of the first 16 bytes and the place of
// the checksum never change.
func parseSegHeader(b []byte) (h segHeader, ok bool) {
	if len(b) < segHeaderLen || string(b[:8]) != segMagic {
		return h, false
	}
	b = b[:segHeaderLen]
	if crc32.Checksum(b[16:], castagnoli) != binary.LittleEndian.Uint32(b[12:]) {
		return h, false
	}
	h.version = binary.LittleEndian.Uint32(b[8:])
	h.id = binary.LittleEndian.Uint64(b[16:])
	h.salt = binary.LittleEndian.Uint32(b[24:])
	h.cold = binary.LittleEndian.Uint32(b[28:])&1 != 0
	copy(h.instance[:], b[32:])
	copy(h.machine[:], b[48:])
	h.created = int64(binary.LittleEndian.Uint64(b[64:]))
	return h, h.version > 0
}

// block returns the first block of a segment: both copies of its header.
func (h *segHeader) block() []byte {
	b := make([]byte, 0, blockBytes)
	b = h.append(b)
	b = append(b, make([]byte, segHeaderCopy-len(b))...)
	b = h.append(b)
	return append(b, make([]byte, blockBytes-len(b))...)
}

// parseSegBlock prefers the copy with the higher id: a reuse that was cut short may have left one copy of each life. No checksum covers the version, so that
// a newer one is believed only when no copy says otherwise.
func parseSegBlock(b []byte) (segHeader, bool) {
	h, ok := parseSegHeader(b)
	if len(b) < segHeaderCopy+segHeaderLen {
		return h, ok
	}
	h2, ok2 := parseSegHeader(b[segHeaderCopy:])
	if !ok2 || ok && h.version <= formatVersion && h2.version > formatVersion {
		return h, ok
	}
	if !ok || h.version > formatVersion && h2.version <= formatVersion || h2.id > h.id {
		return h2, true
	}
	return h, ok
}

// frameHeader describes one frame; a group is one or more frames that count together or not at all.
type frameHeader struct {
	group   uint64
	bodyLen uint32
	bodyCRC uint32
	span    uint32 // from this header to the next frame, padding included
	index   uint16 // place within the group
	flags   uint16
}

func (h *frameHeader) put(b []byte, salt uint32) {
	binary.LittleEndian.PutUint32(b, frameMagic)
	binary.LittleEndian.PutUint64(b[8:], h.group)
	binary.LittleEndian.PutUint32(b[16:], h.bodyLen)
	binary.LittleEndian.PutUint32(b[20:], h.bodyCRC)
	binary.LittleEndian.PutUint32(b[24:], h.span)
	binary.LittleEndian.PutUint16(b[28:], h.index)
	binary.LittleEndian.PutUint16(b[30:], h.flags)
	binary.LittleEndian.PutUint32(b[4:], checksum(salt, b[8:frameHeaderLen]))
}

func parseFrameHeader(b []byte, salt uint32) (h frameHeader, ok bool) {
	if len(b) < frameHeaderLen || binary.LittleEndian.Uint32(b) != frameMagic || binary.LittleEndian.Uint32(b[4:]) != checksum(salt, b[8:frameHeaderLen]) {
		return h, false
	}
	h.group = binary.LittleEndian.Uint64(b[8:])
	h.bodyLen = binary.LittleEndian.Uint32(b[16:])
	h.bodyCRC = binary.LittleEndian.Uint32(b[20:])
	h.span = binary.LittleEndian.Uint32(b[24:])
	h.index = binary.LittleEndian.Uint16(b[28:])
	h.flags = binary.LittleEndian.Uint16(b[30:])
	return h, h.span >= frameHeaderLen+h.bodyLen && h.bodyLen <= maxItemBytes*2
}

// beginItem opens an item; endItem fills in its length and checksum.
func beginItem(b []byte, kind byte) []byte { return append(b, 0, 0, 0, 0, kind, 0, 0, 0) }

func endItem(b []byte, start int, salt uint32) {
	n := len(b) - start - itemHeaderLen
	b[start+5], b[start+6], b[start+7] = byte(n), byte(n>>8), byte(n>>16)
	binary.LittleEndian.PutUint32(b[start:], checksum(salt, b[start+4:]))
}

// itemLen is the length of the item whose header begins b.
func itemLen(b []byte) int { return itemHeaderLen + (int(b[5]) | int(b[6])<<8 | int(b[7])<<16) }

// parseItem checks and returns the item at the start of b. short says that b ends before the item does, which is no verdict about the item.
func parseItem(b []byte, salt uint32) (kind byte, body []byte, ok, short bool) {
	if len(b) < itemHeaderLen {
		return 0, nil, false, true
	}
	n := itemLen(b)
	if n > len(b) {
		return 0, nil, false, true
	}
	if binary.LittleEndian.Uint32(b) != checksum(salt, b[4:n]) {
		return 0, nil, false, false
	}
	return b[4], b[itemHeaderLen:n], true, false
}

// cursor reads the fields of an item's body; bad latches the first fault so that callers check once.
type cursor struct {
	b   []byte
	bad bool
}

func (c *cursor) uvarint() uint64 {
	v, n := binary.Uvarint(c.b)
	if n <= 0 {
		c.bad, c.b = true, nil
		return 0
	}
	c.b = c.b[n:]
	return v
}

func (c *cursor) varint() int64 {
	v, n := binary.Varint(c.b)
	if n <= 0 {
		c.bad, c.b = true, nil
		return 0
	}
	c.b = c.b[n:]
	return v
}

func (c *cursor) take(n uint64) []byte {
	if n > uint64(len(c.b)) {
		c.bad, c.b = true, nil
		return nil
	}
	b := c.b[:n]
	c.b = c.b[n:]
	return b
}

func (c *cursor) byte() byte {
	if b := c.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (c *cursor) uint64() uint64 {
	if b := c.take(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (c *cursor) uint32() uint32 {
	if b := c.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}
