package queue

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// onFullDisk appends to the queues in turn until the disk takes nothing more.
func onFullDisk(t *testing.T, files, size int, names ...string) *world {
	w := newWorld(t, rand.New(rand.NewPCG(1, 1)).IntN)
	w.o.SegmentBytes, w.o.PendingBytes = 1<<20, 64<<20
	w.fs.limit = int64(files) * w.o.SegmentBytes
	w.mustOpen()
	for n := 0; w.j.stopped() == nil; n++ {
		if n%len(names) == 0 {
			w.chores()
		}
		w.append(names[n%len(names)], 0, 1, size)
	}
	w.last = "filling the disk"
	return w
}

// turn is what writer and housekeeper do in some seconds.
func (w *world) turn() {
	w.flush()
	w.chores()
	w.j.w.retryAt = time.Time{}
	w.flush()
}

// TestFullDiskIsDrainedSlowly: a message at a time, each with a record of its own, until there is room. What may be written without room must not run out.
func TestFullDiskIsDrainedSlowly(t *testing.T) {
	w := onFullDisk(t, 5, 60, "press-7")
	for n := 0; w.j.stopped() != nil; n++ {
		w.ack("press-7", 1, false)
		w.turn()
		if len(w.j.dirty) > 0 {
			t.Fatalf("after %d: acknowledgements do not reach the disk: %+v", n, w.j.Stats())
		}
	}
	w.check()
}

// TestRestartsOnAFullDisk: each is a power cut, and after each acknowledgements reach the disk.
func TestRestartsOnAFullDisk(t *testing.T) {
	w := onFullDisk(t, 5, 4000, "press-7")
	for range 5 {
		w.ack("press-7", 3, false)
		w.turn()
		w.fs.crash(func() bool { return true })
		w.settleMay()
		w.last = "a power cut on a full disk"
		w.mustOpen()
		w.check()
	}
	for w.j.stopped() != nil {
		w.ack("press-7", 3, false)
		w.turn()
	}
}

// TestFullDiskOfManyQueues: a snapshot of all of them and what all of them acknowledge has to find room.
func TestFullDiskOfManyQueues(t *testing.T) {
	var names []string
	for i := range 1500 {
		names = append(names, fmt.Sprintf("a-machine-with-a-rather-long-name-in-hall-%04d", i))
	}
	w := onFullDisk(t, 6, 300, names...)
	for _, name := range names { // the second of each, so that no file is done with
		q, _ := w.j.Queue(name, Limits{})
		r, m := q.Reader(), w.queue(name)
		r.Next()
		if x, ok, _ := r.Next(); ok {
			q.Ack(x.Seq)
			m.may[x.Seq] = m.must[x.Seq]
			delete(m.must, x.Seq)
		}
	}
	w.flush()
	if len(w.j.dirty) > 0 {
		t.Fatalf("acknowledgements of %d queues do not reach the disk: %+v", len(w.j.dirty), w.j.Stats())
	}
	w.settleMay()
	w.fs.crash(func() bool { return false })
	w.last = "a power cut on a full disk"
	w.mustOpen()
	w.check()
}

// TestStalledQueueDoesNotHoldAFullDisk: it has messages in every file, and compaction must find room to move them.
func TestStalledQueueDoesNotHoldAFullDisk(t *testing.T) {
	for _, share := range []int{2, 5, 10} {
		names := []string{"stalled"}
		for len(names) < share {
			names = append(names, "busy")
		}
		w := onFullDisk(t, 8, 400, names...)
		for n := 0; w.j.stopped() != nil; n++ {
			w.ack("busy", 50, false)
			if w.turn(); n > 300 {
				t.Fatalf("one in %d: draining the other does not free the disk: %+v", share, w.j.Stats())
			}
		}
		w.append("busy", 0, 100, 400)
		w.check()
		w.close()
		w.settleMay()
		w.mustOpen()
		w.check()
	}
}

// TestFullDiskTakesTheNewestOfASlowSensor: one refused append is enough to make way, not one for every message of a file.
func TestFullDiskTakesTheNewestOfASlowSensor(t *testing.T) {
	w := onFullDisk(t, 8, 100, "press-7")
	q, _ := w.j.Queue("press-7", Limits{WhenFull: DropOldest})
	refused := 0
	for q.Append(t.Context(), Message{Payload: []byte("new")}, nil) != nil {
		if refused++; refused > 3 {
			t.Fatalf("refused %d times: %+v", refused, q.Stats())
		}
		w.turn()
	}
	s := q.Stats()
	if d := s.Dropped[DropSize]; d == 0 || d > uint64(s.Messages) {
		t.Errorf("%+v", s)
	}
}
