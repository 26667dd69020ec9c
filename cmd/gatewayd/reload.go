package main

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"gatewayd/internal/certstore"
	"gatewayd/internal/config"
	"gatewayd/internal/downstream"
)

// reloads serves SIGHUP until ctx ends.
func (g *gateway) reloads(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-g.hup:
			g.notify.reloading()
			// What is wrong has been logged; what was running goes on.
			_, _ = g.reload()
			g.notify.ready(g.statusLine())
		}
	}
}

func (g *gateway) controlReload(context.Context, controlRequest) (string, error) { return g.reload() }

// errNotReady answers who asks for a reload over the admin address, or as a direct
// method, while what a reload would change is still being started or stopped.
var errNotReady = errors.New("the gateway is starting or stopping: try again")

// reload applies the difference between the file and what runs, looks at every
// certificate and reads the files of users and tokens again. What the difference does not touch keeps its connections
// and queues; a bad file changes nothing.
func (g *gateway) reload() (string, error) {
	g.reloading <- struct{}{}
	defer func() { <-g.reloading }()
	if !g.accepting.Load() {
		return "", errNotReady
	}
	g.watcher.Rescan()
	cfg, err := g.desired.load(g.now.Load().cfg.File, g.log)
	return g.use(cfg, err)
}

// use makes a configuration that was loaded the one in use. The caller holds reloading.
func (g *gateway) use(cfg *config.Config, err error) (string, error) {
	old := g.now.Load()
	if err == nil {
		err = fixedParts(old.cfg, cfg)
	}
	if err == nil {
		err = silentFile(cfg)
	}
	var router *downstream.Router
	if err == nil {
		router, err = newRouter(cfg)
	}
	if err == nil {
		err = tryListeners(cfg, router)
	}
	if err != nil {
		g.log.Error("configuration not reloaded, the old one stays", zap.Error(err))
		return "", err
	}
	if err := g.keepAdmin(); err != nil {
		g.log.Error("configuration not reloaded, the old one stays", zap.Error(err))
		return "", err
	}
	next := &arrangement{cfg: cfg, byName: make(map[string]*identity)}
	changes, err := g.rearrange(old, next, router)
	if err != nil {
		g.log.Error("configuration reloaded in part", zap.Error(err))
		return "", err
	}
	for _, w := range cfg.Warnings {
		g.log.Warn("configuration", zap.String("problem", w.String()))
	}
	if !reflect.DeepEqual(old.cfg.Desired, cfg.Desired) {
		g.cloud.TellDesired(cfg.Desired.Identity)
	}
	text := "nothing changed in the configuration; certificates, users and tokens looked at"
	if len(changes) > 0 {
		text = strings.Join(changes, ", ")
	}
	g.log.Info("reloaded", zap.String("changes", text))
	return text, nil
}

// fixedParts refuses what only a restart can change.
func fixedParts(old, next *config.Config) error {
	var changed []string
	if old.StateDir != next.StateDir {
		changed = append(changed, "state_dir")
	}
	if old.Queue != next.Queue {
		changed = append(changed, "queue")
	}
	if old.Downstream.Local != next.Downstream.Local {
		changed = append(changed, "downstream.local")
	}
	if old.Downstream.MaxTopic != next.Downstream.MaxTopic {
		changed = append(changed, "downstream.max_topic")
	}
	if !reflect.DeepEqual(old.Admin, next.Admin) {
		changed = append(changed, "admin")
	}
	if old.Log.Format != next.Log.Format {
		changed = append(changed, "log.format")
	}
	if len(changed) > 0 {
		return fmt.Errorf("%s changed, which needs a restart", strings.Join(changed, ", "))
	}
	return nil
}

