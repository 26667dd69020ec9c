package hub

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"

	"gatewayd/internal/hub/hubtest"
	"gatewayd/internal/queue"
)

// packRig is a session over a real journal.
type packRig struct {
	*rig
	journal *queue.Journal
	q       *queue.Queue
	end     func() // of the session
	close   func() // of all
}

func newPackRig(t testing.TB, opt hubtest.Options) *packRig {
	r := &packRig{rig: newRig(t, false, opt)}
	r.cfg.Timing = Timing{RetryMin: time.Millisecond, RetryMax: 2 * time.Millisecond, Stable: time.Millisecond, Quiet: time.Millisecond}
	r.open(t.TempDir())
	return r
}

func (r *packRig) open(dir string) {
	r.journal = must(queue.Open(queue.Options{Dir: dir}))
	r.q = must(r.journal.Queue("dev-1", queue.Limits{}))
	r.cfg.Packs = func() (*queue.Queue, error) { return r.journal.Queue("dev-1/packs", queue.Limits{Always: true}) }
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = r.journal.Run(ctx) })
	r.close = sync.OnceFunc(func() {
		if r.end != nil {
			r.end()
		}
		cancel()
		wg.Wait()
		if err := r.journal.Close(); err != nil {
			r.t.Error(err)
		}
	})
	r.t.Cleanup(r.close)
}

func (r *packRig) begin() {
	r.s = NewSession(r.cfg, r.q, r.store, r.pacer, zap.NewNop())
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = r.s.Run(ctx) })
	r.end = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
	})
}

// put appends readings and waits for their syncs.
func (r *packRig) put(ms ...queue.Message) {
	r.t.Helper()
	var wg sync.WaitGroup
	for _, m := range ms {
		wg.Add(1)
		if err := r.q.Append(r.t.Context(), m, func(_ uint64, err error) {
			if err != nil {
				r.t.Error(err)
			}
			wg.Done()
		}); err != nil {
			r.t.Fatal(err)
		}
	}
	wg.Wait()
}

func (r *packRig) empty() {
	r.t.Helper()
	packs := must(r.journal.Queue("dev-1/packs", queue.Limits{Always: true}))
	r.await("queue and records of packs empty", 60*time.Second, func() bool {
		return r.q.Stats().Messages == 0 && packs.Stats().Messages == 0
	})
}

const fourKiB = 4 << 10

// reading is a body of 100 bytes with the number i in it.
func reading(i int) queue.Message {
	body := fmt.Sprintf(`{"n":%d,"x":"`, i)
	body += strings.Repeat("x", 100-len(body)-2) + `"}`
	return queue.Message{Source: "s", Topic: "sensors/17/telemetry", Route: "routes[0]", ContentType: "application/json", ContentEncoding: "utf-8",
		Properties: []queue.Property{{Key: "sensor", Value: "17"}}, Payload: []byte(body), Pack: queue.Pack{MaxBytes: fourKiB, MaxDelay: 50 * time.Millisecond}}
}

func readings(from, to int) (all []queue.Message) {
	for i := from; i < to; i++ {
		all = append(all, reading(i))
	}
	return all
}

type element struct {
	Time            int64             `json:"time"`
	Properties      map[string]string `json:"props"`
	Body            json.RawMessage   `json:"body"`
	Text            string            `json:"text"`
	BodyBase64      []byte            `json:"body_base64"`
	ContentType     string            `json:"content_type"`
	ContentEncoding string            `json:"content_encoding"`
}

// elements takes a message of the hub apart.
func elements(t testing.TB, m hubtest.Message) (all []element) {
	t.Helper()
	body := m.Body
	if m.Properties["$.ce"] == "gzip" {
		body = must(io.ReadAll(must(gzip.NewReader(bytes.NewReader(body)))))
	}
	switch m.Properties["$.ct"] {
	case "application/json":
		if err := json.Unmarshal(body, &all); err != nil {
			t.Fatalf("%v: %s", err, body)
		}
	case "application/x-ndjson":
		for line := range bytes.Lines(body) {
			var e element
			if err := json.Unmarshal(line, &e); err != nil {
				t.Fatalf("%v: %s", err, line)
			}
			all = append(all, e)
		}
	default:
		t.Fatalf("no pack: %v %s", m.Properties, m.Body)
	}
	return all
}

