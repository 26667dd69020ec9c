package queue

import (
	"errors"
	"io"
)

// listKey names a list in the index of a segment.
type listKey struct {
	seg  uint64
	list uint32
}

type recList struct {
	key  listKey
	recs []rec
}

// readList reads the places of the records of one extent. Damage of the index is repaired from the records themselves.
//
// The list read last is kept: a reader takes a part of it at a time. Nobody writes to it.
func (j *Journal) readList(q *Queue, class uint8, e *extent) ([]rec, error) {
	k := listKey{e.seg.id, e.list}
	if l := j.lastList.Load(); l != nil && l.key == k {
		return l.recs, nil
	}
	f, release, err := j.files.get(e.seg.slot)
	if err != nil && j.gone(e.seg, err) {
		return nil, nil
	}
	if err != nil {
		return nil, j.readFailed(err)
	}
	b := make([]byte, e.listLen)
	_, err = f.ReadAt(b, e.seg.footer.Load()+int64(e.list))
	release()
	if err != nil && !errors.Is(err, io.EOF) {
		if recs, scanErr := j.rescan(e.seg, q.id, class, e.first, e.last(), false); scanErr == nil {
			return recs, nil
		}
		return nil, j.readFailed(err)
	}
	j.readWorks()
	if recs, ok := parseList(b, e.seg.salt, int(e.count)); ok {
		if len(recs) > 2*windowFill {
			j.lastList.Store(&recList{k, recs})
		}
		return recs, nil
	}
	j.report(Event{Kind: EventDamage, File: e.seg.slot.name, Offset: e.seg.footer.Load() + int64(e.list), Reason: "index"})
	recs, err := j.rescan(e.seg, q.id, class, e.first, e.last(), false)
	if err != nil {
		err = j.readFailed(err)
	}
	return recs, err
}
