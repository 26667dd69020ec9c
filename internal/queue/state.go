package queue

import (
	"encoding/binary"
	"slices"
)

// stateLocked encodes the queue's counters and acknowledgements, absolute.
func (q *Queue) stateLocked(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(q.id))
	b = binary.AppendUvarint(b, q.next)
	b = binary.AppendUvarint(b, q.appended)
	b = binary.AppendUvarint(b, q.acked)
	b = binary.AppendUvarint(b, uint64(len(q.drops)))
	for _, d := range q.drops {
		b = binary.AppendUvarint(b, d)
	}
	n := 0
	for _, l := range &q.lanes {
		if l != nil {
			n++
		}
	}
	b = binary.AppendUvarint(b, uint64(n))
	for _, l := range &q.lanes {
		if l == nil {
			continue
		}
		b = append(b, l.class)
		b = binary.AppendUvarint(b, l.water)
		g := l.gaps()
		b = binary.AppendUvarint(b, uint64(len(g)))
		prev := l.water
		for _, s := range g {
			b = binary.AppendUvarint(b, s-prev)
			prev = s
		}
	}
	return b
}

// stateBytes bounds what stateLocked writes.
func (q *Queue) stateBytes() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := 160 + len(q.name)
	for _, l := range &q.lanes {
		if l != nil {
			n += 24 + 10*min(len(l.win)+len(l.ahead), maxAhead)
		}
	}
	return n
}

// queueState is what stateLocked wrote.
type queueState struct {
	qid                   uint32
	next, appended, acked uint64
	drops                 [len(dropReasons)]uint64
	lanes                 []laneState
}

type laneState struct {
	class uint8
	water uint64
	gaps  []uint64
}

func parseState(body []byte) (s queueState, ok bool) {
	c := cursor{b: body}
	s.qid = uint32(c.uvarint())
	s.next, s.appended, s.acked = c.uvarint(), c.uvarint(), c.uvarint()
	for i, n := uint64(0), c.uvarint(); i < n && !c.bad; i++ {
		if d := c.uvarint(); i < uint64(len(s.drops)) {
			s.drops[i] = d
		}
	}
	for i, n := uint64(0), c.uvarint(); i < n && !c.bad; i++ {
		l := laneState{class: c.byte(), water: c.uvarint()}
		g := c.uvarint()
		if g > uint64(len(c.b)) || l.class >= classes {
			return s, false
		}
		l.gaps = slices.Grow(l.gaps, int(g))
		prev := l.water
		for range g {
			prev += c.uvarint()
			l.gaps = append(l.gaps, prev)
		}
		s.lanes = append(s.lanes, l)
	}
	return s, !c.bad && s.next > 0
}
