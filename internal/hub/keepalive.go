package hub

import (
	"sync"
	"time"
)

const (
	// keepAliveStart is where an automatic keep-alive begins: no network that lets
	// devices work at all forgets a connection sooner.
	keepAliveStart = time.Minute
	// heldToGrow pings that are answered after a full silence make it longer.
	heldToGrow = 2
	// limitLasts is how long a silence that killed a link is avoided.
	limitLasts = 24 * time.Hour
)

// keeper finds the longest keep-alive that an identity's link bears: silence costs
// nothing on a metered link, and the box in between that forgets a silent connection
// tells nobody. The hub is promised the most, so that no new CONNECT is needed to grow;
// the price is that it takes half an hour to miss a client. It doubles while pings are answered, falls back to the last that
// held when a link has died silently, and then approaches the limit by halves. It is
// safe for concurrent use.
type keeper struct {
	mu    sync.Mutex
	now   time.Duration
	good  time.Duration // the longest that held; 0: none yet
	limit time.Duration // a link died at it; 0: none has
	since time.Time     // of limit
	held  int           // at now, in a row
}

func (k *keeper) interval() time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.now
}

func (k *keeper) state() (now, limit time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.now, k.limit
}

// answered notes an answer after so much silence.
func (k *keeper) answered(silence time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if silence < pingAfter(k.now)-k.now/16 {
		return
	}
	if k.held++; k.held < heldToGrow {
		return
	}
	k.held, k.good = 0, max(k.good, k.now)
	if k.limit > 0 && time.Since(k.since) > limitLasts {
		k.limit = 0
	}
	next := min(2*k.now, MaxKeepAlive)
	if k.limit > 0 {
		next = min(next, (k.now+k.limit)/2)
		if next-k.now < k.now/8 {
			return
		}
	}
	k.now = next
}

// died notes that nothing came back after so much silence.
func (k *keeper) died(silence time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if silence < pingAfter(k.now)/2 {
		return // it was no silence that killed it
	}
	k.held, k.limit, k.since = 0, k.now, time.Now()
	if k.good > 0 && k.good < k.now {
		k.now = k.good
		return
	}
	k.now, k.good = max(k.now/2, time.Second), 0
}

// pingAfter and pingWait together stay below 1.5 keep-alives, after which both
// sides give a silent peer up (MQTT 3.1.1, 3.1.2.10). Those of the default are below
// the four minutes after which Azure's load balancers forget an idle connection.
func pingAfter(keepAlive time.Duration) time.Duration { return keepAlive * 3 / 4 }

func pingWait(keepAlive time.Duration) time.Duration { return min(keepAlive/2, 30*time.Second) }
