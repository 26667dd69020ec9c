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

const (
	// contestedAfter early closes in a row are taken for another client with the same
	// identity.
	contestedAfter = 5
	// contestedFor is how many times as long as any other connection one has to live
	// after that: the other client waits too before it comes back.
	contestedFor = 5
)

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
func (b *backoff) closed(e *ending, shrunk bool, lived time.Duration) (contested bool) {
	early := b.t.Stable
	if b.young >= contestedAfter {
		early *= contestedFor
	}
	switch {
	case e.accepted.IsZero():
	case lived >= early:
		b.young = 0
	case shrunk:
	case e.answered && e.byPeer && (e.acked || e.oldest == 0):
		b.young++
	}
	return b.young >= contestedAfter && !e.accepted.IsZero()
}

// pace adapts what may be in flight to a hub that throttles. In MQTT 3.1.1 it can only
// delay acknowledgements, and close the connection when too many messages wait. Either
// halves the limit; every stable time without doubles it again. What is late is
// reckoned from the quickest acknowledgement of the connection, since a link may be
// slow by itself, and a fall that changes nothing about the delay is the last: then
// something else is slow, and less in flight would only be less.
type pace struct {
	limit, most int
	grown       time.Time // of the present connection: when the limit began, grew or fell
	quickest    time.Duration
	late        time.Duration // the delay for which the limit fell last; 0: none
}

// lateAck is the shortest delay of an acknowledgement that speaks of throttling, and
// lateTimes how many times the quickest one's it is.
const (
	lateAck   = 3 * time.Second
	lateTimes = 4
)

// throttled says that less may be in flight than configured.
func (p *pace) throttled() bool { return p.limit < p.most }

// begin is called for each connection.
func (p *pace) begin(now time.Time) { p.grown, p.quickest, p.late = now, 0, 0 }

// acked takes the time that one message waited for its acknowledgement.
func (p *pace) acked(now time.Time, delay time.Duration) {
	if p.quickest == 0 || delay < p.quickest {
		p.quickest = delay
	}
	switch {
	case delay <= max(lateAck, lateTimes*p.quickest):
		p.late = 0
	case now.Sub(p.grown) < delay: // it was in flight at the last change
	case p.limit > 1 && (p.late == 0 || 4*delay < 3*p.late):
		p.limit, p.grown, p.late = p.limit/2, now, delay
	}
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
	p.limit, p.grown, p.late = min(2*p.limit, p.most), now, 0
	return now.Add(stable)
}
