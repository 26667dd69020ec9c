package queue

import (
	"encoding/binary"
	"slices"
)

// snapshot lays out all state: which segments hold messages, which queues there are, where they stand. It returns its length and the segments that
// need not be kept once it is durable. id is that of the segment that it opens.
func (j *Journal) snapshot(b *builder, id uint64) (int, []*segment) {
	start := len(b.buf)
	if start == 0 {
		b.reset(b.salt, 0)
	}
	j.mu.Lock()
	emptied := slices.Clone(j.emptied)
	segs := slices.Clone(j.segments)
	queues := make([]*Queue, 0, len(j.queues))
	for _, q := range j.queues {
		queues = append(queues, q)
	}
	head := binary.AppendUvarint(nil, uint64(j.nextQID))
	boots := make(map[[16]byte]int64, len(j.boots))
	for k, v := range j.boots {
		boots[k] = v
	}
	j.mu.Unlock()
	b.item(itemSnapshot, binary.AppendUvarint(head, id))
	for _, s := range segs {
		b.item(itemSegment, appendSegment(nil, s))
	}
	for id, off := range boots {
		b.item(itemBoot, appendBoot(nil, id, off))
	}
	for _, state := range j.held { // written by Open only
		b.item(itemHeld, state)
	}
	var body []byte
	for _, q := range queues {
		q.mu.Lock()
		stored := q.stored.Load()
		body = q.stateLocked(body[:0])
		q.mu.Unlock()
		q.wnamed = stored
		if stored {
			b.item(itemQueue, appendName(nil, q))
			b.item(itemState, body)
		}
	}
	b.item(itemEnd, nil)
	return len(b.buf) - start, emptied
}

func appendSegment(b []byte, s *segment) []byte {
	b = binary.AppendUvarint(b, s.id)
	b = binary.AppendUvarint(b, uint64(s.slot.num))
	b = binary.LittleEndian.AppendUint32(b, s.salt)
	b = binary.AppendUvarint(b, uint64(s.end.Load()))
	flags := byte(0)
	if s.cold {
		flags |= flagCold
	}
	if s.absent {
		flags |= flagAbsent
	}
	return append(b, flags)
}

func appendBoot(b []byte, id [16]byte, off int64) []byte {
	return binary.AppendVarint(append(b, id[:]...), off)
}
