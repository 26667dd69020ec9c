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
// messages that it carried speaks of those, or of a quota; one with many in flight
// may speak of their rate, until that was reduced.
func (b *backoff) closed(e ending, shrunk bool, lived time.Duration) (contested bool) {
	switch {
	case lived >= b.t.Stable:
		b.young = 0
	case shrunk:
	case e.proved && e.byPeer && (e.acked || e.oldest == 0):
		b.young++
	}
	return b.young >= contestedAfter
}

// pace adapts the window to a hub that throttles: in MQTT 3.1.1 it can only delay
// acknowledgements, to which any window adapts, and close the connection when too
// many messages wait. Such an end halves what may be in flight; every stable time
// without one doubles it again.
type pace struct {
	limit, most int
	grown       time.Time // of the present connection: when the limit began or grew
}

// shrink notes the hub's closing with so many messages in flight, and says whether
// that may have been the reason.
func (p *pace) shrink(inFlight int) bool {
	if inFlight < 2 {
		return false
	}
	p.limit = min(p.limit, inFlight/2)
	return true
}

// grow raises the limit when it is time, and says when to look again; zero: never.
func (p *pace) grow(now time.Time, stable time.Duration) (due time.Time) {
	if p.limit >= p.most {
		return time.Time{}
	}
	if due = p.grown.Add(stable); now.Before(due) {
		return due
	}
	p.limit, p.grown = min(2*p.limit, p.most), now
	return now.Add(stable)
}
