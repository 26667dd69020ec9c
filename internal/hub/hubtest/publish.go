package hubtest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"gatewayd/internal/packet"
)

// inbound is a PUBLISH from the client. Its slices alias the frame.
type inbound struct {
	topic, body []byte
	id          uint16
	qos         byte
	dup, retain bool
}

// decodePublish reads a PUBLISH without allocating. Unlike the codec's it lets a plus pass inside the property
// bag: the hub takes it there as a literal plus (row 36), and a test has to see that error arrive.
func decodePublish(f packet.Frame) (inbound, error) {
	p := inbound{dup: f.Flags&8 != 0, qos: f.Flags >> 1 & 3, retain: f.Flags&1 != 0}
	if p.qos == 3 || p.qos == 0 && p.dup {
		return p, fmt.Errorf("PUBLISH with flags %#x", f.Flags)
	}
	b := f.Body
	if len(b) < 2 || len(b) < 2+int(binary.BigEndian.Uint16(b)) {
		return p, errors.New("PUBLISH ends inside the topic")
	}
	n := 2 + int(binary.BigEndian.Uint16(b))
	p.topic, b = b[2:n], b[n:]
	if p.qos > 0 {
		if len(b) < 2 {
			return p, errors.New("PUBLISH ends inside the packet identifier")
		}
		if p.id = binary.BigEndian.Uint16(b); p.id == 0 {
			return p, errors.New("packet identifier 0")
		}
		b = b[2:]
	}
	p.body = b
	if len(p.topic) == 0 || bytes.IndexByte(p.topic, 0) >= 0 || !utf8.Valid(p.topic) {
		return p, errors.New("topic is empty or not UTF-8 text without U+0000")
	}
	if bytes.IndexByte(p.topic, '#') >= 0 {
		return p, errors.New("wildcard in a topic name")
	}
	return p, nil
}

// read takes packets until the connection ends.
func (c *conn) read(r *packet.Reader) {
	for c.waitForRoom() {
		f, err := r.Next()
		if err != nil {
			c.readFailed(err)
			return
		}
		if c.fresh {
			c.fresh = false
			c.lastRead.Store(time.Now().UnixNano())
		}
		if c.silent.Load() {
			continue
		}
		if err := c.handle(f); err != nil {
			c.violate(30, "%v", err)
			return
		}
		if c.graceful {
			c.close(0, "client disconnected")
			return
		}
	}
}

func (c *conn) readFailed(err error) {
	bad := (*packet.Error)(nil)
	switch {
	case errors.As(err, &bad) && bad.Code == packet.PacketTooLarge:
		c.violate(33, "%v", err)
	case errors.As(err, &bad):
		c.violate(30, "%v", err)
	case errors.Is(err, io.EOF):
		c.close(0, "client closed without DISCONNECT")
	default:
		c.close(0, fmt.Sprintf("read: %v", err))
	}
}

// handle acts on one packet. An error is a packet that breaks MQTT itself; other rules close by themselves.
func (c *conn) handle(f packet.Frame) error {
	switch f.Type {
	case packet.PUBLISH:
		p, err := decodePublish(f)
		if err != nil {
			return err
		}
		c.publish(p)
	case packet.PUBACK:
		a, err := packet.DecodeAck(f, packet.V311)
		if err != nil {
			return err
		}
		c.c2dAcked(a.ID)
	case packet.SUBSCRIBE:
		s, err := packet.DecodeSubscribe(f, packet.V311)
		if err != nil {
			return err
		}
		c.subscribe(s)
	case packet.UNSUBSCRIBE:
		u, err := packet.DecodeUnsubscribe(f, packet.V311)
		if err != nil {
			return err
		}
		c.unsubscribe(u)
	case packet.PINGREQ:
		if err := packet.DecodePing(f); err != nil {
			return err
		}
		c.out.packet(pingResponse{})
	case packet.DISCONNECT:
		if _, err := packet.DecodeDisconnect(f, packet.V311); err != nil {
			return err
		}
		c.graceful = true
	case packet.CONNECT:
		c.violate(6, "second CONNECT")
	default:
		return fmt.Errorf("%v from a client", f.Type)
	}
	return nil
}

// pingResponse is a PINGRESP as a packet.Packet.
type pingResponse struct{}

func (pingResponse) Append(dst []byte, _ packet.Version) ([]byte, error) {
	return packet.AppendPing(dst, packet.PINGRESP), nil
}

const (
	twinGet      = "$iothub/twin/GET/"
	twinPatch    = "$iothub/twin/PATCH/properties/reported/"
	methodAnswer = "$iothub/methods/res/"
	issueCert    = "$iothub/credentials/POST/issueCertificate/"
)

