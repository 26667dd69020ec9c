package hubtest

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"time"
)

// Refusal is a way to turn a connection away. The documentation of the real hub does not settle which one
// shows for which fault, so a client has to be right under all of them.
type Refusal int

const (
	// ConnackFive answers CONNECT with return code 5 and closes.
	ConnackFive Refusal = iota + 1
	// TLSAlert fails the handshake with a bad_certificate alert. Under TLS 1.3 the client sees its own
	// handshake succeed and finds the alert at its first read.
	TLSAlert
	// CloseSilently closes after CONNECT without a CONNACK.
	CloseSilently
	// AcceptThenDrop answers CONNECT with 0 and closes before anything is acknowledged.
	AcceptThenDrop
	// ConnackThree answers CONNECT with return code 3, "server unavailable", and closes.
	ConnackThree
	// Hang never answers CONNECT and keeps the connection open.
	Hang
)

// LedgerMode says how much of the arriving telemetry is kept.
type LedgerMode int

const (
	// KeepAll keeps every message with body and properties; memory grows with the traffic.
	KeepAll LedgerMode = iota
	// CountOnly keeps counters, see [Hub.Counters]: for benchmarks and long runs.
	CountOnly
)

// Defaults of [Options], where the documentation of the real hub gives a figure.
const (
	DefaultHostName       = "contoso.azure-devices.net"
	defaultConnectTimeout = 60 * time.Second // the gateway product's figure; the hub's own is unpublished
	defaultMaxInbound     = 16
	defaultMaxFilters     = 5
	defaultMaxMethods     = 10 // the hub has a limit (403800) but does not publish it
	defaultC2DLock        = time.Minute
	defaultC2DLife        = time.Hour
	maxC2DQueue           = 50
	maxC2DBody            = 64 << 10
	maxMessage            = 256 << 10
	maxMethodBody         = 128 << 10
	maxKeepAlive          = 1767 * time.Second
	maxPacket             = maxMessage + 1<<16 + 16
	backlogLimit          = 10 * time.Second
)

// Options configures a [Hub]. The zero value is a strict hub on a free port of the loopback address. Fields
// named after a doubt are switches: the real hub's behaviour is not documented there, and the zero value is
// the stricter or better supported guess.
type Options struct {
	HostName string // what user names and the server certificate must say; default DefaultHostName
	Listen   string // host:port; default 127.0.0.1:0
	// Listener replaces Listen, such as a [PipeListener] inside a testing/synctest bubble. It is wrapped in TLS.
	Listener net.Listener
	// WebSocket is a second host:port for MQTT over WebSocket over TLS at /$iothub/websocket; "" is none.
	WebSocket string
	// WebSocketListener replaces WebSocket, as Listener does Listen.
	WebSocketListener net.Listener

	ServerCert tls.Certificate     // default: from an own CA, see ServerCAPEM
	ClientCAs  []*x509.Certificate // registered CAs, roots or intermediates; see also AddCA
	MinTLS     uint16              // default TLS 1.2, as the hub
	MaxTLS     uint16              // default TLS 1.3; the classic endpoint offers 1.2 only
	// DeviceEndpoint is the newer endpoint profile: a server name is needed and TLS 1.2 is limited to ECDHE
	// with GCM or ChaCha20.
	DeviceEndpoint bool

	Lenient bool // tolerate and note what strict mode closes for: rows 35, 37, 38, 48 and 51 of Violation.Row
	Edge    bool // behave as IoT Edge's hub does: host unchecked, CONNACK 3 for user names, filters granted, no module X.509

	CertFailure            Refusal       // expired, not yet valid or untrusted certificates: ConnackFive (default), TLSAlert or CloseSilently
	CutAtNotAfter          bool          // end a live connection when its certificate expires
	AllowCALeaf            bool          // accept a device certificate that is a CA
	IgnoreEKU              bool          // accept a certificate whose extended key usage lacks clientAuth
	CheckCNWithThumbprint  bool          // demand CN = identity of self-signed certificates as well
	AllowPassword          bool          // ignore a password beside a certificate
	AnyHost                bool          // accept any host in the user name
	AnyAPIVersion          bool          // accept an api-version that no SDK ever sent
	CloseOnLevel           bool          // close instead of CONNACK 1 for another protocol level
	ConnectTimeout         time.Duration // from accept to CONNECT
	NoWillOnTakeover       bool          // a displaced connection's will is not published
	NoSessionPresent       bool          // never set session present
	CleanSessionDropsC2D   bool          // a connect with clean session empties the C2D queue
	MaxInbound             int           // unacknowledged inbound publishes before reading stops; negative = no limit
	MaxFilters             int           // subscriptions per connection
	MaxMethods             int           // direct methods in flight per identity
	C2DLock                time.Duration // time to acknowledge a C2D message before it is sent again
	RedeliverWithDup       bool          // set DUP on a C2D message that is sent again
	CloseOnConnectThrottle bool          // close instead of CONNACK 5 past the connect rate
	ConditionalStatus      int           // status for a failed $version condition; default 412
	TooLargeStatus         int           // status for a reported section above 32 KB; default 400
	AnswerUnsubscribed     bool          // answer twin requests without a subscription to the replies

	ClockOffset time.Duration // added to the clock when certificates and tokens are judged
	Ledger      LedgerMode
}

func (o Options) withDefaults() Options {
	set(&o.HostName, DefaultHostName)
	set(&o.Listen, "127.0.0.1:0")
	set(&o.MinTLS, tls.VersionTLS12)
	set(&o.MaxTLS, tls.VersionTLS13)
	set(&o.CertFailure, ConnackFive)
	set(&o.ConnectTimeout, defaultConnectTimeout)
	set(&o.MaxInbound, defaultMaxInbound)
	set(&o.MaxFilters, defaultMaxFilters)
	set(&o.MaxMethods, defaultMaxMethods)
	set(&o.C2DLock, defaultC2DLock)
	set(&o.ConditionalStatus, 412)
	set(&o.TooLargeStatus, 400)
	return o
}

func set[T comparable](field *T, def T) {
	var zero T
	if *field == zero {
		*field = def
	}
}
