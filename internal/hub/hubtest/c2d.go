package hubtest

import (
	"context"
	"maps"
	"slices"
	"time"

	"gatewayd/internal/packet"
)

// C2D is a cloud-to-device message.
type C2D struct {
	MessageID, CorrelationID, UserID string
	ContentType, ContentEncoding     string
	Ack                              string // the delivery feedback wanted: none, positive, negative, full
	Properties                       map[string]string
	Body                             []byte
	TTL                              time.Duration // default one hour, and then the message says nothing about it
}

// C2DState is what became of a message.
type C2DState struct {
	MessageID  string
	Body       []byte
	Queued     time.Time
	Deliveries int    // how often it was sent
	State      string // queued, locked, completed, expired or dropped
}

// The states of a C2D message.
const (
	C2DQueued    = "queued"
	C2DLocked    = "locked" // sent, and its PUBACK is awaited
	C2DCompleted = "completed"
	C2DExpired   = "expired"
	C2DDropped   = "dropped"
)

type c2dMessage struct {
	C2D
	topic       string
	queued      time.Time
	expires     time.Time
	deliveries  int
	state       string
	id          uint16    // packet identifier of the latest delivery
	lockedUntil time.Time // while locked
}

// SendC2D queues a message for a device and returns. It fails with ErrQueueFull, ErrTooLarge, ErrNoC2D or
// ErrUnknownIdentity; for an offline device it succeeds.
func (h *Hub) SendC2D(ctx context.Context, identity string, m C2D) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	id, err := h.identity(identity)
	if err != nil {
		return err
	}
	if len(m.Body) > maxC2DBody {
		return ErrTooLarge
	}
	now := time.Now()
	id.mu.Lock()
	defer id.mu.Unlock()
	if id.device.ModuleID != "" {
		return ErrNoC2D
	}
	id.expireC2DLocked(now)
	if len(id.c2d) >= maxC2DQueue {
		return ErrQueueFull
	}
	msg := &c2dMessage{C2D: m, queued: now, expires: now.Add(defaultC2DLife), state: C2DQueued}
	if m.TTL > 0 {
		msg.expires = now.Add(m.TTL)
	}
	msg.topic = msg.topicFor(id.device.DeviceID)
	id.c2d, id.c2dLog = append(id.c2d, msg), append(id.c2dLog, msg)
	if c := id.conn; c != nil {
		id.pumpC2DLocked(c, now)
		poke(c.wake)
	}
	return nil
}

// C2DStates returns all messages ever queued for a device, in order.
func (h *Hub) C2DStates(identity string) []C2DState {
	id, err := h.identity(identity)
	if err != nil {
		return nil
	}
	id.mu.Lock()
	defer id.mu.Unlock()
	id.expireC2DLocked(time.Now())
	out := make([]C2DState, len(id.c2dLog))
	for i, m := range id.c2dLog {
		out[i] = C2DState{MessageID: m.MessageID, Body: m.Body, Queued: m.queued, Deliveries: m.deliveries, State: m.state}
	}
	return out
}

// topicFor writes the bag in the hub's form, with %24 for the dollar sign.
func (m *c2dMessage) topicFor(device string) string {
	b := []byte("devices/" + device + "/messages/devicebound/")
	first := true
	add := func(k, v string) {
		if v == "" {
			return
		}
		if !first {
			b = append(b, '&')
		}
		first = false
		b = escape(append(escape(b, k), '='), v)
	}
	add("$.mid", m.MessageID)
	add("$.to", "/devices/"+device+"/messages/deviceBound")
	add("$.cid", m.CorrelationID)
	add("$.uid", m.UserID)
	add("$.ct", m.ContentType)
	add("$.ce", m.ContentEncoding)
	if m.TTL > 0 {
		add("$.exp", m.expires.UTC().Format("2006-01-02T15:04:05.000Z"))
	}
	add("iothub-ack", m.Ack)
	for _, k := range slices.Sorted(maps.Keys(m.Properties)) {
		add(k, m.Properties[k])
	}
	return string(b)
}

