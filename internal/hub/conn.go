package hub

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gatewayd/internal/certstore"
	"gatewayd/internal/packet"
)

const (
	// maxInbound bounds a packet from the hub before memory is spent on it: a
	// message of 256 KB with the longest topic.
	maxInbound = maxMessage + packet.MaxString + 16
	// flushAt is how much is gathered for one write: some full TLS records.
	flushAt = 64 << 10
	// maxControl bounds control messages that wait for the writer.
	maxControl = 1 << 20
	// keepBuffer is the largest write buffer that an idle connection keeps.
	keepBuffer = 1 << 10
	// settleAt is after how many acknowledgements the queue hears of them at the
	// latest, although more may follow at once.
	settleAt = 64
)

// settings are what a connection needs to know besides its credential.
type settings struct {
	id           *Identity
	product      string
	keepAlive    time.Duration // told to the hub
	keep         *keeper       // what is kept, when it changes; nil: keepAlive
	window       int
	writeTimeout time.Duration
	commands     Commands             // nil: only publish
	acked        func(seq uint64) int // called in the order of sending; returns how many readings it was
	delivered    *atomic.Uint64
	unknownAcks  *atomic.Uint64
}

// conn is one MQTT connection, made with one credential and never used again
// after it ended. One goroutine, the session's, publishes and flushes; a second,
// the connection's own, reads. The keep-alive timer watches both.
//
// Acknowledgements may come out of order; the queue hears of them in the order of
// sending. A PUBACK for an identifier that is not in flight is ignored and
// counted: after a hub's failover it is harmless, and closing would only cost a
// resend. An identifier of 0, a second CONNACK or a packet that only clients send
// ends the connection.
type conn struct {
	set       settings
	cred      *certstore.Credential
	nc        net.Conn // TLS, or WebSocket over it
	raw       net.Conn // TCP, below everything; closing it interrupts everything
	over      Transport
	remote    string
	presented bool

	connack chan byte     // one slot: the code of CONNACK
	wake    chan struct{} // one slot: something to flush or to look at
	dead    chan struct{} // closed when the reader has returned; err is set by then

	failOnce sync.Once
	err      error

	// batch is encoded telemetry that waits for flush; the session's goroutine only.
	batch []byte

	born     time.Time    // when it was made; the times below count from it
	lastSent atomic.Int64 // of a write that succeeded
	lastRecv atomic.Int64 // of a whole packet
	silence  atomic.Int64 // before the oldest write without an answer, or the latest write
	firstAck atomic.Int64 // of telemetry; 0: none yet
	lastAck  atomic.Int64
	ackDelay atomic.Int64 // of the message that was timed last; taken by the session; 0: none
	// unsettled are acknowledged and not yet told to the queue: a reader that began now
	// would give them again.
	unsettled atomic.Int64
	rounds    atomic.Uint64 // answers of the hub to anything sent after CONNECT
	hurry     atomic.Int64  // no write may take longer than this; 0: the usual

	mu       sync.Mutex
	ended    bool
	writeErr error
	out      []byte // control packets waiting for the writer
	outDone  []func(error)
	win      window
	headAt   time.Time // when the oldest message in flight became the oldest
	gapAt    time.Time // since when a later one than that is acknowledged; zero: none is
	sample   uint64    // ordinal behind the message whose acknowledgement is timed; 0: none
	sampleAt int64
	nextID   uint16 // of control packets
	waiting  map[uint16]func(error)
	subID    uint16
	unsubID  uint16
	filters  []packet.Subscription
	refused  []string // filters that the hub refused
	pingSent int64    // when the ping that is unanswered was queued; 0: none
	timer    *time.Timer
}

func newConn(set settings, cred *certstore.Credential, tr *transport) *conn {
	c := &conn{
		set: set, cred: cred, nc: tr.nc, raw: tr.raw, over: tr.over, remote: tr.remote, presented: tr.presented.Load(),
		connack: make(chan byte, 1), wake: make(chan struct{}, 1), dead: make(chan struct{}),
		born: time.Now().Add(-1), win: window{size: min(max(set.window, 1), maxWindow)}, nextID: telemetryIDs,
	}
	return c
}

// now is the time since the connection was made; never 0.
func (c *conn) now() int64 { return int64(time.Since(c.born)) }

