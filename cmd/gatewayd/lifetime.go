package main

import (
	"context"
	"fmt"
	"sync"
)

// lifetime runs components that stop together. The first one that returns an
// error, or returns although it was not told to stop, ends the process through
// failed.
type lifetime struct {
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	failed context.CancelCauseFunc
}

func newLifetime(failed context.CancelCauseFunc) *lifetime {
	ctx, cancel := context.WithCancel(context.Background())
	return &lifetime{ctx: ctx, cancel: cancel, failed: failed}
}

// start runs one component until the lifetime ends.
func (l *lifetime) start(name string, run func(context.Context) error) {
	l.wg.Go(func() {
		err := run(l.ctx)
		switch {
		case err != nil:
			l.failed(fmt.Errorf("%s: %w", name, err))
		case l.ctx.Err() == nil:
			l.failed(fmt.Errorf("%s ended by itself", name))
		}
	})
}

// stop tells the components to stop and waits for them.
func (l *lifetime) stop() {
	l.cancel()
	l.wg.Wait()
}
