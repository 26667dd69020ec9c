package hub

import (
	"errors"

	"gatewayd/internal/packet"
)

// Errors of Link.Publish, named by what to do.
var (
	ErrLinkBusy  = errors.New("too much is waiting on the link: try again later")
	ErrLinkEnded = errors.New("the link has ended: answer on the next one or not at all")
)

// Done is part of Link.
func (c *conn) Done() <-chan struct{} { return c.dead }

// Publish is part of Link.
func (c *conn) Publish(topic string, payload []byte, qos byte, done func(error)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.ended:
		return ErrLinkEnded
	case len(c.out)+len(topic)+len(payload) > maxControl, len(c.waiting) >= maxWindow/10:
		return ErrLinkBusy
	}
	p := packet.Publish{Topic: topic, Payload: payload, QoS: min(qos, 1)}
	if p.QoS == 1 {
		p.ID = c.controlIDLocked()
	}
	out, err := p.Append(c.out, packet.V311)
	if err != nil {
		return err
	}
	c.out = out
	switch {
	case done == nil:
	case p.QoS == 0:
		c.outDone = append(c.outDone, done)
	default:
		if c.waiting == nil {
			c.waiting = make(map[uint16]func(error))
		}
		c.waiting[p.ID] = done
	}
	poke(c.wake)
	return nil
}

// controlIDLocked is a free packet identifier above those of telemetry.
func (c *conn) controlIDLocked() uint16 {
	for {
		if c.nextID++; c.nextID <= telemetryIDs { // wrapped
			c.nextID = telemetryIDs + 1
		}
		if _, used := c.waiting[c.nextID]; !used && c.nextID != c.subID && c.nextID != c.unsubID {
			return c.nextID
		}
	}
}
