package certstore

import "sync/atomic"

// bell is how a follower is told that there is something to do. It keeps what was said until the follower's turn and
// wakes the Watcher that gives the turns. The zero value is ready; without a Watcher it only keeps.
type bell struct {
	touched atomic.Bool // the files may have changed
	poked   atomic.Bool // what tick looks at has changed
	watcher atomic.Pointer[Watcher]
}

func (b *bell) touch() { b.ring(&b.touched) }
func (b *bell) poke()  { b.ring(&b.poked) }

func (b *bell) ring(what *atomic.Bool) {
	what.Store(true)
	if w := b.watcher.Load(); w != nil {
		wake(w.news)
	}
}

// silent is what Watcher.silentAt says of s, which has the bell.
func (b *bell) silent(s subject) string {
	if w := b.watcher.Load(); w != nil {
		return w.silentAt(s)
	}
	return ""
}

func (b *bell) rung() bool { return b.touched.Load() || b.poked.Load() }

// hear forgets what was said; the turn that follows looks at everything that it can have been about.
func (b *bell) hear() (touched bool) {
	b.poked.Store(false)
	return b.touched.Swap(false)
}
