package queue

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// TestInspectionBesideARunningJournal: commands look into the folder while the daemon writes, prunes and compacts it. They never fail and never see
// damage where there is none.
func TestInspectionBesideARunningJournal(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "q")
	j, _ := start(t, Options{Dir: dir, SegmentBytes: 256 << 10})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i := range 3 {
		q := mustQueue(t, j, fmt.Sprint("device-", i), Limits{MaxBytes: 1 << 20, WhenFull: DropOldest})
		mustAppend(t, q, Message{Payload: make([]byte, 100)})
		wg.Go(func() {
			for ctx.Err() == nil {
				for range 20 {
					if err := q.Append(ctx, Message{Topic: "t", Payload: make([]byte, 700)}, nil); err != nil && ctx.Err() == nil {
						t.Error(err)
						return
					}
				}
				q.AppendWait(ctx, Message{Payload: make([]byte, 700)})
			}
		})
		if i > 0 {
			wg.Go(func() { soakDeliver(ctx, t, q) })
		}
	}
	end := time.Now().Add(3 * time.Second)
	looks := 0
	for ; time.Now().Before(end) && !t.Failed(); looks++ {
		look(t, dir)
	}
	cancel()
	wg.Wait()
	t.Logf("%d looks, %+v", looks, j.Stats())
}

func look(t *testing.T, dir string) {
	t.Helper()
	v, err := OpenForReading(dir)
	if err != nil {
		t.Errorf("open: %v", err)
		return
	}
	defer v.Close()
	if n := len(v.List()); n != 3 {
		t.Errorf("%d queues", n)
	}
	r, err := v.Verify(t.Context())
	if err != nil {
		t.Errorf("verify: %v", err)
	}
	for _, f := range r.Faults {
		t.Errorf("fault where there is none: %v", f)
	}
	if err := v.Each("", func(Item) error { return nil }); err != nil {
		t.Errorf("each: %v", err)
	}
}
