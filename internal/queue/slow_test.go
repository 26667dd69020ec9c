package queue

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// cardFS is a card whose syncs take two seconds.
type cardFS struct{ filesys }

type cardFile struct{ file }

func (s cardFS) open(name string, mode openMode) (file, error) {
	f, err := s.filesys.open(name, mode)
	if err != nil {
		return nil, err
	}
	return cardFile{f}, nil
}

func (f cardFile) sync() error {
	time.Sleep(2 * time.Second)
	return f.file.sync()
}

// TestSlowDiskDelaysAcknowledgementsAndNothingElse: with two seconds per sync everything that came meanwhile goes with the next one, what is stored is read and
// acknowledged without waiting, and memory for what waits is bounded.
func TestSlowDiskDelaysAcknowledgementsAndNothingElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const bound = 64 << 10
		j, err := open(Options{Dir: "/q", SegmentBytes: 1 << 20, PendingBytes: bound}, cardFS{newMemFS()})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan error, 1)
		go func() { ran <- j.Run(ctx) }()
		stored, busy := mustQueue(t, j, "stored", Limits{}), mustQueue(t, j, "busy", Limits{})
		for range 20 {
			mustAppend(t, stored, Message{Payload: make([]byte, 100)})
		}
		r := stored.Reader()
		acked, worst := 0, time.Duration(0)
		begin, syncs := time.Now(), j.Stats().Syncs
		for i := range 600 { // a minute
			sent := time.Now()
			err := busy.Append(ctx, Message{Payload: make([]byte, 200)}, func(_ uint64, err error) {
				if err != nil {
					t.Error(err)
				}
				acked++
				worst = max(worst, time.Since(sent))
			})
			if d := time.Since(sent); err != nil || d > 0 {
				t.Fatalf("append: %v after %v", err, d)
			}
			if i%30 == 0 {
				m, ok, err := r.Next()
				if err != nil || !ok {
					t.Fatalf("read: %v %v", ok, err)
				}
				stored.Ack(m.Seq)
				if d := time.Since(sent); d > 0 {
					t.Fatalf("a message that is stored took %v", d)
				}
			}
			time.Sleep(100 * time.Millisecond)
		}
		time.Sleep(6 * time.Second)
		s := j.Stats()
		if n := s.Syncs - syncs; acked != 600 || worst < 2*time.Second || worst > 7*time.Second || n > 40 {
			t.Errorf("%d of 600 acknowledged in %v, the slowest in %v, %d syncs", acked, time.Since(begin), worst, n)
		}
		if s.LastSync < 2*time.Second {
			t.Errorf("the last sync is said to have taken %v", s.LastSync)
		}
		flooded(t, j, busy, bound)
		cancel()
		if err := errors.Join(<-ran, j.Close()); err != nil {
			t.Error(err)
		}
	})
}

// flooded appends much more than PendingBytes at once: the append waits, and says so when its context ends.
func flooded(t *testing.T, j *Journal, q *Queue, bound int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	for {
		err := q.Append(ctx, Message{Payload: make([]byte, 4000)}, nil)
		if n := j.Stats().Pending; n > bound {
			t.Fatalf("%d bytes wait in memory", n)
		}
		if errors.Is(err, context.DeadlineExceeded) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
