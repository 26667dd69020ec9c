package certstore

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"gatewayd/internal/certstore/certtest"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// rig is one identity with its files, its CA and, once started, a watcher.
type rig struct {
	t        testing.TB
	ca       *certtest.CA
	dir      string // of the files
	src      Source
	o        Options
	store    *Store
	watcher  *Watcher
	logs     *observer.ObservedLogs
	pollOnly bool
	poll     time.Duration
	rest     time.Duration
}

const press = "press-7"

func newRig(t testing.TB) *rig {
	t.Helper()
	ca, err := certtest.NewCA("site CA")
	must(t, err)
	dir := t.TempDir()
	core, logs := observer.New(zapcore.DebugLevel)
	r := &rig{t: t, ca: ca, dir: dir, logs: logs, src: Source{Cert: filepath.Join(dir, "press-7.pem"), Key: filepath.Join(dir, "press-7.key")}}
	r.o = Options{Identity: press, Source: r.src, CommonName: press, StateDir: t.TempDir(), Log: zap.New(core)}
	return r
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (r *rig) issue(l certtest.Leaf) *certtest.Pair {
	r.t.Helper()
	if l.CN == "" {
		l.CN = press
	}
	p, err := r.ca.Issue(l)
	must(r.t, err)
	return p
}

// put writes a fresh pair into the files and returns its credential.
func (r *rig) put(l certtest.Leaf) *Credential {
	r.t.Helper()
	p := r.issue(l)
	must(r.t, p.Write(r.src.Cert, r.src.Key))
	return r.cred(p)
}

func (r *rig) cred(p *certtest.Pair) *Credential {
	r.t.Helper()
	c, err := Parse(p.CertPEM, p.KeyPEM, nil)
	must(r.t, err)
	return c
}

func (r *rig) write(path string, data []byte) {
	r.t.Helper()
	must(r.t, os.WriteFile(path, data, 0o600))
}

// open makes the store.
func (r *rig) open() *Store {
	r.t.Helper()
	s, err := Open(r.o)
	must(r.t, err)
	r.store = s
	return s
}

// run makes the store and follows its files until the test ends or the returned function is called.
func (r *rig) run() (stop func()) {
	r.t.Helper()
	r.open()
	r.watcher = NewWatcher(WatcherOptions{PollOnly: r.pollOnly, Poll: r.poll, Log: r.o.Log})
	if r.rest > 0 {
		r.watcher.rest = r.rest
	}
	r.watcher.Add(r.store)
	return r.runWatcher()
}

func (r *rig) runWatcher() (stop func()) {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.watcher.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("watcher: %v", err)
		}
	})
	r.t.Cleanup(stop)
	return stop
}

// restart is what a new process would do.
func (r *rig) restart(stop func()) func() {
	r.t.Helper()
	stop()
	return r.run()
}

func (r *rig) said(text string) int { return r.logs.FilterMessage(text).Len() }

func (r *rig) wantCurrent(want *Credential) {
	r.t.Helper()
	if got := r.store.Current(); got == nil || got.Fingerprint() != want.Fingerprint() {
		r.t.Fatalf("current is %v, want %v; status %+v", got, want, r.store.Status())
	}
}

func (r *rig) wantCandidate(want *Credential) {
	r.t.Helper()
	got := r.store.Candidate()
	switch {
	case want == nil && got != nil:
		r.t.Fatalf("candidate is %v, want none", got)
	case want != nil && (got == nil || got.Fingerprint() != want.Fingerprint()):
		r.t.Fatalf("candidate is %v, want %v; status %+v", got, want, r.store.Status())
	}
}

func (r *rig) wantState(want CandidateState) Status {
	r.t.Helper()
	st := r.store.Status()
	if st.CandidateState != want {
		r.t.Fatalf("candidate state is %q, want %q; reason %q", st.CandidateState, want, st.CandidateReason)
	}
	return st
}

// virtual runs f in a bubble of virtual time, where files are polled.
func virtual(t *testing.T, f func(t *testing.T, r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		r.pollOnly = true
		f(t, r)
	})
}

// settled is long enough in virtual time for a poll to find a change and for it to be believed.
const settled = pollEvery + time.Second

// eventually waits in real time.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Fatalf("did not happen: %s", what)
}

func (r *rig) eventuallyCandidate(want *Credential) {
	r.t.Helper()
	eventually(r.t, "candidate "+want.String(), func() bool {
		c := r.store.Candidate()
		return c != nil && c.Fingerprint() == want.Fingerprint()
	})
}
