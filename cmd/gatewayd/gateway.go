package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.uber.org/zap"

	"gatewayd/internal/certstore"
	"gatewayd/internal/config"
	"gatewayd/internal/downstream"
	"gatewayd/internal/hub"
	"gatewayd/internal/queue"
)

// gateway is everything that runs, wired: one journal, one watcher, one session
// per identity, the listeners. It is built by newGateway and lives in Run.
type gateway struct {
	cfg     *config.Config
	log     *zap.Logger
	level   zap.AtomicLevel
	started time.Time

	clock   *certstore.Clock
	watcher *certstore.Watcher
	journal *queue.Journal
	syncs   *syncObserver
	pacer   *hub.Pacer

	identities []*identity
	byName     map[string]*identity

	gate  *downstream.Gate
	local *downstream.Local
	mqtt  []*downstream.MQTT
	http  []*downstream.HTTP
	admin *adminServer

	notify notifier
	hup    <-chan os.Signal // SIGHUP; nil = nobody sends it
}

// identity is one device or module with its parts.
type identity struct {
	cfg     config.Identity
	queue   *queue.Queue
	store   *certstore.Store
	session *hub.Session
}

// stopBudget is how long a stop may take in all; the unit's TimeoutStopSec is
// longer. Listeners answer what they have read within 5 s, sessions collect
// acknowledgements for 5 s, the journal syncs once more.
const stopBudget = 30 * time.Second

// newGateway opens what is on disk and binds the listeners; it starts nothing.
// After an error nothing is left open.
func newGateway(cfg *config.Config, log *zap.Logger, level zap.AtomicLevel) (*gateway, error) {
	g := &gateway{cfg: cfg, log: log, level: level, started: time.Now(), byName: make(map[string]*identity),
		syncs: newSyncObserver(), notify: notifier{log}}
	for _, step := range []func() error{g.openState, g.openIdentities, g.openLocal, g.openAdmin} {
		if err := step(); err != nil {
			g.close()
			return nil, err
		}
	}
	return g, nil
}

// close gives back what newGateway took when Run will not be called.
func (g *gateway) close() {
	ended, end := context.WithCancel(context.Background())
	end()
	// A listener that runs in a context which has ended only closes.
	for _, m := range g.mqtt {
		_ = m.Run(ended)
	}
	for _, h := range g.http {
		_ = h.Run(ended)
	}
	if g.admin != nil {
		g.admin.close()
	}
	if g.journal != nil {
		if err := g.journal.Close(); err != nil {
			g.log.Error("queue not closed", zap.Error(err))
		}
	}
}

// openState opens the state folder: the clock's memory and the journal.
func (g *gateway) openState() error {
	if err := makeStateDir(g.cfg.StateDir); err != nil {
		return err
	}
	g.clock = certstore.OpenClock(certstore.ClockOptions{StateDir: g.cfg.StateDir, Build: readBuild().Built, Log: g.log.Named("clock")})
	q := g.cfg.Queue
	var err error
	g.journal, err = queue.Open(queue.Options{
		Dir:          filepath.Join(g.cfg.StateDir, "queue"),
		SegmentBytes: q.SegmentBytes,
		MaxBytes:     q.MaxBytes,
		SyncInterval: q.SyncInterval,
		Clock:        g.clock,
		Report:       g.journalEvent,
		ObserveSync:  g.syncs.observe,
	})
	if errors.Is(err, queue.ErrLocked) {
		return fmt.Errorf("another gatewayd is running on state_dir %s: stop it, or give this one its own state_dir", g.cfg.StateDir)
	}
	if err != nil {
		return fmt.Errorf("state_dir: %w", err)
	}
	return nil
}

// makeStateDir makes the folder when it is missing. It is not made private when
// it exists: systemd's StateDirectory= owns its mode then.
func makeStateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("state_dir: %w", err)
	}
	return nil
}

func (g *gateway) openIdentities() error {
	g.pacer = hub.NewPacer(hub.Pace{Connects: g.cfg.Hub.ConnectRate, Sends: g.cfg.Hub.SendRate})
	g.watcher = certstore.NewWatcher(certstore.WatcherOptions{Log: g.log.Named("certs")})
	roots := newRootsCache(g.watcher, g.log.Named("certs"))
	for i := range g.cfg.Identities {
		id, err := g.openIdentity(g.cfg.Identities[i], roots)
		if err != nil {
			return fmt.Errorf("identities[%d]: %w", i, err)
		}
		g.identities = append(g.identities, id)
		g.byName[id.cfg.Name] = id
	}
	return nil
}

