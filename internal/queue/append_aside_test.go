package queue

import (
	"errors"
	"strings"
	"testing"
)

func appendAside(t *testing.T, q *Queue, m Message, reason string) (uint64, error) {
	t.Helper()
	type result struct {
		seq uint64
		err error
	}
	c := make(chan result, 1)
	if err := q.AppendAside(t.Context(), m, reason, func(seq uint64, err error) { c <- result{seq, err} }); err != nil {
		return 0, err
	}
	r := <-c
	return r.seq, r.err
}

func TestAppendedAsideIsKeptAndNotRead(t *testing.T) {
	dir := t.TempDir()
	j, stop := start(t, Options{Dir: dir})
	q := mustQueue(t, j, "a", Limits{})
	mustAppend(t, q, Message{Payload: []byte("one")})
	seq, err := appendAside(t, q, Message{Payload: []byte("poison"), Topic: "t", Priority: 3}, "filter: no number"+strings.Repeat("!", 1000))
	if err != nil || seq != 2 {
		t.Fatalf("seq %d, %v", seq, err)
	}
	mustAppend(t, q, Message{Payload: []byte("two")})

	var id string
	for round := range 2 {
		aside, err := q.Aside()
		if err != nil || len(aside) != 1 {
			t.Fatalf("%d set aside, %v", len(aside), err)
		}
		a := aside[0]
		if a.Seq != 2 || string(a.Payload) != "poison" || a.Topic != "t" || a.Priority != 3 || !strings.HasPrefix(a.Reason, "filter: no number") || len(a.Reason) != maxReason {
			t.Errorf("set aside: %+v", a)
		}
		if id == "" {
			id = a.ID
		}
		if a.ID != id || len(id) > 64 || strings.Trim(id, "0123456789abcdef-") != "" {
			t.Errorf("id %q, was %q", a.ID, id)
		}
		if s := q.Stats(); s.Messages != 2 || s.Aside != 1 || s.Appended != 3 {
			t.Errorf("%+v", s)
		}
		if round == 0 {
			stop()
			j, stop = start(t, Options{Dir: dir})
			q = mustQueue(t, j, "a", Limits{})
		}
	}
	r := q.Reader()
	for _, want := range []string{"one", "two"} {
		if m, ok, err := r.Next(); string(m.Payload) != want || !ok || err != nil {
			t.Fatalf("got %q %v %v, want %q", m.Payload, ok, err, want)
		}
	}
	if m, ok, _ := r.Next(); ok {
		t.Fatalf("read %q", m.Payload)
	}
	if err := q.Requeue(2); err != nil {
		t.Fatal(err)
	}
	m, ok, err := q.Reader().Next()
	if !ok || err != nil || string(m.Payload) != "poison" || m.ID != id || m.Seq <= 3 {
		t.Errorf("put back: %+v %v %v", m, ok, err)
	}
}

func TestWhatIsAppendedAsideIsBounded(t *testing.T) {
	j, _ := start(t, Options{Dir: t.TempDir()})
	q := mustQueue(t, j, "a", Limits{MaxBytes: 4000, WhenFull: DropOldest})
	mustAppend(t, q, Message{Payload: make([]byte, 3000)})
	if _, err := appendAside(t, q, Message{Payload: make([]byte, 900)}, "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := appendAside(t, q, Message{Payload: make([]byte, 200)}, "x"); !errors.Is(err, ErrFull) {
		t.Errorf("got %v", err)
	}
	if _, err := appendAside(t, q, Message{Payload: make([]byte, MaxMessageBytes+1)}, "x"); !errors.Is(err, ErrTooLarge) {
		t.Errorf("got %v", err)
	}
	mustAppend(t, q, Message{Payload: make([]byte, 900)})
	if s := q.Stats(); s.Messages != 2 || s.Aside != 1 {
		t.Errorf("%+v", s)
	}
}
