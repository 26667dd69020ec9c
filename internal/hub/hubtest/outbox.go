package hubtest

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"gatewayd/internal/packet"
)

// maxOutbox is how much may wait for a client that does not read before the hub stops reading from it.
const maxOutbox = 1 << 20

// outbox collects what goes to the client, so that many small packets share one write.
type outbox struct {
	mu    sync.Mutex
	buf   []byte
	spare []byte   // the buffer of the previous write, owned by mind while it writes
	acks  []dueAck // delayed, in the order in which they have to go out

	size    atomic.Int32 // of buf
	unacked atomic.Int32 // inbound publishes taken and not yet acknowledged
}

type dueAck struct {
	id uint16
	at time.Time
}

func (o *outbox) pending() bool { return o.size.Load() > 0 }

// packet appends a packet that is known to fit the wire format: its strings were checked by the caller.
func (o *outbox) packet(p packet.Packet) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.buf, _ = p.Append(o.buf, packet.V311) // on an error nothing is appended
	o.size.Store(int32(len(o.buf)))
}

// ack appends a PUBACK, and says whether it may go out now.
func (o *outbox) ack(id uint16) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ackLocked(id)
}

func (o *outbox) ackLocked(id uint16) {
	o.buf = append(o.buf, byte(packet.PUBACK)<<4, 2, byte(id>>8), byte(id))
	o.size.Store(int32(len(o.buf)))
}

// ackAt queues a PUBACK for later. It never overtakes an earlier one, since they go out in order of receipt.
func (o *outbox) ackAt(id uint16, at time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if n := len(o.acks); n > 0 && at.Before(o.acks[n-1].at) {
		at = o.acks[n-1].at
	}
	o.acks = append(o.acks, dueAck{id, at})
	o.unacked.Add(1)
}

func (o *outbox) delayed() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.acks) > 0
}

// ripen moves due acknowledgements out and returns how many, and when the next is due, if any.
func (o *outbox) ripen(now time.Time) (n int, next time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for n < len(o.acks) && !o.acks[n].at.After(now) {
		o.ackLocked(o.acks[n].id)
		n++
	}
	o.acks = o.acks[n:]
	o.unacked.Add(-int32(n))
	if len(o.acks) > 0 {
		next = o.acks[0].at
	} else {
		o.acks = nil
	}
	return n, next
}

// take hands the collected bytes to the writer.
func (o *outbox) take() []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.buf) == 0 {
		return nil
	}
	b := o.buf
	o.buf, o.spare = o.spare[:0], b
	o.size.Store(0)
	return b
}

// shrink forgets large buffers, so that an idle connection costs little.
func (o *outbox) shrink() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if cap(o.spare) > 1<<16 {
		o.spare = nil
	}
}

// mind writes what waits and does what time asks for, until the connection ends.
func (c *conn) mind() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		wait := c.tick(time.Now())
		if !c.flush() {
			return
		}
		timer.Reset(wait)
		select {
		case <-c.wake:
		case <-timer.C:
		case <-c.done:
			return
		}
	}
}

func (c *conn) flush() bool {
	for {
		b := c.out.take()
		if b == nil {
			return true
		}
		if !c.silent.Load() {
			if _, err := c.nc.Write(b); err != nil {
				c.close(0, fmt.Sprintf("write: %v", err))
				return false
			}
		}
		c.out.shrink()
		poke(c.gate)
	}
}

// tick does everything that is due and returns how long nothing else will be.
func (c *conn) tick(now time.Time) time.Duration {
	next := now.Add(time.Hour)
	sooner := func(t time.Time) {
		if !t.IsZero() && t.Before(next) {
			next = t
		}
	}
	n, at := c.out.ripen(now)
	if n > 0 {
		c.id.count.acked.Add(uint64(n))
		poke(c.gate)
	}
	sooner(at)
	if !c.cutAt.IsZero() && !now.Before(c.cutAt) {
		c.close(c.cutRow, c.cutReason)
		return 0
	}
	sooner(c.cutAt)
	if !c.silent.Load() && !c.gated.Load() {
		end := time.Unix(0, c.lastRead.Load()).Add(c.keepAlive)
		if !now.Before(end) {
			c.close(26, "silent for longer than the keep-alive allows")
			return 0
		}
		sooner(end)
	}
	c.id.mu.Lock()
	if c.id.conn == c {
		sooner(c.id.pumpC2DLocked(c, now))
	}
	c.id.mu.Unlock()
	return max(next.Sub(now), time.Millisecond)
}

// waitForRoom stops reading while too much is unacknowledged or unread by the client, so that TCP pushes back
// (row 39). It returns false when the connection ended.
func (c *conn) waitForRoom() bool {
	limit := int32(c.h.opt.MaxInbound)
	for {
		full := limit > 0 && c.out.unacked.Load() >= limit || c.out.size.Load() >= maxOutbox
		if !full {
			if c.gated.CompareAndSwap(true, false) {
				c.lastRead.Store(time.Now().UnixNano())
			}
			return true
		}
		c.gated.Store(true)
		poke(c.wake)
		select {
		case <-c.gate:
		case <-c.done:
			return false
		}
	}
}
