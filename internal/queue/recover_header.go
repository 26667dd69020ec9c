package queue

import (
	"encoding/binary"
	"errors"
	"io"
)

// unsalt finds the salt under which b has a checksum: a CRC can be run backwards.
func unsalt(sum uint32, b []byte) uint32 {
	var byTop [256]byte // which entry of the table has this byte on top; all differ
	for i, e := range castagnoli {
		byTop[e>>24] = byte(i)
	}
	crc := ^sum
	for i := len(b) - 1; i >= 0; i-- {
		e := byTop[crc>>24]
		crc = (crc^castagnoli[e])<<8 | uint32(e^b[i])
	}
	return ^crc
}

// rebuildHeader makes up for a lost block at the start of a segment. The salt follows from the header of the first frame, whose body then proves it, and
// the snapshot there names the segment. Segments of compaction have no snapshot, and need none: a snapshot elsewhere names them with their salt.
func rebuildHeader(f io.ReaderAt) (h segHeader, ok bool, err error) {
	b := make([]byte, blockBytes)
	n, err := f.ReadAt(b, segDataStart)
	if err != nil && !errors.Is(err, io.EOF) {
		return h, false, err
	}
	if n < frameHeaderLen || binary.LittleEndian.Uint32(b) != frameMagic {
		return h, false, nil
	}
	h = segHeader{version: formatVersion, salt: unsalt(binary.LittleEndian.Uint32(b[4:]), b[8:frameHeaderLen])}
	fh, ok := parseFrameHeader(b[:n], h.salt)
	if !ok || fh.group != 0 || fh.index != 0 || fh.bodyLen > 2*frameRead {
		return h, false, nil
	}
	body := make([]byte, fh.bodyLen)
	if n, err := f.ReadAt(body, segDataStart+frameHeaderLen); n < len(body) {
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return h, false, err
	}
	kind, first, ok, _ := parseItem(body, h.salt)
	if !ok || kind != itemSnapshot || checksum(h.salt, body) != fh.bodyCRC {
		return h, false, nil
	}
	c := cursor{b: first}
	c.uvarint()
	h.id = c.uvarint()
	return h, !c.bad && h.id > 0, nil
}
