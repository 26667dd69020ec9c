package queue

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// TestDroppingMayFailAtEveryCall fails the n-th call, or cuts the power at it, while a queue is dropped: it is gone, or is there with what it had; the other
// queues lose nothing.
func TestDroppingMayFailAtEveryCall(t *testing.T) {
	for _, mode := range []string{"once", "sticky", "nothing unsynced survives", "everything survives"} {
		gone := 0
		for n, hit := 0, true; hit; n++ {
			hit = false
			w := newWorld(t, rand.New(rand.NewPCG(uint64(n), 5)).IntN)
			w.mustOpen()
			w.append("press-7", 0, 4, 100)
			w.append("press-8", 0, 4, 100)
			w.append("press-7", 9, 2, 100)
			from := w.fs.calls
			w.fs.fault = func(c int, call, name string) error {
				if c < from+n || mode == "once" && c > from+n {
					return nil
				}
				hit = true
				if mode == "once" || mode == "sticky" {
					return fmt.Errorf("injected into %s of %s", call, name)
				}
				return errPowerCut
			}
			done := make(chan error, 1)
			go func() { done <- w.j.Drop("press-8") }()
			err := w.await(done)
			w.flush()
			w.chores()
			w.j.Close()
			w.fs.fault, w.fs.locked = nil, false
			w.fs.crash(func() bool { return mode == "everything survives" })
			w.last = fmt.Sprintf("dropping, failure of call %d (%s)", n, mode)
			w.mustOpen()
			m := w.qs["press-8"]
			delete(w.qs, "press-8")
			w.check()
			q, _ := w.j.Queue("press-8", Limits{})
			left := q.Stats().Messages
			if err == nil && left > 0 {
				t.Fatalf("after %s: dropped, and %d messages are there", w.last, left)
			}
			if left == 0 {
				gone++
			}
			for r := q.Reader(); ; {
				x, ok, err := r.Next()
				if err != nil {
					t.Fatal(err)
				}
				if !ok {
					break
				}
				if m.must[x.Seq] == nil || string(m.must[x.Seq].payload) != string(x.Payload) {
					t.Fatalf("after %s: message %d came back wrong", w.last, x.Seq)
				}
			}
			if left == 0 {
				w.append("press-8", 0, 1, 10)
				w.check()
			}
			w.close()
		}
		if gone == 0 {
			t.Errorf("%s: it is never gone", mode)
		}
	}
}
