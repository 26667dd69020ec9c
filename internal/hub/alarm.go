package hub

import "time"

// alarm is the one timer of a session's loop. Each turn of the loop names the times
// at which it wants to look again; the earliest counts.
type alarm struct {
	t     *time.Timer
	next  time.Time // earliest of this turn; zero: none
	armed time.Time
}

func (a *alarm) init() {
	a.t = time.NewTimer(time.Hour)
	a.t.Stop()
}

func (a *alarm) stop() { a.t.Stop() }

func (a *alarm) at(t time.Time) {
	if a.next.IsZero() || t.Before(a.next) {
		a.next = t
	}
}

// arm ends a turn. A timer that was set for a time that no longer matters may still
// fire; that costs one more look.
func (a *alarm) arm() {
	if !a.next.IsZero() && !a.next.Equal(a.armed) {
		a.t.Reset(time.Until(a.next))
		a.armed = a.next
	}
	a.next = time.Time{}
}

func (a *alarm) fired() <-chan time.Time { return a.t.C }

// rang forgets what the timer was set for.
func (a *alarm) rang() { a.armed = time.Time{} }
