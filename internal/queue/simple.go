package queue

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

type entry struct {
	Queue    string
	Instance string
	Kind     byte
	M        Message
	Seq      uint64
	Reason   string
}

type waiting struct {
	e    entry
	q    *Queue
	done func(uint64, error)
}

// Journal stores the queues of all identities.
type Journal struct {
	o        Options
	f, lock  *os.File
	instance string
	wake     chan struct{}

	mu      sync.Mutex
	queues  map[string]*Queue
	pending []waiting
	closed  bool
	stats   JournalStats
}

// Queue is one identity's queue.
type Queue struct {
	j     *Journal
	name  string
	ready chan struct{}

	limits Limits
	next   uint64
	msgs   []Message
	aside  []AsideMessage
	bytes  int64
	acked  uint64
	drops  map[string]uint64
}

// Reader reads a queue in order.
type Reader struct {
	q    *Queue
	last [MaxPriority + 1]uint64
}

// Open opens or creates a journal.
func Open(o Options) (*Journal, error) {
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, err
	}
	j := &Journal{o: o, queues: map[string]*Queue{}, wake: make(chan struct{}, 1)}
	b := make([]byte, 8)
	rand.Read(b)
	j.instance = hex.EncodeToString(b)
	var err error
	if !o.ReadOnly {
		if j.lock, err = os.OpenFile(filepath.Join(o.Dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
			return nil, err
		}
		if err := unix.Flock(int(j.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			j.lock.Close()
			return nil, ErrLocked
		}
	}
	if j.f, err = os.OpenFile(filepath.Join(o.Dir, "simple.log"), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return nil, err
	}
	return j, j.recover()
}

func (j *Journal) recover() error {
	r := bufio.NewReader(j.f)
	var off int64
	var h [8]byte
	for {
		if _, err := io.ReadFull(r, h[:]); err != nil {
			break
		}
		b := make([]byte, binary.LittleEndian.Uint32(h[:]))
		if _, err := io.ReadFull(r, b); err != nil || crc32.ChecksumIEEE(b) != binary.LittleEndian.Uint32(h[4:]) {
			break
		}
		var e entry
		if err := json.Unmarshal(b, &e); err != nil {
			break
		}
		off += int64(8 + len(b))
		j.apply(j.get(e.Queue), e)
	}
	if err := j.f.Truncate(off); err != nil {
		return err
	}
	_, err := j.f.Seek(off, 0)
	return err
}

func (j *Journal) get(name string) *Queue {
	q := j.queues[name]
	if q == nil {
		q = &Queue{j: j, name: name, ready: make(chan struct{}, 1), drops: map[string]uint64{}, next: 1}
		j.queues[name] = q
	}
	return q
}

func (j *Journal) apply(q *Queue, e entry) {
	switch e.Kind {
	case 'm':
		e.M.Seq = e.Seq
		e.M.ID = e.Instance + "-" + strconv.FormatUint(e.Seq, 36) + "-" + hex.EncodeToString([]byte(e.Queue))
		if len(e.M.ID) > 64 {
			e.M.ID = e.M.ID[:64]
		}
		q.next = max(q.next, e.Seq+1)
		q.msgs = append(q.msgs, e.M)
		q.bytes += int64(e.M.size())
	case 'a':
		q.remove(e.Seq)
	case 's':
		if m, ok := q.remove(e.Seq); ok {
			q.aside = append(q.aside, AsideMessage{m, e.Reason})
		}
	case 'r':
		for i, a := range q.aside {
			if a.Seq == e.Seq {
				q.aside = slices.Delete(q.aside, i, i+1)
				q.msgs = append(q.msgs, a.Message)
				slices.SortFunc(q.msgs, func(a, b Message) int { return int(a.Seq) - int(b.Seq) })
				break
			}
		}
	}
}

func (q *Queue) remove(seq uint64) (Message, bool) {
	i, ok := slices.BinarySearchFunc(q.msgs, seq, func(m Message, s uint64) int {
		if m.Seq < s {
			return -1
		} else if m.Seq > s {
			return 1
		}
		return 0
	})
	if !ok {
		return Message{}, false
	}
	m := q.msgs[i]
	q.msgs = slices.Delete(q.msgs, i, i+1)
	q.bytes -= int64(m.size())
	return m, true
}

// Run is the writer; it returns after ctx ends and everything pending is synced.
func (j *Journal) Run(ctx context.Context) error {
	t := time.NewTicker(200 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			j.mu.Lock()
			j.closed = true
			j.mu.Unlock()
			j.flush()
			return nil
		case <-j.wake:
		case <-t.C:
		}
		j.flush()
	}
}

func (j *Journal) flush() {
	j.mu.Lock()
	w := j.pending
	j.pending = nil
	j.mu.Unlock()
	if len(w) == 0 {
		return
	}
	var buf []byte
	for i := range w {
		b, _ := json.Marshal(w[i].e)
		buf = binary.LittleEndian.AppendUint32(buf, uint32(len(b)))
		buf = binary.LittleEndian.AppendUint32(buf, crc32.ChecksumIEEE(b))
		buf = append(buf, b...)
	}
	t := time.Now()
	_, err := j.f.Write(buf)
	if err == nil {
		err = j.f.Sync()
	}
	if j.o.ObserveSync != nil {
		j.o.ObserveSync(time.Since(t))
	}
	j.mu.Lock()
	j.stats.Syncs++
	j.stats.DiskWritten += uint64(len(buf))
	if err == nil {
		for i := range w {
			if w[i].e.Kind == 'm' {
				j.apply(w[i].q, w[i].e)
			}
		}
	}
	j.mu.Unlock()
	for i := range w {
		if w[i].done != nil {
			w[i].done(w[i].e.Seq, err)
		}
		w[i].q.poke()
	}
}

