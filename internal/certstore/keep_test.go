package certstore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gatewayd/internal/certstore/certtest"
)

// failing is a disk whose n-th step fails, as a full or broken one does.
func failing(n int64, err error, count *atomic.Int64) disk {
	d := osDisk()
	step := func() error {
		if count.Add(1) == n {
			return err
		}
		return nil
	}
	real := d
	d.mkdir = func(p string) error {
		if err := step(); err != nil {
			return err
		}
		return real.mkdir(p)
	}
	d.create = func(folder, pattern string) (*os.File, error) {
		if err := step(); err != nil {
			return nil, err
		}
		return real.create(folder, pattern)
	}
	d.write = func(f *os.File, data []byte) error {
		if err := step(); err != nil {
			_, _ = f.Write(data[:len(data)/2]) // what a full disk leaves
			return err
		}
		return real.write(f, data)
	}
	d.sync = func(f *os.File) error {
		if err := step(); err != nil {
			return err
		}
		return real.sync(f)
	}
	d.rename = func(from, to string) error {
		if err := step(); err != nil {
			return err
		}
		return real.rename(from, to)
	}
	d.syncDir = func(p string) error {
		if err := step(); err != nil {
			return err
		}
		return real.syncDir(p)
	}
	return d
}

// TestEveryStepOfACommitMayFail fails each step that touches the disk once: the identity goes on with the new certificate,
// the old copy stays whole, the trouble is told, and the next attempt succeeds.
func TestEveryStepOfACommitMayFail(t *testing.T) {
	for n := int64(1); ; n++ {
		var steps atomic.Int64
		virtual(t, func(t *testing.T, r *rig) {
			r.o.KeepLastGood = true
			p := r.issue(certtest.Leaf{})
			must(t, p.Write(r.src.Cert, r.src.Key))
			good := r.cred(p)
			r.run()
			r.store.Commit(good, 0)
			time.Sleep(settled)
			next := r.issue(certtest.Leaf{})
			must(t, os.WriteFile(r.src.Cert+".new", next.CertPEM, 0o600))
			must(t, os.WriteFile(r.src.Key+".new", next.KeyPEM, 0o600))
			time.Sleep(settled)
			want := r.cred(next)
			r.wantCandidate(want)
			r.store.mu.Lock()
			r.store.disk = failing(n, syscall.ENOSPC, &steps)
			r.store.mu.Unlock()
			r.store.Commit(want, 0)
			time.Sleep(time.Second)
			r.wantCurrent(want)
			if told := r.said("certificate proof not persisted, trying again"); steps.Load() >= n && told != 1 {
				t.Errorf("step %d: told %d times: %v", n, told, r.logs.All())
			}
			kept, err := readFile(r.store.place(".pem"))
			must(t, err)
			if c, err := Parse(kept.data, nil, nil); err != nil || c.Fingerprint() != good.Fingerprint() && c.Fingerprint() != want.Fingerprint() {
				t.Errorf("step %d: the copy is damaged: %v %v", n, c, err)
			}
			time.Sleep(settled)
			if st := r.store.Status(); st.NotPersisted != "" || st.Generation != 2 {
				t.Errorf("step %d: not made good: %+v", n, st)
			}
			if c, err := Load(r.src); err != nil || c.Fingerprint() != want.Fingerprint() {
				t.Errorf("step %d: the new files are not in place: %v %v", n, c, err)
			}
			time.Sleep(settled)
			r.wantState(None)
			names, err := os.ReadDir(filepath.Dir(r.store.place("")))
			must(t, err)
			if len(names) != 2 {
				t.Errorf("step %d: left behind: %v", n, names)
			}
		})
		if t.Failed() || steps.Load() < n {
			t.Logf("%d steps", n-1)
			if n < 10 {
				t.Errorf("only %d steps were tried", n-1)
			}
			return
		}
	}
}

