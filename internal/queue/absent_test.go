package queue

import (
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"
)

// forbid makes files unreadable, by base name, as a wrong owner does.
func (w *world) forbid(names ...string) {
	w.fs.fault = func(_ int, call, name string) error {
		if call == "open" && slices.Contains(names, name) {
			return &fs.PathError{Op: "open", Path: name, Err: fs.ErrPermission}
		}
		return nil
	}
}

// readAll acknowledges all that waits and counts it by payload.
func (w *world) readAll(t *testing.T, into map[string]int) {
	t.Helper()
	for _, name := range w.j.Identities() {
		q, err := w.j.Queue(name, Limits{})
		if err != nil {
			t.Fatal(err)
		}
		r := q.Reader()
		for {
			m, ok, err := r.Next()
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				break
			}
			into[string(m.Payload)]++
			q.Ack(m.Seq)
		}
	}
}

// TestUnreadableFileIsLeftAloneAndItsMessagesComeBack makes each file in turn, the newest too, and pairs of them, unreadable for two lives in which the queues
// go on, are drained, rolled and compacted. What was appended before and since is delivered in the end, nothing twice that was not in doubt, and nothing
// counts as lost.
func TestUnreadableFileIsLeftAloneAndItsMessagesComeBack(t *testing.T) {
	probe, _ := sealed(t)
	var slots []string
	for n := range probe.fs.files {
		if strings.HasSuffix(n, slotSuffix) {
			slots = append(slots, n[strings.LastIndex(n, "/")+1:])
		}
	}
	slices.Sort(slots)
	held := 0
	for i := range slots {
		for k := i; k < len(slots); k++ {
			w, all := sealed(t)
			w.last = fmt.Sprint(slots[i], " and ", slots[k], " unreadable")
			got := map[string]int{}
			absent := 0
			for life := range 3 {
				w.forbid(slots[i], slots[k])
				if life == 2 {
					w.fs.fault = nil
				}
				w.damaged = true
				var named []string
				w.o.Report = func(e Event) {
					if e.Kind == EventUnreadable {
						named = append(named, e.File)
					}
				}
				w.mustOpen()
				want := 2
				if i == k {
					want = 1
				}
				if life == 2 {
					want = 0
				}
				s := w.j.Stats()
				if len(named) != want || s.Unreadable != want || s.Damaged != 0 || (want > 0) != strings.Contains(s.Trouble, "cannot be read") {
					t.Fatalf("%s: life %d: named %v, %+v", w.last, life, named, s)
				}
				w.readAll(t, got)
				if life == 1 {
					for _, m := range all {
						if got[string(m.payload)] == 0 {
							absent++
						}
					}
				}
				w.drive(t, got)
				w.close()
			}
			missing, again := 0, 0
			for _, m := range all {
				switch n := got[string(m.payload)]; {
				case n == 0:
					missing++
				case n > 1:
					again++
				}
			}
			if missing > 0 || again > 0 {
				t.Errorf("%s: %d of %d messages are lost, %d came again", w.last, missing, len(all), again)
			}
			if absent > 0 {
				held++
			}
		}
	}
	if held < 4 {
		t.Errorf("only %d pairs of files held back a message", held)
	}
	t.Logf("%d files, %d pairs held back messages", len(slots), held)
}

// drive appends to old and new queues, drains, rolls and compacts.
func (w *world) drive(t *testing.T, got map[string]int) {
	t.Helper()
	want := map[string]bool{}
	for i := range 30 {
		for _, name := range []string{"press-7", "press-9"} {
			q, err := w.j.Queue(name, Limits{})
			if err != nil {
				t.Fatal(err)
			}
			w.n++
			payload := fmt.Appendf(make([]byte, 3000), "%s %d", name, w.n)
			if err := q.Append(t.Context(), Message{Payload: payload, Topic: fmt.Sprint("t", i)}, func(_ uint64, err error) {
				if err != nil {
					t.Error(err)
				}
			}); err != nil {
				t.Fatal(err)
			}
		}
		w.j.commit(false)
		if i%5 == 4 {
			before := maps.Clone(got)
			w.readAll(t, got)
			for k := range got {
				if before[k] == 0 {
					want[k] = true
				}
			}
			w.flush()
			w.chores()
		}
	}
	if len(want) < 60 {
		t.Errorf("%s: %d of 60 new messages came", w.last, len(want))
	}
}
