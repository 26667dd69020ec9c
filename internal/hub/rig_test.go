package hub

import (
	"context"
	"crypto/x509"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"gatewayd/internal/certstore"
	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/hub/hubtest"
	"gatewayd/internal/queue"
)

// memoryBox is a queue in memory: priorities left out, everything else as the
// journal does it.
type memoryBox struct {
	ready chan struct{}

	mu    sync.Mutex
	all   []queue.Message // index = seq - 1
	gone  []bool
	first int // index of the oldest that waits
	acks  []uint64
	aside map[uint64]string
	ackAt []time.Time
}

func newBox() *memoryBox {
	return &memoryBox{ready: make(chan struct{}, 1), aside: map[uint64]string{}}
}

func (b *memoryBox) put(ms ...queue.Message) {
	b.mu.Lock()
	for _, m := range ms {
		m.Seq = uint64(len(b.all) + 1)
		m.ID = fmt.Sprintf("m-%d", m.Seq)
		if m.Accepted.IsZero() {
			m.Accepted, m.AcceptedTrusted = time.Now(), true
		}
		b.all, b.gone = append(b.all, m), append(b.gone, false)
	}
	b.mu.Unlock()
	poke(b.ready)
}

func (b *memoryBox) text(bodies ...string) {
	for _, s := range bodies {
		b.put(queue.Message{Payload: []byte(s)})
	}
}

func (b *memoryBox) Ready() <-chan struct{} { return b.ready }

func (b *memoryBox) Ack(seq uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.acks = append(b.acks, seq)
	b.ackAt = append(b.ackAt, time.Now())
	b.goneLocked(seq)
}

func (b *memoryBox) goneLocked(seq uint64) {
	b.gone[seq-1] = true
	for b.first < len(b.gone) && b.gone[b.first] {
		b.first++
	}
}

func (b *memoryBox) SetAside(seq uint64, reason string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.aside[seq] = reason
	b.goneLocked(seq)
	return nil
}

func (b *memoryBox) newReader() reader {
	b.mu.Lock()
	defer b.mu.Unlock()
	return &memoryReader{b: b, next: b.first}
}

func (b *memoryBox) acked() []uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.acks)
}

func (b *memoryBox) waiting() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, g := range b.gone {
		if !g {
			n++
		}
	}
	return n
}

// longestSilence is the longest time without an acknowledgement from the first to
// the last.
func (b *memoryBox) longestSilence() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	var longest time.Duration
	for i := 1; i < len(b.ackAt); i++ {
		longest = max(longest, b.ackAt[i].Sub(b.ackAt[i-1]))
	}
	return longest
}

type memoryReader struct {
	b    *memoryBox
	next int
}

func (r *memoryReader) Next() (queue.Message, bool, error) {
	r.b.mu.Lock()
	defer r.b.mu.Unlock()
	for r.next < len(r.b.all) {
		r.next++
		if !r.b.gone[r.next-1] {
			return r.b.all[r.next-1], true, nil
		}
	}
	return queue.Message{}, false, nil
}

// memoryStore is a certificate store without files. Like the real one it withholds
// a candidate that missed.
type memoryStore struct {
	changed chan struct{}

	mu                 sync.Mutex
	current, candidate *certstore.Credential
	missed             map[string]string // fingerprint → reason
	commits            []string
	gaps               []time.Duration
	noVerdicts         int
}

func newStore(current *certstore.Credential) *memoryStore {
	return &memoryStore{changed: make(chan struct{}, 1), current: current, missed: map[string]string{}}
}

func (s *memoryStore) Changed() <-chan struct{} { return s.changed }

func (s *memoryStore) Current() *certstore.Credential {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current
}

func (s *memoryStore) Candidate() *certstore.Credential {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.candidate == nil || same(s.candidate, s.current) || s.missed[s.candidate.Fingerprint()] != "" {
		return nil
	}
	return s.candidate
}

func (s *memoryStore) offer(c *certstore.Credential) {
	s.mu.Lock()
	s.candidate = c
	delete(s.missed, c.Fingerprint())
	s.mu.Unlock()
	poke(s.changed)
}

func (s *memoryStore) Commit(c *certstore.Credential, gap time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.commits) > 0 && same(c, s.current) {
		return
	}
	s.current = c
	s.commits = append(s.commits, c.Fingerprint())
	s.gaps = append(s.gaps, gap)
}