func TestRestartWithBadFilesUsesTheLastGoodCertificate(t *testing.T) {
	for _, keep := range []bool{true, false} {
		t.Run(fmt.Sprintf("kept on disk %v", keep), func(t *testing.T) {
			virtual(t, func(t *testing.T, r *rig) {
				r.o.KeepLastGood = keep
				inter, err := r.ca.Intermediate("line")
				must(t, err)
				r.ca = inter
				good := r.put(certtest.Leaf{})
				stop := r.run()
				r.store.Commit(good, 0)
				time.Sleep(settled)
				r.write(r.src.Cert, []byte("-----BEGIN CERTIFICATE-----\nMIIB"))
				stop = r.restart(stop)
				if !keep {
					if r.store.Current() != nil {
						t.Error("a certificate out of nothing")
					}
					return
				}
				r.wantCurrent(good)
				if st := r.store.Status(); !st.FromLastGood || st.Proved || st.Generation != 1 {
					t.Errorf("status %+v", st)
				}
				info, err := os.Stat(r.store.place(".pem"))
				must(t, err)
				if info.Mode().Perm() != 0o600 {
					t.Errorf("copy has mode %v", info.Mode())
				}
				if info, err = os.Stat(filepath.Dir(r.store.place(".pem"))); err != nil || info.Mode().Perm() != 0o700 {
					t.Errorf("folder has mode %v, %v", info.Mode(), err)
				}
				// Files that are whole but that no hub has proved are tried, with the copy to fall back on.
				unproved := r.put(certtest.Leaf{})
				stop = r.restart(stop)
				r.wantCurrent(good)
				r.wantCandidate(unproved)
				r.store.Miss(unproved, "CONNACK 5")
				r.wantCurrent(good)
				// Back to memory: no key stays behind.
				r.o.KeepLastGood = false
				r.restart(stop)
				if _, err := os.Stat(r.store.place(".pem")); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("the copy is still there: %v", err)
				}
				r.wantCurrent(unproved)
			})
		})
	}
}

func TestExpiredCopyGivesWayToGoodFiles(t *testing.T) {
	virtual(t, func(t *testing.T, r *rig) {
		r.o.KeepLastGood = true
		good := r.put(certtest.Leaf{NotAfter: time.Now().Add(time.Hour)})
		stop := r.run()
		r.store.Commit(good, 0)
		time.Sleep(settled)
		stop()
		time.Sleep(24 * time.Hour) // switched off
		next := r.put(certtest.Leaf{})
		r.run()
		r.wantCurrent(next)
	})
}

func TestRestartRemembersTheRotation(t *testing.T) {
	virtual(t, func(t *testing.T, r *rig) {
		first := r.put(certtest.Leaf{})
		stop := r.run()
		r.store.Commit(first, 0)
		next := r.put(certtest.Leaf{})
		time.Sleep(settled)
		r.store.Commit(next, 42*time.Millisecond)
		before := r.store.Status()
		time.Sleep(time.Second)
		stop = r.restart(stop)
		st := r.store.Status()
		if st.Generation != 2 || !st.LastRotation.Equal(before.LastRotation) || st.GapMS != 42 {
			t.Errorf("forgotten: %+v", st)
		}
		// The same pair proved again is no new generation, and writes nothing.
		info, err := os.Stat(r.store.place(".json"))
		must(t, err)
		r.store.Commit(next, 0)
		time.Sleep(settled)
		again, err := os.Stat(r.store.place(".json"))
		must(t, err)
		if !os.SameFile(info, again) || r.store.Status().Generation != 2 {
			t.Errorf("written again for nothing")
		}
		// Damage to what is remembered is said and survived.
		r.write(r.store.place(".json"), []byte("{"))
		r.restart(stop)
		r.wantCurrent(next)
		if r.said("remembered certificate state is not readable and is started anew") != 1 {
			t.Errorf("not said: %v", r.logs.All())
		}
	})
}

// TestStopDuringATrialLeavesNoHalfState ends the process between a candidate and its verdict.
func TestStopDuringATrialLeavesNoHalfState(t *testing.T) {
	virtual(t, func(t *testing.T, r *rig) {
		r.o.KeepLastGood = true
		good := r.put(certtest.Leaf{})
		stop := r.run()
		r.store.Commit(good, 0)
		next := r.put(certtest.Leaf{})
		time.Sleep(settled)
		r.wantCandidate(next)
		r.restart(stop)
		r.wantCurrent(good)
		r.wantCandidate(next)
		r.store.Commit(next, 0)
		r.wantCurrent(next)
	})
}

