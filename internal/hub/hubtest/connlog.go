package hubtest

import (
	"sync"
	"time"
)

// Outcome is how a connection attempt ended up.
type Outcome string

// The outcomes of a connection attempt.
const (
	OutcomePending  Outcome = "pending"  // nothing decided yet
	OutcomeAccepted Outcome = "accepted" // CONNACK 0
	OutcomeConnack  Outcome = "connack"  // refused with Connection.Code
	OutcomeTLS      Outcome = "tls"      // the handshake failed or was refused
	OutcomeClosed   Outcome = "closed"   // closed without an answer
)

// Connection is what the hub knows about one connection, live or over.
type Connection struct {
	Number      uint64 // from 1
	Identity    string // as claimed in CONNECT; "" if there was none
	Remote      string
	WebSocket   bool
	TLSVersion  uint16
	Resumed     bool // TLS session resumption: the certificate is the one of an earlier connection
	ServerName  string
	CommonName  string // of the certificate
	Serial      string // of the certificate, hex
	Fingerprint string // SHA-256 of the certificate, upper-case hex

	Opened    time.Time // TCP accept
	Connected time.Time // CONNACK 0, else zero
	Closed    time.Time // zero while live

	Outcome      Outcome
	Code         byte   // of the CONNACK
	Row          int    // the rule behind a refusal or a close, as in Violation.Row; 0 if none
	Reason       string // why refused
	CloseReason  string
	KeepAlive    time.Duration
	CleanSession bool
	APIVersion   string
	ClientType   string
}

type connLog struct {
	mu  sync.Mutex
	all []*Connection
}

// Connections returns every connection attempt in the order of accept. It grows without bound, by about half
// a kilobyte for each.
func (h *Hub) Connections() []Connection {
	h.log.mu.Lock()
	defer h.log.mu.Unlock()
	out := make([]Connection, len(h.log.all))
	for i, c := range h.log.all {
		out[i] = *c
	}
	return out
}

// ConnectionsOf returns the connections that claimed an identity.
func (h *Hub) ConnectionsOf(identity string) []Connection {
	var out []Connection
	for _, c := range h.Connections() {
		if c.Identity == identity {
			out = append(out, c)
		}
	}
	return out
}

// Connected tells whether an identity has a live connection.
func (h *Hub) Connected(identity string) bool {
	id, err := h.identity(identity)
	return err == nil && id.live() != nil
}

// Live is the number of identities with a live connection.
func (h *Hub) Live() int {
	h.mu.Lock()
	ids := make([]*identity, 0, len(h.devices))
	for _, id := range h.devices {
		ids = append(ids, id)
	}
	h.mu.Unlock()
	n := 0
	for _, id := range ids {
		if id.live() != nil {
			n++
		}
	}
	return n
}

func (l *connLog) open(remote string, ws bool) *Connection {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := &Connection{
		Number: uint64(len(l.all)) + 1, Remote: remote, WebSocket: ws, Opened: time.Now(), Outcome: OutcomePending,
	}
	l.all = append(l.all, c)
	return c
}

func (l *connLog) change(c *Connection, f func(*Connection)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f(c)
}
