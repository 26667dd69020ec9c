package hub

import (
	"math/rand/v2"
	"time"
)

// backoff decides how long to wait between attempts. Only progress resets it:
// CONNACK alone is no sign of health.
type backoff struct {
	t     *Timing
	fails int // attempts without progress, in a row
	young int // accepted connections that the hub closed early, in a row
}

// contestedAfter early closes in a row are taken for another client with the same
// identity.
const contestedAfter = 5

// next is the wait before another attempt after a fault of kind k.
func (b *backoff) next(k Kind) time.Duration {
	b.fails++
	switch {
	case k == Contested:
		// Two clients that displace each other must not do it more than once a minute.
		d := double(time.Minute, b.young-contestedAfter, b.t.RefusedMax)
		return d + rand.N(d/2)
	case k.slow():
		d := double(b.t.RefusedMin, b.fails-1, b.t.RefusedMax)
		return d/2 + rand.N(d/2)
	}
	return rand.N(double(b.t.RetryMin, b.fails-1, b.t.RetryMax))
}

func double(d time.Duration, times int, limit time.Duration) time.Duration {
	for range times {
		if d >= limit {
			break
		}
		d *= 2
	}
	return min(d, limit)
}

// progress is a message acknowledged, or a stable connection without any to send.
func (b *backoff) progress() { b.fails = 0 }

// closed counts accepted connections that the hub ended, for what nobody tells:
// that another client displaces this one. A connection that ended over the first
// messages that it carried speaks of those, or of a quota.
func (b *backoff) closed(e ending, lived time.Duration) (contested bool) {
	switch {
	case lived >= b.t.Stable:
		b.young = 0
	case e.proved && e.byPeer && (e.acked || e.oldest == 0):
		b.young++
	}
	return b.young >= contestedAfter
}