func (e element) number(t testing.TB) int {
	var b struct{ N int }
	if err := json.Unmarshal(e.Body, &b); err != nil {
		t.Fatalf("%v: %s", err, e.Body)
	}
	return b.N
}

// once checks that the readings 0 to n-1 arrived under one id each, whatever was sent
// how often, and that a message with the same id never had others. Those in without
// may be missing.
func (r *packRig) once(n int, without ...int) (packs int) {
	r.t.Helper()
	under := map[int]string{}
	members := map[string][]int{}
	for _, m := range r.hub.Messages() {
		var numbers []int
		all := elements(r.t, m)
		if created, err := time.Parse(time.RFC3339, m.Properties["$.ctime"]); err != nil || created.UnixMilli() != all[0].Time {
			r.t.Errorf("%s was created at %q, its first member at %d", m.ID, m.Properties["$.ctime"], all[0].Time)
		}
		for _, e := range all {
			i := e.number(r.t)
			numbers = append(numbers, i)
			if id, known := under[i]; known && id != m.ID {
				r.t.Errorf("reading %d came under %s and %s", i, id, m.ID)
			}
			under[i] = m.ID
			if e.Time == 0 || e.Properties["sensor"] != "17" {
				r.t.Errorf("element without its time or properties: %+v", e)
			}
		}
		if was, known := members[m.ID]; known && !slices.Equal(was, numbers) {
			r.t.Errorf("%s had %v, then %v", m.ID, was, numbers)
		}
		if !slices.IsSorted(numbers) {
			r.t.Errorf("out of order: %v", numbers)
		}
		members[m.ID] = numbers
		if got := billed(m); got > fourKiB {
			r.t.Errorf("%s is %d bytes", m.ID, got)
		}
	}
	for i := range n {
		if under[i] == "" && !slices.Contains(without, i) {
			r.t.Errorf("reading %d is missing", i)
		}
	}
	return len(members)
}

// billed is what the hub counts of a message.
func billed(m hubtest.Message) int {
	n := len(m.Body)
	for k, v := range m.Properties {
		if n += len(v); !strings.HasPrefix(k, "$") {
			n += len(k)
		}
	}
	return n
}

func TestReadingsTravelPacked(t *testing.T) {
	r := newPackRig(t, hubtest.Options{})
	const n = 500
	all := readings(0, n)
	for i := range all {
		all[i].Pack.MaxDelay = time.Second
	}
	r.put(all...)
	r.begin()
	r.empty()
	packs := r.once(n)
	if packs > n/25 {
		t.Errorf("%d readings of 100 bytes in %d messages of 4 KiB, want at least 25 in each", n, packs)
	}
	m := r.hub.Messages()[0]
	if m.Properties["sensor"] != "17" || m.Properties["$.ce"] != "utf-8" || m.Properties["$.ct"] != "application/json" {
		t.Errorf("what all members share is not on the message: %v", m.Properties)
	}
	if st := r.s.Status(); st.Delivered != n {
		t.Errorf("%d delivered, want readings to be counted: %d", st.Delivered, n)
	}
	r.strict()
}

func TestReadingAloneGoesAfterMaxDelay(t *testing.T) {
	r := newPackRig(t, hubtest.Options{})
	r.begin()
	r.connected()
	m := reading(0)
	m.Pack.MaxDelay = 300 * time.Millisecond
	start := time.Now()
	r.put(m)
	r.empty()
	if took := time.Since(start); took < 300*time.Millisecond || took > 5*time.Second {
		t.Errorf("a reading alone went after %v, want 300ms", took)
	}
	got := r.hub.Messages()
	if len(got) != 1 || len(elements(t, got[0])) != 1 || !strings.HasSuffix(got[0].ID, ".1") {
		t.Errorf("got %d messages, first %s %s", len(got), got[0].ID, got[0].Body)
	}
}

