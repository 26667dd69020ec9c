package queue

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// start opens a journal and runs it until the test ends or stop is called.
func start(t *testing.T, o Options) (*Journal, func()) {
	t.Helper()
	j, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- j.Run(ctx) }()
	var once sync.Once
	stop := func() {
		once.Do(func() {
			cancel()
			if err := <-ran; err != nil {
				t.Errorf("run: %v", err)
			}
			if err := j.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		})
	}
	t.Cleanup(stop)
	return j, stop
}

func mustQueue(t *testing.T, j *Journal, name string, l Limits) *Queue {
	t.Helper()
	q, err := j.Queue(name, l)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func mustAppend(t *testing.T, q *Queue, m Message) uint64 {
	t.Helper()
	seq, err := q.AppendWait(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	return seq
}

func drain(t *testing.T, q *Queue) []Message {
	t.Helper()
	var all []Message
	r := q.Reader()
	for {
		m, ok, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return all
		}
		all = append(all, m)
	}
}

func TestAppendedIsReadAndSurvivesReopening(t *testing.T) {
	dir := t.TempDir()
	j, stop := start(t, Options{Dir: dir})
	q := mustQueue(t, j, "press-7", Limits{})
	in := Message{Source: "s1", Topic: "a/b", Route: "r", ContentType: "application/json", ContentEncoding: "utf-8", Output: "out", Properties: []Property{{"k", "v"}, {"k2", ""}}, MaxAge: time.Hour, Payload: []byte("one")}
	mustAppend(t, q, in)
	for i := range 2 {
		mustAppend(t, q, Message{Topic: "t", Payload: []byte{byte(i)}})
	}
	first := drain(t, q)
	q.Ack(2)
	stop()
	j, _ = start(t, Options{Dir: dir})
	got := drain(t, mustQueue(t, j, "press-7", Limits{}))
	if len(got) != 2 || got[0].Seq != 1 || got[1].Seq != 3 {
		t.Fatalf("got %+v", got)
	}
	m := got[0]
	if m.ID != first[0].ID || m.ID == first[1].ID || !m.Accepted.Equal(first[0].Accepted) || time.Since(m.Accepted) > time.Minute || !m.AcceptedTrusted {
		t.Errorf("id or time changed: %+v, was %+v", m, first[0])
	}
	in.Seq, in.ID, in.Accepted, in.AcceptedTrusted = m.Seq, m.ID, m.Accepted, m.AcceptedTrusted
	if fmt.Sprintf("%+v", m) != fmt.Sprintf("%+v", in) {
		t.Errorf("got %+v, want %+v", m, in)
	}
}

func TestHigherPriorityIsServedFirstInOrder(t *testing.T) {
	j, _ := start(t, Options{Dir: t.TempDir()})
	q := mustQueue(t, j, "press-7", Limits{})
	for i, p := range []uint8{0, 3, 0, 9, 3, 0} {
		mustAppend(t, q, Message{Priority: p, Payload: []byte{byte(i)}})
	}
	var got []byte
	for _, m := range drain(t, q) {
		got = append(got, m.Payload[0])
	}
	if want := []byte{3, 1, 4, 0, 2, 5}; !bytes.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestFullQueueRefusesOrDropsTheOldestCounted(t *testing.T) {
	j, _ := start(t, Options{Dir: t.TempDir()})
	q := mustQueue(t, j, "refuses", Limits{MaxBytes: 100})
	mustAppend(t, q, Message{Payload: make([]byte, 60)})
	if _, err := q.AppendWait(t.Context(), Message{Payload: make([]byte, 60)}); !errors.Is(err, ErrFull) {
		t.Errorf("got %v, want ErrFull", err)
	}
	q.Ack(1)
	mustAppend(t, q, Message{Payload: make([]byte, 60)})

	q = mustQueue(t, j, "drops", Limits{MaxBytes: 100, WhenFull: DropOldest})
	for i := range 5 {
		mustAppend(t, q, Message{Payload: bytes.Repeat([]byte{byte(i)}, 30)})
	}
	got := drain(t, q)
	if s := q.Stats(); len(got) != 3 || got[0].Seq != 3 || s.Dropped[DropSize] != 2 || s.Messages != 3 || s.Bytes != 90 {
		t.Errorf("%d read, stats %+v", len(got), s)
	}
	if _, err := q.AppendWait(t.Context(), Message{Payload: make([]byte, MaxMessageBytes+1)}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("got %v, want ErrTooLarge", err)
	}
}

// fakeClock is a wall clock that tests set.
type fakeClock struct {
	mu      sync.Mutex
	now     time.Time
	trusted bool
}

func (c *fakeClock) Now() (time.Time, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now, c.trusted
}

func (c *fakeClock) set(t time.Time, trusted bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now, c.trusted = t, trusted
}

func TestTooOldIsDroppedCounted(t *testing.T) {
	c := &fakeClock{now: time.Now(), trusted: true}
	dir := t.TempDir()
	j, stop := start(t, Options{Dir: dir, Clock: c})
	q := mustQueue(t, j, "press-7", Limits{MaxAge: time.Hour})
	mustAppend(t, q, Message{})
	mustAppend(t, q, Message{MaxAge: 3 * time.Hour}) // the route's bound goes over the identity's
	c.set(c.now.Add(2*time.Hour), true)
	if got := drain(t, q); len(got) != 1 || got[0].Seq != 2 {
		t.Errorf("got %+v", got)
	}
	j.expire(t.Context())
	if s := q.Stats(); s.Dropped[DropAge] != 1 || s.Messages != 1 || s.OldestAge < 119*time.Minute {
		t.Errorf("stats %+v", s)
	}
	stop()
	c.set(c.now.Add(2*time.Hour), true)
	j, _ = start(t, Options{Dir: dir, Clock: c})
	q = mustQueue(t, j, "press-7", Limits{MaxAge: time.Hour})
	j.expire(t.Context()) // nobody reads, space is freed all the same
	if s := q.Stats(); s.Messages != 0 || s.Dropped[DropAge] != 2 {
		t.Errorf("stats %+v", s)
	}
}

func TestUnsetClockNeitherExpiresNorLies(t *testing.T) {
	c := &fakeClock{now: time.Unix(1000, 0)} // 1970
	dir := t.TempDir()
	j, stop := start(t, Options{Dir: dir, Clock: c})
	l := Limits{MaxAge: time.Hour}
	q := mustQueue(t, j, "press-7", l)
	mustAppend(t, q, Message{})
	if got := drain(t, q); len(got) != 1 || got[0].AcceptedTrusted {
		t.Fatalf("got %+v", got)
	}
	stop()
	now := time.Now()
	c.set(now, true) // 56 years later, one boot
	j, stop = start(t, Options{Dir: dir, Clock: c})
	got := drain(t, mustQueue(t, j, "press-7", l))
	if len(got) != 1 || !got[0].AcceptedTrusted || now.Sub(got[0].Accepted).Abs() > time.Minute {
		t.Fatalf("got %+v", got)
	}
	mustAppend(t, mustQueue(t, j, "press-7", l), Message{}) // what was learned goes to disk
	stop()
	j, err := Open(Options{Dir: dir, Clock: c})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	j.boot.id = [16]byte{1} // another boot
	if got := drain(t, mustQueue(t, j, "press-7", l)); len(got) != 2 || !got[0].AcceptedTrusted {
		t.Errorf("after another boot: %+v", got)
	}
}

func TestSetAsideIsKeptAndPutBackWithItsID(t *testing.T) {
	dir := t.TempDir()
	j, stop := start(t, Options{Dir: dir})
	q := mustQueue(t, j, "press-7", Limits{})
	for i := range 3 {
		mustAppend(t, q, Message{Priority: 2, Topic: "t", Payload: []byte{byte(i)}})
	}
	id := drain(t, q)[1].ID
	if err := q.SetAside(2, "killed 5 connections"); err != nil {
		t.Fatal(err)
	}
	if got := drain(t, q); len(got) != 2 || got[0].Seq != 1 || got[1].Seq != 3 {
		t.Errorf("got %+v", got)
	}
	stop()
	j, stop = start(t, Options{Dir: dir})
	q = mustQueue(t, j, "press-7", Limits{})
	list, err := q.Aside()
	if err != nil || len(list) != 1 || list[0].Seq != 2 || list[0].ID != id || list[0].Reason != "killed 5 connections" || list[0].Payload[0] != 1 {
		t.Fatalf("aside: %+v, %v", list, err)
	}
	if s := q.Stats(); s.Aside != 1 || s.Messages != 2 || s.Dropped[DropAside] != 1 {
		t.Errorf("stats %+v", s)
	}
	if err := q.Requeue(99); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
	stop()
	if err := Offline(t.Context(), Options{Dir: dir}, func(j *Journal) error { _, err := j.Requeue("press-7"); return err }); err != nil {
		t.Fatal(err)
	}
	j, _ = start(t, Options{Dir: dir})
	q = mustQueue(t, j, "press-7", Limits{})
	got := drain(t, q)
	if len(got) != 3 || got[2].ID != id || got[2].Priority != 2 || q.Stats().Aside != 0 {
		t.Errorf("got %+v", got)
	}
}

func TestSetAsideCanBeForgotten(t *testing.T) {
	dir := t.TempDir()
	j, stop := start(t, Options{Dir: dir})
	q := mustQueue(t, j, "press-7", Limits{})
	for range 5 {
		mustAppend(t, q, Message{Topic: "t"})
	}
	for seq := uint64(1); seq <= 4; seq++ {
		if err := q.SetAside(seq, "poison"); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := j.DropAside("press-7", 2, 5); n != 1 || !errors.Is(err, ErrNotFound) {
		t.Errorf("one of two: %d, %v", n, err)
	}
	if _, err := j.DropAside("press-8"); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
	want := func(q *Queue, aside int, removed uint64) {
		t.Helper()
		if s := q.Stats(); s.Aside != int64(aside) || s.Messages != 1 || s.Dropped[DropRemoved] != removed {
			t.Errorf("stats %+v", s)
		}
	}
	want(q, 3, 1)
	stop()
	if err := Offline(t.Context(), Options{Dir: dir}, func(j *Journal) error {
		n, err := j.DropAside("press-7")
		if n != 3 {
			t.Errorf("%d dropped", n)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	j, _ = start(t, Options{Dir: dir})
	q = mustQueue(t, j, "press-7", Limits{})
	want(q, 0, 4)
	if got := drain(t, q); len(got) != 1 || got[0].Seq != 5 {
		t.Errorf("got %+v", got)
	}
}

func TestSecondInstanceIsRefused(t *testing.T) {
	dir := t.TempDir()
	start(t, Options{Dir: dir})
	if _, err := Open(Options{Dir: dir}); !errors.Is(err, ErrLocked) {
		t.Errorf("got %v", err)
	}
	if st, err := os.Stat(filepath.Join(dir, lockName)); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st.Mode(), err)
	}
}

func TestInspectionBesideTheWriterChangesNothing(t *testing.T) {
	dir := t.TempDir()
	j, stop := start(t, Options{Dir: dir})
	q := mustQueue(t, j, "press-7", Limits{})
	mustAppend(t, q, Message{Topic: "a", Payload: []byte("text"), Properties: []Property{{"k", "v"}}})
	mustAppend(t, q, Message{Payload: []byte{0xff, 0}})
	mustAppend(t, q, Message{Payload: []byte("aside")})
	if err := q.SetAside(3, "poison"); err != nil {
		t.Fatal(err)
	}
	before, _ := os.ReadDir(dir)
	r, err := OpenForReading(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if l := r.List(); len(l) != 1 || l[0].Identity != "press-7" || l[0].Messages != 2 || l[0].Aside != 1 {
		t.Errorf("list: %+v", l)
	}
	var b bytes.Buffer
	if err := r.Export(&b, ""); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(b.String()), "\n")
	var x map[string]any
	if len(lines) != 3 || json.Unmarshal([]byte(lines[0]), &x) != nil || x["payload"] != "text" || !strings.Contains(lines[1], `"payload_base64":"/wA="`) || !strings.Contains(lines[2], `"poison"`) {
		t.Errorf("export: %s", b.String())
	}
	if v, err := r.Verify(t.Context()); err != nil || len(v.Faults) != 0 || v.Messages != 3 {
		t.Errorf("verify: %+v, %v", v, err)
	}
	if _, err := mustQueue(t, r, "press-7", Limits{}).AppendWait(t.Context(), Message{}); !errors.Is(err, ErrReadOnly) {
		t.Errorf("got %v", err)
	}
	if after, _ := os.ReadDir(dir); len(after) != len(before) {
		t.Errorf("%d files, were %d", len(after), len(before))
	}
	stop()
	f, err := os.OpenFile(filepath.Join(dir, "00000002.jnl"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteAt([]byte("xxxx"), segDataStart+40)
	f.Close()
	if r, err = OpenForReading(dir); err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if v, err := r.Verify(t.Context()); err != nil || len(v.Faults) == 0 {
		t.Errorf("verify finds nothing: %+v, %v", v, err)
	}
}

func TestDroppedIdentityIsForgotten(t *testing.T) {
	dir := t.TempDir()
	j, stop := start(t, Options{Dir: dir})
	mustAppend(t, mustQueue(t, j, "old", Limits{}), Message{Payload: []byte("x")})
	mustAppend(t, mustQueue(t, j, "stays", Limits{}), Message{Payload: []byte("y")})
	if err := j.Drop("old"); err != nil {
		t.Fatal(err)
	}
	if err := j.Drop("never"); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
	stop()
	j, _ = start(t, Options{Dir: dir})
	if got := j.Identities(); len(got) != 1 || got[0] != "stays" {
		t.Errorf("got %v", got)
	}
	q := mustQueue(t, j, "old", Limits{})
	if seq := mustAppend(t, q, Message{Payload: []byte("new")}); seq != 1 || len(drain(t, q)) != 1 {
		t.Errorf("sequence %d", seq)
	}
}

func TestCallbacksComeInOrderFromManyInFlight(t *testing.T) {
	j, stop := start(t, Options{Dir: t.TempDir(), PendingBytes: 64 << 10}) // Append has to wait for room
	q := mustQueue(t, j, "press-7", Limits{})
	const n = 5000
	var mu sync.Mutex
	var got []uint64
	done := make(chan struct{})
	payload := make([]byte, 256)
	for i := range n {
		err := q.Append(t.Context(), Message{Payload: payload}, func(seq uint64, err error) {
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
			}
			if got = append(got, seq); len(got) == n {
				close(done)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		payload[0] = byte(i) // the buffer is the caller's again
	}
	<-done
	for i, seq := range got {
		if seq != uint64(i+1) {
			t.Fatalf("callback %d has sequence %d", i, seq)
		}
	}
	stop() // others are let in after the callbacks
	if s := j.Stats(); s.Syncs*20 > n || s.Pending != 0 {
		t.Errorf("%d syncs for %d messages, %d bytes pending", s.Syncs, n, s.Pending)
	}
}

func TestSyncIntervalBoundsSyncs(t *testing.T) {
	j, _ := start(t, Options{Dir: t.TempDir(), SyncInterval: 50 * time.Millisecond})
	q := mustQueue(t, j, "press-7", Limits{})
	begin := time.Now()
	for range 5 {
		mustAppend(t, q, Message{})
	}
	if d := time.Since(begin); d < 200*time.Millisecond {
		t.Errorf("five syncs in %v", d)
	}
}

// TestReadersAndWritersTogether is for the race detector: appends, several readers, acknowledgements, statistics, compaction at once.
func TestReadersAndWritersTogether(t *testing.T) {
	j, stop := start(t, Options{Dir: t.TempDir(), SegmentBytes: minSegment})
	const queues, each = 8, 300
	var wg sync.WaitGroup
	for i := range queues {
		q := mustQueue(t, j, fmt.Sprint("device-", i), Limits{})
		wg.Go(func() {
			for k := range each {
				if err := q.Append(t.Context(), Message{Topic: "t", Payload: bytes.Repeat([]byte{byte(k)}, 700)}, nil); err != nil {
					t.Error(err)
				}
			}
		})
		wg.Go(func() {
			r := q.Reader()
			rnd := rand.New(rand.NewPCG(uint64(i), 0))
			var last uint64
			for last < each {
				m, ok, err := r.Next()
				if err != nil {
					t.Error(err)
					return
				}
				if !ok {
					<-q.Ready()
					if rnd.IntN(4) == 0 {
						r, last = q.Reader(), 0 // a new connection
					}
					continue
				}
				if m.Seq <= last {
					t.Errorf("sequence %d after %d", m.Seq, last)
				}
				last = m.Seq
				if i != 0 || m.Seq%10 != 0 { // the first keeps some for ever
					q.Ack(m.Seq)
				}
				if rnd.IntN(50) == 0 {
					q.Stats()
					j.Stats()
				}
			}
		})
	}
	wg.Wait()
	j.index()
	j.compact(t.Context())
	stop()
	if n := mustQueue(t, j, "device-0", Limits{}).Stats().Messages; n != each/10 {
		t.Errorf("%d messages left, want %d", n, each/10)
	}
}
