package certstore

import (
	"context"
	"crypto/sha256"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"gatewayd/internal/certstore/certtest"

	"github.com/fsnotify/fsnotify"
	"go.uber.org/zap"
)

// layout is a way in which certificate files are laid out and replaced.
type layout struct {
	name    string
	prepare func(r *rig, p *certtest.Pair) // before the store opens
	replace func(r *rig, p *certtest.Pair, round int)
}

func swapFolder(r *rig, p *certtest.Pair, round int) {
	dir := filepath.Dir(r.src.Cert)
	fresh := fmt.Sprintf("%s.fresh%d", dir, round)
	must(r.t, os.MkdirAll(fresh, 0o700))
	must(r.t, p.Write(filepath.Join(fresh, "tls.crt"), filepath.Join(fresh, "tls.key")))
	must(r.t, os.Rename(dir, fmt.Sprintf("%s.old%d", dir, round)))
	must(r.t, os.Rename(fresh, dir))
}

// dataSwap is what the kubelet does for mounted secrets.
func dataSwap(r *rig, p *certtest.Pair, round int) {
	dir := filepath.Dir(r.src.Cert)
	version := fmt.Sprintf("..2026_%d", round)
	must(r.t, os.MkdirAll(filepath.Join(dir, version), 0o700))
	must(r.t, os.WriteFile(filepath.Join(dir, version, "tls.crt"), p.CertPEM, 0o600))
	must(r.t, os.WriteFile(filepath.Join(dir, version, "tls.key"), p.KeyPEM, 0o600))
	old, _ := os.Readlink(filepath.Join(dir, "..data"))
	must(r.t, os.Symlink(version, filepath.Join(dir, "..data_tmp")))
	must(r.t, os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	if old != "" {
		must(r.t, os.RemoveAll(filepath.Join(dir, old)))
	}
}

func relink(t testing.TB, target, path string) {
	t.Helper()
	must(t, os.Symlink(target, path+".tmp"))
	must(t, os.Rename(path+".tmp", path))
}

func layouts() []layout {
	inFolder := func(r *rig) {
		dir := filepath.Join(r.dir, "certs")
		must(r.t, os.MkdirAll(dir, 0o700))
		r.src = Source{Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key")}
	}
	plain := func(r *rig, p *certtest.Pair) {
		inFolder(r)
		must(r.t, p.Write(r.src.Cert, r.src.Key))
	}
	archive := func(r *rig, round int) (string, string) {
		dir := filepath.Join(r.dir, "archive")
		must(r.t, os.MkdirAll(dir, 0o700))
		return filepath.Join(dir, fmt.Sprintf("cert%d.pem", round)), filepath.Join(dir, fmt.Sprintf("key%d.pem", round))
	}
	linked := func(r *rig, p *certtest.Pair) {
		inFolder(r)
		cert, key := archive(r, 0)
		must(r.t, p.Write(cert, key))
		must(r.t, os.Symlink(cert, r.src.Cert))
		must(r.t, os.Symlink(key, r.src.Key))
	}
	return []layout{
		{"rename over, key first", plain, func(r *rig, p *certtest.Pair, _ int) { must(r.t, p.Write(r.src.Cert, r.src.Key)) }},
		{"rename over, certificate first", plain, func(r *rig, p *certtest.Pair, _ int) {
			must(r.t, os.WriteFile(r.src.Cert+".t", p.CertPEM, 0o600))
			must(r.t, os.Rename(r.src.Cert+".t", r.src.Cert))
			must(r.t, os.WriteFile(r.src.Key+".t", p.KeyPEM, 0o600))
			must(r.t, os.Rename(r.src.Key+".t", r.src.Key))
		}},
		{"in place", plain, func(r *rig, p *certtest.Pair, _ int) { r.write(r.src.Cert, p.CertPEM); r.write(r.src.Key, p.KeyPEM) }},
		{"in place, slowly", plain, func(r *rig, p *certtest.Pair, _ int) {
			drip(r.t, r.src.Cert, p.CertPEM)
			drip(r.t, r.src.Key, p.KeyPEM)
		}},
		{"removed, then written", plain, func(r *rig, p *certtest.Pair, _ int) {
			must(r.t, os.Remove(r.src.Cert))
			must(r.t, os.Remove(r.src.Key))
			time.Sleep(400 * time.Millisecond)
			must(r.t, p.Write(r.src.Cert, r.src.Key))
		}},
		{"..data swap", func(r *rig, p *certtest.Pair) {
			inFolder(r)
			dataSwap(r, p, 0)
			must(r.t, os.Symlink("..data/tls.crt", r.src.Cert))
			must(r.t, os.Symlink("..data/tls.key", r.src.Key))
		}, dataSwap},
		{"links re-pointed", linked, func(r *rig, p *certtest.Pair, round int) {
			cert, key := archive(r, round)
			must(r.t, p.Write(cert, key))
			relink(r.t, cert, r.src.Cert)
			relink(r.t, key, r.src.Key)
		}},
		{"target of the links rewritten", linked, func(r *rig, p *certtest.Pair, _ int) {
			cert, key := archive(r, 0)
			must(r.t, p.Write(cert, key))
		}},
		{"link above the folder re-pointed", func(r *rig, p *certtest.Pair) {
			must(r.t, os.MkdirAll(filepath.Join(r.dir, "v0", "certs"), 0o700))
			must(r.t, os.Symlink("v0", filepath.Join(r.dir, "live")))
			dir := filepath.Join(r.dir, "live", "certs")
			r.src = Source{Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key")}
			must(r.t, p.Write(r.src.Cert, r.src.Key))
		}, func(r *rig, p *certtest.Pair, round int) {
			v := fmt.Sprintf("v%d", round)
			dir := filepath.Join(r.dir, v, "certs")
			must(r.t, os.MkdirAll(dir, 0o700))
			must(r.t, p.Write(filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")))
			relink(r.t, v, filepath.Join(r.dir, "live"))
		}},
		{"folder replaced", plain, swapFolder},
		{"folder removed and made again", plain, func(r *rig, p *certtest.Pair, _ int) {
			dir := filepath.Dir(r.src.Cert)
			must(r.t, os.RemoveAll(dir))
			time.Sleep(300 * time.Millisecond)
			must(r.t, os.MkdirAll(dir, 0o700))
			must(r.t, p.Write(r.src.Cert, r.src.Key))
		}},
	}
}

// drip writes a file in place in small pieces, as scp over a bad link does.
func drip(t testing.TB, path string, data []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	must(t, err)
	for len(data) > 0 {
		n := min(len(data), 200)
		_, err := f.Write(data[:n])
		must(t, err)
		data = data[n:]
		time.Sleep(20 * time.Millisecond)
	}
	must(t, f.Close())
}

// TestEventsAloneSeeEveryReplacement has no poll to help: each way of replacing must be seen, the second time too.
func TestEventsAloneSeeEveryReplacement(t *testing.T) {
	for _, l := range layouts() {
		t.Run(l.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.poll, r.rest = time.Hour, 50*time.Millisecond
			first := r.issue(certtest.Leaf{})
			l.prepare(r, first)
			r.o.Source = r.src
			r.run()
			r.wantCurrent(r.cred(first))
			eventually(t, "watching", func() bool { return r.store.Status().Watch == "events" })
			for round := 1; round <= 2; round++ {
				p := r.issue(certtest.Leaf{})
				l.replace(r, p, round)
				r.eventuallyCandidate(r.cred(p))
				r.store.Commit(r.cred(p), 0)
			}
		})
	}
}

// TestFolderMadeAgainAtOnceStaysWatched: file systems give a new folder the number of the one that was just removed,
// which takes the watch with it.
func TestFolderMadeAgainAtOnceStaysWatched(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.poll, r.rest = time.Hour, 50*time.Millisecond
	dir := filepath.Join(r.dir, "certs")
	r.src = Source{Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key")}
	r.o.Source, r.o.TrialSpacing = r.src, -1
	must(t, os.Mkdir(dir, 0o700))
	r.put(certtest.Leaf{})
	r.run()
	eventually(t, "watching", func() bool { return r.store.Status().Watch == "events" })
	for range 3 {
		p := r.issue(certtest.Leaf{})
		must(t, os.RemoveAll(dir))
		must(t, os.Mkdir(dir, 0o700))
		must(t, p.Write(r.src.Cert, r.src.Key))
		r.eventuallyCandidate(r.cred(p))
		r.store.Commit(r.cred(p), 0)
		c := r.put(certtest.Leaf{})
		r.eventuallyCandidate(c)
		r.store.Commit(c, 0)
	}
}

// TestRepairOfADoubtfulChainIsSeenAtOnce: a chain that lost its intermediates is doubted for long, but what replaces it
// meanwhile is not.
func TestRepairOfADoubtfulChainIsSeenAtOnce(t *testing.T) {
	virtual(t, func(t *testing.T, r *rig) {
		sub, err := r.ca.Intermediate("line CA")
		must(t, err)
		chained := func() *certtest.Pair {
			p, err := sub.Issue(certtest.Leaf{CN: press})
			must(t, err)
			return p
		}
		must(t, chained().Write(r.src.Cert, r.src.Key))
		stop := r.run()
		defer stop()
		time.Sleep(time.Minute)
		next := chained()
		block, _ := pem.Decode(next.CertPEM)
		r.write(r.src.Cert, pem.EncodeToMemory(block))
		r.write(r.src.Key, next.KeyPEM)
		r.store.ring.touch()
		time.Sleep(2 * time.Second)
		r.wantCandidate(nil)
		r.write(r.src.Cert, next.CertPEM)
		r.store.ring.touch()
		time.Sleep(2 * time.Second)
		r.wantCandidate(r.cred(next))
	})
}

// TestPollAloneSeesEveryReplacement stands for file systems that raise no events.
func TestPollAloneSeesEveryReplacement(t *testing.T) {
	for _, l := range layouts() {
		t.Run(l.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.pollOnly, r.poll = true, 100*time.Millisecond
			first := r.issue(certtest.Leaf{})
			l.prepare(r, first)
			r.o.Source = r.src
			r.run()
			p := r.issue(certtest.Leaf{})
			l.replace(r, p, 1)
			r.eventuallyCandidate(r.cred(p))
			if st := r.store.Status(); st.Watch != "poll-only" {
				t.Errorf("watch is %q", st.Watch)
			}
		})
	}
}

func TestMissingFolderIsWatchedFromTheNearestParent(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.poll = time.Hour
	dir := filepath.Join(r.dir, "a", "b", "c")
	r.src = Source{Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key")}
	r.o.Source = r.src
	r.run()
	eventually(t, "watching", func() bool { return r.store.Status().Watch == "events" })
	must(t, os.Mkdir(filepath.Join(r.dir, "a"), 0o700))
	time.Sleep(50 * time.Millisecond)
	must(t, os.MkdirAll(dir, 0o700))
	first := r.put(certtest.Leaf{})
	eventually(t, "first certificate", func() bool { return r.store.Current() != nil })
	r.wantCurrent(first)
}

// TestChangeBetweenFirstReadAndWatchIsSeen replaces the files after Open has read them and before anything is watched.
func TestChangeBetweenFirstReadAndWatchIsSeen(t *testing.T) {
	r := newRig(t)
	r.put(certtest.Leaf{})
	s := r.open()
	next := r.put(certtest.Leaf{})
	w := NewWatcher(WatcherOptions{Poll: time.Hour})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	w.Add(s) // while it runs
	r.eventuallyCandidate(next)
	w.Remove(s)
	w.Remove(s)
	r.put(certtest.Leaf{})
	time.Sleep(2 * quiet)
	r.wantCandidate(next) // nothing follows the files any more
	cancel()
	must(t, <-done)
	if err := w.Run(context.Background()); err == nil {
		t.Error("ran twice")
	}
}

func TestLostEventsLeadToALookAtEverything(t *testing.T) {
	r := newRig(t)
	first := r.put(certtest.Leaf{})
	s := r.open()
	w := NewWatcher(WatcherOptions{Poll: time.Hour, Log: r.o.Log})
	w.rest = 50 * time.Millisecond
	w.Add(s)
	queue := &fsnotify.Watcher{Events: make(chan fsnotify.Event), Errors: make(chan error)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { w.listen(ctx, queue); w.turns.Wait(); close(done) }()
	eventually(t, "the first look", func() bool { return s.Status().Watch != "" })
	s.Commit(first, 0)
	for range 3 {
		next := r.put(certtest.Leaf{})
		queue.Errors <- fsnotify.ErrEventOverflow
		r.eventuallyCandidate(next)
		s.Commit(next, 0)
	}
	cancel()
	<-done
	if r.said("file events were lost, looking at everything") != 1 {
		t.Errorf("not said once: %v", r.logs.All())
	}
}

func TestFoldersBeyondTheLimitArePolled(t *testing.T) {
	r := newRig(t)
	r.put(certtest.Leaf{})
	s := r.open()
	w := NewWatcher(WatcherOptions{Log: r.o.Log})
	queue, err := fsnotify.NewWatcher()
	must(t, err)
	must(t, queue.Close()) // from now on Add fails as it does beyond the limit
	w.queue = queue
	f := &follower{subject: s, w: w}
	for range 3 {
		w.cover(f)
	}
	if st := s.Status(); st.Watch != "poll-only" {
		t.Errorf("watch is %q", st.Watch)
	}
	if r.said("a folder raises no file events, certificates in it are polled") != 1 {
		t.Errorf("not said once: %v", r.logs.All())
	}
	w.leave(f, nil)
	if len(w.folders) != 0 {
		t.Errorf("folders left: %v", w.folders)
	}
}

func TestIdentitiesInOneFolderAreWokenByTheirOwnFiles(t *testing.T) {
	dir := t.TempDir()
	w := NewWatcher(WatcherOptions{})
	var stores []*Store
	for i := range 3 {
		s, err := Open(Options{Identity: fmt.Sprint(i), Source: Source{Cert: filepath.Join(dir, fmt.Sprintf("%d.pem", i)), Key: filepath.Join(dir, fmt.Sprintf("%d.key", i))}})
		must(t, err)
		f := &follower{subject: s, w: w}
		w.leave(f, nil)
		w.enter(f, trail(s.o.Source.Cert))
		stores = append(stores, s)
	}
	real, err := filepath.EvalSymlinks(dir)
	must(t, err)
	w.wake(filepath.Join(real, "1.pem"))
	for i, s := range stores {
		if woken := s.ring.rung(); woken != (i == 1) {
			t.Errorf("store %d woken: %v", i, woken)
		}
	}
	w.wake(real) // the folder itself went away
	for i, s := range stores {
		if !s.ring.rung() {
			t.Errorf("store %d sleeps on", i)
		}
	}
}

// stuck is a set of files on a share that does not answer.
type stuck struct {
	ring bell
	free chan struct{}
	all  *atomic.Int32 // that look at their files
	path string
}

func (s *stuck) bell() *bell                            { return &s.ring }
func (s *stuck) paths() []string                        { return []string{s.path} }
func (s *stuck) begin(view)                             {}
func (s *stuck) silent(string)                          {}
func (s *stuck) answers()                               {}
func (s *stuck) look(func(Source) sight) view           { s.all.Add(1); <-s.free; return view{} }
func (s *stuck) judge(view, time.Duration) (again bool) { return false }
func (s *stuck) settles(bool)                           {}
func (s *stuck) tick(time.Time) (next time.Time)        { return next }
func (s *stuck) placed(string, []string)                {}
func (s *stuck) first() [sha256.Size]byte               { return [sha256.Size]byte{} }

func TestFilesThatHangDelayNobodyElse(t *testing.T) {
	virtual(t, func(t *testing.T, r *rig) {
		first := r.put(certtest.Leaf{})
		r.open()
		r.watcher = NewWatcher(WatcherOptions{PollOnly: true})
		r.watcher.Add(r.store)
		free := make(chan struct{})
		for range 5 * turnsAtOnce {
			r.watcher.add(&stuck{free: free, all: new(atomic.Int32)})
		}
		stop := r.runWatcher()
		time.Sleep(turnWait + time.Second)
		r.store.Commit(first, 0)
		for range 3 {
			next := r.put(certtest.Leaf{})
			time.Sleep(settled)
			r.wantCandidate(next)
			r.store.Commit(next, 0)
		}
		r.watcher.Remove(r.store)
		close(free)
		stop()
	})
}

// counted counts how often its files are read in full.
type counted struct {
	subject
	readings int
}

func (c *counted) look(read func(Source) sight) view {
	c.readings++
	return c.subject.look(read)
}

// TestOneHangingFileSystemHoldsFewThreads: followers wait for those that hang on the same share, others do not, not even
// on another share, and neither Remove nor the end waits for long.
func TestOneHangingFileSystemHoldsFewThreads(t *testing.T) {
	virtual(t, func(t *testing.T, r *rig) {
		first := r.put(certtest.Leaf{})
		r.open()
		r.watcher = NewWatcher(WatcherOptions{PollOnly: true})
		free := make(chan struct{})
		var looking atomic.Int32
		share := t.TempDir()
		r.watcher.table = func() map[string]mount {
			return map[string]mount{"/": {"8:1", false}, share: {"0:7", true}, r.dir: {"0:8", true}}
		}
		must(t, os.Symlink(share, filepath.Join(r.dir, "link")))
		for i := range 3 * turnsAtMost {
			r.watcher.add(&stuck{free: free, all: &looking, path: filepath.Join(r.dir, "link", fmt.Sprint(i))})
		}
		r.watcher.Add(r.store)
		stop := r.runWatcher()
		time.Sleep(time.Minute)
		if n := looking.Load(); n != turnsAtOnce {
			t.Errorf("%d hang", n)
		}
		r.store.Commit(first, 0)
		next := r.put(certtest.Leaf{})
		time.Sleep(settled)
		r.wantCandidate(next)
		began := time.Now()
		stop()
		if d := time.Since(began); d > turnWait {
			t.Errorf("the end took %s", d)
		}
		close(free)
	})
}

// TestStartTakesTurns: many followers that are due at once, as at the start or after the machine was suspended, do not
// all look at the same time.
func TestStartTakesTurns(t *testing.T) {
	virtual(t, func(t *testing.T, r *rig) {
		r.open()
		r.watcher = NewWatcher(WatcherOptions{PollOnly: true})
		free := make(chan struct{})
		var looking atomic.Int32
		for range 10 * turnsAtOnce {
			r.watcher.add(&stuck{free: free, all: &looking})
		}
		time.Sleep(time.Minute)
		stop := r.runWatcher()
		synctest.Wait()
		if n := looking.Load(); n != turnsAtOnce {
			t.Errorf("%d look at once", n)
		}
		close(free)
		stop()
	})
}

func TestEventStormCausesFewReadings(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.poll = time.Hour
	p := r.issue(certtest.Leaf{})
	must(t, p.Write(r.src.Cert, r.src.Key))
	r.open()
	files := &counted{subject: r.store}
	w := NewWatcher(WatcherOptions{Poll: time.Hour})
	w.add(files)
	r.watcher = w
	stop := r.runWatcher()
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		files.bell().touch()
	}
	stop()
	if files.readings > 5 {
		t.Errorf("%d readings in 3 s of events", files.readings)
	}
	select {
	case <-r.store.Changed():
	default:
	}
	r.wantState(None)
}

// TestRescanDuringATrialOffersTheSameCandidate: a look at everything, asked for many times, starts nothing anew.
func TestRescanDuringATrialOffersTheSameCandidate(t *testing.T) {
	virtual(t, func(t *testing.T, r *rig) {
		good := r.put(certtest.Leaf{})
		r.run()
		r.store.Commit(good, 0)
		next := r.put(certtest.Leaf{})
		time.Sleep(settled)
		r.wantCandidate(next)
		drain(r.store.Changed())
		for range 20 {
			r.watcher.Rescan()
			time.Sleep(time.Second)
			r.wantCandidate(next)
		}
		select {
		case <-r.store.Changed():
			t.Error("the session was told of nothing")
		default:
		}
		if st := r.store.Status(); st.CandidatesTotal != 1 {
			t.Errorf("%d candidates", st.CandidatesTotal)
		}
	})
}

func TestWatcherWithoutEventsStillWorks(t *testing.T) {
	w := NewWatcher(WatcherOptions{PollOnly: true, Log: zap.NewNop()})
	if w.open() != nil {
		t.Error("an event queue nobody asked for")
	}
}