// pumpC2DLocked sends what is neither sent nor acknowledged, and what was sent too long ago. It returns when
// it has to look again, zero for never.
func (id *identity) pumpC2DLocked(c *conn, now time.Time) (next time.Time) {
	if len(id.c2d) == 0 {
		return time.Time{}
	}
	for _, m := range id.c2d {
		if m.state == C2DLocked && !now.Before(m.lockedUntil) {
			c.lapse(m.id)
			m.state = C2DQueued
		}
	}
	id.expireC2DLocked(now)
	for _, m := range slices.Clone(id.c2d) {
		if m.state == C2DQueued && id.subs.has(toC2D) {
			id.deliverLocked(c, m, now)
		}
		at := m.expires
		if m.state == C2DLocked {
			at = m.lockedUntil
		}
		if next.IsZero() || at.Before(next) {
			next = at
		}
	}
	return next
}

func (id *identity) deliverLocked(c *conn, m *c2dMessage, now time.Time) {
	p := packet.Publish{Topic: m.topic, Payload: m.Body, QoS: id.subs.qos(toC2D)}
	p.Dup = p.QoS > 0 && m.deliveries > 0 && c.h.opt.RedeliverWithDup
	m.deliveries++
	if p.QoS == 0 {
		id.finishLocked(m, C2DCompleted)
	} else {
		p.ID = c.sent.next()
		m.id, m.state, m.lockedUntil = p.ID, C2DLocked, now.Add(c.h.opt.C2DLock)
	}
	c.out.packet(p)
}

// c2dAcked completes a message. Acknowledgements have to come in the order of delivery (MQTT-4.6.0-2).
func (c *conn) c2dAcked(pid uint16) {
	id := c.id
	id.mu.Lock()
	pos := slices.Index(c.sent.order, pid)
	late := c.sent.lapsed[pid]
	delete(c.sent.lapsed, pid)
	if pos >= 0 {
		c.sent.order = slices.Delete(c.sent.order, pos, pos+1)
		for _, m := range id.c2d {
			if m.state == C2DLocked && m.id == pid && id.conn == c {
				id.finishLocked(m, C2DCompleted)
				break
			}
		}
	}
	id.mu.Unlock()
	switch {
	case pos > 0:
		c.tolerate(48, "PUBACK %d before those of %d earlier messages", pid, pos)
	case pos < 0 && !late:
		c.breach(48, false, "PUBACK %d for nothing", pid)
	}
	c.h.ledger.touch()
}

func (id *identity) finishLocked(m *c2dMessage, state string) {
	m.state = state
	id.c2d = slices.DeleteFunc(id.c2d, func(x *c2dMessage) bool { return x == m })
}

// expireC2DLocked ends what is older than its time to live; a message under lock is left to its lock.
func (id *identity) expireC2DLocked(now time.Time) {
	for _, m := range slices.Clone(id.c2d) {
		if m.state == C2DQueued && !now.Before(m.expires) {
			id.finishLocked(m, C2DExpired)
		}
	}
}

// releaseC2DLocked returns what a gone connection left unacknowledged to the queue.
func (id *identity) releaseC2DLocked() {
	for _, m := range id.c2d {
		m.state = C2DQueued
	}
}

func (id *identity) dropC2DLocked() {
	for _, m := range slices.Clone(id.c2d) {
		id.finishLocked(m, C2DDropped)
	}
}

// sentIDs are the packet identifiers of a connection towards the client, guarded by the identity's lock.
type sentIDs struct {
	last   uint16
	order  []uint16        // unacknowledged, in the order of sending
	lapsed map[uint16]bool // their lock ran out before the PUBACK
}

func (s *sentIDs) next() uint16 {
	for {
		s.last++
		if s.last != 0 && !slices.Contains(s.order, s.last) && !s.lapsed[s.last] {
			s.order = append(s.order, s.last)
			return s.last
		}
	}
}

func (c *conn) lapse(pid uint16) {
	if i := slices.Index(c.sent.order, pid); i >= 0 {
		c.sent.order = slices.Delete(c.sent.order, i, i+1)
		if c.sent.lapsed == nil {
			c.sent.lapsed = map[uint16]bool{}
		}
		c.sent.lapsed[pid] = true
	}
}
