package certstore

import (
	"crypto/sha256"
	"math/rand/v2"
	"sync/atomic"
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
	// thoroughEvery is how often a poll does not believe that nothing has changed, and looks again at where the files are:
	// events may have been lost while a link came to lead elsewhere.
	thoroughEvery = time.Minute
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

// subject is a set of files that is followed: a Store's or a Roots'. Only its follower's turns call it.
type subject interface {
	bell() *bell
	paths() []string
	look(read func(Source) sight) view
	// judge takes what the files hold. stable is how long they have been so; true asks for another call with the same view
	// once that is doubtWait.
	judge(v view, stable time.Duration) (again bool)
	// settles says whether the files changed and are not believed yet.
	settles(bool)
	// tick is called after everything that happened and at least at every poll; it returns when it wants to be called
	// next, zero for no wish.
	tick(now time.Time) time.Time
	// placed takes how the files are watched and what is wrong with their place.
	placed(mode string, where []string)
	// first is what was judged before the Watcher came; zero when nothing was. Then begin takes the first reading.
	first() [sha256.Size]byte
	begin(v view)
	// silent says that the file system of the file at path does not answer, and answers that it does again.
	silent(path string)
	answers()
}

// follower follows the files of one subject: events and polls lead to a reading, the reading to another one after a quiet
// time, and two equal ones to a judgement. It has no goroutine: the Watcher gives it a turn when something is due.
type follower struct {
	subject
	w *Watcher

	// Guarded by Watcher.mu.
	due    time.Time // the next turn
	asked  time.Time // has waited for it since; zero: it is not due
	busy   bool      // has its turn
	began  time.Time
	on     string        // served file system that the turn has entered; "": none
	behind string        // served file system on which others hang, so that it had no turn; "": none
	since  time.Time     // behind one
	told   bool          // that its files do not answer
	ended  chan struct{} // somebody waits for the end of the turn; nil: nobody
	places []place

	at atomic.Pointer[string] // what the turn looks at; nil: nothing yet

	// Of the turn alone.
	unread   bool // begin was not called
	judged   [sha256.Size]byte
	printed  print // of what was judged, as the last full reading found it
	active   bool
	based    bool
	base     view
	start    time.Time // of settling
	seen     time.Time // base has been seen since
	next     time.Time // next look while settling
	read     time.Time // last full reading
	poll     time.Time // next poll
	pinned   []string
	pinnedAt time.Time
}

// turn does what has fallen due and says when there is more.
func (f *follower) turn() time.Time {
	now := time.Now()
	if !f.w.approach(f) {
		return now // as soon as one of those has ended that hang
	}
	switch touched := f.bell().hear(); {
	case f.unread:
		f.firstLook(now)
	case touched:
		f.touched(now)
	}
	if f.active && !now.Before(f.next) {
		f.settle(now)
	}
	switch {
	case f.poll.IsZero(): // all begin at once and must not go on in step
		f.poll = now.Add(rand.N(f.w.o.Poll))
		f.compare(now)
	case !now.Before(f.poll):
		f.poll = now.Add(f.w.o.Poll)
		f.compare(now)
	}
	return earliest(f.poll, f.tick(time.Now()), f.next)
}

// firstLook believes what it reads without waiting: the process begins, and the files are hardly being changed.
func (f *follower) firstLook(now time.Time) {
	f.printed = f.w.print(f)
	v := f.see(observe)
	f.begin(v)
	f.judged, f.unread = v.hash, false
	f.poll = now.Add(rand.N(f.w.o.Poll)) // all begin at once and must not go on in step
	if time.Since(now) >= turnWait {
		f.poll = now // what hung has ended, most likely with an error
	}
}

// see puts the watches where the files are now and then reads: a change between the two is an event, not a loss.
func (f *follower) see(read func(Source) sight) view {
	f.w.cover(f)
	v := f.look(read)
	f.read = time.Now()
	return v
}

// compare is the poll. Clocks and sizes prove nothing on these machines, so it reads every byte.
func (f *follower) compare(now time.Time) {
	if f.active {
		return
	}
	p := f.w.print(f)
	if p == f.printed && now.Sub(f.read) < thoroughEvery {
		return
	}
	v := f.see(glance)
	if v.hash == f.judged {
		f.printed = p
		return
	}
	now = time.Now()
	f.activate(now)
	f.based, f.base, f.seen, f.next = true, v, now, now.Add(quiet)
}

// touched starts to settle, or starts the quiet time again.
func (f *follower) touched(now time.Time) {
	rested := f.read.Add(f.w.rest)
	switch again := now.Add(quiet); {
	case !f.active:
		f.activate(now)
		f.next = later(now, rested)
	case f.based && now.Sub(f.seen) < quiet:
		f.next = again
	case f.next.After(later(again, rested)): // what was doubted may be in order now
		f.next = later(again, rested)
	}
}

func (f *follower) activate(now time.Time) {
	f.active, f.based, f.start = true, false, now
}

func (f *follower) settle(now time.Time) {
	v := f.see(observe)
	if v.hash == f.judged {
		f.end()
		return
	}
	if !f.based || v.hash != f.base.hash {
		f.based, f.base, f.seen = true, v, now
	}
	f.settles(true)
	stable := now.Sub(f.seen)
	switch {
	case stable < quiet && now.Sub(f.start) < settleCap:
		f.next = f.seen.Add(quiet)
	case f.judge(v, stable):
		f.next = f.seen.Add(doubtWait)
	default:
		f.judged = v.hash
		f.end()
	}
}

func (f *follower) end() {
	f.active, f.based, f.next, f.base = false, false, time.Time{}, view{}
	f.settles(false)
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
