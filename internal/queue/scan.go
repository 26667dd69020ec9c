package queue

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"syscall"
)

// scanner walks the groups of one segment and says what is sound, what is damaged and what is a torn tail.
//
// A group is synced before the next one is written. So whatever is followed by a frame of a later group was synced once: if it does not check, it is
// damage, and what is intact in it counts. What is followed by nothing may never have been synced: it is a torn tail and counts as a whole or not at all.
type scanner struct {
	f    io.ReaderAt
	salt uint32
	size int64 // of the file
	end  int64 // where the groups are known to end; -1 = not known

	visit  func(*scanned)            // every item of every group that counts, in order
	damage func(off, end int64)      // a region that does not check
	win    []byte                    //
	winOff int64                     //
	group  []scanned                 // items of the group under way
	sizes  map[int]uint32            // of the metas of one frame
	seen   struct{ base, meta int }  // places in that frame that were checked last
	shared uint32                    // size of that meta
	spent  int64                     // bytes checked while salvaging
	bad    int                       // blocks that could not be read
	off    int64                     //
	state  struct{ no, want uint64 } // group under way, and the group that comes next
	open   bool                      // a group is under way
	start  int64                     // where it began
	index  uint16                    // next frame of it
	torn   bool
}

// scanned is one item that passed its check.
type scanned struct {
	kind  byte
	body  []byte // copied; nil for messages
	head  msgHead
	frame uint32
	item  uint32
	size  uint32
	cut   bool // other items of its group are lost
}

const (
	scanWindow   = 256 << 10
	maxBadBlocks = 256
	salvageLimit = 256 << 20 // bytes checked per segment while looking for items in damaged frames
)

// at returns n bytes from off, fewer at the end of the file.
func (s *scanner) at(off int64, n int) ([]byte, error) {
	if off < s.winOff || off+int64(n) > s.winOff+int64(len(s.win)) {
		want := max(n, scanWindow)
		if rest := s.size - off; int64(want) > rest {
			want = int(max(rest, 0))
		}
		if cap(s.win) < want {
			s.win = make([]byte, want)
		}
		got, err := s.f.ReadAt(s.win[:want], off)
		if errors.Is(err, syscall.EIO) {
			got, err = s.around(s.win[:want], off)
		}
		if err != nil && !errors.Is(err, io.EOF) {
			s.win = s.win[:0]
			return nil, err
		}
		s.win, s.winOff = s.win[:got], off
	}
	b := s.win[off-s.winOff:]
	return b[:min(n, len(b))], nil
}

// around reads what can be read, block by block. Blocks that cannot count as damage, unless they are many: then the disk as a whole may be in trouble.
func (s *scanner) around(b []byte, off int64) (n int, err error) {
	for n < len(b) {
		part := b[n:min(n+int(blockBytes-(off+int64(n))%blockBytes), len(b))]
		got, err := s.f.ReadAt(part, off+int64(n))
		if errors.Is(err, syscall.EIO) {
			if s.bad++; s.bad > maxBadBlocks {
				return n, err
			}
			clear(part)
			got, err = len(part), nil
		}
		if n += got; err != nil {
			return n, err
		}
	}
	return n, nil
}

// run walks the segment and returns where the groups that count end.
func (s *scanner) run() (int64, error) {
	limit := s.size
	if s.end >= 0 {
		limit = min(s.end, s.size)
	}
	s.off = segDataStart
	good := s.off // end of the last group that counts
	for s.off+frameHeaderLen <= limit {
		h, body, ok, err := s.frame(s.off, limit)
		if err != nil {
			return 0, err
		}
		if ok {
			s.take(h, body)
			s.off += int64(h.span)
			if !s.open {
				good = s.off
			}
			continue
		}
		next, later, err := s.resync(s.off+frameAlign, limit)
		if err != nil {
			return 0, err
		}
		if s.end < 0 && !later {
			s.torn = s.open || s.begun()
			break
		}
		if next < 0 {
			next = max(limit, s.end) // beyond the file, when it was cut
		}
		if err := s.salvage(s.off, next); err != nil {
			return 0, err
		}
		s.off = next
		good = next
	}
	if s.end >= 0 {
		if s.off < s.end && s.size < s.end {
			s.damage(s.off, s.end)
		}
		s.flush(true)
		return s.end, nil
	}
	if s.open {
		s.torn = true
		s.group = s.group[:0]
	}
	return good, nil
}

// begun says whether somebody began to write a frame where the groups end.
func (s *scanner) begun() bool {
	b, err := s.at(s.off, 4)
	return err == nil && len(b) == 4 && binary.LittleEndian.Uint32(b) == frameMagic
}

// frame reads and checks the frame at off.
func (s *scanner) frame(off, limit int64) (h frameHeader, frame []byte, ok bool, err error) {
	b, err := s.at(off, frameHeaderLen)
	if err != nil {
		return h, nil, false, err
	}
	h, ok = parseFrameHeader(b, s.salt)
	if !ok || off+int64(h.span) > limit {
		return h, nil, false, nil
	}
	n := frameHeaderLen + int(h.bodyLen)
	if b, err = s.at(off, n); err != nil {
		return h, nil, false, err
	}
	return h, b, len(b) == n && checksum(s.salt, b[frameHeaderLen:]) == h.bodyCRC, nil
}

// take adds the items of a sound frame to its group and hands the group on when it is whole.
func (s *scanner) take(h frameHeader, frame []byte) {
	if s.open && h.group != s.state.no {
		s.flush(true) // its end is missing, but a later group follows: it was synced
	}
	cut := h.index != s.index && (s.open || h.index != 0)
	if !s.open {
		s.open, s.start, s.state.no = true, s.off, h.group
		cut = h.index != 0
	}
	s.index = h.index + 1
	s.state.want = h.group + 1
	s.items(frame, s.off, cut)
	if h.flags&frameLast != 0 {
		s.flush(false)
	}
}