// rearrange makes next run in place of old: first what is new, then the routes,
// then what goes, so that no route ever leads to an identity that is not there.
func (g *gateway) rearrange(old, next *arrangement, router *downstream.Router) (changes []string, err error) {
	say := func(what string, names []string) {
		if len(names) > 0 {
			changes = append(changes, fmt.Sprintf("%s: %s", what, strings.Join(names, " ")))
		}
	}
	var added, changed, gone []string
	var errs []error
	for i := range next.cfg.Identities {
		c := &next.cfg.Identities[i]
		id, how, err := g.keepOrOpen(old.byName[c.Name], next.cfg, c)
		if err != nil {
			// Its queue is kept, and the others must not wait for it.
			errs = append(errs, fmt.Errorf("identity %q: %w", c.Name, err))
			continue
		}
		next.add(id)
		switch how {
		case identityAdded:
			added = append(added, c.Name)
		case identityChanged:
			changed = append(changed, c.Name)
		}
	}
	errs = append(errs, g.rearrangeListeners(old, next))
	var sourcesChanged bool
	next.sources, sourcesChanged, err = old.sources.rearrange(next.cfg.Downstream, g.gate, g.local, g.log)
	errs = append(errs, err)
	if level, err := zapcore.ParseLevel(next.cfg.Log.Level); err == nil {
		g.level.SetLevel(level)
	}
	g.pacer.SetRates(next.cfg.Hub.ConnectRate, next.cfg.Hub.SendRate)
	g.now.Store(next)
	g.gate.SetRouter(router)
	next.sources.start(g.listening)
	for name, id := range old.byName {
		if next.byName[name] == nil {
			g.stopIdentity(id)
			g.wire.leave(name)
			gone = append(gone, name)
		}
	}
	slices.Sort(gone)
	say("identities added", added)
	say("identities changed", changed)
	say("identities removed, their messages are kept", gone)
	if !reflect.DeepEqual(old.cfg.Routes, next.cfg.Routes) {
		changes = append(changes, "routes")
	}
	if !slices.EqualFunc(old.mqtt, next.mqtt, func(a, b *mqttListener) bool { return a == b }) ||
		!slices.EqualFunc(old.http, next.http, func(a, b *httpListener) bool { return a == b }) {
		changes = append(changes, "listeners")
	}
	if sourcesChanged {
		changes = append(changes, "brokers, programs or sockets")
	}
	if !reflect.DeepEqual(old.cfg.Hub, next.cfg.Hub) || !reflect.DeepEqual(old.cfg.Desired, next.cfg.Desired) || old.cfg.Log != next.cfg.Log {
		changes = append(changes, "hub or log settings")
	}
	return changes, errors.Join(errs...)
}

type identityChange int

const (
	identityKept identityChange = iota
	identityAdded
	identityChanged
)

// keepOrOpen carries an identity over: untouched, with other limits or files
// under the same connection, or with a new session on the same queue.
func (g *gateway) keepOrOpen(was *identity, cfg *config.Config, c *config.Identity) (*identity, identityChange, error) {
	if was == nil {
		id, err := g.openIdentity(cfg, c)
		if err == nil {
			g.startIdentity(id)
		}
		return id, identityAdded, err
	}
	next := *was
	next.cfg = c
	gentle := *was.cfg
	// The rates belong to the pacer that all identities share.
	gentle.Hub.ConnectRate, gentle.Hub.SendRate = c.Hub.ConnectRate, c.Hub.SendRate
	if reflect.DeepEqual(gentle, *c) {
		return &next, identityKept, nil
	}
	gentle.Queue, gentle.Certificate = c.Queue, c.Certificate
	gentle.Queue.MaxAge = was.cfg.Queue.MaxAge // commands that wait have it too
	if !reflect.DeepEqual(gentle, *c) {
		g.stopIdentity(was)
		id, err := g.openIdentity(cfg, c)
		if err == nil {
			g.startIdentity(id)
		}
		return id, identityChanged, err
	}
	if _, err := g.journal.Queue(c.Name, queueLimits(c.Queue)); err != nil {
		return nil, identityKept, err
	}
	if was.cfg.Certificate != c.Certificate {
		if err := was.store.SetSource(certstore.Source(c.Certificate)); err != nil {
			return nil, identityKept, err
		}
	}
	return &next, identityChanged, nil
}

// stopIdentity ends the session in order; what is on disk stays.
func (g *gateway) stopIdentity(id *identity) {
	id.running.stop()
	g.watcher.Remove(id.store)
	g.cloud.Remove(id.cfg.Name)
}
