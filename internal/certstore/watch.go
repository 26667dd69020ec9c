package certstore

import (
	"context"
	"crypto/sha256"
	"errors"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"
	"go.uber.org/zap"
)

const (
	// turnsAtOnce bounds the threads, stacks and garbage of many followers that look at their files at the same time. A turn
	// that takes longer than slowTurn does not count any more, and who has waited for turnWait does not wait on: files that
	// hang, as on a lost network share, must not keep the others from being followed. Each of those holds a thread, of
	// which a service has a few hundred (TasksMax= in systemd.resource-control(5)): when turnsAtOnce hang, others on the
	// same served file system wait for them, and more than turnsAtMost never hang.
	turnsAtOnce = 4
	slowTurn    = 250 * time.Millisecond
	turnWait    = 5 * time.Second // from then on the files are said not to answer
	turnsAtMost = 128
)

// WatcherOptions configure a Watcher; the zero value is good.
type WatcherOptions struct {
	// PollOnly asks for no file events: for systems without them and for tests in virtual time, which an open event queue
	// would stop.
	PollOnly bool
	Poll     time.Duration // between two looks without any event; zero means 10 s
	Log      *zap.Logger   // nil: silent
}

// Watcher follows the files of all Stores and Roots with one event queue and a poll behind it. Its methods are safe for
// concurrent use.
type Watcher struct {
	o   WatcherOptions
	log *zap.Logger

	rest     time.Duration // restEvery, but in tests that have no second to wait
	news     chan struct{} // to Run: a follower may be due
	printers sync.Pool     // of *printer
	table    func() map[string]mount
	turns    sync.WaitGroup
	rounds   atomic.Uint64

	mu        sync.Mutex
	running   bool
	followers map[subject]*follower
	folders   map[string]*folder
	queue     *fsnotify.Watcher // nil: none to be had
	deaf      bool              // that a folder cannot be watched was said
	mounts    map[string]mount
	mountsAt  time.Time
	served    bool // one of mounts is
}

// NewWatcher makes a Watcher; it starts nothing.
func NewWatcher(o WatcherOptions) *Watcher {
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	if o.Poll <= 0 {
		o.Poll = pollEvery
	}
	return &Watcher{o: o, log: o.Log, rest: restEvery, news: make(chan struct{}, 1), printers: sync.Pool{New: func() any { return newPrinter() }}, table: readMountPoints,
		followers: map[subject]*follower{}, folders: map[string]*folder{}}
}

// Add follows the files of s: at once when the Watcher runs, else as soon as it does. A Store belongs to one Watcher.
func (w *Watcher) Add(s *Store) { w.add(s) }

// AddRoots follows the files of r.
func (w *Watcher) AddRoots(r *Roots) { w.add(r) }

func (w *Watcher) add(s subject) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.followers[s] != nil {
		return
	}
	judged := s.first()
	w.followers[s] = &follower{subject: s, w: w, judged: judged, unread: judged == [sha256.Size]byte{}}
	s.bell().watcher.Store(w)
	wake(w.news)
}

// dispatch gives a turn to the followers that are due, as far as there is room, and says when to look again and whose
// files have turned out not to answer.
func (w *Watcher) dispatch(now time.Time) (again time.Time, silent []*follower) {
	w.mu.Lock()
	defer w.mu.Unlock()
	tell := func(f *follower, since time.Time) {
		switch late := since.Add(turnWait); {
		case f.told:
		case late.After(now):
			again = earliest(again, late)
		default:
			f.told = true
			silent = append(silent, f)
		}
	}
	taken, hang := 0, 0
	hangOn := map[string]int{}
	for _, f := range w.followers {
		if !f.busy {
			continue
		}
		if slow := f.began.Add(slowTurn); slow.After(now) {
			taken++
			again = earliest(again, slow)
			continue
		}
		hang++
		hangOn[f.on]++
		tell(f, f.began)
	}
	for _, f := range w.followers {
		if f.busy {
			continue // its end wakes Run
		}
		if f.behind != "" && hangOn[f.behind] >= turnsAtOnce {
			tell(f, f.since)
			continue // as does an end there
		}
		if f.due.After(now) && f.bell().rung() {
			f.due = now
		}
		if f.due.After(now) {
			again = earliest(again, f.due)
			continue
		}
		if f.asked.IsZero() {
			f.asked = now
		}
		late := f.asked.Add(turnWait)
		switch {
		case taken+hang >= turnsAtMost: // an end wakes Run
		case taken < turnsAtOnce || !late.After(now):
			taken++
			w.give(f, now)
		default:
			again = earliest(again, late)
		}
	}
	return again, silent
}

// approach goes to f's files and says whether it may look at them. Where turnsAtOnce others hang it may not.
func (w *Watcher) approach(f *follower) bool {
	points, served := w.mountPoints()
	if !served {
		return true
	}
	paths := f.paths()
	for i, path := range paths {
		f.at.Store(&paths[i])
		if _, ok := walk(path, func(at string) bool {
			m, mounted := points[at]
			return !mounted || w.mayEnter(f, m)
		}); !ok {
			return false
		}
	}
	return true
}

