package downstream

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"

	"gatewayd/internal/packet"
)

// state of a connection; it only ever grows.
type state uint8

const (
	open     state = iota
	draining       // nothing more is read; the queue still has to answer
	ending         // what is written already goes out, then the end
	closed
)

// conn is one client's connection. Its goroutine reads and handles packets; a
// second one exists only while there is something to write.
type conn struct {
	server  *MQTT
	raw     net.Conn // the socket: deadlines and closing, from any goroutine
	stream  net.Conn // what packets go over: raw or TLS on it; set before the CONNACK
	address string   // for the limit per address
	in      intake

	// Set by the reading goroutine before the CONNACK and then left alone.
	version    packet.Version
	id         string
	key        string // of its session
	user       string
	azure      *azureLogin // nil = it does not speak IoT Hub's dialect
	counters   *Client
	session    *session
	keepAlive  time.Duration // 1.5 times what the client announced; 0 = none
	sendMax    int           // what the client takes unacknowledged
	packetMax  int           // what the client takes in one packet; 0 = anything
	problems   bool          // the client wants reason strings
	will       *packet.Will
	recent     recentTopic
	aliases    []string
	allowance  allowance
	gracefully bool                 // the client said goodbye
	upgraded   *tls.ConnectionState // of a WebSocket's HTTP request

	// Limits enforced by sweep, as times of MQTT.now; 0 = none.
	readBy, writeBy atomic.Int64

	room chan struct{} // one slot: look at the ring again
	over chan struct{} // closed when the connection is no use any more
	gone chan struct{} // made with the end, closed when the last byte is out

	mu       sync.Mutex
	state    state
	acks     ring
	pending  int // payload bytes between read and sync
	out      []byte
	flushing bool
	again    bool
	endCode  byte // for the DISCONNECT
	greeted  bool // the CONNACK is in out or gone
}

func newConn(s *MQTT, nc, stream net.Conn, address string) *conn {
	c := &conn{server: s, raw: nc, stream: stream, address: address, room: make(chan struct{}, 1), over: make(chan struct{})}
	c.in.conn = c
	if socket, ok := stream.(syscall.Conn); ok && s.secure == nil {
		if raw, err := socket.SyscallConn(); err == nil {
			c.in.socket, c.in.poll = raw, c.in.readSocket
		}
	}
	c.readBy.Store(s.now() + int64(s.cfg.ConnectTimeout))
	return c
}

// serve runs the connection to its end.
func (c *conn) serve() {
	defer c.cut()
	defer c.in.release()
	if c.server.secure != nil && !c.server.bind.websocket {
		secured := tls.Server(c.raw, c.server.secure.current())
		if err := secured.HandshakeContext(c.server.work); err != nil {
			c.refuse("tls handshake failed", err)
			return
		}
		c.stream = secured
	}
	if err := c.connect(); err != nil {
		c.refuse("client refused", err)
		c.linger()
		return
	}
	err := c.readLoop()
	c.leave(err)
	c.linger()
}

// readLoop handles packets until the connection is to end; nil means that the
// client said goodbye or that this side has begun the end already.
func (c *conn) readLoop() error {
	for {
		f, err := c.in.next()
		if err != nil {
			return err
		}
		if err := c.handle(f); err != nil || c.gracefully {
			return err
		}
	}
}

func (c *conn) handle(f packet.Frame) error {
	switch f.Type {
	case packet.PUBLISH:
		return c.publish(f)
	case packet.PINGREQ:
		if err := packet.DecodePing(f); err != nil {
			return err
		}
		return c.send(func(b []byte) ([]byte, error) { return packet.AppendPing(b, packet.PINGRESP), nil })
	case packet.PUBACK:
		return c.acknowledged(f)
	case packet.SUBSCRIBE:
		return c.subscribe(f)
	case packet.UNSUBSCRIBE:
		return c.unsubscribe(f)
	case packet.DISCONNECT:
		return c.disconnected(f)
	case packet.PUBREL:
		// Only a client that believes in a QoS 2 exchange of an earlier session sends it.
		return c.pubrel(f)
	}
	return &packet.Error{Code: packet.ProtocolError, Reason: "a client may not send " + f.Type.String() + " here"}
}

func (c *conn) pubrel(f packet.Frame) error {
	p, err := packet.DecodeAck(f, c.version)
	if err != nil {
		return err
	}
	a := packet.Ack{Type: packet.PUBCOMP, ID: p.ID}
	if c.version == packet.V5 {
		a.Code = packet.PacketIDNotFound
	}
	return c.send(func(b []byte) ([]byte, error) { return a.Append(b, c.version) })
}

func (c *conn) disconnected(f packet.Frame) error {
	p, err := packet.DecodeDisconnect(f, c.version)
	if err != nil {
		return err
	}
	if p.Properties.Has(packet.PropSessionExpiry) {
		if !c.server.local.setExpiry(c.session, p.Properties.SessionExpiry) {
			return &packet.Error{Code: packet.ProtocolError, Reason: "session expiry set at the end but not at the start"}
		}
	}
	c.gracefully = true
	if p.Code != packet.DisconnectWithWill {
		c.will = nil
	}
	return nil
}

