package hubtest

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"gatewayd/internal/packet"
)

// linger is how long a refused client may take to read its CONNACK before the socket is closed under it.
const linger = 250 * time.Millisecond

// connectFlags is where the flags stand in the body of a CONNECT whose protocol name is MQTT.
const connectFlags = 7

// conn is one connection. Its goroutine reads and judges; a second one, mind, writes and watches the clock.
type conn struct {
	h    *Hub
	num  uint64
	rec  *Connection // guarded by h.log
	raw  net.Conn    // below TLS: closing it never waits
	nc   net.Conn    // the bytes of MQTT
	done chan struct{}
	once sync.Once

	cert     peer
	user     username
	password []byte
	id       *identity
	will     *packet.Will
	clean    bool
	events   string // telemetry topic without bag and slash

	keepAlive time.Duration // what the hub allows: 1.5 times the client's
	cutAt     time.Time     // zero: no end in sight
	cutRow    int
	cutReason string

	lastRead atomic.Int64 // UnixNano of the latest complete packet
	gated    atomic.Bool  // not reading on purpose, so silence is not the client's fault
	silent   atomic.Bool  // deaf and mute on request
	over     atomic.Bool  // a later connection has the identity: what still waits to be read counts for nothing

	sent sentIDs // guarded by the identity
	out  outbox
	wake chan struct{} // one slot: mind has something to do
	gate chan struct{} // one slot: there may be room to read again

	// Owned by the reading goroutine.
	fresh    bool // the latest Next needed the network
	graceful bool // DISCONNECT came
	bag      bag
}

func newConn(h *Hub, raw net.Conn, ws bool) *conn {
	rec := h.log.open(raw.RemoteAddr().String(), ws)
	return &conn{
		h: h, num: rec.Number, rec: rec, raw: raw, nc: raw,
		done: make(chan struct{}), wake: make(chan struct{}, 1), gate: make(chan struct{}, 1),
	}
}

// Read is the source of the packet reader. What waits to be written goes out before this goroutine waits for
// the client, so that acknowledgements are coalesced for exactly one read.
func (c *conn) Read(p []byte) (int, error) {
	if c.out.pending() {
		poke(c.wake)
	}
	n, err := c.nc.Read(p)
	c.fresh = n > 0
	return n, err
}

// proved notes what TLS found out.
func (c *conn) proved(cs tls.ConnectionState) {
	c.cert = newPeer(cs.PeerCertificates)
	c.h.log.change(c.rec, func(r *Connection) {
		r.TLSVersion, r.Resumed, r.ServerName = cs.Version, cs.DidResume, cs.ServerName
		r.Serial, r.Fingerprint = c.cert.serial, c.cert.sha256
		if c.cert.leaf != nil {
			r.CommonName = c.cert.leaf.Subject.CommonName
		}
	})
}

// close ends the connection at once and without a word, whoever calls it; only the first call counts. It must
// not be called with a lock held.
func (c *conn) close(row int, reason string) {
	c.once.Do(func() {
		c.h.log.change(c.rec, func(r *Connection) {
			r.Closed, r.CloseReason = time.Now(), reason
			if row != 0 {
				r.Row = row
			}
		})
		close(c.done)
		_ = c.raw.Close()
		c.h.ledger.touch()
	})
}

// violate closes for a broken rule, and notes it.
func (c *conn) violate(row int, format string, args ...any) {
	c.breach(row, true, format, args...)
}

// tolerate notes a broken rule and closes only in strict mode. It tells whether the connection goes on.
func (c *conn) tolerate(row int, format string, args ...any) bool {
	c.breach(row, !c.h.opt.Lenient, format, args...)
	return c.h.opt.Lenient
}

func (c *conn) breach(row int, closing bool, format string, args ...any) {
	detail := fmt.Sprintf(format, args...)
	v := Violation{Row: row, Conn: c.num, Detail: detail, Closed: closing, Time: time.Now()}
	if c.id != nil {
		v.Identity = c.id.name
	}
	c.h.ledger.breach(v)
	if closing {
		c.close(row, detail)
	}
}

// refused notes why a connection never came to life.
func (c *conn) refused(o Outcome, code byte, row int, reason string) {
	c.h.log.change(c.rec, func(r *Connection) {
		r.Outcome, r.Code, r.Row, r.Reason = o, code, row, reason
	})
	c.h.ledger.touch()
}

