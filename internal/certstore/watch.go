package certstore

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"go.uber.org/zap"
)

const (
	// mountsEvery is how often mounts are looked at, and files read that seem not to have changed.
	mountsEvery = time.Minute
	// turnsAtOnce bounds the threads, stacks and garbage of many followers that look at their files at the same time;
	// turnWait is how long one waits for its turn: files that hang, as on a lost network share, must not keep the others
	// from being followed.
	turnsAtOnce = 4
	turnWait    = 5 * time.Second
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

	rest time.Duration // restEvery, but in tests that have no second to wait
	news chan struct{} // to Run: a member waits for its start

	turns chan struct{} // one for each follower that looks at its files

	mu       sync.Mutex
	running  bool
	members  map[any]*member // by *Store or *Roots
	folders  map[string]*folder
	queue    *fsnotify.Watcher // nil: none to be had
	deaf     bool              // that a folder cannot be watched was said
	mounts   map[string]bool
	mountsAt time.Time
	wg       sync.WaitGroup
}

// member is one follower and what it watches.
type member struct {
	f      *follower
	report func(mode string, where []string)
	done   chan struct{}      // closed when the loop has ended
	stop   context.CancelFunc // guarded by Watcher.mu; nil until started
	places []place            // guarded by Watcher.mu

	pinned   []string // of the loop alone, as the next
	pinnedAt time.Time
}

// folder is one watched folder with the names that members wait for. Its own lock serialises putting the watch in place,
// so that a second member does not read before the first has finished; it is never taken while Watcher.mu is held.
type folder struct {
	names map[string][]*member // guarded by Watcher.mu

	mu    sync.Mutex
	id    fileID
	set   bool
	quiet bool // on a file system that raises no events
}

// NewWatcher makes a Watcher; it starts nothing.
func NewWatcher(o WatcherOptions) *Watcher {
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	if o.Poll <= 0 {
		o.Poll = pollEvery
	}
	return &Watcher{o: o, log: o.Log, rest: restEvery, news: make(chan struct{}, 1), turns: make(chan struct{}, turnsAtOnce), members: map[any]*member{}, folders: map[string]*folder{}}
}

// Add follows the files of s: at once when the Watcher runs, else as soon as it does. A Store belongs to one Watcher.
func (w *Watcher) Add(s *Store) { w.add(s, s.follower(), s.placed) }

// AddRoots follows the files of r.
func (w *Watcher) AddRoots(r *Roots) { w.add(r, r.follower(), r.placed) }

func (w *Watcher) add(key any, f *follower, report func(string, []string)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.members[key] != nil {
		return
	}
	f.every, f.rest = w.o.Poll, w.rest
	w.members[key] = &member{f: f, report: report, done: make(chan struct{})}
	wake(w.news)
}

// start runs the loops of all members that do not run yet.
func (w *Watcher) start(ctx context.Context) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range w.members {
		if m.stop != nil {
			continue
		}
		mctx, stop := context.WithCancel(ctx)
		m.stop = stop
		w.wg.Go(func() {
			defer close(m.done)
			defer stop()
			m.f.run(mctx, subscription{w, m})
		})
	}
}

// apart runs f on a goroutine of its own, when it is its turn, and waits for it: reading and parsing need a deep stack,
// which a follower's own goroutine would keep.
func (w *Watcher) apart(ctx context.Context, f func()) {
	late := time.NewTimer(turnWait)
	defer late.Stop()
	select {
	case w.turns <- struct{}{}:
		defer func() { <-w.turns }()
	case <-late.C:
	case <-ctx.Done():
		return
	}
	var turn sync.WaitGroup
	turn.Go(f)
	turn.Wait()
}

// Remove stops following s and returns when nothing more happens to it.
func (w *Watcher) Remove(s *Store) {
	w.mu.Lock()
	m := w.members[s]
	delete(w.members, s)
	var stop context.CancelFunc
	if m != nil {
		stop = m.stop
	}
	w.mu.Unlock()
	if stop != nil {
		stop()
		<-m.done
	}
}

// Rescan looks at every file now, as after SIGHUP.
func (w *Watcher) Rescan() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range w.members {
		wake(m.f.event)
	}
}

// Run follows the files until ctx ends and waits for everything that it started. It fails only when called twice; a
// system without file events is polled.
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
	w.wg.Wait()
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

