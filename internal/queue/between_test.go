package queue

import (
	"math/rand/v2"
	"testing"
)

// TestCompactionKeepsWhatLiesBetween: it moves what waits in the first, third and fourth file, but for the third, where nothing of this queue does. What waits
// in the second, which is full, must not end up inside a run that was moved.
func TestCompactionKeepsWhatLiesBetween(t *testing.T) {
	w := newWorld(t, rand.New(rand.NewPCG(1, 1)).IntN)
	w.mustOpen()
	next := func() { w.j.seal() }
	w.append("press-7", 0, 1, 100)
	next()
	w.append("press-7", 0, 6, 6000)
	next()
	w.append("press-7", 0, 2, 100)
	w.append("stalled", 0, 1, 100)
	next()
	w.append("press-7", 0, 2, 100)
	for range keepRecent + 1 {
		next()
		w.append("stalled", 0, 1, 100)
	}
	q, _ := w.j.Queue("press-7", Limits{})
	for _, x := range drain(t, q) {
		if x.Seq == 8 || x.Seq == 9 { // in the third
			q.Ack(x.Seq)
			delete(w.queue("press-7").must, x.Seq)
		}
	}
	w.flush()
	w.j.compactWith(w.submit)
	w.last = "compaction"
	if w.j.Stats().Compacted != 4 {
		t.Fatalf("%+v", w.j.Stats())
	}
	w.check()
	w.close()
	w.mustOpen()
	w.last = "a restart"
	w.check()
}
