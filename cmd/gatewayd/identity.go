package main

import (
	"context"
	"crypto/x509"
	"fmt"

	"gatewayd/internal/certstore"
	"gatewayd/internal/config"
	"gatewayd/internal/hub"
	"gatewayd/internal/queue"
)

// identity is one device or module with its parts.
type identity struct {
	cfg     *config.Identity // of the configuration in use; not changed
	queue   *queue.Queue
	store   *certstore.Store
	roots   *certstore.Roots
	session *hub.Session
	wire    *wireAccount
	running *component // the session; nil before Run
}

// packSuffix makes the name of the queue in which an identity's session writes down
// its packs.
const packSuffix = "/packs"

func (g *gateway) openIdentities(a *arrangement) error {
	// One logger of each kind for all: with many identities even names add up.
	g.certLog, g.hubLog = g.log.Named("certs"), g.log.Named("hub")
	g.pacer = hub.NewPacer(hub.Pace{Connects: a.cfg.Hub.ConnectRate, Sends: a.cfg.Hub.SendRate})
	g.watcher = certstore.NewWatcher(certstore.WatcherOptions{Log: g.certLog})
	g.roots = newRootsCache(g.watcher, g.certLog)
	for i := range a.cfg.Identities {
		id, err := g.openIdentity(a.cfg, &a.cfg.Identities[i])
		if err != nil {
			return fmt.Errorf("identities[%d]: %w", i, err)
		}
		a.add(id)
	}
	return nil
}

func (a *arrangement) add(id *identity) {
	a.identities = append(a.identities, id)
	a.byName[id.cfg.Name] = id
}

func (g *gateway) openIdentity(cfg *config.Config, c *config.Identity) (*identity, error) {
	id := &identity{cfg: c}
	var err error
	if id.queue, err = g.journal.Queue(c.Name, queueLimits(c.Queue)); err != nil {
		return nil, err
	}
	cn := c.HubID()
	if c.AllowCNMismatch {
		cn = ""
	}
	id.store, err = certstore.New(certstore.Options{
		Identity:     c.Name,
		Source:       certstore.Source(c.Certificate),
		CommonName:   cn,
		StateDir:     cfg.StateDir,
		KeepLastGood: c.KeepLastGood == config.KeepOnDisk,
		// Many quick renewals in a row are an exercise or a migration; one a minute
		// without an end is a renewer gone wild.
		TrialBurst: 120,
		Clock:      g.clock,
		Log:        g.certLog,
	})
	if err != nil {
		return nil, err
	}
	id.roots = g.roots.open(c.Hub)
	session := sessionConfig(*c, g.clock, id.roots.Pool, cfg.Queue.SetAsideAfter)
	id.wire = g.wire.of(c.Name)
	session.Wire = &id.wire.wire
	session.Ready = id.filesRead
	session.Packs = func() (*queue.Queue, error) {
		return g.journal.Queue(c.Name+packSuffix, queue.Limits{Always: true})
	}
	if session.Commands, err = addCommands(g.cloud, *c); err != nil {
		return nil, err
	}
	id.session = hub.NewSession(session, id.queue, id.store, g.pacer, g.hubLog)
	g.watcher.Add(id.store)
	return id, nil
}

// filesRead waits for the first reading of the files of certificate and roots, within bounds.
func (id *identity) filesRead(ctx context.Context) {
	id.roots.Await(ctx)
	id.store.Await(ctx)
}

// sessionConfig turns the file's words into the session's. dials says against
// which time and roots the hub's own certificate is checked.
func sessionConfig(c config.Identity, clock *certstore.Clock, roots func() *x509.CertPool, deaths int) hub.Config {
	return hub.Config{
		Identity: hub.Identity{
			Name: c.Name, HostName: c.HostName, DeviceID: c.DeviceID, ModuleID: c.ModuleID,
			Address: c.Address, WebSocketAddress: c.WebSocketAddress, GatewayHostName: c.GatewayHostName,
		},
		Transport: hub.Transport(c.Hub.Transport),
		Proxy:     proxyOf(c.Hub.Proxy),
		Product:   "gatewayd/" + readBuild().Version,
		KeepAlive: c.Hub.KeepAlive, KeepAliveAuto: c.Hub.KeepAliveAuto,
		Window: c.Hub.Window,
		Roots:  roots,
		Clock:  clock,
		Timing: hub.Timing{PoisonDeaths: deaths},
	}
}

func proxyOf(p config.Proxy) hub.Proxy {
	if p.Env {
		return hub.ProxyFromEnvironment()
	}
	return hub.ProxyAt(p.URL())
}

func queueLimits(l config.Limits) queue.Limits {
	limits := queue.Limits{MaxBytes: l.MaxBytes, MaxAge: l.MaxAge}
	if l.WhenFull == config.WhenFullDropOldest {
		limits.WhenFull = queue.DropOldest
	}
	return limits
}

func (g *gateway) startIdentity(id *identity) {
	id.running = g.sending.start("session "+id.cfg.Name, id.session.Run)
}
