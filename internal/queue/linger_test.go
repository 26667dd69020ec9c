package queue

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// slowFS takes a millisecond for every sync.
type slowFS struct{ *memFS }

type slowFile struct{ file }

func (f slowFile) sync() error {
	time.Sleep(time.Millisecond)
	return f.file.sync()
}

func (s slowFS) open(name string, mode openMode) (file, error) {
	f, err := s.memFS.open(name, mode)
	if err != nil {
		return nil, err
	}
	return slowFile{f}, nil
}

// crowd runs producers that each wait for the sync and then for pause, and returns how many appends went into one sync.
func crowd(t *testing.T, producers int, pause func(i int) time.Duration) (perSync float64, took time.Duration) {
	j, err := open(Options{Dir: "/q"}, slowFS{newMemFS()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- j.Run(ctx) }()
	q, err := j.Queue("press-7", Limits{})
	if err != nil {
		t.Fatal(err)
	}
	const rounds = 100
	begin := time.Now()
	var wg sync.WaitGroup
	for p := range producers {
		wg.Go(func() {
			time.Sleep(time.Duration(p) * 10 * time.Microsecond)
			for i := range rounds {
				if _, err := q.AppendWait(ctx, Message{Payload: make([]byte, 100)}); err != nil {
					t.Error(err)
				}
				time.Sleep(pause(i))
			}
		})
	}
	wg.Wait()
	took = time.Since(begin)
	syncs := j.Stats().Syncs
	stop()
	if err := <-ran; err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	return float64(producers*rounds) / float64(syncs), took
}

// TestProducersThatWaitShareOneSync: those that come back at once do not split into halves that wait for each other.
func TestProducersThatWaitShareOneSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, took := crowd(t, 64, func(int) time.Duration { return 20 * time.Microsecond })
		if n < 40 { // halves would be 32
			t.Errorf("%.1f of 64 producers in one sync", n)
		}
		t.Logf("%.1f in one sync, %v", n, took)
	})
}

// TestSensorsThatComeBackLaterAreNotWaitedFor: waiting for them must not cost those that are there.
func TestSensorsThatComeBackLaterAreNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, took := crowd(t, 64, func(i int) time.Duration { return 50*time.Millisecond + time.Duration(i%7)*time.Millisecond })
		// 100 rounds of at most 56 ms and two syncs, with a twentieth for waits in vain.
		if limit := 100 * 58 * time.Millisecond * 21 / 20; took > limit {
			t.Errorf("took %v, at most %v expected", took, limit)
		}
	})
}

// TestIdleJournalGivesBuffersBack: what a burst made it allocate is let go of, and everything works on.
func TestIdleJournalGivesBuffersBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j, err := open(Options{Dir: "/q"}, slowFS{newMemFS()})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		ran := make(chan error, 1)
		go func() { ran <- j.Run(ctx) }()
		q, err := j.Queue("press-7", Limits{})
		if err != nil {
			t.Fatal(err)
		}
		for range 2000 {
			if err := q.Append(ctx, Message{Payload: make([]byte, 1000)}, nil); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		j.pend.mu.Lock()
		held := cap(j.pend.recs) + cap(j.pend.spare) + cap(j.pend.free) + cap(j.pend.chunks) + cap(j.pend.arena.cur) + cap(j.pend.spareA.cur) + cap(j.w.b.buf)
		j.pend.mu.Unlock()
		j.cache.mu.Lock()
		held += j.cache.bytes + len(j.cache.m)
		j.cache.mu.Unlock()
		if held > 64<<10 {
			t.Errorf("%d bytes are held by an idle journal", held)
		}
		if _, err := q.AppendWait(ctx, Message{Payload: []byte("after")}); err != nil {
			t.Fatal(err)
		}
		if got := drain(t, q); len(got) != 2001 {
			t.Errorf("%d messages", len(got))
		}
		stop()
		if err := <-ran; err != nil {
			t.Fatal(err)
		}
		if err := j.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
