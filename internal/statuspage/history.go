package statuspage

import "math"

// historyMinutes is how far the charts look back.
const historyMinutes = 60

// history counts messages in and out per identity and minute.
type history struct {
	next   int // slot of the minute under way
	tracks map[string]*track
}

// track is one identity's. Slots of minutes before it was there are zero.
type track struct {
	in, out     [historyMinutes]uint32
	in0, out0   uint64 // the counters when the minute under way began
	known, seen int    // minutes since it is there; last minute in which it was
}

func newHistory() *history { return &history{tracks: make(map[string]*track)} }

// minute ends one minute and begins the next.
func (h *history) minute(all []Identity) {
	slot := h.next % historyMinutes
	h.next++
	for i := range all {
		id := &all[i]
		t := h.tracks[id.Name]
		if t == nil { // its first minute begins now
			h.tracks[id.Name] = &track{in0: id.Received, out0: id.Delivered, seen: h.next}
			continue
		}
		t.in[slot], t.out[slot] = since(&t.in0, id.Received), since(&t.out0, id.Delivered)
		t.known, t.seen = min(t.known+1, historyMinutes), h.next
	}
	for name, t := range h.tracks {
		if t.seen != h.next {
			delete(h.tracks, name)
		}
	}
}

// since moves a mark up to a counter and returns by how much. A counter that is
// lower than its mark began anew.
func since(mark *uint64, now uint64) uint32 {
	n := now - *mark
	if now < *mark {
		n = now
	}
	*mark = now
	return uint32(min(n, math.MaxUint32))
}

// chart is a track as the page gets it: whole minutes, the oldest first, and the
// counters where the minute under way began.
type chart struct {
	In   []uint32 `json:"in"`
	Out  []uint32 `json:"out"`
	In0  uint64   `json:"in0"`
	Out0 uint64   `json:"out0"`
}

func (h *history) chart(name string) *chart {
	t := h.tracks[name]
	if t == nil {
		return nil
	}
	c := &chart{In: make([]uint32, 0, t.known), Out: make([]uint32, 0, t.known), In0: t.in0, Out0: t.out0}
	for i := h.next - t.known; i < h.next; i++ {
		slot := (i%historyMinutes + historyMinutes) % historyMinutes
		c.In, c.Out = append(c.In, t.in[slot]), append(c.Out, t.out[slot])
	}
	return c
}
