package downstream

import (
	"errors"
	"io"
	"os"
	"syscall"

	"gatewayd/internal/packet"
)

// Sizes of the reading side.
const (
	stageSize   = 8 << 10  // bytes taken from a socket at once
	largePacket = 4 << 10  // a packet still arriving beyond this draws from MaxBuffered
	keptReader  = 32 << 10 // readers that handled more are not used again
)

// intake is the reading side of a connection. While the client is silent it has no
// buffer: one comes from a pool when bytes arrive and goes back when none is left
// over.
type intake struct {
	conn    *conn
	socket  syscall.RawConn // nil where bytes do not come straight from a socket
	poll    func(fd uintptr) bool
	reader  *pooledReader
	failed  error // of poll
	partial int   // bytes of the packet that is arriving
	fresh   bool  // no byte of the current packet has been waited for
	by      int64 // when it has to be complete
	drawn   int64 // taken from MaxBuffered
	biggest int
}

// pooledReader is a packet reader with the bytes that were read ahead of it.
type pooledReader struct {
	*packet.Reader
	in     *intake
	staged []byte // the part of stage that was not consumed
	stage  [stageSize]byte
}

// Read lets the packet reader read from whatever connection borrowed it.
func (r *pooledReader) Read(p []byte) (int, error) {
	if len(r.staged) == 0 {
		if err := r.in.refill(r); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.staged)
	r.staged = r.staged[n:]
	r.in.partial += n
	return n, nil
}

func newPooledReader() any {
	r := new(pooledReader)
	r.Reader = packet.NewReader(r, 0)
	return r
}

// next waits for the next packet, which is valid until next is called again.
func (in *intake) next() (packet.Frame, error) {
	c := in.conn
	if in.reader == nil || (in.reader.Buffered() == 0 && len(in.reader.staged) == 0) {
		in.release()
		if c.keepAlive > 0 {
			c.readBy.Store(c.server.now() + int64(c.keepAlive))
		}
		if err := in.await(); err != nil {
			return packet.Frame{}, err
		}
		c.clearReadBy()
		in.reader.SetMax(c.server.cfg.MaxPacket - 2) // the limit counts the fixed header
	}
	in.fresh = true
	f, err := in.reader.Next()
	in.biggest = max(in.biggest, len(f.Body))
	in.partial = in.reader.Buffered()
	in.giveBack()
	return f, err
}

// await blocks until a packet begins and borrows a reader for it.
func (in *intake) await() error {
	if in.socket == nil {
		return in.awaitByte()
	}
	in.failed = nil
	if err := in.socket.Read(in.poll); err != nil {
		return err
	}
	return in.failed
}

// awaitByte waits with a buffer of one byte, for streams that cannot be asked
// whether there is something to read.
func (in *intake) awaitByte() error {
	var first [1]byte
	n, err := in.conn.stream.Read(first[:])
	if n == 0 {
		if err == nil {
			err = io.ErrNoProgress
		}
		return err
	}
	in.borrow()
	in.reader.stage[0] = first[0]
	in.reader.staged = in.reader.stage[:1]
	return nil
}

// readSocket is called by the poller whenever there may be bytes. It holds a buffer
// only while it looks.
func (in *intake) readSocket(fd uintptr) (done bool) {
	in.borrow()
	n, err := syscall.Read(int(fd), in.reader.stage[:])
	for errors.Is(err, syscall.EINTR) {
		n, err = syscall.Read(int(fd), in.reader.stage[:])
	}
	switch {
	case errors.Is(err, syscall.EAGAIN):
		in.release()
		return false
	case err != nil:
		in.failed = os.NewSyscallError("read", err)
	case n == 0:
		in.failed = io.EOF
	default:
		in.reader.staged = in.reader.stage[:n]
	}
	return true
}

func (in *intake) borrow() {
	in.reader = in.conn.server.readers.Get().(*pooledReader)
	in.reader.in = in
	in.partial = 0
}

// refill reads more of a packet that has begun.
func (in *intake) refill(r *pooledReader) error {
	c := in.conn
	if c.version != 0 {
		if in.fresh {
			in.fresh = false
			in.by = c.server.now() + int64(packetTimeout)
		}
		c.readBy.Store(in.by)
	}
	if in.partial > largePacket && in.drawn == 0 {
		if err := in.draw(); err != nil {
			return err
		}
	}
	n, err := c.stream.Read(r.stage[:])
	r.staged = r.stage[:n]
	c.clearReadBy()
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
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
	if r.Buffered() == 0 && len(r.staged) == 0 && in.biggest <= keptReader {
		in.conn.server.readers.Put(r)
	}
	in.biggest = 0
}
