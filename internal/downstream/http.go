package downstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/net/netutil"
	"golang.org/x/sync/semaphore"
)

// HTTPConfig describes one HTTP listener. Zero values are the defaults given.
type HTTPConfig struct {
	Listen string // host:port, https://host:port (implied by TLS.Cert) or unix:///path
	TLS    TLSFiles
	Tokens *Tokens // nil = no bearer tokens
	// Anonymous lets requests in that prove nothing. It is implied on loopback
	// addresses and unix sockets while neither Tokens nor TLS.ClientCA is set.
	Anonymous bool

	MaxConnections int     // default 1,000
	MaxBody        int     // bytes of one message; default 256 KiB
	MaxBatch       int     // bytes of one batch; default 4 MiB
	MaxItems       int     // messages in one batch; default 10,000
	MaxBuffered    int64   // bytes of all bodies being handled; default 64 MiB
	Rate           float64 // messages per second and client; default 0 = no limit
}

const (
	httpHeaderTimeout = 10 * time.Second
	httpBodyTimeout   = 30 * time.Second
	httpSyncTimeout   = 30 * time.Second // for the queue to answer
	httpIdleTimeout   = 2 * time.Minute
	httpHeaderBytes   = 16 << 10
	httpRatedClients  = 4096
	retrySoon         = 1 // seconds, for Retry-After
	retryLater        = 10
)

func (c HTTPConfig) withDefaults() HTTPConfig {
	set := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	set(&c.MaxConnections, 1000)
	set(&c.MaxBody, 256<<10)
	set(&c.MaxBatch, 4<<20)
	set(&c.MaxItems, 10000)
	if c.MaxBuffered <= 0 {
		c.MaxBuffered = 64 << 20
	}
	c.MaxBuffered = max(c.MaxBuffered, int64(c.MaxBatch), int64(c.MaxBody))
	return c
}

// HTTP is one listener for sensors that post.
type HTTP struct {
	cfg      HTTPConfig
	gate     *Gate
	log      *zap.Logger
	source   *Source
	bind     endpoint
	secure   *tlsReloader
	notes    notes
	origin   *http.CrossOriginProtection
	buffered *semaphore.Weighted
	listener net.Listener
	mounts   []mount
	serving  context.Context // Run's; nil before it

	mu    sync.Mutex
	rated map[string]*allowance // by client; only with a rate limit
}

// NewHTTP checks the configuration; nothing is bound or started. A problem names
// the key under downstream.http[] that it is about.
func NewHTTP(cfg HTTPConfig, gate *Gate, log *zap.Logger) (*HTTP, error) {
	bind, err := parseEndpoint(cfg.Listen, "tcp", "https", "unix")
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	// The contract writes HTTPS as a plain address with a certificate.
	bind.secure = bind.secure || (bind.network == "tcp" && cfg.TLS.Cert != "")
	h := &HTTP{
		cfg: cfg.withDefaults(), gate: gate, log: log, source: gate.ledger.Source("http"), bind: bind,
		origin: http.NewCrossOriginProtection(), rated: make(map[string]*allowance),
	}
	h.buffered = semaphore.NewWeighted(h.cfg.MaxBuffered)
	if h.secure, err = newTLSReloader(cfg.TLS, bind.secure, cfg.Tokens != nil); err != nil {
		return nil, err
	}
	open := cfg.Anonymous || cfg.Tokens != nil || cfg.TLS.ClientCA != "" || bind.private()
	if !open {
		return nil, errors.New("listen: others than this machine can reach it: set token_file, tls.client_ca, or anonymous: true")
	}
	return h, nil
}

// Listen binds the address, so that a busy port is an error at the start.
func (h *HTTP) Listen() error {
	l, err := h.bind.listen()
	if err != nil {
		return err
	}
	h.listener = l
	return nil
}

// Addr is where it listens; call it after Listen.
func (h *HTTP) Addr() net.Addr { return h.listener.Addr() }

// Run serves until ctx ends, then finishes the requests at hand; the queue has to
// be kept running until Run has returned. An error means that the listener is
// unusable.
func (h *HTTP) Run(ctx context.Context) error {
	h.serving = ctx
	server := &http.Server{
		Handler: h, ReadHeaderTimeout: httpHeaderTimeout, ReadTimeout: httpBodyTimeout,
		WriteTimeout: httpBodyTimeout + httpSyncTimeout, IdleTimeout: httpIdleTimeout, MaxHeaderBytes: httpHeaderBytes,
		ErrorLog: log.New(discard{}, "", 0), // clients that hang up are not worth a line
	}
	listener := netutil.LimitListener(h.listener, h.cfg.MaxConnections)
	if h.secure != nil {
		listener = tls.NewListener(listener, h.secure.serverConfig("http/1.1"))
	}
	stopped := make(chan struct{})
	var stopping sync.WaitGroup
	stopping.Go(func() {
		select {
		case <-ctx.Done():
		case <-stopped:
			return
		}
		limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
		defer cancel()
		if server.Shutdown(limit) != nil {
			server.Close()
		}
	})
	err := server.Serve(listener)
	close(stopped)
	stopping.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
