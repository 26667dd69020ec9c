package hubtest

import (
	"context"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// pipeBuffer is how much one direction holds before a writer waits, like a socket's.
const pipeBuffer = 64 << 10

// PipeListener is a listener whose connections never leave the process: buffered, so that both ends may write
// at once, and made of channels and timers only, so that they work inside a testing/synctest bubble. Give it
// to a hub as [Options.Listener] and dial it with DialContext.
type PipeListener struct {
	queue chan net.Conn
	done  chan struct{}
	once  sync.Once
}

// NewPipeListener makes a listener.
func NewPipeListener() *PipeListener {
	return &PipeListener{queue: make(chan net.Conn), done: make(chan struct{})}
}

// DialContext connects to the listener; network and address are not looked at. It fails like a dial to a
// closed port once the listener is closed.
func (l *PipeListener) DialContext(ctx context.Context, _, _ string) (net.Conn, error) {
	near, far := Pipe()
	select {
	case l.queue <- far:
		return near, nil
	case <-l.done:
		return nil, &net.OpError{Op: "dial", Net: "pipe", Addr: pipeAddr{}, Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Accept implements net.Listener.
func (l *PipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *PipeListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// Addr implements net.Listener.
func (l *PipeListener) Addr() net.Addr { return pipeAddr{} }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "pipe" }

// Pipe makes two connected ends with a buffer in each direction.
func Pipe() (a, b net.Conn) {
	x, y := newHalf(), newHalf()
	return &pipeEnd{in: x, out: y}, &pipeEnd{in: y, out: x}
}

// half is one direction.
type half struct {
	mu      sync.Mutex
	buf     []byte
	ended   bool          // the writer closed: what is buffered can still be read
	broken  bool          // the reader closed: writes fail
	changed chan struct{} // closed and replaced at every change
}

func newHalf() *half { return &half{changed: make(chan struct{})} }

func (h *half) notifyLocked() {
	close(h.changed)
	h.changed = make(chan struct{})
}

// deadline is a point in time that may move while somebody waits for it.
type deadline struct {
	mu      sync.Mutex
	at      time.Time
	changed chan struct{}
}

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at = t
	if d.changed != nil {
		close(d.changed)
		d.changed = nil
	}
}

func (d *deadline) get() (at time.Time, changed <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.changed == nil {
		d.changed = make(chan struct{})
	}
	return d.at, d.changed
}

// wait blocks until something changed at the half or at the deadline, or the deadline passed.
func (d *deadline) wait(changed <-chan struct{}) error {
	at, moved := d.get()
	var expired <-chan time.Time
	if !at.IsZero() {
		left := time.Until(at)
		if left <= 0 {
			return os.ErrDeadlineExceeded
		}
		timer := time.NewTimer(left)
		defer timer.Stop()
		expired = timer.C
	}
	select {
	case <-changed:
	case <-moved:
	case <-expired:
		return os.ErrDeadlineExceeded
	}
	return nil
}

func (d *deadline) passed() bool {
	at, _ := d.get()
	return !at.IsZero() && !time.Now().Before(at)
}

type pipeEnd struct {
	in, out     *half
	read, write deadline
	mu          sync.Mutex
	closed      bool
}

func (p *pipeEnd) isClosed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed
}

func (p *pipeEnd) Read(b []byte) (int, error) {
	for {
		p.in.mu.Lock()
		n := copy(b, p.in.buf)
		if n > 0 {
			p.in.buf = p.in.buf[n:]
			p.in.notifyLocked()
		}
		ended, changed := p.in.ended, p.in.changed
		p.in.mu.Unlock()
		switch {
		case p.isClosed():
			return 0, net.ErrClosed
		case n > 0 || len(b) == 0:
			return n, nil
		case ended:
			return 0, io.EOF
		}
		if err := p.read.wait(changed); err != nil {
			return 0, err
		}
	}
}

func (p *pipeEnd) Write(b []byte) (int, error) {
	written := 0
	for {
		if p.isClosed() {
			return written, net.ErrClosed
		}
		if p.write.passed() {
			return written, os.ErrDeadlineExceeded
		}
		p.out.mu.Lock()
		if p.out.broken {
			p.out.mu.Unlock()
			return written, io.ErrClosedPipe
		}
		if room := min(pipeBuffer-len(p.out.buf), len(b)-written); room > 0 {
			p.out.buf = append(p.out.buf, b[written:written+room]...)
			written += room
			p.out.notifyLocked()
		}
		changed := p.out.changed
		p.out.mu.Unlock()
		if written == len(b) {
			return written, nil
		}
		if err := p.write.wait(changed); err != nil {
			return written, err
		}
	}
}

// CloseWrite ends this direction only, as the FIN of a half-closed socket does.
func (p *pipeEnd) CloseWrite() error {
	p.out.mu.Lock()
	defer p.out.mu.Unlock()
	if !p.out.ended {
		p.out.ended = true
		p.out.notifyLocked()
	}
	return nil
}

func (p *pipeEnd) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.in.mu.Lock()
	p.in.broken = true
	p.in.notifyLocked()
	p.in.mu.Unlock()
	return p.CloseWrite()
}

func (p *pipeEnd) SetDeadline(t time.Time) error {
	p.read.set(t)
	p.write.set(t)
	return nil
}

func (p *pipeEnd) SetReadDeadline(t time.Time) error {
	p.read.set(t)
	return nil
}

func (p *pipeEnd) SetWriteDeadline(t time.Time) error {
	p.write.set(t)
	return nil
}

func (p *pipeEnd) LocalAddr() net.Addr  { return pipeAddr{} }
func (p *pipeEnd) RemoteAddr() net.Addr { return pipeAddr{} }
