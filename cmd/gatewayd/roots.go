package main

import (
	"crypto/x509"
	"strings"

	"go.uber.org/zap"

	"gatewayd/internal/certstore"
	"gatewayd/internal/config"
)

// rootsCache opens each different set of trust files once, although every
// identity may name its own.
type rootsCache struct {
	watcher *certstore.Watcher
	log     *zap.Logger
	sets    map[string]*certstore.Roots
}

func newRootsCache(w *certstore.Watcher, log *zap.Logger) *rootsCache {
	return &rootsCache{watcher: w, log: log, sets: make(map[string]*certstore.Roots)}
}

// pool returns the way to the newest good pool for an identity's dials.
func (c *rootsCache) pool(h config.Hub) func() *x509.CertPool {
	key := strings.Join(h.Trust, "\x00")
	if h.SystemRoots {
		key += "\x00system"
	}
	r := c.sets[key]
	if r == nil {
		r = certstore.OpenRoots(certstore.RootsOptions{Files: h.Trust, System: h.SystemRoots, Log: c.log})
		c.watcher.AddRoots(r)
		c.sets[key] = r
	}
	return r.Pool
}
