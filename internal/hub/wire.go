package hub

import (
	"net"
	"sync/atomic"
)

// Wire counts the bytes of an identity's connections: everything that TCP carries in
// either direction, so also TLS, WebSocket, what is said to a proxy, and attempts that
// fail. The headers of IP and TCP, some 40 bytes a packet, name lookups and what TCP
// sends again are not in it. It is safe for concurrent use, and outlives sessions.
type Wire struct{ sent, received atomic.Uint64 }

// Bytes is what was counted so far.
func (w *Wire) Bytes() (sent, received uint64) { return w.sent.Load(), w.received.Load() }

// Add counts more.
func (w *Wire) Add(sent, received int) {
	w.sent.Add(uint64(sent))
	w.received.Add(uint64(received))
}

// count makes nc count; a nil Wire does not.
func (w *Wire) count(nc net.Conn) net.Conn {
	if w == nil {
		return nc
	}
	return counted{nc, w}
}

type counted struct {
	net.Conn
	w *Wire
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.w.Add(0, n)
	return n, err
}

func (c counted) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.w.Add(n, 0)
	return n, err
}
