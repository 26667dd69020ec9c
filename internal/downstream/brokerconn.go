package downstream

import (
	"fmt"
	"net"
	"sync"

	"gatewayd/internal/packet"
)

// heldConn is a connection to a broker that keeps the MQTT library within bounds.
// It does not read on while the messages that are held have used up their memory:
// brokers exist that ignore Receive Maximum, and the library must not be stopped
// in its callbacks. A hold of more than twice the keep-alive ends the connection,
// after which the broker sends again what is not acknowledged. A packet above
// Maximum Packet Size ends the connection before the library makes room for it.
type heldConn struct {
	net.Conn
	intake *brokerIntake
	closed chan struct{}
	once   sync.Once

	// Where the reader is: at the first byte of a packet, in its length, or with so
	// many bytes of its body to come.
	part   framePart
	kind   packet.Type
	length int
	shift  uint
}

type framePart uint8

const (
	partType framePart = iota
	partLength
	partBody
)

// newHeldConn is for one connection at a time: the library dials anew only when
// everything that it read before was put.
func newHeldConn(c net.Conn, intake *brokerIntake) *heldConn {
	intake.begin()
	return &heldConn{Conn: c, intake: intake, closed: make(chan struct{})}
}

func (c *heldConn) Read(p []byte) (int, error) {
	if c.part == partType {
		c.intake.awaitRoom(c.closed)
	}
	n, err := c.Conn.Read(p)
	if tooLarge := c.follow(p[:n]); tooLarge != nil {
		return 0, tooLarge
	}
	return n, err
}

// follow keeps track of where packets begin and end.
func (c *heldConn) follow(b []byte) error {
	for len(b) > 0 {
		switch c.part {
		case partType:
			c.kind, c.length, c.shift = packet.Type(b[0]>>4), 0, 0
			c.part = partLength
			b = b[1:]
		case partLength:
			c.length |= int(b[0]&0x7F) << c.shift
			c.shift += 7
			last := b[0]&0x80 == 0
			if c.length > brokerMaxPacket || !last && c.shift > 21 {
				return fmt.Errorf("the broker sends a packet of more than %d bytes", brokerMaxPacket)
			}
			if last {
				c.part = partBody
				if c.kind == packet.PUBLISH {
					c.intake.comes(c.length)
				}
			}
			b = b[1:]
		case partBody:
			n := min(c.length, len(b))
			c.length -= n
			b = b[n:]
		}
		if c.part == partBody && c.length == 0 {
			c.part = partType
		}
	}
	return nil
}

func (c *heldConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}
