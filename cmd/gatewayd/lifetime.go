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

// component is one part that runs, and can be stopped before the others of its
// lifetime.
type component struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// start runs one component until it is stopped or the lifetime ends.
func (l *lifetime) start(name string, run func(context.Context) error) *component {
	ctx, cancel := context.WithCancel(l.ctx)
	c := &component{cancel: cancel, done: make(chan struct{})}
	l.wg.Go(func() {
		defer close(c.done)
		defer cancel()
		l.ended(ctx, name, run(ctx))
	})
	return c
}

// ended looks at how a component has ended.
func (l *lifetime) ended(ctx context.Context, name string, err error) {
	switch {
	case err != nil:
		l.failed(fmt.Errorf("%s: %w", name, err))
	case ctx.Err() == nil:
		l.failed(fmt.Errorf("%s ended by itself", name))
	}
}

// stop tells one component to stop and waits for it.
func (c *component) stop() {
	c.cancel()
	<-c.done
}

// stop tells the components to stop and waits for them.
func (l *lifetime) stop() {
	l.cancel()
	l.wg.Wait()
}
