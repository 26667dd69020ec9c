package queue

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
)

// TestRunGivesBackWhatWasAdded: all of it, and what stands ahead of any place, in any order of asking.
func TestRunGivesBackWhatWasAdded(t *testing.T) {
	t.Parallel()
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		var u run
		var want []rec
		r := rec{frame: frameAlign * (1 + rnd.Uint32N(1<<20)), item: 40}
		first := rnd.Uint64()
		seen := first - 1 // as a reader that comes along while records are added
		for range 1 + rnd.IntN(maxRun) {
			r.size = rnd.Uint32N(MaxMessageBytes)
			want = append(want, r)
			u.add(r)
			if rnd.IntN(4) == 0 {
				seen = checkAhead(t, &u, want, first, seen)
			}
			r.seq += 1 + rnd.Uint32N(2)*rnd.Uint32N(1<<20)
			if r.item += 8 + rnd.Uint32N(300); rnd.IntN(20) == 0 {
				r.frame, r.item = r.frame+frameAlign*(1+rnd.Uint32N(9000)), 40+rnd.Uint32N(9)
			}
		}
		if got := u.all(uint16(len(want))); !slices.Equal(got, want) {
			t.Fatalf("seed %d: %d records of %d come back, or others", seed, len(got), len(want))
		}
		for range 20 {
			checkAhead(t, &u, want, first, first-1+uint64(want[rnd.IntN(len(want))].seq))
		}
		e := extent{run: &u, first: first, count: uint16(len(want))}
		var ft footer
		ft.add(7, 1, 0, &e)
		if got, ok := parseList(ft.lists, 7, len(want)); !ok || !slices.Equal(got, want) {
			t.Fatalf("seed %d: the index says something else", seed)
		}
	}
}

func checkAhead(t *testing.T, u *run, all []rec, first, seen uint64) uint64 {
	t.Helper()
	i := slices.IndexFunc(all, func(r rec) bool { return first+uint64(r.seq)-seen-1 < 1<<62 })
	if i < 0 {
		i = len(all)
	}
	want := all[i:min(i+windowFill, len(all))]
	got, whole := u.ahead(make([]rec, 0, windowFill), first, seen)
	if !slices.Equal(got, want) || whole != (i+len(want) == len(all)) {
		t.Fatalf("ahead of %d: %v (whole %v), want %v", seen, got, whole, want)
	}
	if len(got) == 0 {
		return seen
	}
	return first + uint64(got[len(got)-1].seq)
}

// TestListsKeepTheirFormat: what older files hold must be read for ever.
func TestListsKeepTheirFormat(t *testing.T) {
	t.Parallel()
	recs := []rec{{0, 4096, 120, 300}, {1, 4096, 430, 256}, {5, 4096, 700, 1}, {6, 70000, 44, 320 << 10}}
	var u run
	for _, r := range recs {
		u.add(r)
	}
	const want = "e0038004" + "00" + "ac02" + "db09" + "8002" + "ba08" + "04" + "01" + "b101" + "ae44" + "808014"
	if got := hex.EncodeToString(u.list); got != want {
		t.Errorf("encoded %s\nwant    %s", got, want)
	}
}

// TestLoneRecordsAreReadInPieces: records of many queues, wherever in their frames they stand, come back whole when one queue is drained after the
// other, and most come from what was read for the queue before.
func TestLoneRecordsAreReadInPieces(t *testing.T) {
	t.Parallel()
	j, _ := start(t, Options{Dir: t.TempDir()})
	const queues, each = 500, 12
	var all []*Queue
	done := make(chan error, queues*each)
	for i := range queues {
		all = append(all, mustQueue(t, j, fmt.Sprint("device-", i), Limits{}))
	}
	payload := func(q, n int) []byte { return bytes.Repeat([]byte{byte(q), byte(n), byte(q >> 8)}, 60+q%40) }
	for n := range each {
		for i, q := range all {
			m := Message{Source: fmt.Sprint("sensor-", i%7), Topic: "t", Payload: payload(i, n)}
			if err := q.Append(context.Background(), m, func(_ uint64, err error) { done <- err }); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range queues * each {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	j.cache.trim()
	j.cache.trim() // nothing is in memory now
	files := &countedReads{filesys: j.files.fs}
	j.files.close()
	j.files.fs = files
	for i, q := range all {
		got := drain(t, q)
		if len(got) != each {
			t.Fatalf("queue %d: %d messages", i, len(got))
		}
		for n, m := range got {
			if !bytes.Equal(m.Payload, payload(i, n)) || m.Source != fmt.Sprint("sensor-", i%7) {
				t.Fatalf("queue %d: message %d came back wrong", i, n)
			}
		}
	}
	if n := files.n.Load(); n > 16<<20 {
		t.Errorf("%d bytes are read for %d messages", n, queues*each)
	}
	j.pieces.mu.Lock()
	defer j.pieces.mu.Unlock()
	if n := len(j.pieces.slots); n > pieceSlots || n != len(j.pieces.at) {
		t.Errorf("%d pieces, %d of them to be found", n, len(j.pieces.at))
	}
}

// countedReads counts the bytes that are read.
type countedReads struct {
	filesys
	n atomic.Int64
}

func (c *countedReads) open(name string, mode openMode) (file, error) {
	f, err := c.filesys.open(name, mode)
	if err != nil {
		return nil, err
	}
	return countedFile{f, &c.n}, nil
}

type countedFile struct {
	file
	n *atomic.Int64
}

func (f countedFile) ReadAt(b []byte, off int64) (int, error) {
	f.n.Add(int64(len(b)))
	return f.file.ReadAt(b, off)
}

// TestReadingFarAheadAllocatesWhatItReads: a reader that is far ahead of what was acknowledged pays for each message once.
func TestReadingFarAheadAllocatesWhatItReads(t *testing.T) { // not parallel: it counts what the process allocates
	j, _ := start(t, Options{Dir: t.TempDir()})
	q := mustQueue(t, j, "press-7", Limits{})
	const n = 50_000
	done := make(chan error, n)
	for range n {
		if err := q.Append(context.Background(), Message{Payload: []byte("x")}, func(_ uint64, err error) { done <- err }); err != nil {
			t.Fatal(err)
		}
	}
	for range n {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r := q.Reader()
	for i := range n {
		if _, ok, err := r.Next(); err != nil || !ok {
			t.Fatal(i, ok, err)
		}
	}
	runtime.ReadMemStats(&after)
	if each := (after.TotalAlloc - before.TotalAlloc) / n; each > 1000 {
		t.Errorf("%d bytes are allocated for each message of %d", each, n)
	}
}