// listen starts new members and hands events to those who wait for their names.
func (w *Watcher) listen(ctx context.Context, queue *fsnotify.Watcher) {
	var events chan fsnotify.Event // nil without file events: never ready
	var errs chan error
	if queue != nil {
		events, errs = queue.Events, queue.Errors
	}
	w.start(ctx)
	lost := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.news:
			w.start(ctx)
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

// wake finds the members that an event concerns: those that wait for the name in its folder, or, when the folder itself
// is the name, everybody in it.
func (w *Watcher) wake(path string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if f := w.folders[filepath.Dir(path)]; f != nil {
		for _, m := range f.names[filepath.Base(path)] {
			wake(m.f.event)
		}
	}
	if f := w.folders[path]; f != nil {
		for _, members := range f.names {
			for _, m := range members {
				wake(m.f.event)
			}
		}
	}
}

// subscription is a member's side of the watcher.
type subscription struct {
	w *Watcher
	m *member
}

// cover puts watches on every place that matters for paths now and takes away those that do not any more. The new ones
// come first: there is no moment without either.
func (s subscription) cover(paths []string) {
	var places []place
	for _, path := range paths {
		for _, p := range trail(path) {
			if !slices.Contains(places, p) {
				places = append(places, p)
			}
		}
	}
	folders := s.w.enter(s.m, places)
	mode := "events"
	for _, path := range folders {
		if !s.w.put(path) {
			mode = "poll-only"
		}
	}
	s.w.leave(s.m, places)
	if s.m.pinnedAt.IsZero() || time.Since(s.m.pinnedAt) >= mountsEvery {
		s.m.pinned, s.m.pinnedAt = s.w.pinned(paths), time.Now()
	}
	s.m.report(mode, s.m.pinned)
}

// drop takes all watches of the member away.
func (s subscription) drop() { s.w.leave(s.m, nil) }

// enter notes the places and returns their folders, each once.
func (w *Watcher) enter(m *member, places []place) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var paths []string
	for _, p := range places {
		f := w.folders[p.folder]
		if f == nil {
			f = &folder{names: map[string][]*member{}}
			w.folders[p.folder] = f
		}
		if !slices.Contains(f.names[p.name], m) {
			f.names[p.name] = append(f.names[p.name], m)
		}
		if !slices.Contains(paths, p.folder) {
			paths = append(paths, p.folder)
		}
	}
	return paths
}

// put makes sure that the folder that is at path now is watched, and not one that was there before. It says whether
// changes in it raise events.
func (w *Watcher) put(path string) bool {
	w.mu.Lock()
	queue, f := w.queue, w.folders[path]
	w.mu.Unlock()
	if queue == nil || f == nil {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	id, ok := idOf(path)
	if f.set && ok && id == f.id {
		return !f.quiet
	}
	if f.set {
		_ = queue.Remove(path) // gone with its folder, mostly
		f.set = false
	}
	if err := queue.Add(path); err != nil {
		w.complain(err)
		return false
	}
	f.id, f.set, f.quiet = id, true, quietFilesystem(path)
	return !f.quiet
}

// complain says once that there are folders that cannot be watched, such as beyond fs.inotify.max_user_watches.
func (w *Watcher) complain(err error) {
	w.mu.Lock()
	said := w.deaf
	w.deaf = true
	w.mu.Unlock()
	if !said {
		w.log.Warn("a folder raises no file events, certificates in it are polled", zap.Error(err))
	}
}

// leave takes m out of every place but those in keep, and the watches off folders that nobody waits in.
func (w *Watcher) leave(m *member, keep []place) {
	w.mu.Lock()
	empty := map[string]*folder{}
	for _, p := range m.places {
		f := w.folders[p.folder]
		if f == nil || slices.Contains(keep, p) {
			continue
		}
		left := slices.DeleteFunc(f.names[p.name], func(o *member) bool { return o == m })
		f.names[p.name] = left
		if len(left) == 0 {
			delete(f.names, p.name)
		}
		if len(f.names) == 0 {
			empty[p.folder] = f
		}
	}
	m.places = slices.Clone(keep)
	w.mu.Unlock()
	for path, f := range empty {
		w.release(path, f)
	}
}

// release takes the watch off a folder. Somebody who came in meanwhile waits for the folder's lock in put and finds that
// there is no watch.
func (w *Watcher) release(path string, f *folder) {
	f.mu.Lock()
	defer f.mu.Unlock()
	w.mu.Lock()
	queue, used := w.queue, len(f.names) > 0
	w.mu.Unlock()
	if used {
		return
	}
	if f.set {
		_ = queue.Remove(path) // gone with its folder, mostly
		f.set = false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(f.names) == 0 && w.folders[path] == f {
		delete(w.folders, path)
	}
}

// pinned names the mounts that hide changes of paths.
func (w *Watcher) pinned(paths []string) []string {
	w.mu.Lock()
	stale := time.Since(w.mountsAt) >= mountsEvery
	points := w.mounts
	w.mu.Unlock()
	if stale || points == nil {
		points = readMountPoints()
		w.mu.Lock()
		w.mounts, w.mountsAt = points, time.Now()
		w.mu.Unlock()
	}
	var problems []string
	for _, p := range paths {
		if text := pinned(p, points); text != "" {
			problems = append(problems, text)
		}
	}
	return problems
}
