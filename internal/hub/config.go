package hub

import (
	"context"
	"crypto/x509"
	"net"
	"time"

	"gatewayd/internal/certstore"
	"gatewayd/internal/queue"
)

// MaxKeepAlive is the longest keep-alive that is of use: the hub gives a silent
// client up after 1.5 times the keep-alive and after 1767 s in any case.
const MaxKeepAlive = 1177 * time.Second

// Config describes one identity's session. Only Identity is required.
type Config struct {
	Identity

	Product   string        // DeviceClientType, shown in the hub's logs and metrics
	KeepAlive time.Duration // whole seconds; 0 = 4 min; at most MaxKeepAlive
	// KeepAliveAuto begins at a minute, or KeepAlive if that is less, and finds what the
	// link bears, from 1 s to MaxKeepAlive.
	KeepAliveAuto bool
	Window        int // unacknowledged publishes; 0 = 16; at most 30,000

	Transport Transport // "" = OverTLS
	Proxy     Proxy
	Wire      *Wire // counts bytes; nil = nobody does

	// Roots are the server's possible authorities for the next dial; nil, or a nil
	// pool, means the system's.
	Roots func() *x509.CertPool
	// Clock gives the time against which the server's certificate is checked; nil =
	// the machine's.
	Clock *certstore.Clock
	// Ready returns when Roots and the credentials are fit for a first attempt; nil = they are.
	Ready func(ctx context.Context)
	// Commands takes what comes down from the cloud; nil = only publish.
	Commands Commands
	// DialContext makes the connection below TLS, to the hub or to the proxy; nil = TCP.
	DialContext func(ctx context.Context, network, address string) (net.Conn, error)

	// Packs is the queue in which the session writes down which readings it sends
	// together, so that a resend is the same after a crash; it is asked for when the
	// first reading is to be packed. nil = that is not written down.
	Packs func() (*queue.Queue, error)

	Timing Timing
}

// Timing holds the waits and limits of a session. A zero field means its default.
type Timing struct {
	Dial    time.Duration // all that comes before CONNECT; 30 s
	Connack time.Duration // from CONNECT to its answer; 20 s
	Write   time.Duration // for one write, and for data to be confirmed by the peer's TCP; 60 s
	Ack     time.Duration // the oldest message in flight waits longer: no progress; 2 min
	// LeftOut is for how long acknowledgements of later messages may have come before that of the oldest in flight is
	// taken for lost (10 s); while that goes on it doubles, up to Ack.
	LeftOut time.Duration
	Drain   time.Duration // for outstanding acknowledgements when stopping; 5 s

	RetryMin, RetryMax     time.Duration // after outages: full jitter, doubling; 1 s and 60 s
	RefusedMin, RefusedMax time.Duration // after a refusal: at least half of it; 15 s and 10 min
	Stable                 time.Duration // a connection that lives shorter is not healthy; 60 s

	// At a change of certificate: how long acknowledgements are collected (3 s) and
	// how long sending pauses for the answer to the new CONNECT (750 ms) before it
	// goes on over the old connection.
	CutDrain, CutPause time.Duration
	// Proof without an acknowledged message: the hub answered something else and
	// the connection lived that long, with nothing in flight (2 s) or with messages
	// that the hub is slow to acknowledge (10 s).
	ProofIdle, ProofSlow time.Duration
	// With Auto, over WebSocket: after what time it is tried whether port 8883 is open
	// again, doubling (5 min and 1 h).
	ReturnMin, ReturnMax time.Duration
	// PoisonDeaths connections that die on the same oldest message, one after the
	// other, make it suspect (3); then it is sent only after so much quiet (5 s).
	PoisonDeaths int
	Quiet        time.Duration
}

func (t Timing) withDefaults() Timing {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&t.Dial, 30*time.Second)
	def(&t.Connack, 20*time.Second)
	def(&t.Write, time.Minute)
	def(&t.Ack, 2*time.Minute)
	def(&t.LeftOut, 10*time.Second)
	def(&t.Drain, 5*time.Second)
	def(&t.RetryMin, time.Second)
	def(&t.RetryMax, time.Minute)
	def(&t.RefusedMin, 15*time.Second)
	def(&t.RefusedMax, 10*time.Minute)
	def(&t.Stable, time.Minute)
	def(&t.CutDrain, 3*time.Second)
	def(&t.CutPause, 750*time.Millisecond)
	def(&t.ProofIdle, 2*time.Second)
	def(&t.ProofSlow, 10*time.Second)
	def(&t.ReturnMin, 5*time.Minute)
	def(&t.ReturnMax, time.Hour)
	def(&t.Quiet, 5*time.Second)
	if t.PoisonDeaths <= 0 {
		t.PoisonDeaths = 3
	}
	return t
}

func (c Config) withDefaults() Config {
	switch {
	case c.KeepAlive <= 0:
		c.KeepAlive = 4 * time.Minute
	case c.KeepAlive < time.Second:
		c.KeepAlive = time.Second
	case c.KeepAlive > MaxKeepAlive:
		c.KeepAlive = MaxKeepAlive
	}
	if c.Window <= 0 {
		c.Window = 16
	}
	c.Window = min(c.Window, maxWindow)
	if c.Transport == "" {
		c.Transport = OverTLS
	}
	if c.Roots == nil {
		c.Roots = func() *x509.CertPool { return nil }
	}
	if c.Clock == nil {
		c.Clock = certstore.WallClock()
	}
	c.Timing = c.Timing.withDefaults()
	return c
}

// Credentials is what a session needs of its identity's certificate store.
// *certstore.Store is the real one; its methods say what each means. They must be
// safe for concurrent use and must not block.
type Credentials interface {
	Current() *certstore.Credential
	Candidate() *certstore.Credential
	Changed() <-chan struct{}
	Commit(c *certstore.Credential, gap time.Duration)
	Miss(c *certstore.Credential, reason string)
	NoVerdict(c *certstore.Credential, reason string)
}

// outbox is what a session needs of its identity's queue.
type outbox interface {
	newReader() reader
	Ready() <-chan struct{}
	Ack(seq uint64)
	SetAside(seq uint64, reason string) error
}

type reader interface {
	Next() (m queue.Message, ok bool, err error)
}

type queueOutbox struct{ *queue.Queue }

func (q queueOutbox) newReader() reader { return q.Reader() }
