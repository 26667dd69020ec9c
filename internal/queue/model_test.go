package queue

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// tester is what a test and rapid have in common.
type tester interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

// world drives a journal without goroutines, so that every history is repeatable, beside a model of what must be true.
type world struct {
	t               tester
	fs              *memFS
	o               Options
	j               *Journal
	now             time.Time
	rnd             func(n int) int
	n               int
	qs              map[string]*modelQueue
	damaged         bool                     // on purpose
	roughly         bool                     // sizes are a guess
	hurry           bool                     // what cannot be read has been tried for long
	compacted, torn uint64                   // of the journals closed so far
	again           map[string]*modelMessage // acknowledged, by queue and sequence: damage may bring them back
	last            string                   // what was done last, for messages
}

type modelQueue struct {
	must   map[uint64]*modelMessage // durable and not gone: has to be there
	may    map[uint64]*modelMessage // acknowledged or dropped while its departure need not be on disk: may come again
	maybe  map[string]bool          // payloads whose append failed: may be there
	aside  map[uint64]*modelMessage // by first sequence
	maySet map[uint64]*modelMessage // set aside or put back while the outcome is unknown: in one of the two places
	top    uint64
}

type modelMessage struct {
	payload []byte
	id      string
	class   uint8
	orig    uint64
	topic   string
}

func newWorld(t tester, rnd func(int) int) *world {
	w := &world{t: t, fs: newMemFS(), rnd: rnd, qs: map[string]*modelQueue{}, now: time.Unix(1_800_000_000, 0)}
	w.o = Options{Dir: "/q", SegmentBytes: minSegment, PendingBytes: 1 << 20}
	return w
}

func (w *world) queue(name string) *modelQueue {
	m := w.qs[name]
	if m == nil {
		m = &modelQueue{must: map[uint64]*modelMessage{}, may: map[uint64]*modelMessage{}, maybe: map[string]bool{}, aside: map[uint64]*modelMessage{}, maySet: map[uint64]*modelMessage{}}
		w.qs[name] = m
	}
	return m
}

func (w *world) open() error {
	if w.j != nil {
		w.compacted += w.j.stats.Compacted
		w.torn += w.j.stats.Torn
	}
	j, err := open(w.o, w.fs)
	if err != nil {
		return err
	}
	w.j = j
	if n := j.stats.Damaged; n > 0 && !w.damaged {
		w.t.Fatalf("after %s: %d records are said to be damaged and nothing was", w.last, n)
	}
	return nil
}

func (w *world) mustOpen() {
	w.t.Helper()
	if err := w.open(); err != nil {
		w.t.Fatalf("open after %s: %v", w.last, err)
	}
}

// append appends n messages and commits them as one group or more.
func (w *world) append(name string, class uint8, n, size int) {
	q, err := w.j.Queue(name, Limits{})
	if err != nil {
		w.t.Fatal(err)
	}
	m := w.queue(name)
	for range n {
		w.n++
		p := fmt.Appendf(nil, "%s %d ", name, w.n)
		p = append(p, bytes.Repeat([]byte{byte(w.n)}, size)...)
		topic := fmt.Sprintf("sensors/%d", w.n%3)
		err := q.Append(context.Background(), Message{Topic: topic, ContentType: "application/json", Priority: class, Payload: p, Properties: []Property{{"n", fmt.Sprint(w.n)}}}, func(seq uint64, err error) {
			if err != nil {
				m.maybe[string(p)] = true
				return
			}
			if seq <= m.top {
				w.t.Fatalf("%s: sequence %d given twice, last was %d", name, seq, m.top)
			}
			m.top = seq
			m.must[seq] = &modelMessage{payload: p, class: class, orig: seq, topic: topic}
		})
		if err != nil && !errors.Is(err, ErrDisk) && !errors.Is(err, ErrFull) {
			w.t.Fatalf("append: %v", err)
		}
	}
	w.j.commit(false)
}