// serve runs the connection from CONNECT to its end.
func (c *conn) serve() {
	r := packet.NewReader(c, maxPacket)
	p, ok := c.firstPacket(r)
	if !ok || !c.enter(p) {
		return
	}
	var mind sync.WaitGroup
	mind.Go(c.mind)
	c.read(r)
	mind.Wait()
	c.leave()
}

// firstPacket waits for CONNECT.
func (c *conn) firstPacket(r *packet.Reader) (packet.Connect, bool) {
	f, err := r.Next()
	if err != nil {
		reason, row := err.Error(), 0
		if isTimeout(err) {
			reason, row = "no CONNECT in time", 7
		} else if bad := (*packet.Error)(nil); errors.As(err, &bad) {
			row = 30
		}
		c.refused(OutcomeClosed, 0, row, reason)
		c.close(row, reason)
		return packet.Connect{}, false
	}
	if f.Type != packet.CONNECT {
		c.refused(OutcomeClosed, 0, 6, "first packet is not CONNECT")
		c.violate(6, "first packet is %v, not CONNECT", f.Type)
		return packet.Connect{}, false
	}
	p, err := packet.DecodeConnect(f)
	other := (*packet.VersionError)(nil)
	switch {
	case errors.As(err, &other) && other.Name == "MQTT" && !c.h.opt.CloseOnLevel, err == nil && p.Version != packet.V311 && !c.h.opt.CloseOnLevel:
		c.connack(packet.RefusedVersion, 8, "protocol level is not 4")
		return p, false
	case err != nil || p.Version != packet.V311:
		row := 30
		if other != nil || err == nil || len(f.Body) > connectFlags && f.Body[connectFlags]&1 != 0 {
			row = 8
		}
		c.refused(OutcomeClosed, 0, row, "CONNECT of another protocol or malformed")
		c.violate(row, "CONNECT of another protocol or malformed: %v", err)
		return p, false
	}
	return p, true
}

// enter judges CONNECT and makes the connection the identity's only one.
func (c *conn) enter(p packet.Connect) bool {
	u, id, v := c.h.admit(p, c.cert)
	c.user, c.id, c.clean = u, id, p.CleanStart
	c.password = append([]byte(nil), p.Password...)
	c.h.log.change(c.rec, func(r *Connection) {
		r.Identity, r.APIVersion, r.ClientType = p.ClientID, u.apiVersion, u.clientType
		r.KeepAlive, r.CleanSession = time.Duration(p.KeepAlive)*time.Second, p.CleanStart
	})
	if !c.pace() {
		return false
	}
	if v != nil {
		if id != nil {
			id.count.refused.Add(1)
		}
		return c.turnAway(v)
	}
	c.events = "devices/" + u.device + "/messages/events"
	if u.module != "" {
		c.events = "devices/" + u.device + "/modules/" + u.module + "/messages/events"
	}
	if c.will = p.Will; c.will != nil && (c.will.QoS > 1 || !c.isEvents(c.will.Topic)) {
		c.refused(OutcomeClosed, 0, 34, "will is not telemetry of this identity")
		c.violate(34, "will with QoS %d to %q is not telemetry of this identity", c.will.QoS, c.will.Topic)
		return false
	}
	c.keepAlive = maxKeepAlive
	if k := time.Duration(p.KeepAlive) * time.Second; k > 0 {
		c.keepAlive = min(k*3/2, maxKeepAlive)
	}
	c.endOfCredential()
	return c.attach()
}

// endOfCredential finds out when the hub has to end the session by itself.
func (c *conn) endOfCredential() {
	id := c.id
	id.mu.Lock()
	key, contest := id.device.Key, id.contest
	id.mu.Unlock()
	if len(key) > 0 {
		if t, err := checkToken(string(c.password), key, c.h.opt.HostName, c.user, c.h.now()); err == nil {
			c.endAt(t.Add(-c.h.opt.ClockOffset), 28, "token expired")
		}
	} else if c.h.opt.CutAtNotAfter && c.cert.leaf != nil {
		c.endAt(c.cert.leaf.NotAfter.Add(-c.h.opt.ClockOffset), 29, "certificate expired")
	}
	if contest > 0 {
		c.endAt(time.Now().Add(contest), 24, displaced)
	}
}