// start sends CONNECT and starts the reader. The answer arrives on connack, or
// dead is closed.
func (c *conn) start(wg *sync.WaitGroup) {
	p := packet.Connect{Version: packet.V311, KeepAlive: uint16(c.set.keepAlive / time.Second),
		ClientID: c.set.id.ClientID(), HasUsername: true, Username: c.set.id.UserName(c.set.product)}
	batch, err := p.Append(c.batch, packet.V311)
	if err != nil {
		c.kill(err)
	} else {
		c.batch = batch
		c.send()
	}
	wg.Go(c.read)
}

// open follows an accepted CONNECT: subscriptions, then a ping when there is
// nothing else to be acknowledged, and the keep-alive watch.
func (c *conn) open() {
	c.mu.Lock()
	defer c.mu.Unlock()
	var unwanted []string
	if c.set.commands != nil {
		c.filters, unwanted = c.set.commands.Filters(*c.set.id)
	}
	if len(c.filters) > 0 {
		c.subID = c.controlIDLocked()
		p := packet.Subscribe{ID: c.subID, Subscriptions: c.filters}
		if out, err := p.Append(c.out, packet.V311); err == nil {
			c.out = out
		}
	}
	if len(unwanted) > 0 {
		c.unsubID = c.controlIDLocked()
		if out, err := (packet.Unsubscribe{ID: c.unsubID, Filters: unwanted}).Append(c.out, packet.V311); err == nil {
			c.out = out
		}
	}
	if !c.ended {
		c.timer = time.AfterFunc(pingAfter(c.interval()), c.watch)
	}
}

// kill ends the connection at once; the first error stays. It may be called from
// any goroutine, and returns before the reader has ended.
func (c *conn) kill(err error) {
	c.failOnce.Do(func() {
		c.err = err
		_ = c.raw.Close()
	})
}

// writeFailed ends the connection after a failed write. What the hub said last
// waits to be read behind the failure, such as the refusal of a certificate in
// TLS 1.3: the reader gets a moment to find it.
func (c *conn) writeFailed(err error) {
	if timedOut(err) {
		c.kill(err)
		return
	}
	c.mu.Lock()
	c.writeErr = err
	c.mu.Unlock()
	_ = c.raw.SetReadDeadline(time.Now().Add(time.Second))
}

// close says goodbye and ends the connection, waiting for the reader.
func (c *conn) close() {
	c.batch = append(c.batch, byte(packet.DISCONNECT)<<4, 0)
	_ = c.flush()
	c.failOnce.Do(func() {
		c.err = errEnded
		_ = c.nc.SetWriteDeadline(time.Now().Add(time.Second))
		_ = c.nc.Close()
	})
	<-c.dead
}

// room is how many messages may be published now.
func (c *conn) room() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.win.room()
}

func (c *conn) inFlight() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.win.n
}

// drained says that the queue knows of everything that was published.
func (c *conn) drained() bool { return c.inFlight() == 0 && c.unsettled.Load() == 0 }

// publish encodes one message into the batch. There must be room in the window,
// and topic must be sendable.
func (c *conn) publish(seq uint64, topic string, payload []byte, dup bool) error {
	c.mu.Lock()
	if c.win.n == 0 {
		c.headAt = time.Now()
	}
	id := c.win.add(seq)
	if c.sample == 0 {
		c.sample, c.sampleAt = c.win.head+uint64(c.win.n), c.now()
	}
	c.mu.Unlock()
	var err error
	c.batch, err = packet.Publish{Dup: dup, QoS: 1, Topic: topic, ID: id, Payload: payload}.Append(c.batch, packet.V311)
	return err
}

// send flushes and ends the connection when that fails.
func (c *conn) send() {
	if err := c.flush(); err != nil {
		c.writeFailed(err)
	}
}

// flush writes control packets and the batch in one go. It blocks for at most the
// write timeout; after an error the connection is over.
func (c *conn) flush() error {
	c.mu.Lock()
	control, done := c.out, c.outDone
	c.out, c.outDone = nil, nil
	c.mu.Unlock()
	data := c.batch
	if len(control) > 0 {
		data = append(control, c.batch...)
	}
	if len(data) == 0 {
		return nil
	}
	if sent, recv := c.lastSent.Load(), c.lastRecv.Load(); recv >= sent {
		c.silence.Store(c.now() - recv)
	}
	_ = c.nc.SetWriteDeadline(time.Now().Add(c.set.writeTimeout))
	if d := time.Duration(c.hurry.Load()); d > 0 { // looked at after the deadline was set, as hurryUp sets both
		_ = c.nc.SetWriteDeadline(time.Now().Add(d))
	}
	_, err := c.nc.Write(data)
	c.batch = c.batch[:0]
	for _, f := range done {
		f(err)
	}
	if err == nil {
		c.lastSent.Store(c.now())
	}
	return err
}

