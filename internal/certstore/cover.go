package certstore

import (
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
)

// mountsEvery is how often mounts are looked at.
const mountsEvery = time.Minute

// folder is one watched folder with the names that followers wait for. Its own lock serialises putting the watch in place,
// so that a second one does not read before the first has finished; it is never taken while Watcher.mu is held.
type folder struct {
	names map[string][]*follower // guarded by Watcher.mu

	mu  sync.Mutex
	id  fileID
	set bool
}

// cover puts watches on every place that matters for paths now and takes away those that do not any more. The new ones
// come first: there is no moment without either.
func (w *Watcher) cover(f *follower) {
	paths := f.paths()
	var places []place
	for _, path := range paths {
		for _, p := range trail(path) {
			if !slices.Contains(places, p) {
				places = append(places, p)
			}
		}
	}
	folders := w.enter(f, places)
	mode := "events"
	for _, path := range folders {
		if !w.put(path) {
			mode = "poll-only"
		}
	}
	w.leave(f, places)
	if f.pinnedAt.IsZero() || time.Since(f.pinnedAt) >= mountsEvery {
		f.pinned, f.pinnedAt = w.pinned(paths), time.Now()
	}
	f.placed(mode, f.pinned)
}

// enter notes the places and returns their folders, each once.
func (w *Watcher) enter(who *follower, places []place) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var paths []string
	for _, p := range places {
		f := w.folders[p.folder]
		if f == nil {
			f = &folder{names: map[string][]*follower{}}
			w.folders[p.folder] = f
		}
		if !slices.Contains(f.names[p.name], who) {
			f.names[p.name] = append(f.names[p.name], who)
		}
		if !slices.Contains(paths, p.folder) {
			paths = append(paths, p.folder)
		}
	}
	return paths
}

// put makes sure that the folder that is at path now is watched, and not one that was there before. The watch is asked for
// every time: it may have gone with a folder whose number the new one was given. It says whether changes in it raise
// events. Where those made elsewhere raise none the folder is not watched at all: such a file system is a server's, it may
// hang, and who hangs while he asks for a watch keeps the event queue from everybody.
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
	quiet := quietFilesystem(path)
	if f.set && (!ok || id != f.id || quiet) {
		_ = queue.Remove(path) // gone with its folder, mostly
	}
	f.set = false
	if quiet {
		return false
	}
	if err := queue.Add(path); err != nil {
		w.complain(err)
		return false
	}
	f.id, f.set = id, true
	return true
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

// leave takes who out of every place but those in keep, and the watches off folders that nobody waits in.
func (w *Watcher) leave(who *follower, keep []place) {
	w.mu.Lock()
	empty := map[string]*folder{}
	for _, p := range who.places {
		f := w.folders[p.folder]
		if f == nil || slices.Contains(keep, p) {
			continue
		}
		left := slices.DeleteFunc(f.names[p.name], func(o *follower) bool { return o == who })
		f.names[p.name] = left
		if len(left) == 0 {
			delete(f.names, p.name)
		}
		if len(f.names) == 0 {
			empty[p.folder] = f
		}
	}
	who.places = slices.Clone(keep)
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
	points, _ := w.mountPoints()
	var problems []string
	for _, p := range paths {
		if text := pinned(p, points); text != "" {
			problems = append(problems, text)
		}
	}
	return problems
}

// mount is a file system that is mounted somewhere.
type mount struct {
	id     string // the same wherever it is mounted
	served bool   // by another machine or program
}

// mountPoints are those of at most a minute ago; served says that one of them is.
func (w *Watcher) mountPoints() (points map[string]mount, served bool) {
	w.mu.Lock()
	points, served = w.mounts, w.served
	fresh := points != nil && time.Since(w.mountsAt) < mountsEvery
	w.mu.Unlock()
	if fresh {
		return points, served
	}
	points, served = w.table(), false
	for _, m := range points {
		served = served || m.served
	}
	w.mu.Lock()
	w.mounts, w.mountsAt, w.served = points, time.Now(), served
	w.mu.Unlock()
	return points, served
}
