package certstore

import (
	"context"
	"crypto/sha256"
	"math/rand/v2"
	"time"
)

const (
	// quiet is how long files must not have changed before they are believed; settleCap ends the wait for files that never
	// stop changing.
	quiet     = 250 * time.Millisecond
	settleCap = 10 * time.Second
	// doubtWait is how long a pair that parses but looks half written must stay as it is.
	doubtWait = 10 * time.Second
	// pollEvery backs up the events: none come from network file systems, replaced folders, or below an overlay.
	pollEvery = 10 * time.Second
	// restEvery is the least time between two readings that events cause.
	restEvery = time.Second
)

// view is what a follower's files look like: one sight per group of files that is judged by itself.
type view struct {
	sights []sight
	hash   [sha256.Size]byte
}

func newView(sights ...sight) view {
	v := view{sights: sights}
	h := sha256.New()
	for _, s := range sights {
		h.Write(s.hash[:])
	}
	h.Sum(v.hash[:0])
	return v
}

// follower is the loop that every set of files has: events and polls lead to a reading, the reading to another one after a
// quiet time, and two equal ones to a judgement.
type follower struct {
	event chan struct{} // the files may have changed
	poke  chan struct{} // what tick looks at has changed

	every time.Duration // between polls
	rest  time.Duration // between readings that events cause
	paths func() []string
	look  func(read func(Source) sight) view
	// judge takes what the files hold. stable is how long they have been so; true asks for another call with the same view
	// once that is doubtWait.
	judge func(v view, stable time.Duration) (again bool)
	// settling says that the files changed and are not believed yet.
	settling func(bool)
	// tick is called after everything that happened and at least at every poll; it returns when it wants to be called
	// next, zero for no wish.
	tick func(now time.Time) time.Time

	judged [sha256.Size]byte

	active bool
	based  bool
	base   view
	start  time.Time // of settling
	since  time.Time // base has been seen since
	at     time.Time // next look while settling
	read   time.Time // last reading
	due    time.Time // next poll
}

// run follows the files until ctx ends.
func (f *follower) run(ctx context.Context, sub subscription) {
	defer sub.drop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var next time.Time
		sub.w.apart(ctx, func() { next = f.turn(sub) })
		timer.Reset(time.Until(next))
		select {
		case <-ctx.Done():
			return
		case <-f.event:
			f.touched(time.Now())
		case <-f.poke:
		case <-timer.C:
		}
	}
}

// turn does what has fallen due and says when there is more.
func (f *follower) turn(sub subscription) time.Time {
	now := time.Now()
	if f.active && !now.Before(f.at) {
		f.settle(sub, now)
	}
	switch {
	case f.due.IsZero(): // all begin at once and must not go on in step
		f.due = now.Add(rand.N(f.every))
		f.poll(sub)
	case !now.Before(f.due):
		f.due = now.Add(f.every)
		f.poll(sub)
	}
	return earliest(f.due, f.tick(time.Now()), f.at)
}

// see puts the watches where the files are now and then reads: a change between the two is an event, not a loss.
func (f *follower) see(sub subscription, read func(Source) sight) view {
	sub.cover(f.paths())
	v := f.look(read)
	f.read = time.Now()
	return v
}

func (f *follower) poll(sub subscription) {
	if f.active {
		return
	}
	if v := f.see(sub, glance); v.hash != f.judged {
		now := time.Now()
		f.begin(now)
		f.based, f.base, f.since, f.at = true, v, now, now.Add(quiet)
	}
}

// touched starts to settle, or starts the quiet time again.
func (f *follower) touched(now time.Time) {
	if f.active {
		if f.based && now.Sub(f.since) < quiet {
			f.at = now.Add(quiet)
		}
		return
	}
	f.begin(now)
	f.at = now
	if rested := f.read.Add(f.rest); rested.After(now) {
		f.at = rested
	}
}

func (f *follower) begin(now time.Time) {
	f.active, f.based, f.start = true, false, now
}

func (f *follower) settle(sub subscription, now time.Time) {
	v := f.see(sub, observe)
	if v.hash == f.judged {
		f.end()
		return
	}
	if !f.based || v.hash != f.base.hash {
		f.based, f.base, f.since = true, v, now
	}
	f.settling(true)
	stable := now.Sub(f.since)
	switch {
	case stable < quiet && now.Sub(f.start) < settleCap:
		f.at = f.since.Add(quiet)
	case f.judge(v, stable):
		f.at = f.since.Add(doubtWait)
	default:
		f.judged = v.hash
		f.end()
	}
}

func (f *follower) end() {
	f.active, f.based, f.at, f.base = false, false, time.Time{}, view{}
	f.settling(false)
}

// earliest is the first of the times that are set.
func earliest(times ...time.Time) time.Time {
	var first time.Time
	for _, t := range times {
		if !t.IsZero() && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	return first
}
