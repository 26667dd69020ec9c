package hubtest

import (
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Fate is what becomes of one arriving message.
type Fate int

const (
	// Keep accepts the message into the ledger and acknowledges it.
	Keep Fate = iota
	// KeepOnly accepts it and never acknowledges: the PUBACK is lost.
	KeepOnly
	// KeepAndCut accepts it and closes before acknowledging.
	KeepAndCut
	// Lose takes no notice of it.
	Lose
	// Cut closes instead of accepting it.
	Cut
)

// Quota is how an exhausted daily quota shows (row 41).
type Quota int32

const (
	// QuotaLeft is the normal state.
	QuotaLeft Quota = iota
	// QuotaMute accepts connections and acknowledges nothing.
	QuotaMute
	// QuotaCut closes at the first publish after an accepted connect.
	QuotaCut
)

// hooks are what a test plugs in; each is read without a lock.
type hooks struct {
	onMessage    atomic.Pointer[func(Message)]
	judge        atomic.Pointer[func(Message) Fate]
	connackDelay atomic.Int64
	hangTLS      atomic.Bool
	quota        atomic.Int32
	upgrade      atomic.Int32 // HTTP status instead of a WebSocket; 0: none
}

// ackFaults shape acknowledgements of one identity or of all.
type ackFaults struct {
	delay    atomic.Int64
	withhold atomic.Int64 // PUBACKs still to be lost; negative: all
}

// take tells whether this PUBACK is one of those to lose.
func (a *ackFaults) take() bool {
	for {
		n := a.withhold.Load()
		if n <= 0 {
			return n < 0
		}
		if a.withhold.CompareAndSwap(n, n-1) {
			return true
		}
	}
}

// shape is the traffic shaping over all identities. Once any fault was ever asked for, messages take the
// slower path that looks for them.
type shape struct {
	armed atomic.Bool

	mu                  sync.Mutex
	d2c, connects, twin pacer
}

// pacer hands out one slot per interval; the zero value is no limit.
type pacer struct {
	interval time.Duration
	next     time.Time
}

// reserve returns when the caller may go on; false means that it would have to wait longer than limit, and
// takes no slot.
func (p *pacer) reserve(now time.Time, limit time.Duration) (time.Time, bool) {
	if p.interval == 0 {
		return now, true
	}
	if p.next.Before(now) {
		p.next = now
	}
	at := p.next
	if at.Sub(now) > limit {
		return at, false
	}
	p.next = at.Add(p.interval)
	return at, true
}

func newPacer(rate float64) pacer {
	if rate <= 0 {
		return pacer{}
	}
	return pacer{interval: max(time.Duration(float64(time.Second)/rate), 1)}
}

// OnMessage calls f for every accepted message, from the goroutine of its connection, before the message is
// acknowledged; nil ends it. f may call any method of the hub.
func (h *Hub) OnMessage(f func(Message)) {
	if f == nil {
		h.hooks.onMessage.Store(nil)
		return
	}
	h.hooks.onMessage.Store(&f)
}

// Judge lets f decide about every arriving message, from the goroutine of its connection; nil ends it. The
// message's Index is not set.
func (h *Hub) Judge(f func(Message) Fate) {
	h.shape.armed.Store(true)
	if f == nil {
		h.hooks.judge.Store(nil)
		return
	}
	h.hooks.judge.Store(&f)
}

// RefuseFingerprint turns away whoever proves to hold the certificate with this SHA-256 thumbprint (hex, case
// ignored), until AllowFingerprint. A live connection stays.
func (h *Hub) RefuseFingerprint(sha256 string, how Refusal) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refused[strings.ToUpper(sha256)] = how
}

// AllowFingerprint takes RefuseFingerprint back.
func (h *Hub) AllowFingerprint(sha256 string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.refused, strings.ToUpper(sha256))
}

func (h *Hub) refusedFingerprint(sha256 string) Refusal {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.refused[sha256]
}

// RefuseIdentity turns away every connect of an identity, whatever the certificate; 0 ends it. TLSAlert is not
// possible, since the identity is not known in TLS, and acts as ConnackFive.
func (h *Hub) RefuseIdentity(name string, how Refusal) error {
	return h.with(name, func(id *identity) {
		if how == TLSAlert {
			how = ConnackFive
		}
		id.refuse = how
	})
}

// DropConnections closes the connection of an identity, or all for "", and returns how many there were.
func (h *Hub) DropConnections(identity string) int {
	return h.each(identity, func(c *conn) { c.close(0, "dropped on request") })
}

// Displace closes the connection of an identity as if the same identity had connected from elsewhere.
func (h *Hub) Displace(identity string) int {
	return h.each(identity, func(c *conn) { c.close(24, displaced) })
}

// Contest makes another client fight for an identity: every connection of it, live or future, is displaced
// after the given time. 0 ends the fight.
func (h *Hub) Contest(name string, after time.Duration) error {
	err := h.with(name, func(id *identity) { id.contest = after })
	if err == nil && after > 0 {
		h.Displace(name)
	}
	return err
}

// GoSilent makes the live connection of an identity, or all for "", deaf and mute: what arrives is thrown
// away, nothing is answered, nothing is closed. A new connection works.
func (h *Hub) GoSilent(identity string) int {
	return h.each(identity, func(c *conn) { c.silent.Store(true) })
}

