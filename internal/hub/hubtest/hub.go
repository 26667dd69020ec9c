package hubtest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"gatewayd/internal/certstore/certtest"
)

// acceptPause keeps a full descriptor table from becoming a busy loop.
const acceptPause = 10 * time.Millisecond

// Hub is the stand-in. Its methods are safe for concurrent use, before, during and after Run.
type Hub struct {
	opt  Options
	ca   *certtest.CA // nil if the caller brought a server certificate
	tls  *tls.Config
	addr net.Addr
	ws   *webSocket // nil if there is none

	mu       sync.Mutex // guards what follows
	devices  map[string]*identity
	cas      []*x509.Certificate // replaced, never changed in place
	refused  map[string]Refusal
	live     map[*conn]struct{}
	listener net.Listener // nil while listening is stopped
	closed   bool

	relisten chan struct{} // one slot: there may be a listener again
	wg       sync.WaitGroup

	log    connLog
	ledger ledger
	hooks  hooks
	faults ackFaults
	shape  shape
	rids   atomic.Uint64
}

// New makes a hub and binds its listeners. It answers nobody before [Hub.Run]; connections made earlier wait
// in the kernel. The caller runs it or closes it.
func New(opt Options) (*Hub, error) {
	h := &Hub{
		opt:      opt.withDefaults(),
		devices:  map[string]*identity{},
		refused:  map[string]Refusal{},
		live:     map[*conn]struct{}{},
		cas:      append([]*x509.Certificate(nil), opt.ClientCAs...),
		relisten: make(chan struct{}, 1),
	}
	h.ledger.mode = h.opt.Ledger
	cert, err := h.serverCert()
	if err != nil {
		return nil, err
	}
	h.tls = h.tlsConfig(cert)
	if h.listener = h.opt.Listener; h.listener == nil {
		if h.listener, err = net.Listen("tcp", h.opt.Listen); err != nil {
			return nil, fmt.Errorf("listen for MQTT: %w", err)
		}
	}
	h.addr = h.listener.Addr()
	if h.opt.WebSocket != "" || h.opt.WebSocketListener != nil {
		if h.ws, err = newWebSocket(h); err != nil {
			_ = h.listener.Close()
			return nil, err
		}
	}
	return h, nil
}

// Run serves until ctx ends, then closes every connection without a word and waits for all its goroutines. It
// returns nil. It is called once.
func (h *Hub) Run(ctx context.Context) error {
	h.wg.Go(func() { h.accept(ctx) })
	if h.ws != nil {
		h.wg.Go(func() { h.ws.serve(ctx) })
	}
	<-ctx.Done()
	h.Close()
	h.wg.Wait()
	return nil
}

// Close frees the listeners and drops every connection. Run does it by itself; it is there for a hub that
// never ran. Connections end in the background.
func (h *Hub) Close() {
	h.mu.Lock()
	ln := h.listener
	h.listener, h.closed = nil, true
	h.mu.Unlock()
	if ln != nil {
		_ = ln.Close()
	}
	if h.ws != nil {
		h.ws.close()
	}
	for _, c := range h.connections() {
		c.close(0, "hub stopped")
	}
}

// TB is the part of testing.TB that [Start] needs.
type TB interface {
	Helper()
	Fatal(args ...any)
	Cleanup(func())
}

// Start makes a hub and runs it until the test ends.
func Start(t TB, opt Options) *Hub {
	t.Helper()
	h, err := New(opt)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = h.Run(ctx) // nil by its contract
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return h
}

// HostName is what user names must carry and what the server certificate is for.
func (h *Hub) HostName() string { return h.opt.HostName }

// Addr is the host:port of the MQTT listener. It stays the same while listening is stopped.
func (h *Hub) Addr() string { return h.addr.String() }

// WebSocketAddr is the host:port of the WebSocket listener, "" without one.
func (h *Hub) WebSocketAddr() string {
	if h.ws == nil {
		return ""
	}
	return h.ws.addr
}

// ServerCAPEM is the root that clients must trust; nil if the caller brought the server certificate.
func (h *Hub) ServerCAPEM() []byte {
	if h.ca == nil {
		return nil
	}
	return h.ca.PEM()
}

// ServerPool is ServerCAPEM as a pool.
func (h *Hub) ServerPool() *x509.CertPool {
	if h.ca == nil {
		return nil
	}
	return h.ca.Pool()
}

