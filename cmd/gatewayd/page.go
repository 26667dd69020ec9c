package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"gatewayd/internal/certstore"
	"gatewayd/internal/downstream"
	"gatewayd/internal/statuspage"
)

// newPage makes the status page and reads the tokens.
func (g *gateway) newPage(a *arrangement) error {
	var lookup func(string) (string, bool)
	if file := a.cfg.Admin.TokenFile; file != "" {
		tokens, err := downstream.LoadTokens(file)
		if err != nil {
			return &exitError{exitUsage, fmt.Errorf("admin.token_file: %w", err)}
		}
		g.adminTokens, lookup = tokens, tokens.Lookup
	}
	g.guard = statuspage.NewGuard(lookup)
	g.page = statuspage.New(statuspage.Options{Gateway: pageView{g}, Events: g.events, Guard: g.guard,
		Actions: statuspage.Actions{Reload: g.pageReload, Requeue: g.pageRequeue, SetLevel: g.pageSetLevel, Level: func() string { return g.level.Level().String() }}})
	return nil
}

// keepAdmin reads the admin tokens again; who logged in with one that is gone is out.
func (g *gateway) keepAdmin() error {
	if g.adminTokens == nil {
		return nil
	}
	if err := g.adminTokens.Reload(); err != nil {
		return fmt.Errorf("admin.token_file: %w", err)
	}
	return nil
}

// machineName is how the page calls this gateway, and a Host that it answers to.
func machineName() string {
	name, err := os.Hostname()
	if err != nil {
		return "this machine"
	}
	return name
}

// pageView gives the page what a report has.
type pageView struct{ g *gateway }

func (p pageView) View() statuspage.View {
	r := p.g.report()
	v := statuspage.View{Head: statuspage.Head{
		Machine: machineName(), Version: r.Version, Now: r.Now, Started: r.Started.Truncate(time.Second), FirstFault: r.FirstFault, Clock: r.Clock,
		Disk:        statuspage.Disk{Trouble: r.Disk.Trouble, Bytes: r.Disk.Bytes, LastSyncMS: r.Disk.LastSync * 1000},
		SensorCount: p.g.gate.Ledger().Size(), Unconfigured: r.Unconfigured,
	}}
	for i := range r.Identities {
		id := &r.Identities[i]
		v.Identities = append(v.Identities, pageIdentity(id))
		if v.FaultAt == "" && id.FirstFault != "" && r.FirstFault == id.Name+": "+id.FirstFault {
			v.FaultAt, v.FaultHint = id.Name, id.Hint
		}
	}
	for _, c := range r.Routes {
		v.Routes = append(v.Routes, statuspage.Route{Name: c.Route, Match: c.Match, To: c.To, Messages: c.Messages, Unwanted: c.Unwanted,
			Unchanged: c.Unchanged, Failed: c.Failed, LastError: c.LastError})
	}
	for _, s := range r.Sources {
		v.Sources = append(v.Sources, statuspage.Source{Name: s.Source, Received: s.Received, Refused: s.Refused})
	}
	v.Listeners = pageListeners(&r)
	return v
}

func pageIdentity(id *identityReport) statuspage.Identity {
	// Seconds are enough, and what does not change is not sent again.
	v := statuspage.Identity{
		Name: id.Name, HubID: id.HubID, State: id.State, Connected: id.Connected, Since: id.Since.Round(time.Second), Fault: id.FirstFault, Hint: id.Hint,
		Received: id.Queue.Appended, Delivered: id.Queue.Acked, Queued: id.Queue.Messages, Bytes: id.Queue.Bytes,
		OldestSec: int64(id.Queue.OldestSeconds), Aside: id.Queue.Aside, Rotations: id.Rotations,
	}
	if c := id.Certificate.Current; c != nil {
		v.CertificateFrom, v.CertificateUntil = c.NotBefore.UTC(), c.NotAfter.UTC()
	}
	if s := id.Certificate.CandidateState; s != certstore.None {
		v.Candidate = string(s)
	}
	for _, n := range id.Queue.Dropped {
		v.Dropped += n
	}
	return v
}

func pageListeners(r *report) []statuspage.Listener {
	var all []statuspage.Listener
	for _, l := range r.Listeners {
		n := l.Connections
		if l.Kind != "mqtt" {
			n = -1
		}
		all = append(all, statuspage.Listener{Kind: l.Kind, Address: l.Address, Connections: n})
	}
	for _, b := range r.Brokers {
		n := 0
		if b.Connected {
			n = 1
		}
		all = append(all, statuspage.Listener{Kind: "broker", Address: b.URL, Connections: n, Fault: b.Fault})
	}
	for _, e := range r.Programs {
		all = append(all, statuspage.Listener{Kind: "program", Address: e.Name, Connections: -1, Fault: e.Fault})
	}
	for _, s := range r.Sockets {
		all = append(all, statuspage.Listener{Kind: "socket", Address: s.Name, Connections: s.Connections})
	}
	for _, c := range r.AzureClients {
		n := 0
		if c.Connected {
			n = 1
		}
		all = append(all, statuspage.Listener{Kind: "Azure SDK client", Address: c.Identity, Connections: n})
	}
	return all
}

func (p pageView) Sensors() []statuspage.Sensor {
	l := p.g.gate.Ledger()
	rows := l.Clients(l.Size())
	all := make([]statuspage.Sensor, len(rows))
	for i, c := range rows {
		all[i] = statuspage.Sensor(c)
	}
	return all
}

func (p pageView) Detail(name string) (any, bool) {
	id := p.g.now.Load().byName[name]
	if id == nil {
		return nil, false
	}
	return p.g.identityReport(id), true
}

// The names of tokens are in the log because they say who did something.

func (g *gateway) pageReload(_ context.Context, who string) (string, error) {
	g.log.Info("reload asked for over the admin address", zap.String("by", cmp.Or(who, "a token without a name")))
	return g.reload()
}

func (g *gateway) pageRequeue(_ context.Context, who, name string) (string, error) {
	if !g.configured(name) {
		return "", fmt.Errorf("%q is not configured", name)
	}
	n, err := g.journal.Requeue(name)
	if err != nil {
		return "", err
	}
	g.log.Info("set-aside messages put back over the admin address", zap.String("identity", name), zap.Int("messages", n),
		zap.String("by", cmp.Or(who, "a token without a name")))
	return fmt.Sprintf("%d messages put back", n), nil
}

// pageSetLevel holds until the next reload or start.
func (g *gateway) pageSetLevel(_ context.Context, who, text string) (string, error) {
	level, err := zapcore.ParseLevel(text)
	if text == "" || err != nil || level < zapcore.DebugLevel || level > zapcore.ErrorLevel {
		return "", errors.New("the level has to be debug, info, warn or error")
	}
	was := g.level.Level()
	g.level.SetLevel(level)
	g.log.Info("log level set over the admin address", zap.Stringer("from", was), zap.Stringer("to", level),
		zap.String("by", cmp.Or(who, "a token without a name")))
	return fmt.Sprintf("log level %s until the next reload or start, was %s", level, was), nil
}