// TestPackIsTheSameWhenSentAgain withholds every PUBACK, ends the process' part in
// all of it, adds readings that would have fitted in, and begins again from the disk.
func TestPackIsTheSameWhenSentAgain(t *testing.T) {
	r := newPackRig(t, hubtest.Options{})
	r.cfg.Timing.Drain = time.Millisecond
	dir := t.TempDir()
	r.close()
	r.open(dir)
	r.hub.WithholdPuback(-1)
	n := 0
	for round := range 4 {
		r.put(readings(n, n+40)...)
		n += 40
		before := r.hub.Counters("").Messages
		r.begin()
		r.await("packs at the hub", 30*time.Second, func() bool { return r.hub.Counters("").Messages >= before+uint64(2*(round+1)) })
		r.put(reading(n)) // on its own, after max_delay
		n++
		r.await("the last reading at the hub", 30*time.Second, func() bool {
			return slices.ContainsFunc(r.hub.Messages(), func(m hubtest.Message) bool {
				return slices.ContainsFunc(elements(t, m), func(e element) bool { return e.number(t) == n-1 })
			})
		})
		r.close()
		r.end = nil
		r.open(dir)
	}
	r.hub.WithholdPuback(0)
	r.begin()
	r.empty()
	r.once(n)
	r.strict()
}

func TestOnlyTheBadReadingOfAPackIsSetAside(t *testing.T) {
	r := newPackRig(t, hubtest.Options{})
	r.hub.Judge(func(m hubtest.Message) hubtest.Fate {
		if bytes.Contains(m.Body, []byte(`"n":33,`)) {
			return hubtest.Cut
		}
		return hubtest.Keep
	})
	const n = 100
	r.put(readings(0, n)...)
	r.begin()
	r.empty()
	r.once(n, 33)
	st := r.q.Stats()
	if st.Aside != 1 || r.s.Status().SetAside != 1 {
		t.Errorf("%d readings set aside, want the bad one: %+v", st.Aside, r.s.Status())
	}
}

func TestPacksKeepTheirKindsApart(t *testing.T) {
	r := newPackRig(t, hubtest.Options{})
	var all []queue.Message
	for i := range 60 {
		m := reading(i)
		switch i % 6 {
		case 1:
			m.Route = "routes[1]"
		case 2:
			m.Priority = 3
		case 3:
			m.ContentType = "application/vnd.x+json"
			m.Route = "routes[2]"
		case 4:
			m.Pack.Lines, m.Route = true, "routes[3]"
		case 5:
			m.Pack.Gzip, m.Route = true, "routes[4]"
		}
		m.Properties = append(m.Properties, queue.Property{Key: "kind", Value: fmt.Sprint(i % 6)})
		all = append(all, m)
	}
	r.put(all...)
	r.begin()
	r.empty()
	r.once(60)
	seen := map[string]bool{}
	for _, m := range r.hub.Messages() {
		kind := m.Properties["kind"]
		for _, e := range elements(t, m) {
			if e.Properties["kind"] != kind {
				t.Errorf("kind %s in a pack of %q", e.Properties["kind"], kind)
			}
		}
		seen[kind] = true
		if gz := m.Properties["$.ce"] == "gzip"; gz != (kind == "5") {
			t.Errorf("kind %s has encoding %s", kind, m.Properties["$.ce"])
		}
		if lines := m.Properties["$.ct"] == "application/x-ndjson"; lines != (kind == "4") {
			t.Errorf("kind %s has type %s", kind, m.Properties["$.ct"])
		}
	}
	if len(seen) != 6 {
		t.Errorf("kinds %v, want all", seen)
	}
}

func TestAReadingTooLargeForAPackTravelsAlone(t *testing.T) {
	r := newPackRig(t, hubtest.Options{})
	m := reading(0)
	m.Payload, m.ContentType, m.ContentEncoding = bytes.Repeat([]byte{0xff}, 250<<10), "", ""
	m.Pack.MaxBytes = 256 << 10
	small := reading(1)
	small.Pack.MaxBytes = 256 << 10
	big := reading(2)
	big.Payload = []byte(`{"n":2,"x":"` + strings.Repeat("y", 10<<10) + `"}`)
	r.put(m, small, big)
	r.begin()
	r.empty()
	got := r.hub.Messages()
	if len(got) != 3 || r.q.Stats().Aside != 0 {
		t.Fatalf("%d messages, %d set aside", len(got), r.q.Stats().Aside)
	}
	for _, m := range got {
		switch {
		case len(m.Body) == 250<<10:
		case len(elements(t, m)) != 1:
			t.Errorf("%d bytes: not a pack of one", len(m.Body))
		}
	}
	r.strict()
}