// mayEnter notes where f is going before it can hang there.
func (w *Watcher) mayEnter(f *follower, m mount) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	f.on = ""
	if !m.served {
		return true
	}
	now, hang := time.Now(), 0
	for _, other := range w.followers {
		if other.busy && other.on == m.id && !other.began.Add(slowTurn).After(now) {
			hang++
		}
	}
	if hang >= turnsAtOnce {
		f.behind = m.id
		if f.since.IsZero() {
			f.since = now
		}
		return false
	}
	f.on = m.id
	return true
}

// give starts a follower's turn, with the lock held. It has a goroutine of its own for as long as it takes, and none
// afterwards: reading and parsing need a deep stack.
func (w *Watcher) give(f *follower, now time.Time) {
	f.busy, f.began, f.asked, f.behind = true, now, time.Time{}, ""
	w.turns.Go(func() {
		due := f.turn()
		w.mu.Lock()
		f.busy, f.due, f.on = false, due, ""
		answers := f.behind == "" && f.told
		if f.behind == "" {
			f.since, f.told = time.Time{}, false
		}
		if f.ended != nil {
			close(f.ended)
			f.ended = nil
		}
		w.mu.Unlock()
		if answers {
			f.answers()
		}
		wake(w.news)
	})
}

// print looks at f's files.
func (w *Watcher) print(f *follower) print {
	p := w.printers.Get().(*printer)
	defer w.printers.Put(p)
	paths := f.paths()
	defer func() {
		if len(paths) > 0 {
			f.at.Store(&paths[0])
		}
	}()
	return p.take(paths, &f.at)
}

// silentAt is the file of s that is looked at in vain; "" when all is well.
func (w *Watcher) silentAt(s subject) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := w.followers[s]
	if f == nil || !f.told {
		return ""
	}
	return f.where()
}

// where is the file that f looks at, or would.
func (f *follower) where() string {
	if at := f.at.Load(); at != nil {
		return *at
	}
	return ""
}

// Remove stops following s and returns when nothing more happens to it, or, when its files hang, after turnWait.
func (w *Watcher) Remove(s *Store) {
	w.mu.Lock()
	f := w.followers[s]
	delete(w.followers, s)
	var ended chan struct{}
	if f != nil && f.busy {
		ended = make(chan struct{})
		f.ended = ended
	}
	w.mu.Unlock()
	if f == nil {
		return
	}
	if ended != nil {
		w.patient(ended)
	}
	w.leave(f, nil)
}

// patient waits for a turn, but not for files that hang: nothing can interrupt that.
func (w *Watcher) patient(ended <-chan struct{}) {
	late := time.NewTimer(turnWait)
	defer late.Stop()
	select {
	case <-ended:
	case <-late.C:
		w.log.Warn("certificate files hang and are not waited for")
	}
}

// Rounds counts how often Run has gone round, and wakes it to do so again: a count
// that stands still between two calls means that it hangs. A follower whose file
// system hangs does not stop it.
func (w *Watcher) Rounds() uint64 {
	defer wake(w.news)
	return w.rounds.Load()
}

// Rescan looks at every file now, as after SIGHUP.
func (w *Watcher) Rescan() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for s := range w.followers {
		s.bell().touch()
	}
}

// Run follows the files until ctx ends and waits for everything that it started but files that hang. It fails only when
// called twice; a system without file events is polled.
func (w *Watcher) Run(ctx context.Context) error {
	w.mu.Lock()
	again := w.running
	w.running = true
	w.mu.Unlock()
	if again {
		return errors.New("certstore: the watcher ran already")
	}
	queue := w.open()
	w.mu.Lock()
	w.queue = queue
	w.mu.Unlock()
	w.listen(ctx, queue)
	ended := make(chan struct{})
	go func() {
		w.turns.Wait()
		close(ended)
	}()
	w.patient(ended)
	if queue != nil {
		return queue.Close()
	}
	return nil
}

func (w *Watcher) open() *fsnotify.Watcher {
	if w.o.PollOnly {
		return nil
	}
	queue, err := fsnotify.NewWatcher()
	if err != nil {
		w.log.Warn("no file events, certificates are polled", zap.Error(err))
		return nil
	}
	return queue
}

// listen gives turns, and hands events to those who wait for their names.
func (w *Watcher) listen(ctx context.Context, queue *fsnotify.Watcher) {
	var events chan fsnotify.Event // nil without file events: never ready
	var errs chan error
	if queue != nil {
		events, errs = queue.Events, queue.Errors
	}
	alarm := time.NewTimer(0)
	defer alarm.Stop()
	lost := false
	for ; ; w.rounds.Add(1) {
		again, silent := w.dispatch(time.Now())
		for _, f := range silent {
			f.silent(f.where())
		}
		if !again.IsZero() {
			alarm.Reset(time.Until(again))
		}
		select {
		case <-ctx.Done():
			return
		case <-w.news:
		case <-alarm.C:
		case e := <-events:
			w.wake(e.Name)
		case err := <-errs:
			if !lost {
				lost = true
				w.log.Warn("file events were lost, looking at everything", zap.Error(err))
			}
			w.Rescan()
		}
	}
}

// wake finds the followers that an event concerns: those that wait for the name in its folder, or, when the folder itself
// is the name, everybody in it.
func (w *Watcher) wake(path string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if f := w.folders[filepath.Dir(path)]; f != nil {
		for _, who := range f.names[filepath.Base(path)] {
			who.bell().touch()
		}
	}
	if f := w.folders[path]; f != nil {
		for _, followers := range f.names {
			for _, who := range followers {
				who.bell().touch()
			}
		}
	}
}