// leave takes the client out of the session and begins the end for an error of
// readLoop.
func (c *conn) leave(err error) {
	c.mu.Lock()
	asked := c.state
	c.mu.Unlock()
	if asked != open && c.server.isStopping() {
		c.will = nil // the gateway stops; nothing is known about the sensor
	}
	var broken *packet.Error
	var refused *endError
	switch {
	case asked == draining:
		c.awaitAnswers()
		c.end(packet.ServerShuttingDown)
	case c.gracefully:
		c.end(0)
	case errors.As(err, &broken) && asked == open:
		c.note("client broke the protocol", zap.Error(err))
		c.end(broken.Code)
	case errors.As(err, &refused):
		c.end(refused.code)
	default:
		c.end(0)
	}
	c.server.local.detach(c)
}

// refuse counts and notes a connection that never became a client.
func (c *conn) refuse(what string, err error) {
	c.server.turned.Add(1)
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		return // port scanners and health checks
	}
	c.note(what, zap.Error(err))
}

// note logs what a client did wrong, once a minute for the same client and deed.
func (c *conn) note(what string, fields ...zap.Field) {
	who := c.id
	if who == "" {
		who = c.address
	}
	c.server.notes.once(who, what, func() {
		fields = append(fields, zap.String("client", c.id), zap.String("remote", remoteText(c.raw)))
		c.server.log.Warn(what, fields...)
	})
}

func remoteText(nc net.Conn) string {
	if a := nc.RemoteAddr(); a != nil {
		return a.String()
	}
	return ""
}

// drain stops the reading; the connection then waits for the queue.
func (c *conn) drain() {
	c.mu.Lock()
	if c.state == open {
		c.state = draining
	}
	c.mu.Unlock()
	wake(c.room)
	if !c.server.bind.websocket {
		c.raw.SetReadDeadline(time.Unix(1, 0))
		return
	}
	// A WebSocket does not survive a read that was broken off.
	c.server.running.Go(func() {
		c.awaitAnswers()
		c.end(packet.ServerShuttingDown)
	})
}

// awaitAnswers waits until the queue has answered for everything read.
func (c *conn) awaitAnswers() {
	limit := time.NewTimer(drainTimeout)
	defer limit.Stop()
	look := time.NewTicker(drainLook) // another waiter may take the signal
	defer look.Stop()
	for {
		c.mu.Lock()
		idle := c.pending == 0 && c.acks.n == 0
		c.mu.Unlock()
		if idle {
			return
		}
		select {
		case <-c.room:
		case <-look.C:
		case <-c.over:
			return
		case <-limit.C:
			return
		}
	}
}

// end begins the end: what is settled goes out, then a DISCONNECT with the code
// where the version has one and code is not 0, then nothing more. Only the first
// call counts.
func (c *conn) end(code byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state < ending {
		c.endLocked(code)
		c.kickLocked()
	}
}

func (c *conn) endLocked(code byte) {
	c.state = ending
	c.endCode = code
	c.gone = make(chan struct{})
	close(c.over)
}

// linger reads what the peer still sends until it has seen the end, because
// closing a socket with unread bytes makes the peer lose what was written last.
func (c *conn) linger() {
	c.end(0)
	c.raw.SetReadDeadline(time.Now().Add(lingerTimeout))
	c.readBy.Store(c.server.now() + int64(lingerTimeout))
	var sink [512]byte
	for {
		if _, err := c.stream.Read(sink[:]); err != nil {
			break
		}
	}
	limit := time.NewTimer(lingerTimeout)
	defer limit.Stop()
	select {
	case <-c.gone:
	case <-limit.C:
	}
}

// cut closes the socket at once.
func (c *conn) cut() {
	c.end(0)
	c.mu.Lock()
	c.closeLocked()
	c.mu.Unlock()
	c.raw.Close()
}

// closeLocked ends the end.
func (c *conn) closeLocked() {
	if c.state < ending {
		c.endLocked(0)
	}
	if c.state < closed {
		c.state = closed
		close(c.gone)
	}
}

// sweep enforces the time limits. It is called by the listener's sweeper.
func (c *conn) sweep(now int64) {
	if by := c.readBy.Load(); by != 0 && now > by {
		c.mu.Lock()
		greeted, ends := c.greeted, c.state >= ending
		c.mu.Unlock()
		if ends {
			c.raw.Close()
			return
		}
		c.note("client silent for too long")
		if greeted {
			c.end(packet.KeepAliveTimeout)
		} else {
			c.end(0)
		}
		c.raw.SetReadDeadline(time.Unix(1, 0))
	}
	if c.lapsed() {
		c.end(packet.NotAuthorized)
	}
	if by := c.writeBy.Load(); by != 0 && now > by {
		c.note("client does not take what is sent to it")
		c.raw.Close()
	}
}

// lapsed tells whether an Azure SDK client has to log in anew.
func (c *conn) lapsed() bool {
	if c.server.azure == nil {
		return false
	}
	c.mu.Lock()
	in := c.greeted && c.state == open && c.azure != nil
	c.mu.Unlock()
	return in && c.server.azure.lapsed(c.azure)
}

// context is what the connection's work runs under.
func (c *conn) context() context.Context { return c.server.work }

func wake(signal chan struct{}) {
	select {
	case signal <- struct{}{}:
	default:
	}
}
