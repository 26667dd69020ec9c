package downstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/semaphore"
)

// MQTTConfig describes one MQTT listener. Zero values are the defaults given.
type MQTTConfig struct {
	// Listen is host:port, tls://host:port, ws://host:port, wss://host:port or
	// unix:///path. WebSocket clients use any path and the subprotocol mqtt.
	Listen string
	TLS    TLSFiles
	Users  *Users // nil = no passwords
	// Anonymous lets clients in that prove nothing. It is implied on loopback
	// addresses and unix sockets while neither Users nor TLS.ClientCA is set.
	Anonymous bool
	// ACL is looked at once Users or TLS.ClientCA is set; then what no rule
	// allows is refused.
	ACL []ACLRule
	// Azure lets Azure SDK clients in, which ACL does not concern; nil = the listener
	// does not know IoT Hub's dialect.
	Azure *AzureClients

	MaxConnections   int           // default 10,000
	MaxPerAddress    int           // connections per remote address other than loopback; default 1,000
	ConnectTimeout   time.Duration // from accept to a complete CONNECT; default 10s
	MaxPacket        int           // bytes of one packet; default 256 KiB
	MaxSubscriptions int           // per client; default 100
	InFlight         int           // unacknowledged messages per client, 1 to 65,535; default 1,024
	Rate             float64       // messages per second and client; default 0 = no limit
	MaxBuffered      int64         // memory for packets above 4 KiB that are still arriving; default 32 MiB
}

const (
	packetTimeout  = 30 * time.Second // for the bytes of one packet to arrive
	writeTimeout   = 20 * time.Second // for a peer to take what is written to it
	stallTimeout   = 10 * time.Second // a 3.1.1 message waits so long for room in the queue
	lingerTimeout  = time.Second      // for the peer to see the end before the socket goes
	drainLook      = 20 * time.Millisecond
	drainTimeout   = 5 * time.Second // for the queue to answer at the stop
	sweepInterval  = 500 * time.Millisecond
	maxPendingByte = 1 << 20 // payload bytes per client between read and sync
	topicAliases   = 16      // per client, towards us
)

func (c MQTTConfig) withDefaults() MQTTConfig {
	set := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	set(&c.MaxConnections, 10000)
	set(&c.MaxPerAddress, 1000)
	set(&c.MaxPacket, 256<<10)
	set(&c.MaxSubscriptions, 100)
	set(&c.InFlight, 1024)
	c.InFlight = min(c.InFlight, 65535)
	if c.ConnectTimeout <= 0 {
		c.ConnectTimeout = 10 * time.Second
	}
	if c.MaxBuffered <= 0 {
		c.MaxBuffered = 32 << 20
	}
	c.MaxBuffered = max(c.MaxBuffered, int64(c.MaxPacket))
	return c
}

// MQTT is one listener for sensors and local subscribers.
type MQTT struct {
	cfg    MQTTConfig
	gate   *Gate
	local  *Local
	log    *zap.Logger
	source *Source
	bind   endpoint
	secure *tlsReloader // nil without TLS
	access access
	azure  *AzureClients // nil = the dialect is not known here
	notes  notes
	start  time.Time
	large  *semaphore.Weighted

	// readers and buffers are what connections borrow while data flows.
	readers, buffers sync.Pool

	listener net.Listener

	mu        sync.Mutex
	conns     map[*conn]struct{}
	addresses map[string]int
	stopping  bool

	running  sync.WaitGroup
	work     context.Context // what connections do; outlives Run's context by the drain
	accepted atomic.Uint64
	turned   atomic.Uint64 // away
}

// MQTTStats describe a listener.
type MQTTStats struct {
	Connections int    `json:"connections"`
	Accepted    uint64 `json:"accepted"`
	Refused     uint64 `json:"refused"` // connections turned away by a limit or without a valid login
}

// NewMQTT checks the configuration; nothing is bound or started. Listeners that
// share local share client ids, sessions and retained values. A problem names
// the key under downstream.mqtt[] that it is about.
func NewMQTT(cfg MQTTConfig, gate *Gate, local *Local, log *zap.Logger) (*MQTT, error) {
	bind, err := parseEndpoint(cfg.Listen, "tcp", "tls", "ws", "wss", "unix")
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	s := &MQTT{
		cfg: cfg.withDefaults(), gate: gate, local: local, log: log, source: gate.ledger.Source("mqtt"),
		azure: cfg.Azure, bind: bind, start: time.Now(), conns: make(map[*conn]struct{}), addresses: make(map[string]int),
	}
	s.readers.New = newPooledReader
	s.buffers.New = newBuffer
	s.large = semaphore.NewWeighted(s.cfg.MaxBuffered)
	if s.secure, err = newTLSReloader(cfg.TLS, bind.secure, cfg.Users != nil || cfg.Azure != nil); err != nil {
		return nil, err
	}
	if s.access, err = newAccess(cfg.Users, cfg.TLS.ClientCA != "", cfg.Anonymous, bind.private(), cfg.Azure != nil, cfg.ACL); err != nil {
		return nil, err
	}
	return s, nil
}

