package downstream

import "time"

// allowance is a token bucket that holds one second's worth.
type allowance struct {
	tokens float64
	last   time.Time
}

// take takes one message from the bucket and returns how long to wait before it
// may pass.
func (a *allowance) take(rate float64, now time.Time) time.Duration {
	burst := max(rate, 1)
	if a.last.IsZero() {
		a.tokens = burst
	} else {
		a.tokens = min(burst, a.tokens+now.Sub(a.last).Seconds()*rate)
	}
	a.last = now
	a.tokens--
	if a.tokens >= 0 {
		return 0
	}
	return time.Duration(-a.tokens / rate * float64(time.Second))
}

// pace holds a client that is over its rate back by not reading on. It returns
// false when the connection is over.
func (c *conn) pace() bool {
	if c.server.cfg.Rate <= 0 {
		return true
	}
	wait := c.allowance.take(c.server.cfg.Rate, time.Now())
	if wait <= 0 {
		return true
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-c.over:
		return false
	}
}

func (c *conn) isDraining() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state >= draining
}