func (g *gateway) openIdentity(c config.Identity, roots *rootsCache) (*identity, error) {
	id := &identity{cfg: c}
	var err error
	if id.queue, err = g.journal.Queue(c.Name, queueLimits(c.Queue)); err != nil {
		return nil, err
	}
	cn := c.HubID()
	if c.AllowCNMismatch {
		cn = ""
	}
	id.store, err = certstore.Open(certstore.Options{
		Identity:     c.Name,
		Source:       certstore.Source(c.Certificate),
		CommonName:   cn,
		StateDir:     g.cfg.StateDir,
		KeepLastGood: c.KeepLastGood == config.KeepOnDisk,
		// Many quick renewals in a row are an exercise or a migration; one a minute
		// without an end is a renewer gone wild.
		TrialBurst: 120,
		Clock:      g.clock,
		Log:        g.log.Named("certs"),
	})
	if err != nil {
		return nil, err
	}
	g.watcher.Add(id.store)
	id.session = hub.NewSession(sessionConfig(c, g.clock, roots.pool(c.Hub), g.cfg.Queue.SetAsideAfter), id.queue, id.store, g.pacer,
		g.log.Named("hub"))
	return id, nil
}

// sessionConfig turns the file's words into the session's. dials says against
// which time and roots the hub's own certificate is checked.
func sessionConfig(c config.Identity, clock *certstore.Clock, roots func() *x509.CertPool, deaths int) hub.Config {
	return hub.Config{
		Identity: hub.Identity{
			Name: c.Name, HostName: c.HostName, DeviceID: c.DeviceID, ModuleID: c.ModuleID,
			Address: c.Address, GatewayHostName: c.GatewayHostName,
		},
		Product:   "gatewayd/" + readBuild().Version,
		KeepAlive: c.Hub.KeepAlive,
		Window:    c.Hub.Window,
		Roots:     roots,
		Clock:     clock,
		Timing:    hub.Timing{PoisonDeaths: deaths},
	}
}

func queueLimits(l config.Limits) queue.Limits {
	limits := queue.Limits{MaxBytes: l.MaxBytes, MaxAge: l.MaxAge}
	if l.WhenFull == config.WhenFullDropOldest {
		limits.WhenFull = queue.DropOldest
	}
	return limits
}

// openLocal binds the listeners. Messages that arrive before Run wait in the
// kernel.
func (g *gateway) openLocal() error {
	router, err := downstream.NewRouter(routes(g.cfg.Routes), g.cfg.Names())
	if err != nil {
		return &exitError{exitUsage, err}
	}
	g.gate = downstream.NewGate(router, sink{g}, downstream.NewLedger(0, 0), downstream.GateLimits{})
	g.local = downstream.NewLocal(downstream.LocalConfig{}, nil)
	for i, c := range g.cfg.Downstream.MQTT {
		m, err := newMQTTListener(c, g.gate, g.local, g.log.Named("mqtt"))
		if err == nil {
			err = m.Listen()
		}
		if err != nil {
			return fmt.Errorf("downstream.mqtt[%d]: %w", i, err)
		}
		g.mqtt = append(g.mqtt, m)
	}
	for i, c := range g.cfg.Downstream.HTTP {
		h, err := newHTTPListener(c, g.gate, g.log.Named("http"))
		if err == nil {
			err = h.Listen()
		}
		if err != nil {
			return fmt.Errorf("downstream.http[%d]: %w", i, err)
		}
		g.http = append(g.http, h)
	}
	return nil
}

func newMQTTListener(c config.MQTT, gate *downstream.Gate, local *downstream.Local, log *zap.Logger) (*downstream.MQTT, error) {
	cfg := downstream.MQTTConfig{Listen: c.Listen.String(), TLS: downstream.TLSFiles(c.TLS), Anonymous: c.Anonymous,
		MaxConnections: c.MaxConnections, MaxPacket: c.MaxPacket}
	if c.UsersFile != "" {
		users, err := downstream.LoadUsers(c.UsersFile)
		if err != nil {
			return nil, fmt.Errorf("users_file: %w", err)
		}
		cfg.Users = users
	}
	return downstream.NewMQTT(cfg, gate, local, log)
}

func newHTTPListener(c config.HTTP, gate *downstream.Gate, log *zap.Logger) (*downstream.HTTP, error) {
	listen := c.Listen.String()
	if rest, ok := strings.CutPrefix(listen, "tls://"); ok {
		listen = "https://" + rest
	}
	cfg := downstream.HTTPConfig{Listen: listen, TLS: downstream.TLSFiles(c.TLS)}
	if c.TokenFile != "" {
		tokens, err := downstream.LoadTokens(c.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("token_file: %w", err)
		}
		cfg.Tokens = tokens
	}
	return downstream.NewHTTP(cfg, gate, log)
}

func routes(all []config.Route) []downstream.Route {
	out := make([]downstream.Route, len(all))
	for i, r := range all {
		out[i] = downstream.Route{
			Name: r.Name, Match: r.Match, To: r.To, Properties: r.Properties, ContentType: r.ContentType,
			ContentEncoding: r.ContentEncoding, Output: r.Output, Priority: uint8(r.Priority), MaxAge: r.MaxAge,
		}
	}
	return out
}

