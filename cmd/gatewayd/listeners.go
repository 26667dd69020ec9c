package main

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"gatewayd/internal/config"
	"gatewayd/internal/downstream"
)

type mqttListener struct {
	cfg config.MQTT
	*downstream.MQTT
	users   *downstream.Users        // nil without users_file
	azure   *downstream.AzureClients // nil without azure_clients
	running *component
}

type httpListener struct {
	cfg config.HTTP
	*downstream.HTTP
	tokens  *downstream.Tokens // nil without token_file
	running *component
}

func (g *gateway) openMQTT(cfg *config.Config, i int) (*mqttListener, error) {
	m, err := newMQTTListener(cfg, i, g.tokenTime, g.gate, g.local, g.log.Named("mqtt"))
	if err != nil {
		return nil, fmt.Errorf("downstream.mqtt[%d].%w", i, err)
	}
	if err := m.Listen(); err != nil {
		return nil, fmt.Errorf("downstream.mqtt[%d].listen: %w", i, err)
	}
	return m, nil
}

func (g *gateway) openHTTP(i int, c config.HTTP) (*httpListener, error) {
	h, err := newHTTPListener(c, g.gate, g.log.Named("http"))
	if err != nil {
		return nil, fmt.Errorf("downstream.http[%d].%w", i, err)
	}
	mountCloud(h.HTTP, g.cloud)
	if err := h.Listen(); err != nil {
		return nil, fmt.Errorf("downstream.http[%d].listen: %w", i, err)
	}
	return h, nil
}

// newMQTTListener reads the files of a listener; it binds nothing. now is what
// tokens are judged by. Errors begin with the key, below that of the listener.
func newMQTTListener(all *config.Config, i int, now func() time.Time, gate *downstream.Gate, local *downstream.Local, log *zap.Logger) (*mqttListener, error) {
	c := all.Downstream.MQTT[i]
	cfg := downstream.MQTTConfig{
		Listen: c.Listen.String(), TLS: downstream.TLSFiles(c.TLS), Anonymous: c.Anonymous,
		MaxConnections: c.MaxConnections, MaxPerAddress: c.MaxPerAddress, ConnectTimeout: c.ConnectTimeout,
		MaxPacket: c.MaxPacket, MaxSubscriptions: c.MaxSubscriptions, InFlight: c.InFlight, Rate: c.Rate,
	}
	for _, rule := range c.ACL {
		cfg.ACL = append(cfg.ACL, downstream.ACLRule(rule))
	}
	if c.UsersFile != "" {
		users, err := downstream.LoadUsers(c.UsersFile)
		if err != nil {
			return nil, fmt.Errorf("users_file: %w", err)
		}
		cfg.Users = users
	}
	if len(c.AzureClients) > 0 {
		var err error
		if cfg.Azure, err = downstream.LoadAzureClients(azureClients(all, c), now); err != nil {
			return nil, err
		}
	}
	m, err := downstream.NewMQTT(cfg, gate, local, log)
	if err != nil {
		return nil, err
	}
	return &mqttListener{cfg: c, MQTT: m, users: cfg.Users, azure: cfg.Azure}, nil
}

// tokenTime is what tokens of Azure SDK clients are judged by: while the clock is not
// trusted, never earlier than the last time that was.
func (g *gateway) tokenTime() time.Time {
	now, _ := g.clock.Now()
	return now
}

// azureClients puts together who may speak IoT Hub's dialect on a listener.
func azureClients(all *config.Config, c config.MQTT) []downstream.AzureClient {
	var clients []downstream.AzureClient
	for i := range all.Identities {
		id := &all.Identities[i]
		if a, ok := c.AzureClients[id.Name]; ok {
			clients = append(clients, downstream.AzureClient{Identity: id.Name, Host: id.HostName, DeviceID: id.DeviceID, ModuleID: id.ModuleID,
				KeyFile: a.KeyFile, Thumbprints: a.Thumbprints})
		}
	}
	return clients
}

// newHTTPListener is the same for HTTP.
func newHTTPListener(c config.HTTP, gate *downstream.Gate, log *zap.Logger) (*httpListener, error) {
	listen := c.Listen.String()
	if rest, ok := strings.CutPrefix(listen, "tls://"); ok {
		listen = "https://" + rest
	}
	cfg := downstream.HTTPConfig{
		Listen: listen, TLS: downstream.TLSFiles(c.TLS), Anonymous: c.Anonymous,
		MaxConnections: c.MaxConnections, MaxBody: c.MaxBody, MaxBatch: c.MaxBatch, Rate: c.Rate,
	}
	if c.TokenFile != "" {
		tokens, err := downstream.LoadTokens(c.TokenFile)
		if err != nil {
			return nil, fmt.Errorf("token_file: %w", err)
		}
		cfg.Tokens = tokens
	}
	h, err := downstream.NewHTTP(cfg, gate, log)
	if err != nil {
		return nil, err
	}
	return &httpListener{cfg: c, HTTP: h, tokens: cfg.Tokens}, nil
}

func localConfig(c config.Local) downstream.LocalConfig {
	return downstream.LocalConfig{
		MaxSessions: c.MaxSessions, SessionExpiry: c.SessionExpiry,
		QueueMessages: c.MaxMessages, QueueBytes: c.MaxBytes, RetainedBytes: c.MaxRetained,
	}
}

