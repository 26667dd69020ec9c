package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"gatewayd/internal/certstore"
	"gatewayd/internal/cloud"
	"gatewayd/internal/config"
	"gatewayd/internal/downstream"
	"gatewayd/internal/hub"
)

// newCloud makes the part that brings commands down. It needs the journal, and is
// needed by sessions and listeners.
func (g *gateway) newCloud(cfg *config.Config) *cloud.Cloud {
	return cloud.New(cloud.Config{
		Journal: g.journal, StateDir: cfg.StateDir, Clock: g.clock, Log: g.log.Named("commands"),
		State: g.commandState, Report: g.twinReport, Desired: g.desired.heard(g),
		Builtins: map[string]cloud.Builtin{
			config.BuiltinStatus:       g.methodStatus,
			config.BuiltinCertificates: g.methodCertificates,
			config.BuiltinQueue:        g.methodQueue,
			config.BuiltinReload:       g.methodReload,
			config.BuiltinLogLevel:     g.methodLogLevel,
		},
	})
}

// addCommands makes an identity's part, or changes it, and returns what its session
// calls.
func addCommands(c *cloud.Cloud, id config.Identity) (hub.Commands, error) {
	o := cloud.Options{
		Name: id.Name, C2D: id.Commands.C2D, Methods: id.Commands.Methods, Twin: id.Commands.Twin, MaxAge: id.Queue.MaxAge,
		Allow: id.AllowMethods, ReportKey: id.TwinReport.Key, ReportEvery: id.TwinReport.Every,
		Targets: make(map[string]cloud.Target, len(id.Methods)),
	}
	for name, m := range id.Methods {
		o.Targets[name] = cloud.Target{URL: m.URL, Exec: m.Exec, Builtin: m.Builtin, Timeout: m.Timeout}
	}
	return c.Add(o)
}

// mountCloud has a listener answer for C2D messages and twins too.
func mountCloud(h *downstream.HTTP, c *cloud.Cloud) {
	h.Mount(cloud.C2DPath, c)
	h.Mount(cloud.TwinPath, c)
}

// commandState is what local clients are told about an identity's connection.
func (g *gateway) commandState(name string) cloud.State {
	id := g.now.Load().byName[name]
	if id == nil {
		return cloud.State{State: hub.StateStopped}
	}
	state, fault := id.session.State()
	s := cloud.State{Connected: state == hub.StateConnected, State: state}
	if fault != nil {
		s.Fault = fault.Error()
	}
	return s
}

// twinReport is what the gateway reports on itself in an identity's twin.
func (g *gateway) twinReport(name string) map[string]any {
	id := g.now.Load().byName[name]
	if id == nil {
		return nil
	}
	q := id.queue.Stats()
	r := map[string]any{
		"version": readBuild().Version,
		"uptime":  int64(time.Since(g.started).Seconds()),
		"queue":   map[string]any{"messages": q.Messages, "bytes": q.Bytes, "oldestSeconds": int64(q.OldestAge.Seconds())},
	}
	if c, ok := g.desired.report(g.now.Load().cfg, name); ok {
		r["config"] = c
	}
	if c := id.store.Status().Current; c != nil {
		r["certificate"] = map[string]any{
			"validFrom": c.NotBefore.UTC().Format(time.RFC3339), "validUntil": c.NotAfter.UTC().Format(time.RFC3339),
		}
	}
	return r
}

// errNoIdentity is the answer for one that a reload has just taken away.
var errNoIdentity = &cloud.MethodError{Status: http.StatusNotFound, Reason: "the identity is not configured any more"}

// methodStatus tells how the gateway is and all about the identity that was asked;
// the others are counted, because an answer has 128 KB.
func (g *gateway) methodStatus(_ context.Context, name string, _ []byte) (any, error) {
	r := g.report()
	connected := 0
	var own *identityReport
	for i := range r.Identities {
		if r.Identities[i].Connected {
			connected++
		}
		if r.Identities[i].Name == name {
			own = &r.Identities[i]
		}
	}
	if own == nil {
		return nil, errNoIdentity
	}
	return map[string]any{
		"version": r.Version, "now": r.Now, "started": r.Started, "healthy": r.Healthy, "first_fault": r.FirstFault, "clock": r.Clock,
		"disk": r.Disk, "identities": len(r.Identities), "connected": connected, "identity": own,
	}, nil
}

// maxCertificatesShown keeps the answer below 128 KB.
const maxCertificatesShown = 300

// methodCertificates lists the certificates in use and what is on its way to
// replace them.
func (g *gateway) methodCertificates(context.Context, string, []byte) (any, error) {
	type line struct {
		Identity  string     `json:"identity"`
		SHA256    string     `json:"sha256,omitempty"`
		NotAfter  *time.Time `json:"not_after,omitempty"`
		DaysLeft  float64    `json:"days_left"`
		Candidate string     `json:"candidate_state"`
		Reason    string     `json:"candidate_reason,omitempty"`
	}
	all := g.now.Load().identities
	lines := make([]line, 0, min(len(all), maxCertificatesShown))
	for _, id := range all[:min(len(all), maxCertificatesShown)] {
		s := id.store.Status()
		l := line{Identity: id.cfg.Name, Candidate: string(s.CandidateState), Reason: s.CandidateReason}
		if s.CandidateState == certstore.None {
			l.Candidate = ""
		}
		if c := s.Current; c != nil {
			l.SHA256, l.NotAfter, l.DaysLeft = c.SHA256, timeOrNil(c.NotAfter), c.DaysLeft
		}
		lines = append(lines, l)
	}
	return map[string]any{"identities": len(all), "certificates": lines}, nil
}

// methodQueue tells what waits for the identity, and for all.
func (g *gateway) methodQueue(_ context.Context, name string, _ []byte) (any, error) {
	id := g.now.Load().byName[name]
	if id == nil {
		return nil, errNoIdentity
	}
	return map[string]any{"identity": g.identityReport(id).Queue, "all": map[string]any{"messages": g.queued()},
		"disk": newDiskReport(g.journal.Stats())}, nil
}

// methodReload does what SIGHUP does.
func (g *gateway) methodReload(context.Context, string, []byte) (any, error) {
	changes, err := g.reload()
	if err != nil {
		return nil, &cloud.MethodError{Status: http.StatusUnprocessableEntity, Reason: err.Error()}
	}
	return map[string]any{"changes": changes}, nil
}

// methodLogLevel sets the level of the log until the next reload or start; without a
// payload it tells the level.
func (g *gateway) methodLogLevel(_ context.Context, name string, payload []byte) (any, error) {
	was := g.level.Level()
	if len(payload) == 0 || string(payload) == "null" {
		return map[string]any{"level": was.String()}, nil
	}
	var want struct {
		Level string `json:"level"`
	}
	bad := func(err error) error {
		return &cloud.MethodError{Status: http.StatusBadRequest, Reason: fmt.Sprintf(`the payload has to be {"level": "debug", "info", "warn" or "error"}: %v`, err)}
	}
	if err := json.Unmarshal(payload, &want); err != nil {
		return nil, bad(err)
	}
	level, err := zapcore.ParseLevel(want.Level)
	if err == nil && (level < zapcore.DebugLevel || level > zapcore.ErrorLevel) {
		err = fmt.Errorf("%q is none of them", want.Level)
	}
	if err != nil {
		return nil, bad(err)
	}
	g.level.SetLevel(level)
	g.log.Info("log level set by a method", zap.String("identity", name), zap.Stringer("from", was), zap.Stringer("to", level))
	return map[string]any{"level": level.String(), "was": was.String()}, nil
}