func TestStagedFilesAreTriedBeforeTheyTakeTheirPlace(t *testing.T) {
	virtual(t, func(t *testing.T, r *rig) {
		p := r.issue(certtest.Leaf{})
		must(t, p.Write(r.src.Cert, r.src.Key))
		good := r.cred(p)
		r.run()
		r.store.Commit(good, 0)
		n := r.issue(certtest.Leaf{})
		r.write(r.src.Key+".new", n.KeyPEM)
		time.Sleep(settled)
		r.wantState(None) // half way
		r.write(r.src.Cert+".new", n.CertPEM)
		time.Sleep(settled)
		r.wantCandidate(r.cred(n))
		r.store.Miss(r.cred(n), "CONNACK 5")
		r.wantCandidate(nil)
		if c, err := Load(r.src); err != nil || c.Fingerprint() != good.Fingerprint() {
			t.Fatalf("a missed trial moved the files: %v %v", c, err)
		}
		// Whoever replaces the files themselves meanwhile is not kept waiting by the ".new" ones.
		direct := r.put(certtest.Leaf{})
		time.Sleep(settled)
		r.wantCandidate(direct)
		r.store.Commit(direct, 0)
		time.Sleep(2 * time.Minute)
		r.wantCandidate(r.cred(n))
		r.store.Commit(r.cred(n), 0)
		time.Sleep(settled)
		if c, err := Load(r.src); err != nil || c.Fingerprint() != r.cred(n).Fingerprint() {
			t.Errorf("not in place: %v %v", c, err)
		}
		if exists(r.src.Cert+".new") || exists(r.src.Key+".new") {
			t.Error("staged files left behind")
		}
		r.wantState(None)
		// The same key needs no ".new" key.
		m := r.issue(certtest.Leaf{Key: n.Key})
		r.write(r.src.Cert+".new", m.CertPEM)
		time.Sleep(settled)
		r.wantCandidate(r.cred(m))
		r.store.Commit(r.cred(m), 0)
		time.Sleep(settled)
		if c, err := Load(r.src); err != nil || c.Fingerprint() != r.cred(m).Fingerprint() {
			t.Errorf("not in place: %v %v", c, err)
		}
	})
}

// TestStagedFilesInAReadOnlyFolderStayThere leaves the renaming to whoever renews.
func TestStagedFilesInAReadOnlyFolderStayThere(t *testing.T) {
	virtual(t, func(t *testing.T, r *rig) {
		good := r.put(certtest.Leaf{})
		r.run()
		r.store.mu.Lock()
		rename := r.store.disk.rename
		r.store.disk.rename = func(from, to string) error {
			if strings.HasPrefix(to, r.dir) {
				return &os.LinkError{Op: "rename", Old: from, New: to, Err: syscall.EROFS}
			}
			return rename(from, to)
		}
		r.store.mu.Unlock()
		r.store.Commit(good, 0)
		n := r.issue(certtest.Leaf{})
		r.write(r.src.Cert+".new", n.CertPEM)
		r.write(r.src.Key+".new", n.KeyPEM)
		time.Sleep(settled)
		r.store.Commit(r.cred(n), 0)
		time.Sleep(time.Hour)
		r.wantCurrent(r.cred(n))
		r.wantCandidate(nil) // the old pair in the files is no candidate
		if st := r.store.Status(); !strings.Contains(st.NotPersisted, "read-only file system") {
			t.Errorf("not told: %+v", st)
		}
		must(t, os.Chmod(r.src.Cert, 0o640)) // looked at again, and still none
		time.Sleep(settled)
		r.wantCandidate(nil)
		if n := r.said("certificate proof not persisted, trying again"); n != 1 {
			t.Errorf("said %d times", n)
		}
	})
}

func TestNamesOfIdentitiesAreSafeFileNames(t *testing.T) {
	for _, name := range []string{"..", ".", "a b", "ä", "dev.mod", "CON", strings.Repeat("x", 4000), "a\x00b"} {
		s := &Store{o: Options{Identity: name, StateDir: "/state"}}
		path := s.place(".json")
		if filepath.Dir(path) != "/state/certificates" || len(filepath.Base(path)) > 255 || strings.ContainsRune(path, 0) {
			t.Errorf("%q becomes %q", name, path)
		}
	}
}
