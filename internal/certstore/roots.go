package certstore

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
)

// RootsOptions name the certificate authorities that the hub's certificate may come from.
type RootsOptions struct {
	Files  []string    // PEM or DER bundles
	System bool        // the machine's roots too
	Log    *zap.Logger // nil: silent
}

// Roots holds the trust anchors for dialling the hub and follows their files when a Watcher runs it. Leaves and
// intermediates in the files are anchors as well, but pinning those stops working when the hub renews.
type Roots struct {
	o      RootsOptions
	log    *zap.Logger
	ring   bell
	opened [sha256.Size]byte
	unread latch

	mu       sync.Mutex
	good     map[string][]*x509.Certificate // by file, newest good content
	problems map[string]string
	pool     *x509.CertPool
	watch    string
	where    []string
	loaded   time.Time
}

// RootsStatus says what the pool was made of.
type RootsStatus struct {
	Certificates int       `json:"certificates"` // from files
	System       bool      `json:"system"`
	Watch        string    `json:"watch"`              // "events", "poll-only", or "" before the watcher runs
	Problems     []string  `json:"problems,omitempty"` // files that cannot be used now, and what is wrong with their place
	Loaded       time.Time `json:"loaded"`             // when the pool last changed
}

// OpenRoots is NewRoots, and reads the files at once, which takes as long as their file system wants.
func OpenRoots(o RootsOptions) *Roots {
	r := NewRoots(o)
	v := r.look(observe)
	r.opened = v.hash
	r.begin(v)
	return r
}

// NewRoots leaves the files to a Watcher, which reads them when it runs and then follows them; Await waits for that. A
// file that cannot be used is a problem in Status; the others count.
func NewRoots(o RootsOptions) *Roots {
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	r := &Roots{o: o, log: o.Log, unread: newLatch(), good: map[string][]*x509.Certificate{}, problems: map[string]string{}}
	r.rebuild()
	return r
}

// Await returns when the files have been read for the first time, when they turn out not to answer, or when ctx ends.
func (r *Roots) Await(ctx context.Context) { r.unread.await(ctx) }

// LoadRoots reads the files once and returns the pool, or what is wrong with the first bad file. A nil pool and a nil error
// stand for the machine's roots alone.
func LoadRoots(files []string, system bool) (*x509.CertPool, error) {
	good := map[string][]*x509.Certificate{}
	for _, path := range files {
		certs, err := observe(Source{Cert: path}).bundle()
		if err != nil {
			return nil, err
		}
		good[path] = certs
	}
	return poolOf(files, good, system), nil
}

// Pool returns the newest good pool; take it anew for every dial. A nil pool means the machine's roots. The caller must
// not change it.
func (r *Roots) Pool() *x509.CertPool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.pool
}

// Status returns a copy.
func (r *Roots) Status() RootsStatus {
	silent := r.ring.silent(r)
	r.mu.Lock()
	defer r.mu.Unlock()
	st := RootsStatus{System: r.o.System, Watch: r.watch, Loaded: r.loaded, Problems: slices.Clone(r.where)}
	for _, path := range r.o.Files {
		st.Certificates += len(r.good[path])
		if p := r.problems[path]; p != "" {
			st.Problems = append(st.Problems, p)
		}
	}
	if silent != "" {
		st.Problems = append([]string{silentText(silent) + "; " + silentHint}, st.Problems...)
	}
	return st
}

// Roots are a subject.

func (r *Roots) bell() *bell              { return &r.ring }
func (r *Roots) first() [sha256.Size]byte { return r.opened }
func (r *Roots) paths() []string          { return r.o.Files }
func (r *Roots) settles(bool)             {}

func (r *Roots) begin(v view) {
	r.judge(v, doubtWait)
	r.unread.open()
}

func (r *Roots) silent(path string) {
	r.log.Warn("trust file does not answer and is read as soon as it does", zap.String("path", path))
	r.unread.open()
}

func (r *Roots) answers() { r.log.Info("trust files answer again", zap.Strings("paths", r.o.Files)) }

func (r *Roots) tick(time.Time) (next time.Time) { return next }

func (r *Roots) look(read func(Source) sight) view {
	sights := make([]sight, len(r.o.Files))
	for i, path := range r.o.Files {
		sights[i] = read(Source{Cert: path})
	}
	return newView(sights...)
}

// judge takes the files that are good and keeps, for the others, what was good before.
func (r *Roots) judge(v view, _ time.Duration) (again bool) {
	changed := false
	for _, s := range v.sights {
		path := s.src.Cert
		certs, err := s.bundle()
		r.mu.Lock()
		had, was := r.good[path], r.problems[path]
		if err != nil {
			r.problems[path] = err.Error()
		} else {
			delete(r.problems, path)
			if !slices.EqualFunc(had, certs, (*x509.Certificate).Equal) {
				r.good[path], changed = certs, true
			}
		}
		r.mu.Unlock()
		switch {
		case err != nil && err.Error() != was:
			r.log.Warn("trust file cannot be used, what it held before stays trusted", zap.String("path", path), zap.Int("certificates", len(had)), zap.Error(err))
		case err == nil && was != "":
			r.log.Info("trust file is in order again", zap.String("path", path))
		}
	}
	if changed {
		r.rebuild()
	}
	return false
}

func (r *Roots) rebuild() {
	r.mu.Lock()
	good := make(map[string][]*x509.Certificate, len(r.good))
	for path, certs := range r.good {
		good[path] = certs
	}
	r.mu.Unlock()
	pool := poolOf(r.o.Files, good, r.o.System)
	r.mu.Lock()
	r.pool, r.loaded = pool, time.Now().Round(0)
	r.mu.Unlock()
}

// poolOf is nil for the machine's roots alone. Without them it is never nil, even when empty: no anchor must not come to
// mean every public one.
func poolOf(files []string, good map[string][]*x509.Certificate, system bool) *x509.CertPool {
	if system && len(files) == 0 {
		return nil
	}
	pool := x509.NewCertPool()
	if system {
		if sys, err := x509.SystemCertPool(); err == nil {
			pool = sys
		}
	}
	for _, path := range files {
		for _, c := range good[path] {
			pool.AddCert(c)
		}
	}
	return pool
}

func (r *Roots) placed(mode string, where []string) {
	r.mu.Lock()
	said := r.where
	r.watch, r.where = mode, where
	r.mu.Unlock()
	for _, text := range where {
		if !slices.Contains(said, text) {
			r.log.Warn("trust file is in a place that hides changes", zap.String("reason", text))
		}
	}
}

// bundle parses a file of certificates.
func (s sight) bundle() (certs []*x509.Certificate, err error) {
	defer func() {
		if p := recover(); p != nil {
			certs, err = nil, &Invalid{Reason: fmt.Sprintf("%s cannot be parsed: %v", s.src.Cert, p)}
		}
	}()
	if s.err != nil {
		return nil, s.err
	}
	c, err := readContents(s.src.Cert, s.files[s.src.Cert].data)
	if err != nil {
		return nil, err
	}
	if len(c.certs) == 0 {
		return nil, &Invalid{Reason: s.src.Cert + " holds no certificate" + instead(c), Hint: "is this the right file?"}
	}
	return c.certs, nil
}
