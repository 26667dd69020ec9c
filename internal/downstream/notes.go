package downstream

import (
	"sync"
	"time"
)

const (
	noteEvery = time.Minute
	noteKeys  = 1024
)

// notes keeps refusals from flooding the log: a client that does the same wrong
// thing again and again gets one line a minute. The zero value is ready.
type notes struct {
	mu   sync.Mutex
	last map[noteKey]time.Time
}

type noteKey struct{ who, what string }

// once calls say unless it was called for the same who and what lately. say runs
// without the lock.
func (n *notes) once(who, what string, say func()) {
	if n.due(noteKey{who, what}, time.Now()) {
		say()
	}
}

func (n *notes) due(key noteKey, now time.Time) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if last, ok := n.last[key]; ok && now.Sub(last) < noteEvery {
		return false
	}
	if len(n.last) >= noteKeys {
		for k, t := range n.last {
			if now.Sub(t) >= noteEvery {
				delete(n.last, k)
			}
		}
		// So many different offenders within a minute: one line for the rest is enough.
		if len(n.last) >= noteKeys {
			key = noteKey{}
			if last, ok := n.last[key]; ok && now.Sub(last) < noteEvery {
				return false
			}
		}
	}
	if n.last == nil {
		n.last = make(map[noteKey]time.Time)
	}
	n.last[key] = now
	return true
}
