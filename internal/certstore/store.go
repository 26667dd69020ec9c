package certstore

import (
	"context"
	"crypto/sha256"
	"errors"
	"sync"
	"time"

	"go.uber.org/zap"
)

// Options are what a Store needs. Identity and Source are required.
type Options struct {
	Identity string
	Source   Source
	// CommonName is what the leaf's common name must be, compared exactly: the device id, or "device/module" for a module.
	// Another name is refused before any dial. Empty accepts every name, for identities registered by thumbprint.
	CommonName string
	// StateDir is the daemon's state folder; empty remembers nothing over a restart.
	StateDir string
	// KeepLastGood keeps a copy of the last proved credential, with its key, in StateDir (mode 0600). Open uses it when the
	// files fail, and keeps it current while the hub has not proved what the files hold. Without it, Open removes a copy
	// that an earlier configuration left.
	KeepLastGood bool
	// TrialSpacing is the time that a trial uses up, TrialBurst how many may come in a row. Zero means one minute and
	// three; negative spacing means no limit.
	TrialSpacing time.Duration
	TrialBurst   int
	Clock        *Clock      // nil: the wall clock, trusted
	Log          *zap.Logger // nil: silent
}

// Store holds one identity's credentials: the current one and what the files offer instead. All methods are safe for
// concurrent use and none of them blocks on the disk.
type Store struct {
	o       Options
	disk    disk
	changed chan struct{}     // to the session
	ring    bell              // to the follower
	opened  [sha256.Size]byte // what Open judged; zero: nothing
	unread  latch

	mu    sync.Mutex
	state // guarded by mu
}

// Open is New, and reads the files at once, which takes as long as their file system wants.
func Open(o Options) (*Store, error) {
	s, err := New(o)
	if err != nil {
		return nil, err
	}
	v := s.look(observe)
	s.opened = v.hash
	s.begin(v)
	return s, nil
}

// New makes a Store with what is remembered and leaves the files to a Watcher, which reads them when it runs and then
// follows them; Await waits for that. Files that cannot be used are a state of the Store and not an error; an error means
// wrong Options.
func New(o Options) (*Store, error) {
	if o.Identity == "" {
		return nil, errors.New("certstore: no identity")
	}
	if err := o.Source.check(); err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	if o.Clock == nil {
		o.Clock = WallClock()
	}
	switch {
	case o.TrialSpacing == 0:
		o.TrialSpacing = time.Minute
	case o.TrialSpacing < 0:
		o.TrialSpacing = 0
	}
	if o.TrialBurst <= 0 {
		o.TrialBurst = trialBurst
	}
	s := &Store{o: o, disk: osDisk(), changed: make(chan struct{}, 1), unread: newLatch()}
	s.source, s.watched = o.Source, watchedFiles(o.Source)
	s.clockGen = o.Clock.Generation()
	s.recall()
	return s, nil
}

// Await returns when the files have been read for the first time, when they turn out not to answer, or when ctx ends.
func (s *Store) Await(ctx context.Context) { s.unread.await(ctx) }

// Current returns the credential to use: the last one that a session proved, or, when none was proved yet, the first
// that the files offered. It is nil while there is none, and it is never taken away because of its age or of what
// happens to the files.
func (s *Store) Current() *Credential {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current
}

// Candidate returns the credential that should be tried now, or nil. It is always different from Current. Reading it
// changes nothing: it stays until Commit, Miss or newer files. With no connection open, dial the candidate first; when
// it fails, Current; and keep alternating while both fail.
func (s *Store) Candidate() *Credential {
	s.mu.Lock()
	defer s.mu.Unlock()
	if sl := s.dueLocked(time.Now()); sl != nil {
		return sl.cred
	}
	return nil
}

// Changed says "look again at Current and Candidate": after new files, when a retry falls due, and when the clock
// stepped or became trusted. It is a one-slot channel for one receiver and is never closed.
func (s *Store) Changed() <-chan struct{} { return s.changed }

// Commit says that the hub accepted a connection made with c and answered a round trip on it. c becomes Current; gap is
// how long the identity went without an acknowledged message because of the change, zero when there was no connection.
// For the Current that is proved already it does nothing, so it may be called for every proved connection. It returns at
// once; what has to reach the disk is written in the follower's turn and repeated until it succeeds.
func (s *Store) Commit(c *Credential, gap time.Duration) {
	s.update(func() { s.commitLocked(c, gap) })
	s.ring.poke()
}

// Miss says that a trial of c failed and that Current got through right after: the failure is c's own. c is offered
// again after 1, 2, 5, 10, 20 and 30 minutes and then hourly, and at once when the files change. reason is what the trial
// saw, for the operator. It may come after a Commit of c, when another Commit brought the credential before it back: then
// c is a candidate again and its misses count on. A credential that newer files replaced meanwhile is ignored.
func (s *Store) Miss(c *Credential, reason string) {
	s.update(func() { s.missLocked(c, reason) })
	s.ring.poke()
}

// NoVerdict says that a trial of c failed and Current did not get through either. Nothing is held against c, which stays
// the candidate; how soon to try again is the session's affair.
func (s *Store) NoVerdict(c *Credential, reason string) {
	s.update(func() {
		for _, sl := range s.holding(c) {
			sl.noVerdicts++
			sl.reason = reason
		}
	})
}

// SetSource follows other files from now on. The current credential stays until the new files offer a better one.
func (s *Store) SetSource(src Source) error {
	if err := src.check(); err != nil {
		return err
	}
	s.update(func() { s.source, s.watched = src, watchedFiles(src) })
	s.ring.touch()
	return nil
}

// Identity returns the name that the Store was opened for.
func (s *Store) Identity() string { return s.o.Identity }

// update runs f with the lock held and writes the log lines that f left, without it.
func (s *Store) update(f func()) {
	s.mu.Lock()
	f()
	lines := s.lines
	s.lines = nil
	s.mu.Unlock()
	if len(lines) == 0 {
		return
	}
	log := s.log()
	for _, l := range lines {
		log.Log(l.level, l.text, l.fields...)
	}
}

// log is for lines with the identity's name. It is made when there is something to say: kept by each of many Stores that
// have nothing to, it would cost 1.5 KiB each.
func (s *Store) log() *zap.Logger { return s.o.Log.With(zap.String("identity", s.o.Identity)) }

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