// failingLog is a disk that takes no records.
type failingLog struct{ endless }

func (failingLog) Append(context.Context, queue.Message, func(uint64, error)) error {
	return queue.ErrDisk
}

func (f *failingLog) newReader() reader { return f }

// A disk in trouble keeps nobody from draining the queue, and what is sent again on
// another connection is still the same.
func TestPacksAreSentAlthoughTheyCannotBeWrittenDown(t *testing.T) {
	r := newPackRig(t, hubtest.Options{})
	var seen atomic.Int64
	r.hub.Judge(func(hubtest.Message) hubtest.Fate {
		if seen.Add(1)%3 == 0 {
			return hubtest.KeepAndCut
		}
		return hubtest.Keep
	})
	const n = 200
	r.put(readings(0, n)...)
	r.s = NewSession(r.cfg, r.q, r.store, r.pacer, zap.NewNop())
	r.s.openPacks = func() (boundaries, error) { return &failingLog{}, nil }
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = r.s.Run(ctx) })
	r.end = sync.OnceFunc(func() { cancel(); wg.Wait() })
	r.empty()
	r.once(n)
}

// A queue that was dropped leaves numbers behind that are given out again.
func TestRecordsOfADroppedQueueCountForNothing(t *testing.T) {
	r := newPackRig(t, hubtest.Options{})
	packs := must(r.cfg.Packs())
	old := &pack{seqs: []uint64{1, 2, 3}, id: "0123456789abcdef-1-1.3"}
	if _, err := packs.AppendWait(t.Context(), queue.Message{Payload: appendRecord(nil, old)}); err != nil {
		t.Fatal(err)
	}
	r.put(readings(0, 10)...)
	r.begin()
	r.empty()
	r.once(10)
	for _, m := range r.hub.Messages() {
		if m.ID == old.id {
			t.Error("new readings came under the id of a pack that was sent long ago")
		}
	}
}

// What is packed and waits for room is let go of while there is no connection: the
// readings are on disk.
func TestPacksTakeNoMemoryInAnOutage(t *testing.T) {
	r := newPackRig(t, hubtest.Options{})
	r.hub.WithholdPuback(-1)
	r.cfg.Window, r.cfg.Timing.Drain = 1, time.Millisecond
	r.put(readings(0, 2000)...)
	r.begin()
	r.await("a pack in flight", 20*time.Second, func() bool { return r.s.Status().InFlight == 1 && len(r.hub.Messages()) == 1 })
	r.end()
	ps := r.s.packs
	if ps == nil || len(ps.of) < 2*len(elements(t, r.hub.Messages()[0])) {
		t.Fatal("nothing was packed ahead")
	}
	for _, p := range ps.of {
		if p.body != nil || p.first.Topic != "" {
			t.Fatal("a pack is still in memory")
		}
	}
	if len(ps.open) > 0 || len(ps.closed) > 0 || ps.bytes != 0 {
		t.Errorf("%d open packs, %d closed, %d bytes", len(ps.open), len(ps.closed), ps.bytes)
	}
}

func TestCompressedPacksShareAWriter(t *testing.T) {
	const n = 64
	var writers sync.Pool
	var before, after runtime.MemStats
	p := &pack{seqs: []uint64{1}, id: "m.1"}
	m := reading(1)
	m.Pack.Gzip = true
	runtime.ReadMemStats(&before)
	for range n {
		p.forget()
		p.add(&m, bytes.Repeat([]byte("x"), fourKiB))
		out, err := p.message(&writers)
		if err != nil || out.ContentEncoding != "gzip" {
			t.Fatal(out.ContentEncoding, err)
		}
		in := must(gzip.NewReader(bytes.NewReader(out.Payload)))
		if got := must(io.ReadAll(in)); len(got) != fourKiB+2 {
			t.Fatalf("%d bytes came out", len(got))
		}
	}
	runtime.ReadMemStats(&after)
	if each := (after.TotalAlloc - before.TotalAlloc) / n; each > 400<<10 {
		t.Errorf("%d bytes for each pack", each)
	}
}