// StopListening refuses new connections, as a hub that cannot be reached does; live ones go on.
func (h *Hub) StopListening() {
	h.mu.Lock()
	ln := h.listener
	h.listener = nil
	h.mu.Unlock()
	if ln != nil {
		_ = ln.Close()
	}
}

// Resume listens again on the same address. It fails when somebody took the port meanwhile, and for a
// listener that the caller brought.
func (h *Hub) Resume() error {
	if h.opt.Listener != nil {
		return errors.New("resume: the listener was given by the caller")
	}
	ln, err := net.Listen("tcp", h.addr.String())
	if err != nil {
		return fmt.Errorf("resume: %w", err)
	}
	h.mu.Lock()
	keep := h.listener == nil && !h.closed
	if keep {
		h.listener = ln
	}
	h.mu.Unlock()
	if !keep {
		return ln.Close()
	}
	poke(h.relisten)
	return nil
}

func (h *Hub) accept(ctx context.Context) {
	for ctx.Err() == nil {
		h.mu.Lock()
		ln := h.listener
		h.mu.Unlock()
		if ln == nil {
			select {
			case <-h.relisten:
			case <-ctx.Done():
			}
			continue
		}
		raw, err := ln.Accept()
		switch {
		case err == nil:
			h.welcome(ctx, raw)
		case !errors.Is(err, net.ErrClosed):
			select {
			case <-time.After(acceptPause):
			case <-ctx.Done():
			}
		}
	}
}

// welcome serves one TCP connection in its own goroutine.
func (h *Hub) welcome(ctx context.Context, raw net.Conn) {
	c := newConn(h, raw, false)
	if !h.track(c) {
		_ = raw.Close()
		return
	}
	go func() {
		defer h.untrack(c)
		tc := tls.Server(raw, h.tls)
		c.nc = tc
		_ = raw.SetDeadline(time.Now().Add(h.opt.ConnectTimeout)) // a dead connection shows at the next read
		if h.hooks.hangTLS.Load() {
			<-c.done
			return
		}
		err := tc.HandshakeContext(ctx)
		c.proved(tc.ConnectionState())
		if err != nil {
			c.refused(OutcomeTLS, 0, 0, err.Error())
			c.close(0, "TLS handshake failed")
			return
		}
		c.serve()
	}()
}

// track makes the connection known to Close and to Run's wait; false means that the hub is closed.
func (h *Hub) track(c *conn) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false
	}
	h.live[c] = struct{}{}
	h.wg.Add(1)
	return true
}

// untrack is the last act of a connection's goroutine.
func (h *Hub) untrack(c *conn) {
	h.mu.Lock()
	delete(h.live, c)
	h.mu.Unlock()
	h.wg.Done()
}

func (h *Hub) connections() []*conn {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make([]*conn, 0, len(h.live))
	for c := range h.live {
		all = append(all, c)
	}
	return all
}

// now is the clock that certificates and tokens are judged by.
func (h *Hub) now() time.Time { return time.Now().Add(h.opt.ClockOffset) }

func (h *Hub) serverCert() (tls.Certificate, error) {
	if len(h.opt.ServerCert.Certificate) > 0 {
		return h.opt.ServerCert, nil
	}
	ca, err := certtest.NewCA("stand-in hub root")
	if err != nil {
		return tls.Certificate{}, err
	}
	pair, err := ca.Issue(certtest.Leaf{
		CN: h.opt.HostName, DNS: []string{h.opt.HostName, "localhost", "127.0.0.1", "::1"}, NotAfter: ca.Cert.NotAfter,
	})
	if err != nil {
		return tls.Certificate{}, err
	}
	h.ca = ca
	return pair.TLS(), nil
}

// tlsConfig asks for a client certificate and takes any: who needs one shows at CONNECT (section "TLS" of the
// hub's documentation). Session tickets stay on, so that a client that shares a session cache between
// identities is found out.
func (h *Hub) tlsConfig(cert tls.Certificate) *tls.Config {
	conf := &tls.Config{
		Certificates:     []tls.Certificate{cert},
		ClientAuth:       tls.RequestClientCert,
		MinVersion:       h.opt.MinTLS,
		MaxVersion:       h.opt.MaxTLS,
		VerifyConnection: h.verifyTLS,
	}
	if h.opt.DeviceEndpoint {
		conf.CipherSuites = []uint16{
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		}
	}
	return conf
}

// poke sends on a one-slot channel without blocking: "look again".
func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