func gateLimits(c *config.Config) downstream.GateLimits {
	return downstream.GateLimits{TopicBytes: c.Downstream.MaxTopic}
}

// tryListeners builds every listener and source without binding or starting it,
// which reads all their files. The errors are joined, each with its key path.
func tryListeners(cfg *config.Config, router *downstream.Router) error {
	var errs []error
	gate := downstream.NewGate(router, sink{}, downstream.NewLedger(0, 0), gateLimits(cfg), zap.NewNop())
	local := downstream.NewLocal(localConfig(cfg.Downstream.Local), nil)
	for i := range cfg.Downstream.MQTT {
		if _, err := newMQTTListener(cfg, i, nil, gate, local, zap.NewNop()); err != nil {
			errs = append(errs, fmt.Errorf("downstream.mqtt[%d].%w", i, err))
		}
	}
	for i, c := range cfg.Downstream.HTTP {
		if _, err := newHTTPListener(c, gate, zap.NewNop()); err != nil {
			errs = append(errs, fmt.Errorf("downstream.http[%d].%w", i, err))
		}
	}
	if cfg.Admin.TokenFile != "" {
		if _, err := downstream.LoadTokens(cfg.Admin.TokenFile); err != nil {
			errs = append(errs, fmt.Errorf("admin.token_file: %w", err))
		}
	}
	if cfg.Admin.OTLP.Endpoint != "" {
		if _, err := newOTLP(cfg.Admin.OTLP, prometheus.NewRegistry(), zap.NewNop()); err != nil {
			errs = append(errs, err)
		}
	}
	checkSources(cfg.Downstream, gate, func(path, reason string) { errs = append(errs, fmt.Errorf("%s: %s", path, reason)) })
	return errors.Join(errs...)
}

// silentFile is the first file of a listener or of the admin address whose file system does not answer; nil for none. Those
// are read in one go and would hold everything up. What reads the files of identities waits for no longer than it must.
func silentFile(cfg *config.Config) error {
	for _, w := range cfg.Warnings {
		if w.Silent && (strings.HasPrefix(w.Path, "downstream") || strings.HasPrefix(w.Path, "admin")) {
			return errors.New(w.String())
		}
	}
	return nil
}

// same tells whether a listener can go on under another configuration: all is as it
// was, but for who may speak IoT Hub's dialect.
func (m *mqttListener) same(c config.MQTT) bool {
	was := m.cfg
	if len(was.AzureClients) == 0 || len(c.AzureClients) == 0 {
		return reflect.DeepEqual(was, c)
	}
	was.AzureClients = c.AzureClients
	return reflect.DeepEqual(was, c)
}

// keep has a listener that did not change follow its users file and the keys of
// Azure SDK clients. Who is connected stays connected; an error leaves them as they
// were.
func (m *mqttListener) keep(all *config.Config, c config.MQTT) (*mqttListener, error) {
	var errs []error
	if m.users != nil {
		errs = append(errs, m.users.Reload())
	}
	if m.azure != nil {
		errs = append(errs, m.azure.Set(azureClients(all, c)))
	}
	if !reflect.DeepEqual(m.cfg, c) {
		next := *m
		next.cfg, m = c, &next
	}
	return m, errors.Join(errs...)
}

// keep is the same for the token file.
func (h *httpListener) keep() error {
	if h.tokens == nil {
		return nil
	}
	return h.tokens.Reload()
}

// rearrangeListeners keeps those that did not change. One that cannot be bound
// is an error, but does not keep the others from running.
func (g *gateway) rearrangeListeners(old, next *arrangement) error {
	return errors.Join(g.rearrangeMQTT(old, next), g.rearrangeHTTP(old, next))
}

func (g *gateway) rearrangeMQTT(old, next *arrangement) error {
	var errs []error
	before := make(map[string]*mqttListener)
	for _, m := range old.mqtt {
		before[m.cfg.Listen.String()] = m
	}
	for i, c := range next.cfg.Downstream.MQTT {
		was := before[c.Listen.String()]
		delete(before, c.Listen.String())
		if was != nil && was.same(c) {
			kept, err := was.keep(next.cfg, c)
			errs = append(errs, err)
			next.mqtt = append(next.mqtt, kept)
			continue
		}
		if was != nil {
			was.running.stop()
		}
		m, err := g.openMQTT(next.cfg, i)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		m.running = g.listening.start("mqtt listener "+m.Addr().String(), m.Run)
		next.mqtt = append(next.mqtt, m)
	}
	for m := range maps.Values(before) {
		m.running.stop()
	}
	return errors.Join(errs...)
}

func (g *gateway) rearrangeHTTP(old, next *arrangement) error {
	var errs []error
	before := make(map[string]*httpListener)
	for _, h := range old.http {
		before[h.cfg.Listen.String()] = h
	}
	for i, c := range next.cfg.Downstream.HTTP {
		was := before[c.Listen.String()]
		delete(before, c.Listen.String())
		if was != nil && reflect.DeepEqual(was.cfg, c) {
			errs = append(errs, was.keep())
			next.http = append(next.http, was)
			continue
		}
		if was != nil {
			was.running.stop()
		}
		h, err := g.openHTTP(i, c)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		h.running = g.listening.start("http listener "+h.Addr().String(), h.Run)
		next.http = append(next.http, h)
	}
	for h := range maps.Values(before) {
		h.running.stop()
	}
	return errors.Join(errs...)
}
