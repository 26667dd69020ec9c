package queue

import (
	"context"
	"strings"
	"sync"
	"testing"
)

// A reader that is woken as soon as a record is published must find it: whole,
// and in memory.
func TestReaderRightBehindTheWriterFindsEverything(t *testing.T) {
	t.Parallel()
	const messages = 3000
	j, err := Open(Options{Dir: t.TempDir(), SegmentBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := j.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	q, err := j.Queue("press-7", Limits{})
	if err != nil {
		t.Fatal(err)
	}
	// Names count for the limits and are stored once for many: what a record is
	// said to hold is more than its bytes.
	m := Message{Source: strings.Repeat("s", 500), Topic: strings.Repeat("t", 500), Route: strings.Repeat("r", 500), Payload: []byte("x")}
	running.Go(func() {
		for range messages {
			if _, err := q.AppendWait(ctx, m); err != nil {
				t.Error(err)
				return
			}
		}
	})
	r := q.Reader()
	for seq := uint64(1); seq <= messages; {
		got, ok, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			if d := q.Stats().Dropped[DropDamage]; d > 0 {
				t.Fatalf("%d sound messages counted as damaged", d)
			}
			continue
		}
		if got.Seq != seq || got.Source != m.Source {
			t.Fatalf("read %d, want %d", got.Seq, seq)
		}
		q.Ack(seq)
		seq++
	}
	stop()
	running.Wait()
	if err := j.Close(); err != nil {
		t.Error(err)
	}
}
