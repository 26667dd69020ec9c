package main

import (
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

// open returns the roots for an identity's dials; they are taken anew for each.
func (c *rootsCache) open(h config.Hub) *certstore.Roots {
	key := strings.Join(h.Trust, "\x00")
	if h.SystemRoots {
		key += "\x00system"
	}
	r := c.sets[key]
	if r == nil {
		r = certstore.NewRoots(certstore.RootsOptions{Files: h.Trust, System: h.SystemRoots, Log: c.log})
		c.watcher.AddRoots(r)
		c.sets[key] = r
	}
	return r
}
