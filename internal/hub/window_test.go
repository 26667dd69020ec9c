package hub

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// TestWindowSettlesEveryMessageOnceInOrder acknowledges in random order, with
// repeats and strangers, over several turns of the identifiers.
func TestWindowSettlesEveryMessageOnceInOrder(t *testing.T) {
	for _, size := range []int{1, 2, 16, 1000, maxWindow} {
		r := rand.New(rand.NewPCG(1, uint64(size)))
		w := window{size: size}
		var settled []uint64
		inFlight := map[uint16]bool{}
		var ids []uint16
		seq, total := uint64(0), uint64(telemetryIDs+1017)
		for uint64(len(settled)) < total {
			for w.room() > 0 && seq < total && r.IntN(8) > 0 {
				seq++
				id := w.add(seq)
				if inFlight[id] || id == 0 || id > telemetryIDs {
					t.Fatalf("identifier %d given twice", id)
				}
				inFlight[id] = true
				ids = append(ids, id)
			}
			if len(ids) == 0 {
				continue
			}
			i := r.IntN(min(len(ids), 50))
			id := ids[i]
			ids[i] = ids[0]
			ids = ids[1:]
			var known bool
			if settled, known = w.ack(id, settled); !known {
				t.Fatalf("identifier %d is not known", id)
			}
			if _, known := w.ack(id, nil); known {
				t.Fatalf("identifier %d acknowledged twice", id)
			}
			delete(inFlight, id)
		}
		for i, s := range settled {
			if s != uint64(i+1) {
				t.Fatalf("size %d: settled %d at place %d", size, s, i)
			}
		}
		if w.n != 0 || len(w.outstanding(nil)) != 0 {
			t.Error("something is left")
		}
		w.release()
		if size > ringStart && w.seqs != nil {
			t.Error("memory kept after a burst")
		}
	}
}

func TestWindowNeverExceedsItsSize(t *testing.T) {
	w := window{size: 4}
	for i := range uint64(4) {
		w.add(i + 1)
	}
	// The newest three are acknowledged, the oldest is not: still no room, so that a
	// lost acknowledgement bounds what may be resent.
	for id := uint16(2); id <= 4; id++ {
		w.ack(id, nil)
	}
	if w.room() != 0 {
		t.Errorf("room for %d behind a gap", w.room())
	}
	if got := w.outstanding(nil); !slices.Equal(got, []uint64{1}) {
		t.Errorf("outstanding %v", got)
	}
	if seq, ok := w.oldest(); !ok || seq != 1 {
		t.Errorf("oldest %d", seq)
	}
}