func (c *conn) endAt(t time.Time, row int, reason string) {
	if c.cutAt.IsZero() || t.Before(c.cutAt) {
		c.cutAt, c.cutRow, c.cutReason = t, row, reason
	}
}

const displaced = "displaced by another connection of the same identity"

// attach answers CONNECT with 0 and takes the identity over from an older connection.
func (c *conn) attach() bool {
	_ = c.raw.SetDeadline(time.Time{}) // a dead connection shows at the next read
	if !c.sleep(time.Duration(c.h.hooks.connackDelay.Load())) {
		return false
	}
	now := time.Now()
	c.lastRead.Store(now.UnixNano())
	c.h.log.change(c.rec, func(r *Connection) { r.Outcome, r.Connected = OutcomeAccepted, now })
	id := c.id
	id.count.connects.Add(1)
	id.mu.Lock()
	old := id.conn
	id.conn = c
	if old != nil {
		old.over.Store(true) // before the client hears of c, and sends again
	}
	if c.clean || !id.stored {
		id.subs = subscriptions{}
	}
	present := id.stored && !c.clean && !c.h.opt.NoSessionPresent
	id.stored = !c.clean
	if c.clean && c.h.opt.CleanSessionDropsC2D {
		id.dropC2DLocked()
	}
	id.releaseC2DLocked()
	c.out.packet(packet.Connack{SessionPresent: present})
	id.pumpC2DLocked(c, now)
	id.mu.Unlock()
	if old != nil {
		old.close(24, displaced)
	}
	c.h.ledger.touch()
	return true
}

// leave takes a dead connection out of its identity and publishes its will.
func (c *conn) leave() {
	id := c.id
	id.mu.Lock()
	if id.conn == c {
		id.conn = nil
		id.releaseC2DLocked()
	}
	id.mu.Unlock()
	takeover, stopped := false, false
	c.h.log.change(c.rec, func(r *Connection) { takeover = r.CloseReason == displaced })
	c.h.mu.Lock()
	stopped = c.h.closed
	c.h.mu.Unlock()
	if c.will != nil && !c.graceful && !stopped && !(takeover && c.h.opt.NoWillOnTakeover) {
		c.publishWill()
	}
	c.h.ledger.touch()
}

// turnAway refuses in the way that the verdict says.
func (c *conn) turnAway(v *verdict) bool {
	switch v.how {
	case ConnackFive, TLSAlert: // the handshake was over before the fault was known
		c.connack(packet.RefusedNotAuthorized, v.row, v.reason)
	case ConnackThree:
		c.connack(packet.RefusedUnavailable, v.row, v.reason)
	case AcceptThenDrop:
		// The hub has taken the newcomer for good, so the older connection is gone as well.
		if old := c.id.live(); old != nil {
			old.close(24, displaced)
		}
		c.connack(packet.Accepted, v.row, v.reason)
	case Hang:
		c.refused(OutcomePending, 0, v.row, v.reason)
		_ = c.raw.SetDeadline(time.Time{}) // a dead connection shows at the next read
		_, _ = io.Copy(io.Discard, c.nc)   // ends with the connection, whichever way
		c.close(v.row, "client gave up")
	case CloseSilently:
		c.refused(OutcomeClosed, 0, v.row, v.reason)
		c.close(v.row, v.reason)
	}
	return false
}

// connack answers CONNECT and closes; it leaves the client the time to read the answer.
func (c *conn) connack(code byte, row int, reason string) {
	c.refused(OutcomeConnack, code, row, reason)
	b, _ := packet.Connack{Code: code}.Append(nil, packet.V311) // four bytes always fit
	_ = c.raw.SetDeadline(time.Now().Add(linger))               // a dead connection shows at the next write
	if _, err := c.nc.Write(b); err == nil {
		if half, ok := c.nc.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
			_, _ = io.Copy(io.Discard, c.nc) // ends at the deadline or when the client closes
		}
	}
	c.close(row, reason)
}

// sleep waits in the reading goroutine; false means that the connection ended.
func (c *conn) sleep(d time.Duration) bool {
	if d <= 0 {
		return true
	}
	select {
	case <-time.After(d):
		return true
	case <-c.done:
		return false
	}
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}
