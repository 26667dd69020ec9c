package certstore

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gatewayd/internal/certstore/certtest"
)

// hang mounts a share over dir whose server is silent.
func hang(t *testing.T, dir string) (release func()) {
	t.Helper()
	release, err := certtest.Hang(dir)
	if err != nil {
		t.Skip("no file system can be mounted: ", err)
	}
	t.Cleanup(release)
	return release
}

// site is many identities, each with its files in one folder, and one beside them.
func (r *rig) site(share string, n int) (hung []*Store, well *Store) {
	r.t.Helper()
	open := func(name, dir string) *Store {
		p := r.issue(certtest.Leaf{CN: name})
		src := Source{Cert: filepath.Join(dir, name+".pem"), Key: filepath.Join(dir, name+".key")}
		must(r.t, p.Write(src.Cert, src.Key))
		s, err := New(Options{Identity: name, Source: src, CommonName: name, StateDir: r.o.StateDir, Log: r.o.Log})
		must(r.t, err)
		return s
	}
	for i := range n {
		hung = append(hung, open(fmt.Sprint("lost-", i), share))
	}
	return hung, open("well", r.dir)
}

// TestHungShareAtTheStart: who has his files elsewhere begins at once, who has them on the share is told to be without
// after turnWait, few threads hang, and all begin when the share is there.
func TestHungShareAtTheStart(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	share := t.TempDir()
	hung, well := r.site(share, 60)
	release := hang(t, share)
	w := NewWatcher(WatcherOptions{Poll: time.Second, Log: r.o.Log})
	for _, s := range hung {
		w.Add(s)
	}
	w.Add(well)
	r.watcher = w
	began := time.Now()
	stop := r.runWatcher()
	well.Await(t.Context())
	if d := time.Since(began); well.Current() == nil || d > 3*time.Second {
		t.Errorf("the other one waited %s for %v", d, well.Current())
	}
	for _, s := range hung {
		s.Await(t.Context())
		st := s.Status()
		if st.CandidateState != Waits || !strings.Contains(st.CandidateReason, share) || !strings.Contains(st.CandidateReason, "does not answer") {
			t.Fatalf("%s: %s %q", st.Identity, st.CandidateState, st.CandidateReason)
		}
	}
	if d := time.Since(began); d > turnWait+5*time.Second {
		t.Errorf("said after %s", d)
	}
	if n := w.hanging(); n > 2*turnsAtOnce {
		t.Errorf("%d hang", n)
	}
	if n := r.said("certificate files do not answer and are read as soon as they do"); n != len(hung) {
		t.Errorf("said %d times", n)
	}
	release()
	for _, s := range hung {
		eventually(t, "a certificate, and nothing wrong any more", func() bool { return s.Current() != nil && len(s.Status().Problems) == 0 })
	}
	stop()
}

func (w *Watcher) hanging() (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.followers {
		if f.busy {
			n++
		}
	}
	return n
}

// TestHungShareLaterOn: the others are followed by events as before, over the time at which every watch is put anew, and
// neither a removal nor the end waits for long.
func TestHungShareLaterOn(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	share := t.TempDir()
	must(t, os.Mkdir(filepath.Join(share, "deep"), 0o700))
	hung, well := r.site(filepath.Join(share, "deep"), 3*turnsAtOnce)
	w := NewWatcher(WatcherOptions{Poll: 200 * time.Millisecond, Log: r.o.Log})
	for _, s := range hung {
		w.Add(s)
	}
	w.Add(well)
	r.watcher = w
	stop := r.runWatcher()
	for _, s := range append(hung, well) {
		eventually(t, "a certificate", func() bool { return s.Current() != nil })
	}
	hang(t, share)
	w.mu.Lock()
	w.mountsAt = time.Time{} // a minute later
	w.mu.Unlock()
	for _, s := range hung {
		eventually(t, "it is said", func() bool {
			st := s.Status()
			return len(st.Problems) > 0 && strings.Contains(st.Problems[0], share)
		})
	}
	well.Commit(well.Current(), 0)
	for range 3 {
		w.Rescan() // puts the watches anew
		p := r.issue(certtest.Leaf{CN: "well"})
		must(t, p.Write(filepath.Join(r.dir, "well.pem"), filepath.Join(r.dir, "well.key")))
		eventually(t, "the candidate", func() bool { c := well.Candidate(); return c != nil && c.Fingerprint() == r.cred(p).Fingerprint() })
		well.Commit(well.Candidate(), 0)
	}
	if st := well.Status(); st.Watch != "events" || len(st.Problems) > 0 {
		t.Errorf("the other one: %q %v", st.Watch, st.Problems)
	}
	began := time.Now()
	w.Remove(hung[0])
	stop()
	if d := time.Since(began); d > 2*turnWait+time.Second {
		t.Errorf("the end took %s", d)
	}
}

// TestHungTrustFile: Await ends, and the file counts when it is there.
func TestHungTrustFile(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	share := t.TempDir()
	file := filepath.Join(share, "root.pem")
	r.write(file, r.ca.PEM())
	release := hang(t, share)
	roots := NewRoots(RootsOptions{Files: []string{file}, Log: r.o.Log})
	r.watcher = NewWatcher(WatcherOptions{Poll: time.Second, Log: r.o.Log})
	r.watcher.AddRoots(roots)
	var ended atomic.Bool
	go func() { roots.Await(context.Background()); ended.Store(true) }()
	r.runWatcher()
	eventually(t, "the end of the wait", ended.Load)
	if st := roots.Status(); len(st.Problems) != 1 || !strings.Contains(st.Problems[0], file) {
		t.Errorf("problems %v", st.Problems)
	}
	release()
	eventually(t, "the root", func() bool { st := roots.Status(); return st.Certificates == 1 && len(st.Problems) == 0 })
}

// TestHungShareLeavesTheCopy: the last good certificate that is kept on disk is used meanwhile, and the files when they come.
func TestHungShareLeavesTheCopy(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.poll = time.Second
	r.o.KeepLastGood = true
	first := r.put(certtest.Leaf{})
	stop := r.run()
	r.store.Commit(first, 0)
	eventually(t, "the copy", func() bool { return exists(r.store.place(".pem")) })
	stop()
	next := r.put(certtest.Leaf{})
	release := hang(t, r.dir)
	s, err := New(r.o)
	must(t, err)
	r.store, r.watcher = s, NewWatcher(WatcherOptions{Poll: time.Second, Log: r.o.Log})
	r.watcher.Add(s)
	r.runWatcher()
	s.Await(t.Context())
	r.wantCurrent(first)
	if st := s.Status(); !st.FromLastGood || len(st.Problems) == 0 || !strings.Contains(st.Problems[0], "does not answer") {
		t.Errorf("%+v", st)
	}
	release()
	r.eventuallyCandidate(next)
	r.wantCurrent(first)
}