func (q *Queue) poke() {
	select {
	case q.ready <- struct{}{}:
	default:
	}
}

// Close releases the folder; call it after Run has returned.
func (j *Journal) Close() error {
	j.mu.Lock()
	j.closed = true
	j.mu.Unlock()
	err := j.f.Close()
	if j.lock != nil {
		err = errors.Join(err, j.lock.Close())
	}
	return err
}

// Queue opens or creates an identity's queue.
func (j *Journal) Queue(identity string, l Limits) (*Queue, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	q := j.get(identity)
	q.limits = l
	return q, nil
}

// Identities lists all that have state on disk.
func (j *Journal) Identities() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	var names []string
	for n := range j.queues {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// Drop forgets a removed identity's queue.
func (j *Journal) Drop(identity string) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.queues, identity)
	return nil
}

// Stats describe the journal.
func (j *Journal) Stats() JournalStats {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.stats
}

func (j *Journal) put(w waiting) {
	j.pending = append(j.pending, w)
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// Append accepts a message for writing.
func (q *Queue) Append(ctx context.Context, m Message, done func(seq uint64, err error)) error {
	if m.size() > MaxMessageBytes {
		return ErrTooLarge
	}
	m.Payload = slices.Clone(m.Payload)
	m.Properties = slices.Clone(m.Properties)
	q.j.mu.Lock()
	defer q.j.mu.Unlock()
	if q.j.closed {
		return ErrClosed
	}
	if q.limits.MaxBytes > 0 && q.bytes+int64(m.size()) > q.limits.MaxBytes {
		if q.limits.WhenFull == Refuse {
			return ErrFull
		}
		for len(q.msgs) > 0 && q.bytes+int64(m.size()) > q.limits.MaxBytes {
			q.remove(q.msgs[0].Seq)
			q.drops[DropSize]++
		}
	}
	m.Accepted, m.AcceptedTrusted = time.Now().UTC().Truncate(time.Millisecond), true
	if q.j.o.Clock != nil {
		m.Accepted, m.AcceptedTrusted = q.j.o.Clock.Now()
	}
	seq := q.next
	q.next++
	q.j.put(waiting{entry{Queue: q.name, Instance: q.j.instance, Kind: 'm', M: m, Seq: seq}, q, done})
	return nil
}

// AppendWait appends and waits for the sync.
func (q *Queue) AppendWait(ctx context.Context, m Message) (uint64, error) {
	type result struct {
		seq uint64
		err error
	}
	c := make(chan result, 1)
	if err := q.Append(ctx, m, func(seq uint64, err error) { c <- result{seq, err} }); err != nil {
		return 0, err
	}
	select {
	case r := <-c:
		return r.seq, r.err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// Reader starts at the oldest unacknowledged message of the highest priority.
func (q *Queue) Reader() *Reader { return &Reader{q: q} }

// Next returns the next message; ok is false when there is nothing now.
func (r *Reader) Next() (Message, bool, error) {
	r.q.j.mu.Lock()
	defer r.q.j.mu.Unlock()
	for p := MaxPriority; p >= 0; p-- {
		for _, m := range r.q.msgs {
			if int(m.Priority) == p && m.Seq > r.last[p] {
				r.last[p] = m.Seq
				return m, true, nil
			}
		}
	}
	return Message{}, false, nil
}

// Ready says "look again".
func (q *Queue) Ready() <-chan struct{} { return q.ready }

// Ack acknowledges a message.
func (q *Queue) Ack(seq uint64) {
	q.j.mu.Lock()
	defer q.j.mu.Unlock()
	if _, ok := q.remove(seq); ok {
		q.acked++
		q.j.pending = append(q.j.pending, waiting{entry{Queue: q.name, Kind: 'a', Seq: seq}, q, nil})
	}
}

func (q *Queue) control(kind byte, seq uint64, reason string) error {
	c := make(chan error, 1)
	q.j.mu.Lock()
	e := entry{Queue: q.name, Kind: kind, Seq: seq, Reason: reason}
	q.j.apply(q, e)
	q.j.put(waiting{e, q, func(_ uint64, err error) { c <- err }})
	q.j.mu.Unlock()
	return <-c
}

// SetAside takes a message out of the way and keeps it.
func (q *Queue) SetAside(seq uint64, reason string) error { return q.control('s', seq, reason) }

// Requeue puts a message that was set aside back.
func (q *Queue) Requeue(seq uint64) error { return q.control('r', seq, "") }

// Aside lists what was set aside.
func (q *Queue) Aside() ([]AsideMessage, error) {
	q.j.mu.Lock()
	defer q.j.mu.Unlock()
	return slices.Clone(q.aside), nil
}

// Stats describe the queue.
func (q *Queue) Stats() Stats {
	q.j.mu.Lock()
	defer q.j.mu.Unlock()
	s := Stats{Messages: int64(len(q.msgs)), Bytes: q.bytes, Appended: q.next - 1, Acked: q.acked, Dropped: map[string]uint64{}, Aside: int64(len(q.aside)), NextSeq: q.next}
	for k, v := range q.drops {
		s.Dropped[k] = v
	}
	if len(q.msgs) > 0 {
		s.OldestAge = time.Since(q.msgs[0].Accepted)
	}
	return s
}
