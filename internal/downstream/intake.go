package downstream

import (
	"os"

	"gatewayd/internal/packet"
)

// Sizes of the reading side.
const (
	largePacket = 4 << 10  // a packet still arriving beyond this draws from MaxBuffered
	keptReader  = 32 << 10 // readers that handled more are not used again
)

// intake is the reading side of a connection. While the client is silent it owns
// a single byte: the packet reader and its buffer come from a pool when the first
// byte of a packet arrives and go back when none is left over.
type intake struct {
	conn    *conn
	reader  *pooledReader
	first   [1]byte
	primed  bool  // first holds a byte that the reader has not seen
	partial int   // bytes of the packet that is arriving
	fresh   bool  // no byte of the current packet has been waited for
	by      int64 // when it has to be complete
	drawn   int64 // taken from MaxBuffered
	biggest int
}

type pooledReader struct {
	*packet.Reader
	in *intake
}

// Read lets the packet reader read from whatever connection borrowed it.
func (r *pooledReader) Read(p []byte) (int, error) { return r.in.read(p) }

func newPooledReader() any {
	r := new(pooledReader)
	r.Reader = packet.NewReader(r, 0)
	return r
}

// next waits for the next packet, which is valid until next is called again.
func (in *intake) next() (packet.Frame, error) {
	c := in.conn
	if in.reader == nil || in.reader.Buffered() == 0 {
		in.release()
		if err := in.await(); err != nil {
			return packet.Frame{}, err
		}
		in.reader = c.server.readers.Get().(*pooledReader)
		in.reader.in = in
		in.reader.SetMax(c.server.cfg.MaxPacket - 2) // the limit counts the fixed header
	}
	in.fresh = true
	f, err := in.reader.Next()
	in.biggest = max(in.biggest, len(f.Body))
	in.partial = in.reader.Buffered()
	in.giveBack()
	return f, err
}

// await blocks until the first byte of a packet.
func (in *intake) await() error {
	c := in.conn
	if c.keepAlive > 0 {
		c.readBy.Store(c.server.now() + int64(c.keepAlive))
	}
	n, err := c.stream.Read(in.first[:])
	if n == 0 {
		if err == nil {
			err = os.ErrDeadlineExceeded
		}
		return err
	}
	c.clearReadBy()
	in.primed = true
	in.partial = 0
	return nil
}

func (in *intake) read(p []byte) (int, error) {
	c := in.conn
	if in.primed {
		in.primed = false
		p[0] = in.first[0]
		in.partial++
		return 1, nil
	}
	if c.version != 0 {
		if in.fresh {
			in.fresh = false
			in.by = c.server.now() + int64(packetTimeout)
		}
		c.readBy.Store(in.by)
	}
	if in.partial > largePacket && in.drawn == 0 {
		if err := in.draw(); err != nil {
			return 0, err
		}
	}
	n, err := c.stream.Read(p)
	in.partial += n
	c.clearReadBy()
	return n, err
}

// clearReadBy lifts the limit while packets are handled: waiting for the queue is
// not the client's fault. The limit for the CONNECT stays.
func (c *conn) clearReadBy() {
	if c.version != 0 {
		c.readBy.Store(0)
	}
}

// draw takes the memory for a large packet from what all clients share, and
// waits for it within the packet's own time limit.
func (in *intake) draw() error {
	c := in.conn
	n := int64(c.server.cfg.MaxPacket)
	if !c.server.large.TryAcquire(n) {
		ctx, cancel := c.untilOver()
		defer cancel()
		if err := c.server.large.Acquire(ctx, n); err != nil {
			return err
		}
	}
	in.drawn = n
	return nil
}

func (in *intake) giveBack() {
	if in.drawn > 0 {
		in.conn.server.large.Release(in.drawn)
		in.drawn = 0
	}
}

// release puts the reader back; the connection is about to wait or to end.
func (in *intake) release() {
	r := in.reader
	in.reader = nil
	in.giveBack()
	if r == nil {
		return
	}
	r.in = nil
	if r.Buffered() == 0 && in.biggest <= keptReader {
		in.conn.server.readers.Put(r)
	}
	in.biggest = 0
}
