package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"gatewayd/internal/certstore"
	"gatewayd/internal/cloud"
	"gatewayd/internal/config"
	"gatewayd/internal/downstream"
	"gatewayd/internal/hub"
	"gatewayd/internal/queue"
	"gatewayd/internal/statuspage"
)

// gateway is everything that runs, wired: one journal, one watcher, one session
// per identity, the listeners. It is built by newGateway and lives in Run.
type gateway struct {
	log     *zap.Logger
	certLog *zap.Logger
	hubLog  *zap.Logger
	memory  *memory
	level   zap.AtomicLevel
	started time.Time

	clock   *certstore.Clock
	watcher *certstore.Watcher
	roots   *rootsCache
	journal *queue.Journal
	syncs   *syncObserver
	pacer   *hub.Pacer
	wire    *wireBook
	cloud   *cloud.Cloud
	gate    *downstream.Gate
	local   *downstream.Local
	admin   *adminServer
	control *adminServer

	events      *statuspage.Recorder
	guard       *statuspage.Guard
	page        *statuspage.Page // nil without admin.listen
	registry    *prometheus.Registry
	otlp        *otlpExport        // nil without admin.otlp.endpoint
	adminTokens *downstream.Tokens // nil without admin.token_file
	accepting   atomic.Bool        // the listeners run

	// now is what the configuration in use has become. It is immutable and replaced
	// by a reload; reloading admits one reload at a time.
	now       atomic.Pointer[arrangement]
	reloading chan struct{}
	desired   *desiredConfig

	// What Run starts, in the order in which it ends: who takes messages in first,
	// who sends them next, then who brings commands down, who keeps them last.
	listening, sending, relaying, keeping *lifetime

	notify notifier
	roll   *rollCall
	hup    <-chan os.Signal // SIGHUP; nil = nobody sends it
}

// arrangement is the part of a gateway that a reload may change.
type arrangement struct {
	cfg        *config.Config
	identities []*identity // in the order of the file
	byName     map[string]*identity
	mqtt       []*mqttListener
	http       []*httpListener
	sources    *sources
}

// stopBudget is how long a stop may take in all; the unit's TimeoutStopSec is
// longer. Listeners answer what they have read within 5 s, sessions collect
// acknowledgements for 5 s, the journal syncs once more.
const stopBudget = 30 * time.Second

// newGateway opens what is on disk and binds the listeners; it starts nothing.
// After an error nothing is left open.
func newGateway(cfg *config.Config, log *zap.Logger, level zap.AtomicLevel) (*gateway, error) {
	events := statuspage.NewRecorder()
	log = log.WithOptions(zap.WrapCore(func(c zapcore.Core) zapcore.Core { return zapcore.NewTee(c, events.Core()) }))
	g := &gateway{log: log, memory: newMemory(), level: level, events: events, started: time.Now(), syncs: newSyncObserver(), notify: notifier{log}, reloading: make(chan struct{}, 1)}
	g.desired = openDesired(cfg.StateDir)
	cfg = g.desired.over(cfg, log)
	if l, err := zapcore.ParseLevel(cfg.Log.Level); err == nil && g.desired.kept != nil {
		level.SetLevel(l)
	}
	a := &arrangement{cfg: cfg, byName: make(map[string]*identity)}
	g.now.Store(a)
	g.roll = newRollCall(g)
	for _, step := range []func(*arrangement) error{g.openState, g.openIdentities, g.openLocal, g.openMetrics, g.openAdmin, g.openControl} {
		if err := step(a); err != nil {
			g.close()
			return nil, err
		}
	}
	return g, nil
}

// close gives back what newGateway took when Run will not be called.
func (g *gateway) close() {
	a := g.now.Load()
	for _, m := range a.mqtt {
		closeUnused(m.Run)
	}
	for _, h := range a.http {
		closeUnused(h.Run)
	}
	a.sources.close()
	for _, s := range []*adminServer{g.admin, g.control} {
		if s != nil {
			s.close()
		}
	}
	if g.journal != nil {
		if err := g.journal.Close(); err != nil {
			g.log.Error("queue not closed", zap.Error(err))
		}
	}
}

