package queue

import (
	"errors"
	"math/rand/v2"
	"testing"
	"time"
)

// TestFolderStaysWithinItsBound: one queue is never drained, the other loses every second message for good and keeps the rest, so that only compaction
// makes room. The folder never grows beyond MaxBytes, whoever is refused hears ErrFull, and what was accepted is there.
func TestFolderStaysWithinItsBound(t *testing.T) {
	const bound = 4 << 20
	j, stop := start(t, Options{Dir: t.TempDir(), MaxBytes: bound})
	stalled := mustQueue(t, j, "stalled", Limits{MaxBytes: 1 << 20, WhenFull: DropOldest})
	busy := mustQueue(t, j, "busy", Limits{MaxBytes: 1 << 20})
	rnd := rand.New(rand.NewPCG(1, 2))
	payload := make([]byte, 2000)
	accepted, refused := 0, 0
	r := busy.Reader()
	deadline := time.Now().Add(20 * time.Second)
	for i := 0; i < 12_000 && time.Now().Before(deadline); i++ {
		q := busy
		if i%4 == 0 {
			q = stalled
		}
		err := q.Append(t.Context(), Message{Topic: "t", Payload: payload[:500+rnd.IntN(1500)]}, func(_ uint64, err error) {
			if err != nil && !errors.Is(err, ErrFull) {
				t.Errorf("done: %v", err)
			}
		})
		switch {
		case err == nil:
			accepted++
		case errors.Is(err, ErrFull):
			refused++
			time.Sleep(time.Millisecond)
		default:
			t.Fatalf("append %d: %v", i, err)
		}
		if i%3 > 0 {
			if m, ok, err := r.Next(); err != nil {
				t.Fatal(err)
			} else if ok && (m.Seq%2 == 0 || refused > 0) {
				busy.Ack(m.Seq)
			} else if !ok && refused > 0 {
				r = busy.Reader()
			}
		}
		if i%100 == 0 {
			if s := j.Stats(); s.DiskBytes > bound {
				t.Fatalf("%d bytes in the folder: %+v", s.DiskBytes, s)
			}
		}
	}
	for j.Stats().Pending > 0 {
		time.Sleep(time.Millisecond)
	}
	s := j.Stats()
	t.Logf("%d accepted, %d refused, %+v", accepted, refused, s)
	if accepted < 3000 || s.Compacted == 0 {
		t.Errorf("only %d accepted, %d moved", accepted, s.Compacted)
	}
	for _, q := range []*Queue{stalled, busy} {
		if want, n := q.Stats().Messages, len(drain(t, q)); int64(n) != want {
			t.Errorf("%s: %d messages, want %d", q.Name(), n, want)
		}
	}
	stop()
}