// publish routes a message by its topic.
func (c *conn) publish(p inbound) {
	if p.qos == 2 {
		c.violate(31, "PUBLISH with QoS 2")
		return
	}
	if rest, ok := bytes.CutPrefix(p.topic, []byte(c.events)); ok && (len(rest) == 0 || rest[0] == '/') {
		c.telemetry(p, bytes.TrimPrefix(rest, []byte{'/'}))
		return
	}
	if bytes.IndexByte(p.topic, '+') >= 0 {
		c.violate(30, "wildcard in the topic name %q", p.topic)
		return
	}
	topic := string(p.topic)
	switch {
	case strings.HasPrefix(topic, twinGet):
		c.twinRequest(topic[len(twinGet):], nil, false)
	case strings.HasPrefix(topic, twinPatch):
		c.twinRequest(topic[len(twinPatch):], p.body, true)
	case strings.HasPrefix(topic, methodAnswer):
		c.methodAnswered(topic[len(methodAnswer):], p.body)
	case strings.HasPrefix(topic, issueCert):
		// Without a preview api-version the hub says nothing (row 59).
	default:
		c.violate(34, "topic %.200q is neither telemetry of this identity nor a known service", topic)
		return
	}
	if p.qos == 1 {
		c.acknowledge(p.id, time.Now())
	}
}

// isEvents tells whether a topic is this identity's telemetry, with or without a bag.
func (c *conn) isEvents(topic string) bool {
	rest, ok := strings.CutPrefix(topic, c.events)
	return ok && (rest == "" || rest[0] == '/')
}

// telemetry judges, keeps and acknowledges a device-to-cloud message.
func (c *conn) telemetry(p inbound, rawBag []byte) {
	// Released clients append a slash after the bag.
	if n := len(rawBag); n > 0 && rawBag[n-1] == '/' {
		rawBag = rawBag[:n-1]
	}
	if !c.checkBag(rawBag) {
		return
	}
	if n := len(p.body) + c.bag.size(); n > maxMessage {
		c.violate(33, "message of %d bytes", n)
		return
	}
	if c.over.Load() {
		return
	}
	count := &c.id.count
	fate, at := c.fate(p)
	if fate == Cut || fate == Lose {
		count.rejected.Add(1)
		if fate == Cut {
			c.close(0, "closed instead of accepting a message")
		} else if p.qos == 1 {
			c.out.unacked.Add(1)
		}
		c.h.ledger.touch()
		return
	}
	c.keep(p)
	switch {
	case fate == KeepAndCut:
		c.close(0, "closed after accepting a message")
	case fate == KeepOnly:
		if p.qos == 1 {
			c.out.unacked.Add(1)
		}
	case p.qos == 1:
		c.acknowledge(p.id, at)
	}
}

func (c *conn) checkBag(raw []byte) bool {
	err := c.bag.parse(raw)
	if err == nil {
		err = c.bag.checkSystem()
	}
	broken := (*bagError)(nil)
	if errors.As(err, &broken) {
		return c.tolerate(broken.row, "%s", broken.msg)
	}
	return true
}

// keep puts an accepted message into the ledger.
func (c *conn) keep(p inbound) {
	count := &c.id.count
	if p.dup {
		count.dups.Add(1)
	}
	if c.h.ledger.mode == KeepAll || c.h.hooks.onMessage.Load() != nil {
		m := c.message(p)
		if c.h.ledger.mode == KeepAll && !c.h.ledger.add(&m, &c.over) {
			return
		}
		if f := c.h.hooks.onMessage.Load(); f != nil {
			(*f)(m)
		}
	}
	count.bytes.Add(uint64(len(p.body)))
	count.messages.Add(1)
	c.h.ledger.touch()
}

// message copies a message out of the connection's buffers.
func (c *conn) message(p inbound) Message {
	m := Message{
		Identity: c.id.name, Topic: string(p.topic), Properties: c.bag.toMap(), Body: bytes.Clone(p.body),
		Time: time.Now(), Conn: c.num, Serial: c.cert.serial, Fingerprint: c.cert.sha256, QoS: p.qos, Dup: p.dup,
	}
	m.ID = m.Properties["$.mid"]
	if p.retain {
		m.Properties["mqtt-retain"] = "true"
	}
	return m
}

// publishWill turns the will of a broken connection into telemetry.
func (c *conn) publishWill() {
	rest := strings.TrimPrefix(c.will.Topic, c.events)
	c.bag.parse([]byte(strings.Trim(rest, "/"))) //nolint:errcheck // what cannot be read of a dead client's bag is left out
	c.bag.pairs = append(c.bag.pairs, pair{key: []byte("iothub-MessageType"), value: []byte("Will")})
	m := c.message(inbound{topic: []byte(c.will.Topic), body: c.will.Payload, qos: c.will.QoS, retain: c.will.Retain})
	m.Will = true
	if c.h.ledger.mode == KeepAll {
		c.h.ledger.add(&m, new(atomic.Bool))
	}
	c.id.count.messages.Add(1)
	if f := c.h.hooks.onMessage.Load(); f != nil {
		(*f)(m)
	}
}

// acknowledge sends a PUBACK, or has it sent when the time has come.
func (c *conn) acknowledge(id uint16, at time.Time) {
	if at.IsZero() || !c.out.delayed() && !at.After(time.Now()) {
		c.out.ack(id)
		c.id.count.acked.Add(1)
		return
	}
	c.out.ackAt(id, at)
	poke(c.wake)
}
