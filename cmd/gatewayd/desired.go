package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"go.uber.org/zap"

	"gatewayd/internal/config"
)

// desiredConfig is the part of the configuration that comes from the desired
// properties of an identity. What was applied is kept on disk, so that it holds
// after a restart without the hub.
type desiredConfig struct {
	file   string
	wake   chan struct{} // one-slot: there is a document to look at
	looker config.Looker

	// kept is in use. Whoever holds gateway.reloading may touch it; nil = none.
	kept *keptDesired

	mu      sync.Mutex
	pending []byte // the desired document that was heard last; nil = looked at
	status  *desiredReport
}

// keptDesired is the content of the file.
type keptDesired struct {
	Identity string          `json:"identity"`
	Version  int64           `json:"version"` // of the desired properties
	Config   json.RawMessage `json:"config"`
}

// desiredReport is what became of the document that was looked at last.
type desiredReport struct {
	Identity string `json:"identity"`
	Version  int64  `json:"version"`
	Applied  bool   `json:"applied"`
	Reason   string `json:"reason,omitempty"` // why not
}

const (
	maxKeptDesired   = 64 << 10
	maxDesiredReason = 1000 // bytes in the reported properties
)

// openDesired reads what an earlier run kept; what cannot be read is no loss, because
// the hub has it.
func openDesired(stateDir string) *desiredConfig {
	d := &desiredConfig{file: filepath.Join(stateDir, "desired_config.json"), wake: make(chan struct{}, 1)}
	if st, err := os.Stat(d.file); err != nil || st.Size() > maxKeptDesired {
		return d
	}
	b, err := os.ReadFile(d.file)
	var kept keptDesired
	if err == nil && json.Unmarshal(b, &kept) == nil && len(kept.Config) > 0 {
		d.kept = &kept
	}
	return d
}

// over puts what is kept over a configuration. When the file has changed so that this
// does not fit any more, the file alone counts. The caller holds reloading, or nothing
// runs yet.
func (d *desiredConfig) over(cfg *config.Config, log *zap.Logger) *config.Config {
	if d.kept == nil || cfg.Desired.Identity != d.kept.Identity {
		return cfg
	}
	with, err := cfg.WithDesired(d.kept.Config)
	if err != nil {
		log.Warn("configuration from desired properties does not fit the file any more", zap.String("identity", d.kept.Identity), zap.Error(err))
		d.tell(d.kept.Identity, d.kept.Version, err)
		return cfg
	}
	d.tell(d.kept.Identity, d.kept.Version, nil)
	return with
}

// load reads the file and puts what is kept over it.
func (d *desiredConfig) load(file string, log *zap.Logger) (*config.Config, error) {
	cfg, err := d.looker.Load(file)
	if err != nil {
		return nil, err
	}
	return d.over(cfg, log), nil
}

// heard is called with the desired properties of every identity.
func (d *desiredConfig) heard(g *gateway) func(string, []byte) {
	return func(identity string, document []byte) {
		if identity != g.now.Load().cfg.Desired.Identity {
			return
		}
		d.mu.Lock()
		d.pending = document
		d.mu.Unlock()
		select {
		case d.wake <- struct{}{}:
		default:
		}
	}
}

func (d *desiredConfig) tell(identity string, version int64, err error) {
	r := &desiredReport{Identity: identity, Version: version, Applied: err == nil}
	if err != nil {
		r.Reason = strings.ReplaceAll(err.Error(), "\n", "; ")
		r.Reason = strings.ToValidUTF8(r.Reason[:min(len(r.Reason), maxDesiredReason)], "")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.status = r
}

// now is the latest report; nil when there was nothing to look at.
func (d *desiredConfig) now(cfg *config.Config) *desiredReport {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.status == nil || d.status.Identity != cfg.Desired.Identity {
		return nil
	}
	return d.status
}

// report is the report for the twin of an identity. An absent reason is null, which
// takes an earlier one away.
func (d *desiredConfig) report(cfg *config.Config, identity string) (map[string]any, bool) {
	s := d.now(cfg)
	if s == nil || s.Identity != identity {
		return nil, false
	}
	r := map[string]any{"version": s.Version, "applied": s.Applied, "reason": nil}
	if s.Reason != "" {
		r["reason"] = s.Reason
	}
	return r, true
}

// followDesired applies what is heard, until ctx ends.
func (g *gateway) followDesired(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-g.desired.wake:
			g.desired.mu.Lock()
			document := g.desired.pending
			g.desired.pending = nil
			g.desired.mu.Unlock()
			if document != nil {
				g.applyDesired(document)
			}
		}
	}
}

// applyDesired makes a desired document count. A bad one changes nothing. Either way
// the identity's reported properties say so.
func (g *gateway) applyDesired(document []byte) {
	g.reloading <- struct{}{}
	defer func() { <-g.reloading }()
	d, cfg := g.desired, g.now.Load().cfg
	want := wanted(cfg, document)
	if want == nil {
		return
	}
	version := want.Version
	log := g.log.With(zap.String("identity", want.Identity), zap.Int64("version", version))
	have := d.kept
	if have != nil && have.Identity != want.Identity {
		have = nil
	}
	switch last := d.now(cfg); {
	case want.Config == nil && have == nil:
		return
	case have != nil && bytes.Equal(have.Config, want.Config) && last != nil && last.Applied:
		d.tell(want.Identity, version, nil) // another part of the twin has changed
	default:
		changes, err := g.useDesired(want)
		d.tell(want.Identity, version, err)
		if err != nil {
			// It is looked at with every connection: the file may fit by now.
			if now := d.now(cfg); last == nil || *last != *now {
				log.Warn("configuration in the desired properties refused", zap.Error(err))
			}
			break
		}
		log.Info("configuration in the desired properties applied", zap.String("changes", changes))
		d.keep(want, log)
	}
	g.cloud.ReportNow(want.Identity)
}

// wanted takes what concerns the configuration out of a desired document: without
// Config when there is nothing, nil when the document cannot be read.
func wanted(cfg *config.Config, document []byte) *keptDesired {
	var whole map[string]json.RawMessage
	if cfg.Desired.Identity == "" || json.Unmarshal(document, &whole) != nil {
		return nil
	}
	want := &keptDesired{Identity: cfg.Desired.Identity, Config: whole[cfg.Desired.Key]}
	_ = json.Unmarshal(whole["$version"], &want.Version) // the hub's documents have one
	if string(want.Config) == "null" {
		want.Config = nil
	}
	return want
}

// useDesired reads the file with a document over it and makes that the configuration.
func (g *gateway) useDesired(want *keptDesired) (string, error) {
	cfg, err := config.Load(g.now.Load().cfg.File)
	if err == nil && cfg.Desired.Identity != want.Identity {
		err = errors.New("the file names another identity by now")
	}
	if err == nil && want.Config != nil {
		cfg, err = cfg.WithDesired(want.Config)
	}
	if err != nil {
		return "", err
	}
	return g.use(cfg, nil)
}

// keep has what is in use survive a restart.
func (d *desiredConfig) keep(want *keptDesired, log *zap.Logger) {
	d.kept = want
	var err error
	if want.Config == nil {
		d.kept = nil
		if err = os.Remove(d.file); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	} else {
		var b []byte
		if b, err = json.Marshal(want); err == nil {
			err = replaceFile(d.file, b)
		}
	}
	if err != nil {
		log.Warn("configuration from desired properties not kept over a restart", zap.Error(err))
	}
}