// items parses a frame that has passed its checksum.
func (s *scanner) items(frame []byte, off int64, cut bool) {
	s.forget()
	for p := frameHeaderLen; p+itemHeaderLen <= len(frame); {
		n := itemLen(frame[p:])
		if p+n > len(frame) {
			return
		}
		kind, body := frame[p+4], frame[p+itemHeaderLen:p+n] // the frame's checksum covers the item's
		s.item(frame, off, p, kind, body, cut)
		p += itemHeaderLen + len(body)
	}
}

func (s *scanner) item(frame []byte, off int64, p int, kind byte, body []byte, cut bool) {
	it := scanned{kind: kind, frame: uint32(off), item: uint32(p), cut: cut}
	switch kind {
	case itemBase, itemString, itemMeta, itemAgain:
		return
	case itemMessage:
		h, ok := parseMessage(body)
		if !ok {
			return
		}
		size, ok := s.metaSize(frame, h.meta)
		if !ok {
			return
		}
		if h.base != s.seen.base {
			if _, err := (frameView{b: frame, salt: s.salt}).base(h.base); err != nil {
				return
			}
			s.seen.base = h.base
		}
		it.size = size + uint32(len(h.payload))
		h.payload = nil
		it.head = h
	default:
		it.body = bytes.Clone(body)
	}
	s.group = append(s.group, it)
}

// forget begins a frame.
func (s *scanner) forget() {
	clear(s.sizes)
	s.seen.base, s.seen.meta = -1, -1
}

func (s *scanner) metaSize(frame []byte, off int) (uint32, bool) {
	if off == s.seen.meta {
		return s.shared, true
	}
	n, ok := s.sizeOf(frame, off)
	if ok {
		s.seen.meta, s.shared = off, n
	}
	return n, ok
}

func (s *scanner) sizeOf(frame []byte, off int) (uint32, bool) {
	if n, ok := s.sizes[off]; ok {
		return n, true
	}
	var m Message
	if err := (frameView{b: frame, salt: s.salt}).meta(off, &m); err != nil {
		return 0, false
	}
	if s.sizes == nil {
		s.sizes = map[int]uint32{}
	}
	s.sizes[off] = uint32(m.size())
	return s.sizes[off], true
}

// flush hands the group under way on.
func (s *scanner) flush(cut bool) {
	for i := range s.group {
		s.group[i].cut = s.group[i].cut || cut
		s.visit(&s.group[i])
	}
	clear(s.group)
	s.group, s.open, s.index = s.group[:0], false, 0
}

// resync finds the next sound frame from off on, or -1; later says that some frame of a group after the one expected follows.
func (s *scanner) resync(off, limit int64) (next int64, later bool, err error) {
	expected := s.state.want
	if s.open {
		expected = s.state.no
	}
	next = -1
	for ; ; off += frameAlign {
		off, err = s.magic(align(off, frameAlign), limit)
		if off < 0 || err != nil {
			return next, later, err
		}
		b, err := s.at(off, frameHeaderLen)
		if err != nil || len(b) < frameHeaderLen {
			return next, later, err
		}
		h, ok := parseFrameHeader(b, s.salt)
		if !ok || off+int64(h.span) > limit {
			continue
		}
		if _, _, ok, err = s.frame(off, limit); err != nil {
			return -1, false, err
		} else if ok && next < 0 {
			next = off
		}
		if h.group > expected {
			later = true
			if next < 0 {
				continue // its own body is damaged, but its header proves that it was written
			}
			return next, true, nil
		}
		if s.end >= 0 && next >= 0 {
			return next, true, nil
		}
	}
}

// magic finds the next aligned place from off on where a frame header that ends before limit may stand, or -1.
func (s *scanner) magic(off, limit int64) (int64, error) {
	for off+frameHeaderLen <= limit {
		n := int(min(limit-off, scanWindow))
		if rest := s.winOff + int64(len(s.win)) - off; off >= s.winOff && rest >= frameHeaderLen {
			n = int(min(rest, limit-off)) // what is at hand first
		}
		b, err := s.at(off, n)
		if err != nil || len(b) < frameHeaderLen {
			return -1, err
		}
		for p := 0; ; {
			i := bytes.Index(b[p:], frameMagicBytes)
			if i < 0 {
				break
			}
			if p += i; p%frameAlign == 0 {
				if off+int64(p)+frameHeaderLen > limit {
					return -1, nil
				}
				return off + int64(p), nil
			}
			p++
		}
		// The last bytes may be the beginning of a magic; off stays aligned.
		off += max(int64(len(b))&^(frameAlign-1)-frameAlign, frameAlign)
	}
	return -1, nil
}

// salvage takes what is intact out of a damaged region that begins with a frame.
func (s *scanner) salvage(off, end int64) error {
	s.damage(off, end)
	b, err := s.at(off, int(end-off))
	if err != nil {
		return err
	}
	frame := bytes.Clone(b)
	s.forget()
	for p := frameHeaderLen; p+itemHeaderLen <= len(frame); {
		n := itemLen(frame[p:])
		if k := frame[p+4]; k == 0 || k >= itemKinds || p+n > len(frame) || s.spent > salvageLimit {
			p++
			continue
		}
		s.spent += int64(n)
		kind, body, ok, _ := parseItem(frame[p:], s.salt)
		if !ok {
			p++
			continue
		}
		s.item(frame, off, p, kind, body, true)
		p += n
	}
	return nil
}
