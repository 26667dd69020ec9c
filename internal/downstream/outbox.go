package downstream

import (
	"sync"
	"time"

	"gatewayd/internal/packet"
)

const (
	maxFlight   = 64       // unacknowledged deliveries per client, whatever it allows
	collectSize = 16 << 10 // bytes encoded in one go
)

// delivery is a message on its way to one subscriber.
type delivery struct {
	m           LocalMessage
	qos         byte
	retain      bool
	identifiers []uint32
	acked       *acknowledgement
}

// acknowledgement calls its function once, however many subscribers acknowledge.
type acknowledgement struct {
	once sync.Once
	call func()
}

func (a *acknowledgement) done() {
	if a != nil && a.call != nil {
		a.once.Do(a.call)
	}
}

func (d *delivery) size() int { return len(d.m.Payload) + len(d.m.Topic) + 128 }

type flight struct {
	id uint16
	d  delivery
}

// outbox is what waits for one session, in order. Its packet ids are its own:
// those of the client's publishes are another space (2.2.1).
type outbox struct {
	mu      sync.Mutex
	owner   *conn // the present connection; one that was taken over gets nothing more
	waiting []delivery
	bytes   int
	flying  []flight // sent and not acknowledged, in order
	resend  int      // of flying: how many the present connection has yet to see again
	seen    int      // of flying: already sent on the present connection
	lastID  uint16
}

// put adds a delivery if there is room. QoS 0 is not kept for absent clients.
func (b *outbox) put(d delivery, connected bool, cfg LocalConfig) bool {
	if d.qos == 0 && !connected && !d.m.Azure {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.waiting)+len(b.flying) >= cfg.QueueMessages || b.bytes+d.size() > cfg.QueueBytes {
		return false
	}
	b.waiting = append(b.waiting, d)
	b.bytes += d.size()
	return true
}

// resume prepares for a new connection: everything in flight is sent again, QoS 0
// that the old connection did not get is gone.
func (b *outbox) resume(c *conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.owner = c
	b.resend, b.seen = len(b.flying), 0
	kept := b.waiting[:0]
	for _, d := range b.waiting {
		if d.qos > 0 || d.m.Azure {
			kept = append(kept, d)
		} else {
			b.bytes -= d.size()
		}
	}
	clear(b.waiting[len(kept):])
	b.waiting = kept
}

// collect encodes for the connection what it may get now.
func (b *outbox) collect(c *conn, dst []byte) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.owner != c {
		return dst
	}
	now := time.Now()
	for b.seen < min(b.resend, c.sendMax) && len(dst) < collectSize {
		f := &b.flying[b.seen]
		var sent bool
		if dst, sent = c.encode(dst, &f.d, f.id, true, now); sent {
			b.seen++
		} else {
			b.removeLocked(b.seen)
		}
	}
	for b.seen == b.resend && len(b.waiting) > 0 && len(dst) < collectSize {
		d := b.waiting[0]
		if d.qos > 0 && len(b.flying) >= c.sendMax {
			break
		}
		b.waiting[0] = delivery{}
		if b.waiting = b.waiting[1:]; len(b.waiting) == 0 {
			b.waiting = nil
		}
		dst = b.startLocked(c, dst, d, now)
	}
	return dst
}

// startLocked encodes a delivery for the first time.
func (b *outbox) startLocked(c *conn, dst []byte, d delivery, now time.Time) []byte {
	var id uint16
	if d.qos > 0 {
		id = b.freeID()
	}
	dst, sent := c.encode(dst, &d, id, false, now)
	if !sent || d.qos == 0 {
		b.bytes -= d.size()
		return dst
	}
	b.flying = append(b.flying, flight{id, d})
	b.resend, b.seen = len(b.flying), len(b.flying)
	return dst
}

func (b *outbox) freeID() uint16 {
	for {
		if b.lastID++; b.lastID == 0 {
			continue
		}
		used := false
		for i := range b.flying {
			used = used || b.flying[i].id == b.lastID
		}
		if !used {
			return b.lastID
		}
	}
}

// ack removes an acknowledged delivery.
func (b *outbox) ack(id uint16) (delivery, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.flying {
		if b.flying[i].id == id {
			return b.removeLocked(i), true
		}
	}
	return delivery{}, false
}

func (b *outbox) removeLocked(i int) delivery {
	d := b.flying[i].d
	b.bytes -= d.size()
	b.flying = append(b.flying[:i], b.flying[i+1:]...)
	if i < b.seen {
		b.seen--
	}
	b.resend--
	if len(b.flying) == 0 {
		b.flying = nil
	}
	return d
}

// encode appends a PUBLISH. sent is false when the message has expired or is
// larger than the client takes (3.1.2.11.4: as if it had been sent).
func (c *conn) encode(dst []byte, d *delivery, id uint16, dup bool, now time.Time) (_ []byte, sent bool) {
	m := &d.m
	topic := m.Topic
	if c.azure != nil {
		topic = c.azure.topic(topic)
	}
	p := packet.Publish{Topic: topic, Payload: m.Payload, QoS: d.qos, ID: id, Dup: dup, Retain: d.retain}
	expired := !m.Expires.IsZero() && !now.Before(m.Expires)
	if expired && !dup {
		return dst, false
	}
	if c.version == packet.V5 {
		props := &packet.Properties{
			ContentType: m.ContentType, ResponseTopic: m.ResponseTopic, CorrelationData: m.CorrelationData,
			SubscriptionIDs: d.identifiers,
		}
		if !m.Expires.IsZero() {
			props.MessageExpiry = uint32(max(m.Expires.Sub(now)/time.Second, 1))
		}
		for _, u := range m.Properties {
			props.User = append(props.User, packet.UserProperty{Key: u.Key, Value: u.Value})
		}
		p.Properties = props
	}
	start := len(dst)
	dst, err := p.Append(dst, c.version)
	if err != nil || (c.packetMax > 0 && len(dst)-start > c.packetMax) {
		return dst[:start], false
	}
	return dst, true
}
