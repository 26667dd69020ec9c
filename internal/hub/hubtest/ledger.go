package hubtest

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Message is one telemetry message that the hub accepted.
type Message struct {
	Index       int // arrival order over all identities, from 0
	Identity    string
	Topic       string
	Properties  map[string]string // decoded, system properties under their wire names such as $.mid
	ID          string            // the property $.mid
	Body        []byte
	Time        time.Time
	Conn        uint64 // Connection.Number
	Serial      string // of the certificate that brought it, hex
	Fingerprint string // SHA-256 of that certificate, upper-case hex
	QoS         byte
	Dup         bool // the packet's flag
	Will        bool // published by the hub for a connection that broke
}

// Counters are totals of one identity or of all.
type Counters struct {
	Messages uint64 // accepted into the ledger, duplicates included
	Bytes    uint64 // of their bodies
	Dups     uint64 // packets with the DUP flag
	Acked    uint64 // PUBACKs handed to the connection
	Rejected uint64 // publishes not accepted: quota, throttle, a hook's decision
	Connects uint64 // CONNACK 0
	Refused  uint64 // connects of this identity that were turned away
}

func (c *counters) read() Counters {
	return Counters{
		Messages: c.messages.Load(), Bytes: c.bytes.Load(), Dups: c.dups.Load(), Acked: c.acked.Load(),
		Rejected: c.rejected.Load(), Connects: c.connects.Load(), Refused: c.refused.Load(),
	}
}

// ledger is what arrived, in order.
type ledger struct {
	mode LedgerMode

	mu       sync.Mutex
	messages []Message
	breaches []Violation
	changed  chan struct{} // closed and forgotten at the next change; nil when nobody waits

	waiters atomic.Int32
}

// Messages returns the accepted telemetry in arrival order. The result is a copy, bodies are shared and must
// not be changed. It is empty with [CountOnly].
func (h *Hub) Messages() []Message {
	h.ledger.mu.Lock()
	defer h.ledger.mu.Unlock()
	return slices.Clone(h.ledger.messages)
}

// Ledger is another word for Messages.
func (h *Hub) Ledger() []Message { return h.Messages() }

// MessagesOf returns the accepted telemetry of one identity in arrival order.
func (h *Hub) MessagesOf(identity string) []Message {
	h.ledger.mu.Lock()
	defer h.ledger.mu.Unlock()
	var out []Message
	for _, m := range h.ledger.messages {
		if m.Identity == identity {
			out = append(out, m)
		}
	}
	return out
}

// ResetLedger forgets messages and violations; counters go on.
func (h *Hub) ResetLedger() {
	h.ledger.mu.Lock()
	defer h.ledger.mu.Unlock()
	h.ledger.messages, h.ledger.breaches = nil, nil
}

// Counters returns the totals of one identity, or of all registered ones for "". It takes no lock that a
// busy connection needs.
func (h *Hub) Counters(identity string) Counters {
	if identity != "" {
		id, err := h.identity(identity)
		if err != nil {
			return Counters{}
		}
		return id.count.read()
	}
	var sum Counters
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, id := range h.devices {
		c := id.count.read()
		sum.Messages += c.Messages
		sum.Bytes += c.Bytes
		sum.Dups += c.Dups
		sum.Acked += c.Acked
		sum.Rejected += c.Rejected
		sum.Connects += c.Connects
		sum.Refused += c.Refused
	}
	return sum
}

// Wait blocks until cond is true, looking again whenever anything happened at the hub. It returns ctx's error
// when that ends first. cond runs without locks and may call any method of the hub.
func (h *Hub) Wait(ctx context.Context, cond func() bool) error {
	h.ledger.waiters.Add(1)
	defer h.ledger.waiters.Add(-1)
	for {
		changed := h.ledger.watch()
		if cond() {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// WaitMessages blocks until n messages of an identity ("" for all) have been accepted since the hub started.
func (h *Hub) WaitMessages(ctx context.Context, identity string, n int) error {
	return h.Wait(ctx, func() bool { return h.Counters(identity).Messages >= uint64(n) })
}

// WaitConnected blocks until the identity has a live connection.
func (h *Hub) WaitConnected(ctx context.Context, identity string) error {
	return h.Wait(ctx, func() bool { return h.Connected(identity) })
}

func (l *ledger) watch() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	return l.changed
}

// touch wakes waiters; it costs one load when there are none.
func (l *ledger) touch() {
	if l.waiters.Load() == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// add keeps a message, unless the connection that brought it is over: behind what its successor brought, it would look
// like a disorder that the client did not make.
func (l *ledger) add(m *Message, over *atomic.Bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if over.Load() {
		return false
	}
	m.Index = len(l.messages)
	l.messages = append(l.messages, *m)
	return true
}

// Violation is a rule that a client broke, whether or not the connection was closed for it.
type Violation struct {
	// Row is the number of the rule in this package's table of rules, see the package documentation.
	Row      int
	Identity string
	Conn     uint64
	Detail   string
	Closed   bool
	Time     time.Time
}

// Violations returns the rules that clients broke, in order. A test of a well-behaved client wants none.
func (h *Hub) Violations() []Violation {
	h.ledger.mu.Lock()
	defer h.ledger.mu.Unlock()
	return slices.Clone(h.ledger.breaches)
}

func (l *ledger) breach(v Violation) {
	l.mu.Lock()
	l.breaches = append(l.breaches, v)
	l.mu.Unlock()
	l.touch()
}