// closeUnused closes a listener that was bound and never ran: one that runs in a
// context which has ended only closes.
func closeUnused(run func(context.Context) error) {
	ended, end := context.WithCancel(context.Background())
	end()
	_ = run(ended) // it never served anybody
}

// openState opens the state folder: the clock's memory and the journal.
func (g *gateway) openState(a *arrangement) error {
	cfg := a.cfg
	if err := makeStateDir(cfg.StateDir); err != nil {
		return err
	}
	g.clock = certstore.OpenClock(certstore.ClockOptions{StateDir: cfg.StateDir, Build: readBuild().Built, Log: g.log.Named("clock")})
	g.wire = openWireBook(cfg.StateDir, g.clock.Now, g.log)
	q := cfg.Queue
	var err error
	g.journal, err = queue.Open(queue.Options{
		Dir:          queueDir(cfg),
		SegmentBytes: q.SegmentBytes,
		MaxBytes:     q.MaxBytes,
		SyncInterval: q.SyncInterval,
		Clock:        g.clock,
		Report:       g.journalEvent,
		ObserveSync:  g.syncs.observe,
	})
	if errors.Is(err, queue.ErrLocked) {
		return fmt.Errorf("another gatewayd is running on state_dir %s: stop it, or give this one its own state_dir", cfg.StateDir)
	}
	if err != nil {
		return fmt.Errorf("state_dir: %w", err)
	}
	g.cloud = g.newCloud(cfg)
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

// openLocal binds the listeners. Messages that arrive before Run wait in the
// kernel.
func (g *gateway) openLocal(a *arrangement) error {
	if err := silentFile(a.cfg); err != nil {
		return err
	}
	router, err := newRouter(a.cfg)
	if err != nil {
		return &exitError{exitUsage, err}
	}
	g.gate = downstream.NewGate(router, sink{g}, downstream.NewLedger(0, 0), gateLimits(a.cfg), g.log.Named("routes"))
	g.local = downstream.NewLocal(localConfig(a.cfg.Downstream.Local), g.cloud)
	g.cloud.Attach(g.local)
	for i := range a.cfg.Downstream.MQTT {
		m, err := g.openMQTT(a.cfg, i)
		if err != nil {
			return err
		}
		a.mqtt = append(a.mqtt, m)
	}
	for i, c := range a.cfg.Downstream.HTTP {
		h, err := g.openHTTP(i, c)
		if err != nil {
			return err
		}
		a.http = append(a.http, h)
	}
	a.sources, err = openSources(a.cfg.Downstream, g.gate, g.local, g.log)
	return err
}

// newRouter compiles the routes; what is wrong with them is told as for any key.
func newRouter(cfg *config.Config) (*downstream.Router, error) {
	router, err := downstream.NewRouter(routes(cfg.Routes), cfg.Names())
	if err == nil {
		return router, nil
	}
	var problems []config.Problem
	for _, e := range err.(interface{ Unwrap() []error }).Unwrap() {
		path, reason, _ := strings.Cut(e.Error(), ": ")
		problems = append(problems, located(cfg.File, path, reason))
	}
	return nil, &config.Error{Problems: problems}
}

// located is a problem that showed after the file had loaded.
func located(file, path, reason string) config.Problem {
	return config.Problem{File: file, Line: config.Line(file, path), Path: path, Reason: reason}
}

func routes(all []config.Route) []downstream.Route {
	out := make([]downstream.Route, len(all))
	for i, r := range all {
		out[i] = routeOf(r)
	}
	return out
}

// sink gives the local side its way into the queues.
type sink struct{ g *gateway }

func (s sink) Append(ctx context.Context, name string, m queue.Message, done func(uint64, error)) error {
	id, ok := s.g.now.Load().byName[name]
	if !ok {
		return downstream.ErrNoRoute
	}
	return id.queue.Append(ctx, m, done)
}

func (s sink) SetAside(ctx context.Context, name string, m queue.Message, reason string, done func(uint64, error)) error {
	id, ok := s.g.now.Load().byName[name]
	if !ok {
		return downstream.ErrNoRoute
	}
	return id.queue.AppendAside(ctx, m, reason, done)
}

// Run serves until ctx ends, and then stops in the order that loses nothing.
func (g *gateway) Run(ctx context.Context) error {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	g.listening, g.sending, g.relaying, g.keeping = newLifetime(fail), newLifetime(fail), newLifetime(fail), newLifetime(fail)

	g.keeping.start("queue", g.journal.Run)
	g.keeping.start("clock", g.clock.Run)
	g.keeping.start("certificates", g.watcher.Run)
	g.keeping.start("memory", g.memory.Run)
	g.keeping.start("wire", g.wire.Run)
	if g.admin != nil {
		g.keeping.start("admin", g.admin.Run)
		g.keeping.start("status page", g.page.Run)
	}
	if g.otlp != nil {
		g.keeping.start("metrics export", g.otlp.Run)
	}
	g.relaying.start("commands", g.cloud.Run)
	a := g.now.Load()
	for _, id := range a.identities {
		g.startIdentity(id)
	}
	for _, m := range a.mqtt {
		m.running = g.listening.start("mqtt listener "+m.Addr().String(), m.Run)
	}
	for _, h := range a.http {
		h.running = g.listening.start("http listener "+h.Addr().String(), h.Run)
	}
	a.sources.start(g.listening)
	g.accepting.Store(true)
	g.sayStarted(a)
	g.notify.ready(g.statusLine())
	// Reloads change what runs, so they begin last and end first.
	reloads := newLifetime(fail)
	reloads.start("control", g.control.Run)
	reloads.start("reload", g.reloads)
	reloads.start("desired configuration", g.followDesired)
	g.keeping.start("watchdog", func(ctx context.Context) error {
		g.notify.supervise(ctx, g.roll.stalled, g.statusLine)
		return nil
	})

	<-ctx.Done()
	cause := context.Cause(ctx)
	g.notify.stopping()
	g.log.Info("stopping")
	late := time.AfterFunc(stopBudget, func() { g.log.Error("stop takes longer than it should", zap.Duration("wait", stopBudget)) })
	defer late.Stop()
	reloads.stop()
	// One that was asked for in another way ends first, and none begins any more.
	g.reloading <- struct{}{}
	g.accepting.Store(false)
	<-g.reloading
	// Sensors first: from here on nothing new is accepted, and what was read is
	// answered, which needs the journal.
	g.listening.stop()
	// Then the sessions: they collect acknowledgements for what is in flight.
	g.sending.stop()
	// No command comes down any more; what has is put on disk.
	g.relaying.stop()
	// The journal last: it syncs what the others still handed over.
	g.keeping.stop()
	queued := g.queued()
	err := g.journal.Close()
	g.log.Info("stopped", zap.Int64("queued", queued))
	if cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}

func (g *gateway) sayStarted(a *arrangement) {
	for _, w := range a.cfg.Warnings {
		g.log.Warn("configuration", zap.String("problem", w.String()))
	}
	fields := []zap.Field{zap.String("version", readBuild().Version), zap.Int("identities", len(a.identities)), zap.Int64("queued", g.queued())}
	for _, m := range a.mqtt {
		fields = append(fields, zap.Stringer("mqtt", m.Addr()))
	}
	for _, h := range a.http {
		fields = append(fields, zap.Stringer("http", h.Addr()))
	}
	if g.admin != nil {
		fields = append(fields, zap.Stringer("admin", g.admin.addr()))
	}
	g.log.Info("started", fields...)
	for _, name := range g.unconfigured() {
		g.log.Warn("messages of an identity that is not configured are kept until gatewayd queue drop", zap.String("identity", name))
	}
}

// configured tells whether the configuration in use has an identity of that name.
func (g *gateway) configured(name string) bool { return g.now.Load().byName[name] != nil }

// unconfigured are the queues on disk that belong to no configured identity.
func (g *gateway) unconfigured() []string {
	var names []string
	for _, name := range g.journal.Identities() {
		// Queues of a configured identity's own, such as what came down for it, have
		// its name and more behind a slash.
		owner, _, _ := strings.Cut(name, "/")
		if !g.configured(owner) {
			names = append(names, name)
		}
	}
	return names
}

func (g *gateway) queued() int64 {
	var n int64
	for _, id := range g.now.Load().identities {
		n += id.queue.Messages()
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
	case queue.EventTrouble, queue.EventDamage, queue.EventMissing, queue.EventUnreadable:
		log.Error(string(e.Kind), fields...)
	default:
		log.Warn(string(e.Kind), fields...)
	}
}
