package packet

import (
	"errors"
	"io"
)

const (
	idleBuffer = 512   // kept by a connection that says nothing
	busyBuffer = 16384 // grown to while a peer sends faster than it is read
)

// Reader cuts a byte stream into control packets. It is used by one goroutine.
type Reader struct {
	src  io.Reader
	max  int
	buf  []byte
	r, w int
	last int // bytes of the latest fill
}

// NewReader reads packets of at most max bytes after the fixed header.
func NewReader(src io.Reader, max int) *Reader {
	if max <= 0 || max > maxRemaining {
		max = maxRemaining
	}
	return &Reader{src: src, max: max}
}

// SetMax changes the size limit from the next packet on, in bytes after the
// fixed header.
func (r *Reader) SetMax(max int) { r.max = max }

// Buffered is the number of bytes already read from the source and not yet
// returned: while it is zero, Next is about to wait for the peer.
func (r *Reader) Buffered() int { return r.w - r.r }

// Next returns the next packet, waiting for it. It returns io.EOF at the end of
// the stream between packets, io.ErrUnexpectedEOF inside one, an *Error for
// bytes that are no packet or one past the limit, and the source's own errors.
func (r *Reader) Next() (Frame, error) {
	head, length, err := r.header()
	if err != nil {
		return Frame{}, err
	}
	for r.w-r.r < head+length {
		if err := r.fill(head + length); err != nil {
			return Frame{}, inside(err)
		}
	}
	p := r.buf[r.r : r.r+head+length]
	r.r += head + length
	return Frame{Type: Type(p[0] >> 4), Flags: p[0] & 15, Body: p[head:]}, nil
}

// header waits for the fixed header and returns its size and the remaining
// length, which it has checked against the limit.
func (r *Reader) header() (head, length int, err error) {
	for i := 0; ; i++ {
		for r.w-r.r <= i {
			if err := r.fill(i + 1); err != nil {
				if i > 0 {
					err = inside(err)
				}
				return 0, 0, err
			}
		}
		c := r.buf[r.r+i]
		if i == 0 {
			if c>>4 == 0 {
				return 0, 0, malformed("reserved packet type 0")
			}
			continue
		}
		length |= int(c&0x7f) << (7 * (i - 1))
		if c&0x80 == 0 {
			if length > r.max {
				return 0, 0, &Error{Code: PacketTooLarge, Reason: "packet larger than the limit"}
			}
			return i + 1, length, nil
		}
		if i == 4 {
			return 0, 0, malformed("remaining length of more than four bytes")
		}
	}
}

// fill reads once. The buffer grows only by doubling after it was filled, so
// that a peer which announces a large packet has to send it to cost memory.
func (r *Reader) fill(need int) error {
	if r.r == r.w {
		r.r, r.w = 0, 0
		if r.buf == nil || (cap(r.buf) > idleBuffer && r.last < cap(r.buf)/4) {
			r.buf = make([]byte, idleBuffer)
		}
	}
	if r.w == len(r.buf) {
		if r.r > 0 && r.w-r.r < len(r.buf)/2 {
			copy(r.buf, r.buf[r.r:r.w])
		} else {
			grown := make([]byte, max(min(2*len(r.buf), max(need, busyBuffer)), len(r.buf)+1))
			copy(grown, r.buf[r.r:r.w])
			r.buf = grown
		}
		r.w -= r.r
		r.r = 0
	}
	n, err := r.src.Read(r.buf[r.w:])
	r.w += n
	r.last = n
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

func inside(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
