package certstore

import (
	"context"
	"sync"
)

// latch is closed until it is opened, once.
type latch struct {
	mu   sync.Mutex
	shut chan struct{} // nil when open: many of them stay for years
}

func newLatch() latch { return latch{shut: make(chan struct{})} }

func (l *latch) open() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shut != nil {
		close(l.shut)
		l.shut = nil
	}
}

func (l *latch) closed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.shut != nil
}

func (l *latch) await(ctx context.Context) {
	l.mu.Lock()
	shut := l.shut
	l.mu.Unlock()
	if shut == nil {
		return
	}
	select {
	case <-shut:
	case <-ctx.Done():
	}
}
