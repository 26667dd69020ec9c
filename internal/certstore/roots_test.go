package certstore

import (
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"gatewayd/internal/certstore/certtest"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

func trusts(t testing.TB, pool *x509.CertPool, ca *certtest.CA) bool {
	t.Helper()
	p, err := ca.Issue(certtest.Leaf{CN: "hub", DNS: []string{"hub.example"}})
	must(t, err)
	_, err = p.Leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: "hub.example"})
	return err == nil
}

func TestBadTrustFileKeepsTheOldPool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old, err := certtest.NewCA("old root")
		must(t, err)
		other, err := certtest.NewCA("other root")
		must(t, err)
		fresh, err := certtest.NewCA("new root")
		must(t, err)
		dir := t.TempDir()
		files := []string{filepath.Join(dir, "a.pem"), filepath.Join(dir, "b.pem")}
		must(t, os.WriteFile(files[0], old.PEM(), 0o644))
		must(t, os.WriteFile(files[1], other.PEM(), 0o644))
		core, logs := observer.New(zapcore.DebugLevel)
		roots := OpenRoots(RootsOptions{Files: files, Log: zap.New(core)})
		r := &rig{t: t, watcher: NewWatcher(WatcherOptions{PollOnly: true})}
		r.watcher.AddRoots(roots)
		r.runWatcher()
		both := func(when string) {
			t.Helper()
			if !trusts(t, roots.Pool(), old) || !trusts(t, roots.Pool(), other) {
				t.Errorf("%s: what was trusted is not", when)
			}
		}
		both("at start")
		bad := map[string][]byte{
			"torn": old.PEM()[:len(old.PEM())-40], "empty": {}, "not PEM": []byte("<html>"),
			"a key": block("PRIVATE KEY", []byte("x")), "damaged certificate": block("CERTIFICATE", []byte("x")),
		}
		for name, data := range bad {
			must(t, os.WriteFile(files[0], data, 0o644))
			time.Sleep(settled)
			both(name)
			if st := roots.Status(); len(st.Problems) != 1 || st.Certificates != 2 {
				t.Errorf("%s: status %+v", name, st)
			}
		}
		must(t, os.Remove(files[0]))
		time.Sleep(settled)
		both("removed")
		lines := logs.Len()
		time.Sleep(time.Hour)
		if logs.Len() != lines {
			t.Errorf("a line per poll: %v", logs.All())
		}
		must(t, os.WriteFile(files[0], fresh.PEM(), 0o644))
		time.Sleep(settled)
		pool := roots.Pool()
		if !trusts(t, pool, fresh) || !trusts(t, pool, other) || trusts(t, pool, old) {
			t.Error("the new bundle is not in use")
		}
		if st := roots.Status(); len(st.Problems) != 0 || st.Watch != "poll-only" || time.Since(st.Loaded) > settled {
			t.Errorf("status %+v", st)
		}
		if logs.FilterMessage("trust file is in order again").Len() != 1 {
			t.Errorf("not said: %v", logs.All())
		}
	})
}

func TestTrustFileIsFollowedByEvents(t *testing.T) {
	old, err := certtest.NewCA("old root")
	must(t, err)
	fresh, err := certtest.NewCA("new root")
	must(t, err)
	file := filepath.Join(t.TempDir(), "a.pem")
	must(t, os.WriteFile(file, old.PEM(), 0o644))
	roots := OpenRoots(RootsOptions{Files: []string{file}})
	r := &rig{t: t, watcher: NewWatcher(WatcherOptions{Poll: time.Hour})}
	r.watcher.AddRoots(roots)
	r.runWatcher()
	eventually(t, "watching", func() bool { return roots.Status().Watch == "events" })
	must(t, os.WriteFile(file, fresh.PEM(), 0o644))
	eventually(t, "new root trusted", func() bool { return trusts(t, roots.Pool(), fresh) })
}

func TestNoRootMustNotMeanEveryRoot(t *testing.T) {
	roots := OpenRoots(RootsOptions{Files: []string{filepath.Join(t.TempDir(), "missing.pem")}})
	if roots.Pool() == nil {
		t.Error("a nil pool would trust the machine's roots")
	}
	if st := roots.Status(); len(st.Problems) != 1 || !strings.Contains(st.Problems[0], "does not exist") {
		t.Errorf("status %+v", st)
	}
	if OpenRoots(RootsOptions{System: true}).Pool() != nil {
		t.Error("the machine's roots alone need no pool")
	}
}

func TestTrustFilesAreChecked(t *testing.T) {
	ca, err := certtest.NewCA("root")
	must(t, err)
	dir := t.TempDir()
	good, bad := filepath.Join(dir, "good.pem"), filepath.Join(dir, "bad.pem")
	must(t, os.WriteFile(good, append(ca.PEM(), ca.PEM()...), 0o644))
	must(t, os.WriteFile(bad, ca.PEM()[:100], 0o644))
	pool, err := LoadRoots([]string{good}, true)
	must(t, err)
	if !trusts(t, pool, ca) {
		t.Error("not trusted")
	}
	if _, err := LoadRoots([]string{good, bad}, false); err == nil || !strings.Contains(err.Error(), "bad.pem") {
		t.Errorf("%v does not name the file", err)
	}
}
