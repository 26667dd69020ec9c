package certstore

import (
	"context"

	"go.uber.org/zap"
)

// WatcherOptions configure a Watcher; the zero value is good.
type WatcherOptions struct {
	// PollOnly asks for no file events: for systems without them and for tests in virtual time, which an open event queue
	// would stop.
	PollOnly bool
	Log      *zap.Logger // nil: silent
}

// Watcher follows the files of all Stores and Roots with one event queue and a poll behind it. Its methods are safe for
// concurrent use.
type Watcher struct{ o WatcherOptions }

// NewWatcher makes a Watcher; it starts nothing.
func NewWatcher(o WatcherOptions) *Watcher { return &Watcher{o: o} }

// Add follows the files of s: at once when the Watcher runs, else as soon as it does. A Store belongs to one Watcher.
func (w *Watcher) Add(s *Store) {}

// AddRoots follows the files of r.
func (w *Watcher) AddRoots(r *Roots) {}

// Remove stops following s and returns when nothing more happens to it.
func (w *Watcher) Remove(s *Store) {}

// Rescan looks at every file now, as after SIGHUP.
func (w *Watcher) Rescan() {}

// Run follows the files until ctx ends and waits for everything that it started. It fails only when called twice; a
// system without file events is polled.
func (w *Watcher) Run(ctx context.Context) error { <-ctx.Done(); return nil }

type subscription struct{}

func (subscription) cover([]string) {}
func (subscription) drop()          {}
