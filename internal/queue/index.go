package queue

import (
	"encoding/binary"
	"io"
)

// rec places one record of a run within its segment.
type rec struct {
	seq   uint32 // after the run's first
	frame uint32 // offset of its frame in the segment
	item  uint32 // offset of its item in the frame
	size  uint32 // what it counts against MaxBytes
}

// extent is a run of one lane's records in one segment, ascending by sequence. Extents of a lane do not overlap.
type extent struct {
	seg     *segment
	run     *run // until the segment has an index; nil = read the list
	first   uint64
	span    uint32 // from first to last
	bytes   uint32
	list    uint32 // offset of the list in the segment's index
	listLen uint16
	count   uint16
}

func (e *extent) last() uint64 { return e.first + uint64(e.span) }

// footerRun is an extent as the index stores it.
type footerRun struct {
	qid           uint32
	class         uint8
	count, bytes  uint32
	first, last   uint64
	list, listLen uint32
}

// parseList decodes a whole list; n is how many records it must hold.
func parseList(b []byte, salt uint32, n int) ([]rec, bool) {
	if len(b) < 4 || binary.LittleEndian.Uint32(b) != checksum(salt, b[4:]) || n > len(b) {
		return nil, false
	}
	b = b[4:]
	recs := make([]rec, 0, n)
	var w walk
	for range n {
		if !w.next(b) {
			return nil, false
		}
		recs = append(recs, w.rec)
	}
	return recs, w.off == len(b)
}

// footer collects the index of one segment.
type footer struct {
	runs  []footerRun
	lists []byte
}

func (f *footer) add(salt uint32, qid uint32, class uint8, e *extent) {
	start := len(f.lists)
	f.lists = binary.LittleEndian.AppendUint32(f.lists, checksum(salt, e.run.list))
	f.lists = append(f.lists, e.run.list...)
	f.runs = append(f.runs, footerRun{qid: qid, class: class, count: uint32(e.count), bytes: e.bytes, first: e.first, last: e.last(), list: uint32(start), listLen: uint32(len(f.lists) - start)})
}

// size of the index in bytes.
func (f *footer) size() int64 {
	return int64(footerHeaderLen + footerRunLen*len(f.runs) + len(f.lists))
}

// write writes the index at off, for a segment whose groups end at end. List offsets become relative to the index.
func (f *footer) write(w io.WriterAt, off int64, salt uint32, end int64) error {
	dir := f.directory(salt, end)
	if _, err := w.WriteAt(dir, off); err != nil {
		return err
	}
	_, err := w.WriteAt(f.lists, off+int64(len(dir)))
	return err
}

func (f *footer) directory(salt uint32, end int64) []byte {
	dir := footerHeaderLen + footerRunLen*len(f.runs)
	b := make([]byte, dir)
	binary.LittleEndian.PutUint32(b, footerMagic)
	binary.LittleEndian.PutUint32(b[8:], uint32(len(f.runs)))
	binary.LittleEndian.PutUint32(b[12:], uint32(dir+len(f.lists)))
	binary.LittleEndian.PutUint64(b[16:], uint64(end))
	for i := range f.runs {
		r := &f.runs[i]
		r.list += uint32(dir)
		e := b[footerHeaderLen+i*footerRunLen:]
		binary.LittleEndian.PutUint32(e, r.qid)
		e[4] = r.class
		binary.LittleEndian.PutUint32(e[8:], r.count)
		binary.LittleEndian.PutUint32(e[12:], r.bytes)
		binary.LittleEndian.PutUint64(e[16:], r.first)
		binary.LittleEndian.PutUint64(e[24:], r.last)
		binary.LittleEndian.PutUint32(e[32:], r.list)
		binary.LittleEndian.PutUint32(e[36:], r.listLen)
	}
	binary.LittleEndian.PutUint32(b[4:], checksum(salt, b[8:dir]))
	return b
}

// footerSize says how long the directory of an index is, from its first bytes.
func footerSize(b []byte, end int64) (dir, total int, ok bool) {
	if len(b) < footerHeaderLen || binary.LittleEndian.Uint32(b) != footerMagic || binary.LittleEndian.Uint64(b[16:]) != uint64(end) {
		return 0, 0, false
	}
	n, size := int64(binary.LittleEndian.Uint32(b[8:])), int64(binary.LittleEndian.Uint32(b[12:]))
	d := footerHeaderLen + n*footerRunLen
	return int(d), int(size), d <= size && size < 1<<30
}

// parseFooter reads the directory b of an index of total bytes.
func parseFooter(b []byte, salt uint32, total int, visit func(footerRun)) bool {
	if len(b) < footerHeaderLen || binary.LittleEndian.Uint32(b[4:]) != checksum(salt, b[8:]) {
		return false
	}
	for e := b[footerHeaderLen:]; len(e) >= footerRunLen; e = e[footerRunLen:] {
		r := footerRun{
			qid: binary.LittleEndian.Uint32(e), class: e[4],
			count: binary.LittleEndian.Uint32(e[8:]), bytes: binary.LittleEndian.Uint32(e[12:]),
			first: binary.LittleEndian.Uint64(e[16:]), last: binary.LittleEndian.Uint64(e[24:]),
			list: binary.LittleEndian.Uint32(e[32:]), listLen: binary.LittleEndian.Uint32(e[36:]),
		}
		if r.class >= classes || r.count == 0 || r.count > maxRun || r.first > r.last || r.last-r.first > maxSpan || r.listLen > maxList || uint64(r.list)+uint64(r.listLen) > uint64(total) {
			return false
		}
		visit(r)
	}
	return true
}

// indexRoom bounds what the index of so many runs and records takes.
func indexRoom(runs, recs int) int64 {
	return footerHeaderLen + int64(runs)*(footerRunLen+4) + int64(recs)*12
}
