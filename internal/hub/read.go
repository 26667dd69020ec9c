package hub

import (
	"fmt"
	"time"

	"gatewayd/internal/packet"
)

// read is the connection's own goroutine: it takes in packets until the
// connection ends.
func (c *conn) read() {
	r := packet.NewReader(c.nc, maxInbound)
	commits, err := c.readAll(r)
	c.mu.Lock()
	if c.writeErr != nil && timedOut(err) {
		err = c.writeErr
	}
	c.mu.Unlock()
	c.kill(err)
	c.settle(commits)
	c.mu.Lock()
	c.ended = true
	if c.timer != nil {
		c.timer.Stop()
	}
	var lost []func(error)
	for _, done := range c.waiting {
		lost = append(lost, done)
	}
	lost = append(lost, c.outDone...)
	c.waiting, c.outDone, c.out = nil, nil, nil
	c.mu.Unlock()
	for _, done := range lost {
		done(ErrLinkEnded)
	}
	close(c.dead)
}

// readAll returns why it ended and the acknowledgements that settle has not seen.
func (c *conn) readAll(r *packet.Reader) (commits []uint64, err error) {
	accepted := false
	for {
		f, err := r.Next()
		if err != nil {
			return commits, err
		}
		if f.Type != packet.PUBACK || r.Buffered() == 0 {
			c.lastRecv.Store(c.now())
		}
		if f.Type == packet.PUBACK && accepted {
			if commits, err = c.puback(f, commits); err != nil {
				return commits, err
			}
			if len(commits) < settleAt && r.Buffered() > 0 {
				continue
			}
			commits = c.settle(commits)
			continue
		}
		commits = c.settle(commits)
		if accepted == (f.Type == packet.CONNACK) {
			return commits, &packet.Error{Code: packet.ProtocolError, Reason: fmt.Sprintf("unexpected %v", f.Type)}
		}
		if !accepted {
			p, err := packet.DecodeConnack(f, packet.V311)
			if err != nil {
				return commits, err
			}
			accepted = true
			c.connack <- p.Code
			continue
		}
		if err := c.dispatch(f); err != nil {
			return commits, err
		}
	}
}

// puback notes one acknowledgement. Telemetry that it settles is appended to
// commits.
func (c *conn) puback(f packet.Frame, commits []uint64) ([]uint64, error) {
	p, err := packet.DecodeAck(f, packet.V311)
	if err != nil {
		return commits, err
	}
	var done func(error)
	var known bool
	before := len(commits)
	c.mu.Lock()
	if p.ID > telemetryIDs {
		if done, known = c.waiting[p.ID]; known {
			delete(c.waiting, p.ID)
		}
	} else if commits, known = c.win.ack(p.ID, commits); len(commits) > before {
		c.headAt, c.gapAt = time.Now(), time.Time{}
		if c.win.early > 0 {
			c.gapAt = c.headAt
		}
		c.unsettled.Add(int64(len(commits) - before))
		if c.win.head >= c.sample && c.sample > 0 {
			c.ackDelay.Store(max(c.now()-c.sampleAt, 1))
			c.sample = 0
		}
	} else if c.win.early > 0 && c.gapAt.IsZero() {
		c.gapAt = time.Now()
		poke(c.wake)
	}
	c.mu.Unlock()
	if done != nil {
		done(nil)
	}
	if !known {
		c.set.unknownAcks.Add(1)
	}
	return commits, nil
}

// settle tells the queue, in the order of sending, and wakes the session.
func (c *conn) settle(commits []uint64) []uint64 {
	if len(commits) == 0 {
		return commits
	}
	readings := 0
	for _, seq := range commits {
		readings += c.set.acked(seq)
	}
	c.unsettled.Add(-int64(len(commits)))
	now := c.now()
	c.firstAck.CompareAndSwap(0, now)
	c.lastAck.Store(now)
	c.set.delivered.Add(uint64(readings))
	c.answered()
	if cap(commits) > settleAt {
		return nil
	}
	return commits[:0]
}

func (c *conn) answered() {
	c.rounds.Add(1)
	poke(c.wake)
}

func (c *conn) dispatch(f packet.Frame) error {
	switch f.Type {
	case packet.PINGRESP:
		if err := packet.DecodePing(f); err != nil {
			return err
		}
		c.mu.Lock()
		c.pingSent = 0
		c.mu.Unlock()
		if c.set.keep != nil {
			c.set.keep.answered(time.Duration(c.silence.Load()))
		}
		c.answered()
	case packet.SUBACK:
		return c.suback(f)
	case packet.UNSUBACK:
		return c.unsuback(f)
	case packet.PUBLISH:
		return c.inbound(f)
	default:
		return &packet.Error{Code: packet.ProtocolError, Reason: fmt.Sprintf("unexpected %v", f.Type)}
	}
	return nil
}

func (c *conn) suback(f packet.Frame) error {
	p, err := packet.DecodeSuback(f, packet.V311)
	if err != nil {
		return err
	}
	c.mu.Lock()
	filters, mine := c.filters, c.subID != 0 && p.ID == c.subID
	if mine {
		c.subID, c.filters = 0, nil
	}
	c.mu.Unlock()
	if !mine || len(p.Codes) != len(filters) {
		return &packet.Error{Code: packet.ProtocolError, Reason: "SUBACK that answers no SUBSCRIBE"}
	}
	var refused []string
	for i, code := range p.Codes {
		if code == packet.SubackFailure {
			refused = append(refused, filters[i].Filter)
		}
	}
	if len(refused) > 0 {
		c.mu.Lock()
		c.refused = refused
		c.mu.Unlock()
	}
	c.set.commands.Connected(c, refused)
	c.answered()
	return nil
}

// refusals are the filters that the hub refused; not to be changed.
func (c *conn) refusals() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.refused
}

func (c *conn) unsuback(f packet.Frame) error {
	p, err := packet.DecodeSuback(f, packet.V311)
	if err != nil {
		return err
	}
	c.mu.Lock()
	mine := c.unsubID != 0 && p.ID == c.unsubID
	c.unsubID = 0
	c.mu.Unlock()
	if !mine {
		return &packet.Error{Code: packet.ProtocolError, Reason: "UNSUBACK that answers no UNSUBSCRIBE"}
	}
	c.answered()
	return nil
}

// inbound hands a message from the hub over. With nobody to take it, it stays
// unacknowledged: the hub keeps it for when commands are wanted again.
func (c *conn) inbound(f packet.Frame) error {
	p, err := packet.DecodePublish(f, packet.V311)
	if err != nil {
		return err
	}
	if p.QoS > 1 {
		return &packet.Error{Code: packet.ProtocolError, Reason: "PUBLISH with QoS 2, which was never asked for"}
	}
	if c.set.commands == nil {
		return nil
	}
	m := Inbound{Topic: p.Topic, Payload: append([]byte(nil), p.Payload...), QoS: p.QoS, Dup: p.Dup}
	c.set.commands.Received(c, m, c.acknowledger(p.QoS, p.ID))
	return nil
}

func (c *conn) acknowledger(qos byte, id uint16) func() {
	if qos == 0 {
		return func() {}
	}
	acked := false
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if acked || c.ended {
			return
		}
		acked = true
		c.out, _ = packet.Ack{Type: packet.PUBACK, ID: id}.Append(c.out, packet.V311)
		poke(c.wake)
	}
}