// Listen binds the address, so that a busy port is an error at the start.
func (s *MQTT) Listen() error {
	l, err := s.bind.listen()
	if err != nil {
		return err
	}
	s.listener = l
	return nil
}

// Addr is where it listens; call it after Listen.
func (s *MQTT) Addr() net.Addr { return s.listener.Addr() }

// Stats may be called at any time.
func (s *MQTT) Stats() MQTTStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return MQTTStats{Connections: len(s.conns), Accepted: s.accepted.Load(), Refused: s.turned.Load()}
}

// Run serves until ctx ends. Then it stops in two steps: first it accepts no
// connection and reads no packet any more, then it closes each connection once
// the queue has answered for everything read from it, at the latest after five
// seconds. So the queue has to be kept running until Run has returned. An error
// means that the listener is unusable.
func (s *MQTT) Run(ctx context.Context) error {
	work, stopWork := context.WithCancel(context.Background())
	defer stopWork()
	s.work = work
	if s.access.enforced() && len(s.cfg.ACL) == 0 && s.azure == nil {
		s.log.Warn("clients have to log in, but no access rule lets them publish or subscribe")
	}
	sweeping := make(chan struct{})
	go func() {
		defer close(sweeping)
		s.sweepLoop(work)
	}()
	stopAccepting := context.AfterFunc(ctx, func() { s.listener.Close() })
	defer stopAccepting()
	err := s.acceptLoop(ctx)
	s.listener.Close()
	s.drain(stopWork)
	s.running.Wait()
	stopWork()
	<-sweeping
	return err
}

func (s *MQTT) acceptLoop(ctx context.Context) error {
	if s.bind.websocket {
		return s.serveWebSocket(ctx)
	}
	wait := time.Duration(0)
	for {
		nc, err := s.listener.Accept()
		switch {
		case err == nil:
			if wait > 0 {
				wait = 0
				s.log.Info("accepting connections again")
			}
			s.admit(nc)
			continue
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		}
		// Out of descriptors or memory: those pass when connections end.
		if wait == 0 {
			s.log.Warn("cannot accept connections", zap.Error(err))
		}
		wait = min(max(2*wait, 5*time.Millisecond), time.Second)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

// admit starts a connection if the limits leave room for it. A WebSocket is
// served by the caller's goroutine, see serveWebSocket.
func (s *MQTT) admit(nc net.Conn) {
	c, ok := s.enter(nc, nc)
	if !ok {
		nc.Close()
		return
	}
	go s.serve(c)
}

// enter counts a connection in: its socket and the stream of packets over it.
func (s *MQTT) enter(nc, stream net.Conn) (*conn, bool) {
	address := remoteHost(nc)
	s.mu.Lock()
	defer s.mu.Unlock()
	full := len(s.conns) >= s.cfg.MaxConnections
	crowded := address != "" && s.addresses[address] >= s.cfg.MaxPerAddress
	if s.stopping || full || crowded {
		s.turned.Add(1)
		if full || crowded {
			s.notes.once("", "connections", func() {
				s.log.Warn("connection refused: too many connections", zap.Stringer("remote", nc.RemoteAddr()))
			})
		}
		return nil, false
	}
	s.accepted.Add(1)
	if address != "" {
		s.addresses[address]++
	}
	c := newConn(s, nc, stream, address)
	s.conns[c] = struct{}{}
	s.running.Add(1)
	return c, true
}

func (s *MQTT) serve(c *conn) {
	defer s.running.Done()
	c.serve()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	if c.address != "" {
		if s.addresses[c.address]--; s.addresses[c.address] == 0 {
			delete(s.addresses, c.address)
		}
	}
}

func (s *MQTT) all() []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		all = append(all, c)
	}
	return all
}

// drain asks every connection to end once the queue has answered, and cuts those
// that are still there when the time is over.
func (s *MQTT) drain(stopWork func()) {
	s.mu.Lock()
	s.stopping = true
	s.mu.Unlock()
	for _, c := range s.all() {
		c.drain()
	}
	gone := make(chan struct{})
	go func() {
		s.running.Wait()
		close(gone)
	}()
	select {
	case <-gone:
	case <-time.After(drainTimeout + lingerTimeout):
		stopWork()
		for _, c := range s.all() {
			c.cut()
		}
		<-gone
	}
}

func (s *MQTT) isStopping() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stopping
}

// sweepLoop enforces every time limit of every connection, which costs an idle
// connection neither a timer nor a goroutine.
func (s *MQTT) sweepLoop(ctx context.Context) {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := s.now()
		for _, c := range s.all() {
			c.sweep(now)
		}
		s.local.sweep(time.Now())
	}
}

// now is the time since the listener was made: monotonic and never zero in use.
func (s *MQTT) now() int64 { return int64(time.Since(s.start)) + 1 }

// remoteHost is the address that the limit per address goes by; empty for peers
// of this machine.
func remoteHost(nc net.Conn) string {
	a, ok := nc.RemoteAddr().(*net.TCPAddr)
	if !ok || a.IP.IsLoopback() {
		return ""
	}
	return a.IP.String()
}
