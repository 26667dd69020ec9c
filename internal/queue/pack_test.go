package queue

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"testing"
	"time"
)

// What says how a message may travel with others survives a restart, setting aside
// and putting back, and costs nothing where there is none: such records are as an older
// version wrote them.
func TestPackIsKeptWithTheMessage(t *testing.T) {
	want := Pack{MaxBytes: 4096, MaxDelay: 1500 * time.Millisecond, Lines: true, Gzip: true}
	dir := t.TempDir()
	open := func() (*Queue, func()) {
		j, err := Open(Options{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); _ = j.Run(ctx) }()
		q, err := j.Queue("a", Limits{})
		if err != nil {
			t.Fatal(err)
		}
		return q, func() {
			cancel()
			<-done
			if err := j.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	q, end := open()
	for _, m := range []Message{{Topic: "t", Pack: want}, {Topic: "t"}, {Topic: "t", Pack: Pack{MaxBytes: 256, Gzip: true}, Properties: []Property{{"k", "v"}}}} {
		if _, err := q.AppendWait(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	if err := q.SetAside(1, "test"); err != nil {
		t.Fatal(err)
	}
	end()
	q, end = open()
	defer end()
	aside, err := q.Aside()
	if err != nil || len(aside) != 1 || aside[0].Pack != want {
		t.Fatal(err, aside)
	}
	if err := q.Requeue(aside[0].Seq); err != nil {
		t.Fatal(err)
	}
	got := map[Pack]int{}
	for r := q.Reader(); ; {
		m, ok, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			break
		}
		got[m.Pack]++
	}
	if len(got) != 3 || got[want] != 1 || got[Pack{}] != 1 {
		t.Errorf("got %v", got)
	}
	if _, err := q.AppendWait(t.Context(), Message{Pack: Pack{MaxBytes: -1}}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("an impossible pack: %v", err)
	}
}

func TestMetaOfOlderVersionsHasNoPack(t *testing.T) {
	b := newBuilder()
	b.reset(7, 1)
	b.open(0)
	off := b.appendMeta(&Message{Topic: "t"})
	packed := b.appendMeta(&Message{Topic: "t", Pack: Pack{MaxBytes: 1, MaxDelay: time.Millisecond}})
	v := frameView{b: b.buf[b.frame:], salt: 7}
	plain, err := v.item(off, itemMeta)
	if err != nil {
		t.Fatal(err)
	}
	with, err := v.item(packed, itemMeta)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasPrefix(with, plain) || len(with) != len(plain)+3 {
		t.Errorf("a pack is more than an end of the item: % x, % x", plain, with)
	}
	m := Message{Pack: Pack{MaxBytes: 9}} // of a neighbour
	if err := v.meta(off, &m); err != nil || m.Pack != (Pack{}) {
		t.Errorf("%v %+v", err, m.Pack)
	}
	var p Pack
	if p.parse(&cursor{b: binary.AppendUvarint(nil, 1<<40)}); p != (Pack{}) {
		t.Errorf("an absurd pack: %+v", p)
	}
}

// A queue that is always let in takes notes although the folder is full.
func TestAlwaysIsLetInAboveTheBoundOfTheFolder(t *testing.T) {
	j, err := Open(Options{Dir: t.TempDir(), SegmentBytes: 1 << 20, MaxBytes: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = j.Run(ctx) }()
	defer func() {
		cancel()
		<-done
		_ = j.Close()
	}()
	q, _ := j.Queue("a", Limits{})
	notes, _ := j.Queue("a/packs", Limits{Always: true})
	for err = nil; err == nil; {
		_, err = q.AppendWait(t.Context(), Message{Payload: make([]byte, 128<<10)})
	}
	if !errors.Is(err, ErrFull) {
		t.Fatal(err)
	}
	if _, err := notes.AppendWait(t.Context(), Message{Payload: make([]byte, 100)}); err != nil {
		t.Errorf("a note into a full folder: %v", err)
	}
}