// DelayPuback sends every PUBACK this much later; 0 ends it for messages to come.
func (h *Hub) DelayPuback(d time.Duration) {
	h.shape.armed.Store(true)
	h.faults.delay.Store(int64(d))
}

// DelayPubackOf is DelayPuback for one identity; the longer delay counts.
func (h *Hub) DelayPubackOf(name string, d time.Duration) error {
	h.shape.armed.Store(true)
	return h.with(name, func(id *identity) { id.faults.delay.Store(int64(d)) })
}

// WithholdPuback accepts the next n QoS 1 messages of anybody and never acknowledges them; negative means all
// from now on, 0 ends it. They count against the in-flight limit of their connection until it ends.
func (h *Hub) WithholdPuback(n int) {
	h.shape.armed.Store(true)
	h.faults.withhold.Store(int64(n))
}

// WithholdPubackOf is WithholdPuback for one identity.
func (h *Hub) WithholdPubackOf(name string, n int) error {
	h.shape.armed.Store(true)
	return h.with(name, func(id *identity) { id.faults.withhold.Store(int64(n)) })
}

// DelayConnack answers accepted CONNECTs this much later.
func (h *Hub) DelayConnack(d time.Duration) { h.hooks.connackDelay.Store(int64(d)) }

// HangTLS makes new TCP connections hang before TLS; false ends it for connections to come.
func (h *Hub) HangTLS(hang bool) { h.hooks.hangTLS.Store(hang) }

// Throttle limits accepted messages over all identities, in messages per second; 0 ends it. Past the rate
// PUBACKs come late, and a connection whose message would have to wait longer than ten seconds is closed.
func (h *Hub) Throttle(rate float64) {
	h.shape.armed.Store(true)
	h.shape.mu.Lock()
	defer h.shape.mu.Unlock()
	h.shape.d2c = newPacer(rate)
}

// ThrottleConnects limits connects per second over all identities; 0 ends it. Past the rate CONNECT is
// answered late, and refused when it would have to wait longer than ten seconds.
func (h *Hub) ThrottleConnects(rate float64) {
	h.shape.mu.Lock()
	defer h.shape.mu.Unlock()
	h.shape.connects = newPacer(rate)
}

// ThrottleTwin limits twin requests per second over all identities; past it they are answered with 429. 0
// ends it.
func (h *Hub) ThrottleTwin(rate float64) {
	h.shape.mu.Lock()
	defer h.shape.mu.Unlock()
	h.shape.twin = newPacer(rate)
}

// FailTwin answers the next n twin requests of an identity with a status and an error body.
func (h *Hub) FailTwin(name string, status, n int) error {
	return h.with(name, func(id *identity) {
		for range n {
			id.fail = append(id.fail, status)
		}
	})
}

// SpendQuota makes the daily quota look exhausted; QuotaLeft restores it.
func (h *Hub) SpendQuota(q Quota) {
	h.shape.armed.Store(true)
	h.hooks.quota.Store(int32(q))
}

// with changes an identity under its lock.
func (h *Hub) with(name string, f func(*identity)) error {
	id, err := h.identity(name)
	if err != nil {
		return err
	}
	id.mu.Lock()
	defer id.mu.Unlock()
	f(id)
	return nil
}

// each calls f for the live connection of an identity, or of all for "".
func (h *Hub) each(identity string, f func(*conn)) int {
	names := []string{identity}
	if identity == "" {
		names = h.Identities()
	}
	n := 0
	for _, name := range names {
		if id, err := h.identity(name); err == nil {
			if c := id.live(); c != nil {
				f(c)
				n++
			}
		}
	}
	return n
}

// fate decides about a message and, if it is kept, when its PUBACK goes out; the zero time is now.
func (c *conn) fate(p inbound) (Fate, time.Time) {
	h := c.h
	if !h.shape.armed.Load() {
		return Keep, time.Time{}
	}
	switch Quota(h.hooks.quota.Load()) {
	case QuotaMute:
		return Lose, time.Time{}
	case QuotaCut:
		return Cut, time.Time{}
	}
	if judge := h.hooks.judge.Load(); judge != nil {
		if f := (*judge)(c.message(p)); f != Keep {
			return f, time.Time{}
		}
	}
	if p.qos == 1 && (c.id.faults.take() || h.faults.take()) {
		return KeepOnly, time.Time{}
	}
	now := time.Now()
	h.shape.mu.Lock()
	at, ok := h.shape.d2c.reserve(now, backlogLimit)
	h.shape.mu.Unlock()
	if !ok {
		return Cut, time.Time{}
	}
	return Keep, at.Add(time.Duration(max(h.faults.delay.Load(), c.id.faults.delay.Load())))
}

// pace holds a CONNECT back to the connect rate; false means that it was turned away.
func (c *conn) pace() bool {
	now := time.Now()
	c.h.shape.mu.Lock()
	at, ok := c.h.shape.connects.reserve(now, backlogLimit)
	c.h.shape.mu.Unlock()
	if ok {
		return c.sleep(at.Sub(now))
	}
	v := refuse(25, "connect rate exceeded")
	if c.h.opt.CloseOnConnectThrottle {
		v.how = CloseSilently
	}
	return c.turnAway(v)
}
