package downstream

import (
	"crypto/tls"
	"net"
	"time"

	"gatewayd/internal/packet"
)

const (
	bufferSize = 2 << 10
	bufferKept = 32 << 10 // larger ones are not used again
	outBound   = 32 << 10 // answers that a client has not taken; beyond, nothing more is read from it
)

// buffer is a write buffer from the listener's pool.
type buffer struct{ b []byte }

func newBuffer() any { return &buffer{b: make([]byte, 0, bufferSize)} }

// send encodes an answer and has it written. It blocks while the client does not
// take what it has been sent; it is for the reading goroutine.
func (c *conn) send(encode func([]byte) ([]byte, error)) error {
	for {
		c.mu.Lock()
		if c.state >= ending {
			c.mu.Unlock()
			return nil
		}
		if len(c.out) < outBound {
			var err error
			c.out, err = encode(c.out)
			c.kickLocked()
			c.mu.Unlock()
			return err
		}
		c.mu.Unlock()
		select {
		case <-c.room:
		case <-c.over:
		}
	}
}

// kickLocked sees to it that somebody writes what there is.
func (c *conn) kickLocked() {
	if c.state == closed {
		return // and nobody may be waiting for this goroutine any more
	}
	if c.flushing {
		c.again = true
		return
	}
	c.flushing = true
	c.server.running.Add(1)
	go c.flush()
}

func (c *conn) kick() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kickLocked()
}

// flush writes until nothing is left: everything that is ready goes out in one
// write, which is what makes acknowledgements cheap.
func (c *conn) flush() {
	defer c.server.running.Done()
	buf := c.server.buffers.Get().(*buffer)
	defer func() {
		if cap(buf.b) <= bufferKept {
			buf.b = buf.b[:0]
			c.server.buffers.Put(buf)
		}
	}()
	for {
		last, more := c.collect(buf)
		if !more {
			return
		}
		if len(buf.b) > 0 {
			c.writeBy.Store(c.server.now() + int64(writeTimeout))
			_, err := c.stream.Write(buf.b)
			c.writeBy.Store(0)
			if err != nil {
				c.fail()
				return
			}
		}
		if last {
			// A client that does not see the end by itself gets this long.
			c.raw.SetReadDeadline(time.Now().Add(lingerTimeout))
			closeWrite(c.stream)
			c.mu.Lock()
			c.flushing = false
			c.closeLocked()
			c.mu.Unlock()
			return
		}
	}
}

// collect fills buf with everything that can be written now. more is false when
// there is nothing and the flusher is to end; last tells that nothing follows.
func (c *conn) collect(buf *buffer) (last, more bool) {
	buf.b = buf.b[:0]
	c.mu.Lock()
	buf.b = append(buf.b, c.out...)
	waiting := len(c.out) >= outBound
	c.out = nil
	refused := c.collectAcksLocked(buf)
	if refused != packet.Success && c.state < ending {
		c.endLocked(refused)
	}
	s, greeted, st := c.session, c.greeted, c.state
	c.again = false
	c.mu.Unlock()
	if waiting || len(buf.b) > 0 {
		wake(c.room)
	}
	if s != nil && greeted && st < ending {
		buf.b = s.box.collect(c, buf.b)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state == ending && !c.again {
		if c.version == packet.V5 && c.greeted && c.endCode != 0 {
			buf.b, _ = packet.Disconnect{Code: c.endCode}.Append(buf.b, c.version)
		}
		return true, true
	}
	if len(buf.b) == 0 && !c.again {
		c.flushing = false
		return false, false
	}
	return false, true
}

// collectAcksLocked encodes the acknowledgements that may leave. 3.1.1 has only
// the word yes: at the first message that was refused it stops and returns why,
// and the connection ends there.
func (c *conn) collectAcksLocked(buf *buffer) (refused byte) {
	if c.state == closed {
		return packet.Success
	}
	for {
		s, ok := c.acks.pop()
		if !ok {
			return packet.Success
		}
		if s.code != packet.Success && c.version == packet.V311 {
			return s.code
		}
		a := packet.Ack{Type: packet.PUBACK, ID: s.id, Code: s.code}
		if s.code != packet.Success && c.problems {
			a.Properties = &packet.Properties{ReasonString: reasonText(s.code)}
		}
		buf.b, _ = a.Append(buf.b, c.version)
	}
}

// reasonText says in words what a refusal means to whoever reads a client's log.
func reasonText(code byte) string {
	switch code {
	case packet.TopicNameInvalid:
		return "no route takes this topic, or it is not one for sensors"
	case packet.NotAuthorized:
		return "the access rules do not allow this topic"
	case packet.ImplementationError:
		return "message too large or property not allowed"
	case packet.QuotaExceeded:
		return "queue full or disk in trouble, try again later"
	}
	return ""
}

// fail ends a connection that cannot be written to.
func (c *conn) fail() {
	c.mu.Lock()
	c.flushing = false
	c.closeLocked()
	c.mu.Unlock()
	c.raw.Close()
}

// closeWrite tells the peer that nothing follows, where the transport can.
func closeWrite(stream net.Conn) {
	switch s := stream.(type) {
	case *net.TCPConn:
		s.CloseWrite()
	case *net.UnixConn:
		s.CloseWrite()
	case *tls.Conn:
		s.CloseWrite()
	default:
		s.Close()
	}
}
