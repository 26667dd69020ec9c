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
)

// SocketConfig describes a unix socket for programs that run by themselves. Zero
// values are the defaults.
type SocketConfig struct {
	Name           string // for logs and counters
	Listen         string // unix:///path
	MaxConnections int    // default 100
	Limits         LineLimits
}

// Socket is one socket on which programs hand in messages by the line protocol.
type Socket struct {
	cfg    SocketConfig
	gate   *Gate
	log    *zap.Logger
	client *Client
	bind   endpoint
	notes  notes

	listener net.Listener

	mu    sync.Mutex
	conns map[net.Conn]struct{}

	accepted atomic.Uint64
	turned   atomic.Uint64
}

// NewSocket checks the configuration; nothing is bound or started.
func NewSocket(cfg SocketConfig, gate *Gate, log *zap.Logger) (*Socket, error) {
	bind, err := parseEndpoint(cfg.Listen, "unix")
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	if cfg.MaxConnections <= 0 {
		cfg.MaxConnections = 100
	}
	cfg.Limits = cfg.Limits.withDefaults()
	return &Socket{
		cfg: cfg, gate: gate, log: log, bind: bind, conns: make(map[net.Conn]struct{}),
		client: gate.Ledger().Source("socket").Client(cfg.Name),
	}, nil
}

// Listen binds the socket.
func (s *Socket) Listen() error {
	l, err := s.bind.listen()
	if err != nil {
		return err
	}
	s.listener = l
	return nil
}

// Addr is where it listens; only after Listen.
func (s *Socket) Addr() net.Addr { return s.listener.Addr() }

// SocketStats describe a socket.
type SocketStats struct {
	Name        string `json:"name"`
	Connections int    `json:"connections"`
	Accepted    uint64 `json:"accepted"`
	Refused     uint64 `json:"refused"` // connections beyond the limit
}

// Stats may be called at any time.
func (s *Socket) Stats() SocketStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return SocketStats{Name: s.cfg.Name, Connections: len(s.conns), Accepted: s.accepted.Load(), Refused: s.turned.Load()}
}

// Run serves programs until ctx ends, answers what they have handed in until
// then, and returns when every connection has ended.
func (s *Socket) Run(ctx context.Context) error {
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		s.listener.Close()
		s.mu.Lock()
		defer s.mu.Unlock()
		for c := range s.conns {
			c.SetReadDeadline(time.Unix(1, 0)) // no further line is read
		}
	})
	defer stop()
	var serving sync.WaitGroup
	err := s.acceptAll(ctx, work, &serving)
	serving.Wait()
	return err
}

func (s *Socket) acceptAll(ctx, work context.Context, serving *sync.WaitGroup) error {
	for {
		c, err := s.listener.Accept()
		switch {
		case err == nil:
		case ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			return nil
		default:
			// Out of file descriptors, most likely: others may give some back.
			s.notes.once("accept", err.Error(), func() { s.log.Warn("connection not accepted", zap.Error(err)) })
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		if !s.admit(ctx, c) {
			c.Close()
			continue
		}
		serving.Go(func() { s.serve(work, c) })
	}
}

func (s *Socket) admit(ctx context.Context, c net.Conn) bool {
	s.mu.Lock()
	full := len(s.conns) >= s.cfg.MaxConnections
	if !full {
		s.conns[c] = struct{}{}
		if ctx.Err() != nil {
			c.SetReadDeadline(time.Unix(1, 0))
		}
	}
	s.mu.Unlock()
	if full {
		s.turned.Add(1)
		s.notes.once("limit", "", func() {
			s.log.Warn("connection refused: too many", zap.String("source", s.cfg.Name), zap.Int("limit", s.cfg.MaxConnections))
		})
		return false
	}
	s.accepted.Add(1)
	return true
}

func (s *Socket) serve(work context.Context, c net.Conn) {
	stream := lineStream{gate: s.gate, client: s.client, limits: s.cfg.Limits, log: s.log, notes: &s.notes, in: c, out: c}
	err := stream.serve(work)
	s.mu.Lock()
	delete(s.conns, c)
	s.mu.Unlock()
	c.Close()
	if err != nil {
		s.notes.once(s.cfg.Name, "ended", func() {
			s.log.Warn("connection ended", zap.String("source", s.cfg.Name), zap.Error(err))
		})
	}
}