func (s *memoryStore) Miss(c *certstore.Credential, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.missed[c.Fingerprint()] = reason
}

func (s *memoryStore) NoVerdict(*certstore.Credential, string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noVerdicts++
}

func (s *memoryStore) missReason(c *certstore.Credential) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.missed[c.Fingerprint()]
}

// rig is one identity's session with a stand-in hub.
type rig struct {
	t     testing.TB
	ca    *certtest.CA
	hub   *hubtest.Hub
	box   *memoryBox
	store *memoryStore
	cfg   Config
	s     *Session
	pacer *Pacer
	logs  *observer.ObservedLogs
	stop  func()
}

// newRig starts a hub with one device, dev-1, and prepares a session for it with a
// good certificate. With a pipe everything works inside a synctest bubble.
func newRig(t testing.TB, pipe bool, opt hubtest.Options) *rig {
	t.Helper()
	ca := must(certtest.NewCA("fleet"))
	r := &rig{t: t, ca: ca, box: newBox(), pacer: NewPacer(Pace{Connects: 1000})}
	r.cfg = Config{Identity: Identity{Name: "dev-1", HostName: hubtest.DefaultHostName, DeviceID: "dev-1"}, Product: "gatewayd test/1"}
	opt.ClientCAs = append(opt.ClientCAs, ca.Cert)
	if pipe {
		l := hubtest.NewPipeListener()
		opt.Listener, r.cfg.DialContext = l, l.DialContext
	}
	r.hub = hubtest.Start(t, opt)
	r.cfg.Roots = func() *x509.CertPool { return r.hub.ServerPool() }
	if !pipe {
		r.cfg.Address = r.hub.Addr()
	}
	if err := r.hub.AddDevice(hubtest.Device{DeviceID: "dev-1"}); err != nil {
		t.Fatal(err)
	}
	r.store = newStore(r.issue(certtest.Leaf{}))
	return r
}

// issue makes a credential of the rig's own CA.
func (r *rig) issue(l certtest.Leaf) *certstore.Credential {
	r.t.Helper()
	return issue(r.t, r.ca, l)
}

func issue(t testing.TB, ca *certtest.CA, l certtest.Leaf) *certstore.Credential {
	t.Helper()
	if l.CN == "" {
		l.CN = "dev-1"
	}
	p := must(ca.Issue(l))
	c, err := certstore.Parse(p.CertPEM, p.KeyPEM, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// start runs the session until the test ends or stop is called.
func (r *rig) start() {
	r.t.Helper()
	core, logs := observer.New(zap.InfoLevel)
	r.logs = logs
	r.s = newSession(r.cfg, r.box, r.store, r.pacer, zap.New(core))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := r.s.Run(ctx); err != nil {
			r.t.Error("Run:", err)
		}
	}()
	r.stop = func() {
		cancel()
		<-done
	}
	r.t.Cleanup(r.stop)
}

// await waits until cond holds; a bubble's time jumps, real time is polled.
func (r *rig) await(what string, limit time.Duration, cond func() bool) {
	r.t.Helper()
	for end := time.Now().Add(limit); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			st := r.s.Status()
			r.t.Fatalf("not within %s: %s; status %+v fault %v trial fault %v", limit, what, st, st.Fault, st.TrialFault)
		}
	}
}

func (r *rig) connected() {
	r.t.Helper()
	r.await("connected", 30*time.Second, func() bool { return r.s.Status().State == StateConnected })
}

func (r *rig) drained() {
	r.t.Helper()
	r.await("queue drained", 5*time.Minute, func() bool { return r.box.waiting() == 0 })
}

// bodies are those that arrived at the hub, in order.
func (r *rig) bodies() []string {
	var out []string
	for _, m := range r.hub.Messages() {
		out = append(out, string(m.Body))
	}
	return out
}

// strict fails the test if the hub saw anything that the real one forbids.
func (r *rig) strict() {
	r.t.Helper()
	if v := r.hub.Violations(); len(v) > 0 {
		r.t.Errorf("the hub saw %d violations, first %+v", len(v), v[0])
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func numbered(from, to int) []string {
	var out []string
	for i := from; i < to; i++ {
		out = append(out, fmt.Sprint(i))
	}
	return out
}

func leaf(cn string) certtest.Leaf { return certtest.Leaf{CN: cn} }

// long allows the tests that take minutes and hundreds of connections.
var long = os.Getenv("GATEWAYD_LONG") != ""
