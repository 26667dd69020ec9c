package queue

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
)

// Status pages list the queues while sensors write.
func TestIdentitiesAreListedWhileWriting(t *testing.T) {
	j, err := Open(Options{Dir: t.TempDir(), SegmentBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var running, writing sync.WaitGroup
	running.Go(func() {
		if err := j.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	var want []string
	for i := range 20 {
		name := fmt.Sprintf("d%02d", i)
		want = append(want, name)
		q, err := j.Queue(name, Limits{})
		if err != nil {
			t.Fatal(err)
		}
		writing.Go(func() {
			for range 10 {
				if _, err := q.AppendWait(ctx, Message{Payload: []byte("x")}); err != nil {
					t.Error(err)
				}
			}
		})
		j.Identities()
	}
	for !slices.Equal(j.Identities(), want) && !t.Failed() {
		j.Stats()
	}
	writing.Wait()
	stop()
	running.Wait()
	if err := j.Close(); err != nil {
		t.Error(err)
	}
}