// sink gives the local side its way into the queues.
type sink struct{ g *gateway }

func (s sink) Append(ctx context.Context, name string, m queue.Message, done func(uint64, error)) error {
	id, ok := s.g.byName[name]
	if !ok {
		return downstream.ErrNoRoute
	}
	return id.queue.Append(ctx, m, done)
}

func (s sink) SetAside(ctx context.Context, name string, m queue.Message, reason string, done func(uint64, error)) error {
	id, ok := s.g.byName[name]
	if !ok {
		return downstream.ErrNoRoute
	}
	return id.queue.AppendAside(ctx, m, reason, done)
}

// Run serves until ctx ends, and then stops in the order that loses nothing:
// who takes messages in first, who sends them next, who keeps them last.
func (g *gateway) Run(ctx context.Context) error {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	listening, sending, keeping := newLifetime(fail), newLifetime(fail), newLifetime(fail)

	keeping.start("queue", g.journal.Run)
	keeping.start("clock", g.clock.Run)
	keeping.start("certificates", g.watcher.Run)
	if g.admin != nil {
		keeping.start("admin", g.admin.Run)
	}
	for _, id := range g.identities {
		sending.start("session "+id.cfg.Name, id.session.Run)
	}
	for _, m := range g.mqtt {
		listening.start("mqtt listener "+m.Addr().String(), m.Run)
	}
	for _, h := range g.http {
		listening.start("http listener "+h.Addr().String(), h.Run)
	}
	g.sayStarted()
	g.notify.ready(g.statusLine())
	keeping.start("reload", g.reloads)
	keeping.start("memory", trimMemory)
	keeping.start("watchdog", func(ctx context.Context) error {
		g.notify.supervise(ctx, g.stalled, g.statusLine)
		return nil
	})

	<-ctx.Done()
	cause := context.Cause(ctx)
	g.notify.stopping()
	g.log.Info("stopping")
	stopped := time.AfterFunc(stopBudget, func() { g.log.Error("stop takes longer than it should", zap.Duration("wait", stopBudget)) })
	defer stopped.Stop()
	// Sensors first: from here on nothing new is accepted, and what was read is
	// answered, which needs the journal.
	listening.stop()
	// Then the sessions: they collect acknowledgements for what is in flight.
	sending.stop()
	// The journal last: it syncs what the others still handed over.
	keeping.stop()
	err := g.journal.Close()
	g.log.Info("stopped", zap.Int64("queued", g.queued()))
	if cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}

func (g *gateway) sayStarted() {
	for _, w := range g.cfg.Warnings {
		g.log.Warn("configuration", zap.String("problem", w.String()))
	}
	fields := []zap.Field{zap.String("version", readBuild().Version), zap.Int("identities", len(g.identities)), zap.Int64("queued", g.queued())}
	for _, m := range g.mqtt {
		fields = append(fields, zap.Stringer("mqtt", m.Addr()))
	}
	for _, h := range g.http {
		fields = append(fields, zap.Stringer("http", h.Addr()))
	}
	if g.admin != nil {
		fields = append(fields, zap.Stringer("admin", g.admin.addr()))
	}
	g.log.Info("started", fields...)
	for _, name := range g.journal.Identities() {
		if g.byName[name] == nil {
			g.log.Warn("messages of an identity that is no longer configured are kept", zap.String("identity", name))
		}
	}
}

// reloads looks at every certificate and trust file at once whenever SIGHUP says so.
func (g *gateway) reloads(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-g.hup:
			g.notify.reloading()
			g.watcher.Rescan()
			g.log.Info("files read again")
			g.notify.ready(g.statusLine())
		}
	}
}

func (g *gateway) queued() int64 {
	var n int64
	for _, id := range g.identities {
		n += id.queue.Stats().Messages
	}
	return n
}

// journalEvent logs a change of state of the queue.
func (g *gateway) journalEvent(e queue.Event) {
	log := g.log.Named("queue")
	fields := []zap.Field{}
	add := func(ok bool, f zap.Field) {
		if ok {
			fields = append(fields, f)
		}
	}
	add(e.Identity != "", zap.String("identity", e.Identity))
	add(e.Seq != 0, zap.Uint64("seq", e.Seq))
	add(e.Reason != "", zap.String("reason", e.Reason))
	add(e.File != "", zap.String("file", e.File))
	add(e.Offset != 0, zap.Int64("offset", e.Offset))
	add(e.Err != nil, zap.Error(e.Err))
	switch e.Kind {
	case queue.EventRecovered, queue.EventTorn:
		log.Info(string(e.Kind), fields...)
	case queue.EventTrouble, queue.EventDamage, queue.EventMissing:
		log.Error(string(e.Kind), fields...)
	default:
		log.Warn(string(e.Kind), fields...)
	}
}
