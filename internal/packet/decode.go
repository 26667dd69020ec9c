package packet

import (
	"bytes"
	"encoding/binary"
	"unicode/utf8"
)

// cursor walks a packet body; the first error sticks, so that decoders read
// straight through and look at err once.
type cursor struct {
	b   []byte
	err error
}

func (c *cursor) fail(format string, args ...any) {
	if c.err == nil {
		c.err = malformed(format, args...)
	}
	c.b = nil
}

func (c *cursor) byte() byte {
	if len(c.b) < 1 {
		c.fail("packet ends inside a byte field")
		return 0
	}
	v := c.b[0]
	c.b = c.b[1:]
	return v
}

func (c *cursor) uint16() uint16 {
	if len(c.b) < 2 {
		c.fail("packet ends inside a two byte integer")
		return 0
	}
	v := binary.BigEndian.Uint16(c.b)
	c.b = c.b[2:]
	return v
}

func (c *cursor) uint32() uint32 {
	if len(c.b) < 4 {
		c.fail("packet ends inside a four byte integer")
		return 0
	}
	v := binary.BigEndian.Uint32(c.b)
	c.b = c.b[4:]
	return v
}

func (c *cursor) varint() int {
	n := 0
	for i := range 4 {
		b := c.byte()
		n |= int(b&0x7f) << (7 * i)
		if b&0x80 == 0 {
			// Only the shortest form is allowed (MQTT 5, 1.5.5).
			if i > 0 && b == 0 && c.err == nil {
				c.fail("variable byte integer is not in its shortest form")
			}
			return n
		}
	}
	c.fail("variable byte integer of more than four bytes")
	return 0
}

func (c *cursor) bytes() []byte {
	n := int(c.uint16())
	if n > len(c.b) {
		c.fail("packet ends inside a field of %d bytes", n)
		return nil
	}
	v := c.b[:n:n]
	c.b = c.b[n:]
	return v
}

func (c *cursor) string() string {
	b := c.bytes()
	if c.err != nil {
		return ""
	}
	// 1.5.3 (3.1.1) and 1.5.4 (5): ill-formed UTF-8 and U+0000 close the connection.
	if bytes.IndexByte(b, 0) >= 0 || !utf8.Valid(b) {
		c.fail("string is not UTF-8 text without U+0000")
		return ""
	}
	return string(b)
}

func (c *cursor) packetID() uint16 {
	id := c.uint16()
	if id == 0 && c.err == nil {
		c.err = violation("packet identifier 0")
	}
	return id
}

// end fails on bytes that the packet should not have.
func (c *cursor) end() error {
	if c.err == nil && len(c.b) > 0 {
		c.fail("%d bytes too many at the end of the packet", len(c.b))
	}
	return c.err
}

func appendString(dst []byte, s string) []byte {
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(s)))
	return append(dst, s...)
}

func appendBytes(dst, b []byte) []byte {
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(b)))
	return append(dst, b...)
}

func fits(lengths ...int) bool {
	for _, n := range lengths {
		if n > MaxString {
			return false
		}
	}
	return true
}
