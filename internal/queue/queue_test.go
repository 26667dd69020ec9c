package queue

import (
	"context"
	"testing"
)

func TestAppendedIsReadAndSurvivesReopening(t *testing.T) {
	dir := t.TempDir()
	j, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- j.Run(ctx) }()
	q, err := j.Queue("press-7", Limits{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		seq, err := q.AppendWait(ctx, Message{Topic: "t", Payload: []byte{byte(i)}})
		if err != nil || seq != uint64(i+1) {
			t.Fatalf("append %d: seq %d, %v", i, seq, err)
		}
	}
	q.Ack(1)
	cancel()
	if err := <-ran; err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	j, err = Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	q, _ = j.Queue("press-7", Limits{})
	m, ok, err := q.Reader().Next()
	if err != nil || !ok || m.Seq != 2 {
		t.Fatalf("got %v %v %v, want message 2", m, ok, err)
	}
}
