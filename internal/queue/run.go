package queue

import "encoding/binary"

// run holds the records of an extent until its segment has an index, encoded as there: in a quarter to a half of the memory. Guarded by the queue's lock.
type run struct {
	list []byte
	prev rec
	at   walk // where the last look ahead ended
}

// walk goes over the records of a list. The zero value stands before the first.
type walk struct {
	off int
	rec rec
}

// next moves to the next record of list; false at the end, or where the list makes no sense.
func (w *walk) next(list []byte) bool {
	c := cursor{b: list[w.off:]}
	r := w.rec
	v := c.uvarint()
	if v&2 != 0 {
		r.item += uint32(v >> 2)
	} else {
		r.item = uint32(v >> 2)
		r.frame = uint32(c.uvarint() * frameAlign)
	}
	if v&1 != 0 {
		r.seq++
	} else {
		r.seq += uint32(c.uvarint())
	}
	r.size = uint32(c.uvarint())
	if c.bad {
		return false
	}
	w.off, w.rec = len(list)-len(c.b), r
	return true
}

// appendRec encodes r behind prev. A record that follows the one before directly takes one byte, two for its place and two for its size.
func appendRec(b []byte, prev, r rec) []byte {
	flags, place := uint64(0), uint64(r.item)
	if r.frame == prev.frame {
		flags, place = 2, place-uint64(prev.item)
	}
	if r.seq == prev.seq+1 {
		flags |= 1
	}
	b = binary.AppendUvarint(b, place<<2|flags)
	if flags&2 == 0 {
		b = binary.AppendUvarint(b, uint64(r.frame/frameAlign))
	}
	if flags&1 == 0 {
		b = binary.AppendUvarint(b, uint64(r.seq-prev.seq))
	}
	return binary.AppendUvarint(b, uint64(r.size))
}

// add appends a record. Sequences ascend.
func (u *run) add(r rec) {
	if cap(u.list)-len(u.list) < 4*binary.MaxVarintLen32 {
		u.list = append(make([]byte, 0, len(u.list)+max(len(u.list)/4, 2*binary.MaxVarintLen32)+4*binary.MaxVarintLen32), u.list...)
	}
	u.list = appendRec(u.list, u.prev, r)
	u.prev = r
}

// all decodes n records.
func (u *run) all(n uint16) []rec {
	recs := make([]rec, 0, n)
	for w := (walk{}); w.next(u.list); {
		recs = append(recs, w.rec)
	}
	return recs
}

// ahead returns the first records above seen that dst has room for, and whether the run ends with them. first is what sequences count from.
func (u *run) ahead(dst []rec, first, seen uint64) (recs []rec, whole bool) {
	w := u.at
	if w.off > 0 && first+uint64(w.rec.seq) > seen {
		w = walk{}
	}
	for len(dst) < cap(dst) && w.next(u.list) {
		if first+uint64(w.rec.seq) > seen {
			dst = append(dst, w.rec)
		}
	}
	u.at = w
	return dst, w.off == len(u.list)
}