// server is the certificate that the hub has proved to own; nil without TLS.
func (c *conn) server() *x509.Certificate {
	nc, ok := c.nc.(interface{ ConnectionState() tls.ConnectionState })
	if !ok {
		return nil
	}
	if chain := nc.ConnectionState().PeerCertificates; len(chain) > 0 {
		return chain[0]
	}
	return nil
}

// hurryUp keeps writes, the present one included, from taking longer than limit. It
// may be called from any goroutine.
func (c *conn) hurryUp(limit time.Duration) {
	c.hurry.Store(int64(limit))
	_ = c.nc.SetWriteDeadline(time.Now().Add(limit))
}

// rest gives the memory of a burst back. The session's goroutine calls it when
// there is nothing left to send.
func (c *conn) rest() {
	if cap(c.batch) > keepBuffer {
		c.batch = nil
	}
	c.mu.Lock()
	c.win.release()
	c.mu.Unlock()
}

// ping asks for a sign of life; its answer counts as a round trip.
func (c *conn) ping() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ended && c.pingSent == 0 {
		c.pingLocked()
	}
}

func (c *conn) pingLocked() {
	c.pingSent = c.now()
	c.out = packet.AppendPing(c.out, packet.PINGREQ)
	if c.timer != nil {
		c.timer.Reset(pingWait(c.interval()))
	}
	poke(c.wake)
}

// interval is the keep-alive at this moment.
func (c *conn) interval() time.Duration {
	if c.set.keep == nil {
		return c.set.keepAlive
	}
	return c.set.keep.interval()
}

// watch is the keep-alive timer. It needs neither the writer nor the reader to be
// free: when a ping stays without any answer it closes the connection under them.
func (c *conn) watch() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return
	}
	now, recv := c.now(), c.lastRecv.Load()
	if c.pingSent > 0 {
		if recv >= c.pingSent {
			c.pingSent = 0
		} else if left := c.pingSent + int64(pingWait(c.interval())) - now; left > 0 {
			c.timer.Reset(time.Duration(left))
			return
		} else {
			c.kill(errHalfOpen)
			return
		}
	}
	if due := min(recv, c.lastSent.Load()) + int64(pingAfter(c.interval())); due > now {
		c.timer.Reset(time.Duration(due - now))
		return
	}
	c.pingLocked()
}

// diedSilently says whether the connection ended as one that something on the way has
// forgotten: without an answer to what was written last, or with a reset as the answer.
func (c *conn) diedSilently(err error) bool {
	if errors.Is(err, syscall.ECONNRESET) {
		return c.lastRecv.Load() < c.lastSent.Load()
	}
	return errors.Is(err, errHalfOpen) || timedOut(err)
}

// stalledSince says since when the oldest message in flight is waiting.
func (c *conn) stalledSince() (since time.Time, waiting bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.headAt, c.win.n > 0
}

// leftOutSince says since when later messages than the oldest in flight are acknowledged.
func (c *conn) leftOutSince() (since time.Time, leftOut bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gapAt, !c.gapAt.IsZero()
}

// sent is what has been sent and is not settled: outstanding, or acknowledged behind what is.
func (c *conn) sent() []uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.win.sent(nil)
}

// outstanding is what has been sent and not been acknowledged.
func (c *conn) outstanding() []uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.win.outstanding(nil)
}

// await waits for the answer to CONNECT.
func (c *conn) await(ctx context.Context, limit time.Duration) error {
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case code := <-c.connack:
		return accepted(code)
	case <-c.dead:
		return c.refusal()
	case <-t.C:
		return errNoConnack
	case <-ctx.Done():
		return ctx.Err()
	}
}

// refusal is why a connection ended that was waiting for CONNACK: the code, when one
// came before the end.
func (c *conn) refusal() error {
	select {
	case code := <-c.connack:
		if err := accepted(code); err != nil {
			return err
		}
	default:
	}
	return c.err
}

func accepted(code byte) error {
	if code != packet.Accepted {
		return refusedError(code)
	}
	return nil
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