// ack acknowledges up to n messages as a reader sees them, leaving out some.
func (w *world) ack(name string, n int, gaps bool) {
	q, _ := w.j.Queue(name, Limits{})
	m := w.queue(name)
	r := q.Reader()
	for range n {
		x, ok, err := r.Next()
		if err != nil || !ok {
			return
		}
		if gaps && w.rnd(3) == 0 {
			continue
		}
		q.Ack(x.Seq)
		if mm := m.must[x.Seq]; mm != nil {
			delete(m.must, x.Seq)
			m.may[x.Seq] = mm
		}
	}
}

// setAside sets the head aside.
func (w *world) setAside(name string) {
	q, _ := w.j.Queue(name, Limits{})
	m := w.queue(name)
	x, ok, err := q.Reader().Next()
	if err != nil || !ok {
		return
	}
	done := make(chan error, 1)
	go func() { done <- q.SetAside(x.Seq, "kills the connection") }()
	err = w.await(done)
	mm := m.must[x.Seq]
	if mm == nil {
		if err == nil {
			orig := w.origOf(q, x.ID)
			m.aside[orig] = &modelMessage{payload: x.Payload, id: x.ID, class: x.Priority, orig: orig, topic: x.Topic}
			delete(m.may, x.Seq)
		}
		return
	}
	mm.id = x.ID
	delete(m.must, x.Seq)
	if err == nil {
		m.aside[mm.orig] = mm
		m.may[x.Seq] = nil
		delete(m.may, x.Seq)
	} else {
		m.maySet[mm.orig] = mm
	}
}

func (w *world) origOf(q *Queue, id string) uint64 {
	list, err := q.Aside()
	if err != nil {
		return 0
	}
	for _, a := range list {
		if a.ID == id {
			return a.Seq
		}
	}
	w.t.Fatalf("message %s was set aside and is not there", id)
	return 0
}

// await runs the writer until the operation in the other goroutine is done.
func (w *world) await(done chan error) error {
	for {
		select {
		case err := <-done:
			return err
		case <-w.j.wake:
			w.j.commit(false)
		case <-time.After(10 * time.Second):
			w.t.Fatal("the operation does not end")
		}
	}
}

func (w *world) requeue(name string) {
	q, _ := w.j.Queue(name, Limits{})
	m := w.queue(name)
	if len(m.aside) == 0 {
		return
	}
	seq := slices.Min(slices.Collect(maps.Keys(m.aside)))
	mm := m.aside[seq]
	next := q.Stats().NextSeq
	done := make(chan error, 1)
	go func() { done <- q.Requeue(seq) }()
	err := w.await(done)
	delete(m.aside, seq)
	if err != nil {
		m.maySet[seq] = mm
		return
	}
	m.top = max(m.top, next)
	m.must[next] = mm
}

func (w *world) chores() {
	w.j.index()
	w.j.recycle()
	w.j.prepare()
	w.j.compactWith(w.submit)
	w.j.recycle()
}

func (w *world) submit(c *control) error {
	var got error
	c.done = func(err error) { got = err }
	if err := w.j.submit(c); err != nil {
		return err
	}
	w.j.commit(false)
	return got
}

func (w *world) flush() {
	w.j.w.lastFlush = time.Time{}
	w.j.commit(false)
}

// close stops cleanly.
func (w *world) close() {
	w.j.commit(true)
	if w.j.w.f != nil {
		w.j.w.f.Close()
	}
	w.j.Close()
}

// check reads everything and compares it with the model. Outcomes that were open are settled by what is found.
func (w *world) check() {
	w.t.Helper()
	for _, name := range slices.Sorted(maps.Keys(w.qs)) {
		w.checkQueue(name, w.qs[name])
	}
}

