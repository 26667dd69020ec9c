package queue

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
)

// TestSoakStaysFlat runs 200 identities, one of them never drained, for ten minutes (GATEWAYD_SOAK=10m) or the time that is given, and expects disk, memory
// and sync latency of the second half to be those of the first. Without it two seconds show that the test itself works.
func TestSoakStaysFlat(t *testing.T) {
	t.Parallel()
	length, _ := time.ParseDuration(os.Getenv("GATEWAYD_SOAK"))
	real := length > 0
	if !real {
		length = 2 * time.Second
	}
	var mu sync.Mutex
	var syncs []time.Duration
	j, _ := start(t, Options{Dir: t.TempDir(), SegmentBytes: 4 << 20, ObserveSync: func(d time.Duration) {
		mu.Lock()
		syncs = append(syncs, d)
		mu.Unlock()
	}})
	const identities = 200
	ctx, cancel := context.WithTimeout(t.Context(), length)
	defer cancel()
	var wg sync.WaitGroup
	payload := make([]byte, 256)
	for i := range identities {
		limits := Limits{}
		if i == 0 {
			limits = Limits{MaxBytes: 8 << 20, WhenFull: DropOldest} // the one that is never drained
		}
		q := mustQueue(t, j, fmt.Sprint("device-", i), limits)
		wg.Go(func() {
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			for ctx.Err() == nil {
				for range 4 {
					if err := q.Append(ctx, Message{Topic: "t", Payload: payload}, nil); err != nil && ctx.Err() == nil {
						t.Error(err)
						return
					}
				}
				select {
				case <-tick.C:
				case <-ctx.Done():
				}
			}
		})
		if i > 0 {
			wg.Go(func() { soakDeliver(ctx, t, q) })
		}
	}
	type sample struct {
		disk, heap int64
		sync       time.Duration
	}
	var samples []sample
	every := time.NewTicker(length / 40)
	defer every.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			continue
		case <-every.C:
		}
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		mu.Lock()
		s := sample{j.Stats().DiskBytes, int64(m.HeapAlloc), 0}
		if len(syncs) > 0 {
			slices.Sort(syncs)
			s.sync = syncs[len(syncs)/2]
		}
		syncs = syncs[:0]
		mu.Unlock()
		samples = append(samples, s)
	}
	wg.Wait()
	need := 20
	if !real {
		need = 4 // beside other tests on a busy machine
	}
	if len(samples) < need {
		t.Fatalf("only %d samples", len(samples))
	}
	// Of memory and latency the median of a half: at a moment at which the disk stalls, up to defaultPending waits in memory and everything waits for it.
	of := func(s []sample) (w sample) {
		heaps, syncs := make([]int64, 0, len(s)), make([]time.Duration, 0, len(s))
		for _, x := range s {
			w.disk = max(w.disk, x.disk)
			heaps, syncs = append(heaps, x.heap), append(syncs, x.sync)
		}
		slices.Sort(heaps)
		slices.Sort(syncs)
		w.heap, w.sync = heaps[len(heaps)/2], syncs[len(syncs)/2]
		return w
	}
	first, second := of(samples[len(samples)/4:len(samples)/2]), of(samples[len(samples)/2:])
	t.Logf("disk %d then %d MB, heap %d then %d KB, median sync %v then %v, %+v", first.disk>>20, second.disk>>20, first.heap>>10, second.heap>>10, first.sync, second.sync, j.Stats())
	var heaps []int64
	var highest int64
	for _, s := range samples {
		heaps = append(heaps, s.heap>>20)
		highest = max(highest, s.heap)
	}
	t.Logf("heap over time, MB: %v", heaps)
	if real && (second.disk > first.disk+first.disk/2+16<<20 || second.heap > first.heap*3/2 || highest > 64<<20 || second.sync > first.sync*3) {
		t.Error("not flat")
	}
	if second.disk > 100<<20 {
		t.Errorf("%d MB on disk for at most 8 MB that wait", second.disk>>20)
	}
}

func soakDeliver(ctx context.Context, t *testing.T, q *Queue) {
	r := q.Reader()
	for ctx.Err() == nil {
		m, ok, err := r.Next()
		if err != nil {
			t.Error(err)
			return
		}
		if !ok {
			select {
			case <-q.Ready():
			case <-ctx.Done():
			}
			continue
		}
		q.Ack(m.Seq)
	}
}
