package hub

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// Pacer spreads what all sessions of the process do to one hub: connects per
// second, certificate trials at a time, messages per second. It also bounds the memory
// of all their packs. It is safe for concurrent use.
type Pacer struct {
	connects *rate.Limiter
	sends    *rate.Limiter
	free     atomic.Bool // there is no limit on sends
	trials   chan struct{}
	writers  sync.Pool // of *gzip.Writer, for packs
	packs    packBudget
}

// Pace is what a Pacer allows.
type Pace struct {
	Connects float64 // new connections per second; 0 = 10
	Trials   int     // certificate trials at a time; 0 = half a second's connects, at least 4
	Sends    float64 // messages per second; 0 = no limit
}

// NewPacer makes a Pacer; it starts nothing.
func NewPacer(p Pace) *Pacer {
	if p.Connects <= 0 {
		p.Connects = 10
	}
	if p.Trials <= 0 {
		p.Trials = max(4, int(p.Connects/2))
	}
	pc := &Pacer{connects: rate.NewLimiter(rate.Limit(p.Connects), 1), sends: rate.NewLimiter(rate.Inf, 1),
		trials: make(chan struct{}, p.Trials), packs: packBudget{most: packsMost, hard: packsHard}}
	pc.setSends(p.Sends)
	return pc
}

// SetRates changes connects and messages per second, as for [Pace]; how many
// trials run at a time stays.
func (p *Pacer) SetRates(connects, sends float64) {
	if connects > 0 {
		p.connects.SetLimit(rate.Limit(connects))
	}
	p.setSends(sends)
}

func (p *Pacer) setSends(perSecond float64) {
	p.free.Store(perSecond <= 0)
	if perSecond <= 0 {
		return
	}
	// A tenth of a second's worth may go at once, so that writes are still gathered.
	p.sends.SetBurst(max(1, int(perSecond/10)))
	p.sends.SetLimit(rate.Limit(perSecond))
}

// connect waits for this connection's turn.
func (p *Pacer) connect(ctx context.Context) error { return p.connects.Wait(ctx) }

// trial waits until another trial may run; the caller returns its place with done.
func (p *Pacer) trial(ctx context.Context) (done func(), err error) {
	select {
	case p.trials <- struct{}{}:
		return func() { <-p.trials }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// send takes one message's share; when there is none it says after what time to
// ask again.
func (p *Pacer) send() (wait time.Duration, ok bool) {
	if p.free.Load() || p.sends.Allow() {
		return 0, true
	}
	return max(time.Duration(float64(time.Second)/float64(p.sends.Limit())), 5*time.Millisecond), false
}