func (w *world) checkQueue(name string, m *modelQueue) {
	w.t.Helper()
	q, err := w.j.Queue(name, Limits{})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, l := range q.lanes {
		for i := 1; l != nil && i < len(l.ext); i++ {
			if a, b := &l.ext[i-1], &l.ext[i]; b.first <= a.last() {
				w.t.Fatalf("%s after %s: %d to %d lies within %d to %d", name, w.last, b.first, b.last(), a.first, a.last())
			}
		}
	}
	asides, err := q.Aside()
	if err != nil {
		w.t.Fatalf("%s after %s: aside: %v", name, w.last, err)
	}
	for _, a := range asides {
		mm := m.aside[a.Seq]
		if mm == nil {
			mm = m.maySet[a.Seq]
			delete(m.maySet, a.Seq)
			m.aside[a.Seq] = mm
		}
		if mm == nil || !bytes.Equal(mm.payload, a.Payload) || a.ID != mm.id {
			w.t.Fatalf("%s after %s: message %d (%s) is aside, should be %v", name, w.last, a.Seq, a.ID, mm)
		}
	}
	if len(asides) != len(m.aside) || int64(len(asides)) != q.Stats().Aside {
		w.t.Fatalf("%s after %s: %d aside, counted %d, want %d", name, w.last, len(asides), q.Stats().Aside, len(m.aside))
	}
	r := q.Reader()
	var lastSeq uint64
	lastClass := MaxPriority
	seen := map[uint64]bool{}
	var n, bytesSum int64
	for {
		x, ok, err := r.Next()
		if err != nil {
			w.t.Fatalf("%s after %s: read: %v", name, w.last, err)
		}
		if !ok {
			break
		}
		n++
		bytesSum += int64(x.size())
		if int(x.Priority) != lastClass {
			if int(x.Priority) > lastClass {
				w.t.Fatalf("%s after %s: priority %d after %d", name, w.last, x.Priority, lastClass)
			}
			lastClass, lastSeq = int(x.Priority), 0
		}
		if x.Seq <= lastSeq || seen[x.Seq] {
			w.t.Fatalf("%s after %s: sequence %d after %d", name, w.last, x.Seq, lastSeq)
		}
		lastSeq = x.Seq
		seen[x.Seq] = true
		w.checkMessage(name, m, &x)
	}
	for _, seq := range slices.Sorted(maps.Keys(m.must)) {
		if !seen[seq] {
			w.t.Fatalf("%s after %s: message %d of %d is lost (%d read)", name, w.last, seq, m.top, n)
		}
	}
	for orig, mm := range m.maySet {
		w.t.Fatalf("%s after %s: message %d (%s) was being set aside or put back and is in neither place", name, w.last, orig, mm.id)
	}
	s := q.Stats()
	if s.Messages != n || s.Bytes != bytesSum && !w.roughly {
		w.t.Fatalf("%s after %s: stats say %d messages, %d bytes; read %d, %d", name, w.last, s.Messages, s.Bytes, n, bytesSum)
	}
}

func (w *world) checkMessage(name string, m *modelQueue, x *Message) {
	w.t.Helper()
	mm := m.must[x.Seq]
	if mm == nil {
		if mm = m.may[x.Seq]; mm != nil {
			m.must[x.Seq] = mm // it came again; from now on it has to stay
			delete(m.may, x.Seq)
		}
	}
	if mm == nil {
		for orig, s := range m.maySet {
			if bytes.Equal(s.payload, x.Payload) {
				mm = s
				delete(m.maySet, orig)
				m.must[x.Seq] = s
			}
		}
	}
	if mm == nil && m.maybe[string(x.Payload)] {
		mm = &modelMessage{payload: x.Payload, class: x.Priority, orig: x.Seq, topic: x.Topic}
		m.must[x.Seq] = mm
		delete(m.maybe, string(x.Payload))
		m.top = max(m.top, x.Seq)
	}
	if mm == nil {
		w.t.Fatalf("%s after %s: message %d was never appended: %.40q", name, w.last, x.Seq, x.Payload)
	}
	if !bytes.Equal(mm.payload, x.Payload) || mm.class != x.Priority || mm.topic != x.Topic || x.ContentType != "application/json" || len(x.Properties) != 1 {
		w.t.Fatalf("%s after %s: message %d came back changed", name, w.last, x.Seq)
	}
	if mm.id == "" {
		mm.id = x.ID
	}
	if mm.id != x.ID || len(x.ID) > 64 {
		w.t.Fatalf("%s after %s: message %d has id %s, had %s", name, w.last, x.Seq, x.ID, mm.id)
	}
}

// settleMay forgets acknowledged messages: after a clean stop they must not come back.
func (w *world) settleMay() {
	for _, m := range w.qs {
		clear(m.may)
	}
}
