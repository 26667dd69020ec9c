package certstore

import (
	"crypto/sha256"
	"os"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// A Store is a subject.

func (s *Store) bell() *bell { return &s.ring }

func (s *Store) first() [sha256.Size]byte { return s.opened }

// begin takes the first reading.
func (s *Store) begin(v view) {
	s.judge(v, doubtWait)
	s.update(s.preferFilesLocked)
	s.tick(time.Now())
	s.unread.open()
}

// silent lets those go on that wait for the first reading.
func (s *Store) silent(path string) {
	s.log().Warn("certificate files do not answer and are read as soon as they do", zap.String("path", path))
	if s.unread.closed() {
		s.update(s.preferFilesLocked)
	}
	s.unread.open()
}

func (s *Store) answers() { s.log().Info("certificate files answer again") }

func (s *Store) settles(on bool) { s.update(func() { s.settling = on }) }

// paths lists the files whose place is watched, whether they exist or not.
func (s *Store) paths() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.watched
}

// watchedFiles are those of src and the ones that may be staged beside them.
func watchedFiles(src Source) []string {
	paths := src.files()
	if src.PKCS12 != "" {
		return append(paths, src.PKCS12+stagedSuffix)
	}
	paths = append(paths, src.Cert+stagedSuffix)
	if src.Key != "" && src.Key != src.Cert {
		paths = append(paths, src.Key+stagedSuffix)
	}
	return paths
}

func (s *Store) look(read func(Source) sight) view {
	s.mu.Lock()
	src := s.source
	s.mu.Unlock()
	sights := []sight{read(src)}
	if staged, ok := src.stagedSource(); ok {
		sights = append(sights, read(staged))
	}
	return newView(sights...)
}

// judge offers what the files hold. Something that parses but looks half written, such as a chain that lost its
// intermediates, has to stay as it is for longer before it is believed.
func (s *Store) judge(v view, stable time.Duration) (again bool) {
	current := s.Current()
	type finding struct {
		sight sight
		cred  *Credential
		err   error
	}
	found := make([]finding, len(v.sights))
	for i, sight := range v.sights {
		c, err := sight.credential()
		if err == nil {
			err = s.acceptable(c, sight)
		}
		if err == nil && stable < doubtWait && current != nil && (len(c.doubts) > 0 || len(c.chain) < len(current.chain)) {
			again = true
		}
		found[i] = finding{sight, c, err}
	}
	if again {
		return true
	}
	s.update(func() {
		if len(found) < 2 {
			s.staged = slot{state: None}
		}
		for i, f := range found {
			sl := &s.files
			if i == 1 {
				sl = &s.staged
			}
			s.offerLocked(sl, f.sight.content, f.cred, f.err)
		}
	})
	return false
}

// acceptable applies the rules that hold before any dial. A key that others may read is refused for an identity that was
// never proved; for a box that works, being locked out would be worse than the warning.
func (s *Store) acceptable(c *Credential, from sight) error {
	if err := nameProblem(c, s.o.CommonName); err != nil {
		return err
	}
	path := from.src.keyPath()
	mode := looseMode(from.files[path].info)
	if mode == 0 {
		s.update(func() { s.looseKey = "" })
		return nil
	}
	text := looseText(path, mode)
	var first bool
	s.update(func() {
		if first = s.current == nil && !s.known; first || s.looseKey == text {
			return
		}
		s.looseKey = text
		s.say(zap.WarnLevel, "private key file may be read or written by others", zap.String("reason", text))
	})
	if first {
		reason, hint, _ := strings.Cut(text, "; ")
		return &Invalid{Reason: reason, Hint: hint, Fingerprint: c.fingerprint}
	}
	return nil
}

// placed notes how the files are watched and what is wrong with where they are.
func (s *Store) placed(mode string, where []string) {
	s.mu.Lock()
	src := s.source
	s.mu.Unlock()
	where = append(where, snapshots(src.files(), os.Getenv("CREDENTIALS_DIRECTORY"))...)
	s.update(func() {
		for _, text := range where {
			if !slices.Contains(s.where, text) {
				s.say(zap.WarnLevel, "certificate file is in a place that hides renewals", zap.String("reason", text))
			}
		}
		s.watch, s.where = mode, where
	})
}

// preferFilesLocked drops a remembered credential that is out of date when the files hold a better one.
func (s *Store) preferFilesLocked() {
	now, _ := s.o.Clock.Now()
	if s.fromLastGood && s.files.cred != nil && now.After(s.current.about.notAfter) {
		s.current, s.fromLastGood = s.files.cred, false
		s.files = slot{state: None, content: s.files.content}
	}
	if s.fromLastGood {
		s.say(zap.WarnLevel, "the last good certificate is kept until the files hold one that works", credFields(s.current)...)
	}
}

// tick does what time asks for: validity that begins or ends, retries that fall due, expiry, what could not be persisted.
func (s *Store) tick(now time.Time) time.Time {
	var next time.Time
	s.update(func() {
		for _, sl := range s.slots() {
			s.blockedLocked(sl)
			s.patienceLocked(sl, now)
			if sl.next.After(now) {
				next = earliest(next, sl.next)
			}
		}
		s.expiryLocked()
		s.wakeLocked(now)
		if free := s.freeLocked(); free.After(now) {
			next = earliest(next, free)
		}
	})
	s.persist()
	return next
}

// blockedLocked follows a candidate's validity.
func (s *Store) blockedLocked(sl *slot) {
	if sl.cred == nil {
		return
	}
	was := sl.blocked
	sl.blocked = s.worthLocked(sl.cred)
	if sl.blocked == was {
		return
	}
	leaf := &sl.cred.about
	fields := []zap.Field{zap.String("fingerprint", sl.cred.fingerprint), zap.Time("not_before", leaf.notBefore), zap.Time("not_after", leaf.notAfter)}
	switch sl.blocked {
	case Refused:
		sl.reason, sl.hint = blockedText(sl)
		s.say(zap.WarnLevel, "certificate refused, the current one carries on", append(fields, zap.String("reason", sl.reason))...)
	case Early:
		sl.reason, sl.hint = blockedText(sl)
		s.say(zap.InfoLevel, "certificate candidate waits for its validity", fields...)
	default:
		sl.reason, sl.hint = "", ""
	}
}

// blockedText says why a candidate's validity forbids a trial. A trial that began
// before may have left another reason behind.
func blockedText(sl *slot) (reason, hint string) {
	if sl.blocked == Early {
		return "not valid before " + stamp(sl.cred.about.notBefore), "it is tried then; is the clock of the issuer ahead?"
	}
	return "expired on " + stamp(sl.cred.about.notAfter), "renew it; the current certificate is still valid"
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// patienceLocked speaks up when files stay unusable for longer than a replacement takes.
func (s *Store) patienceLocked(sl *slot, now time.Time) {
	if sl.state != Waits {
		return
	}
	warn := 30 * time.Second
	switch {
	case s.current == nil:
		warn = 3 * time.Second // nothing carries on meanwhile
	case sl.kind == Torn:
		warn = 10 * time.Second
	}
	level := zap.InfoLevel
	switch waited := now.Sub(sl.since); {
	case waited >= 10*time.Minute && s.current != nil:
		level = zap.ErrorLevel
	case waited >= warn:
		level = zap.WarnLevel
	}
	if level <= sl.told {
		return
	}
	sl.told = level
	text := "certificate files are not usable, the current certificate carries on"
	if s.current == nil {
		text = "no certificate yet, waiting for the files"
	}
	s.say(level, text, zap.String("reason", sl.reason))
}

// expiryLocked says each warning once.
func (s *Store) expiryLocked() {
	if s.current == nil {
		return
	}
	now, _ := s.o.Clock.Now()
	if s.expiryFor != s.current.fingerprint {
		s.expiry, s.expiryFor = 0, s.current.fingerprint
	}
	stage, step := expiryOf(s.current, now)
	if stage > s.expiry {
		text := "certificate expires"
		if step.left == 0 {
			text = "certificate expired"
		}
		s.say(step.level, text, zap.String("fingerprint", s.current.fingerprint), zap.Time("not_after", s.current.about.notAfter), zap.String("left", step.name))
	}
	s.expiry = stage
}

// wakeLocked tells the session when another credential has fallen due or the clock has changed.
func (s *Store) wakeLocked(now time.Time) {
	if g := s.o.Clock.Generation(); g != s.clockGen {
		s.clockGen = g
		wake(s.changed)
	}
	due, held := "", false
	if sl := s.dueLocked(now); sl != nil {
		due = sl.cred.fingerprint
	} else {
		for _, sl := range s.slots() {
			held = held || s.readyLocked(sl, now)
		}
	}
	if held && !s.heldBack {
		s.say(zapcore.WarnLevel, "certificates change faster than cut-overs are allowed, the newest waits", zap.Duration("wait", time.Until(s.busyUntil)))
	}
	s.heldBack = held
	if due != "" && due != s.offered {
		wake(s.changed)
	}
	s.offered = due
}

// Status returns a copy of what the Store knows.
func (s *Store) Status() Status {
	silent := s.ring.silent(s)
	s.mu.Lock()
	defer s.mu.Unlock()
	now, trusted := s.o.Clock.Now()
	st := Status{Identity: s.o.Identity, Watch: s.watch, Proved: s.proved, FromLastGood: s.fromLastGood, Generation: s.generation,
		LastRotation: s.lastRotation, GapMS: float64(s.gap) / float64(time.Millisecond), Backwards: s.backwards, NotPersisted: s.notPersisted, ClockTrusted: trusted,
		Committed: s.counters.committed, MissedTrials: s.counters.missed, RejectedTotal: s.counters.rejected, CandidatesTotal: s.counters.staged,
		CandidateState: None}
	st.Problems = append(st.Problems, s.where...)
	if s.looseKey != "" {
		st.Problems = append(st.Problems, s.looseKey)
	}
	if s.current != nil {
		sum := Summarize(s.current, now)
		st.Current = &sum
		if stage, step := expiryOf(s.current, now); stage > 0 {
			st.Expiry = step.name
			if trusted && step.level >= zapcore.ErrorLevel {
				st.Problems = append(st.Problems, expiryText(s.current.about.notAfter, now))
			}
		}
		if trusted && now.Before(s.current.about.notBefore) {
			st.Problems = append(st.Problems, "the current certificate is not valid before "+stamp(s.current.about.notBefore))
		}
	}
	s.candidateStatusLocked(&st, now, time.Now())
	switch {
	case silent != "" && s.current == nil && st.CandidateState == None:
		st.CandidateState, st.CandidateReason, st.CandidateHint = Waits, silentText(silent), silentHint
	case silent != "":
		st.Problems = append([]string{silentText(silent) + "; " + silentHint}, st.Problems...)
	case s.current == nil && st.CandidateState == None && s.unread.closed():
		st.CandidateState, st.CandidateReason = Waits, "its files are being read"
	}
	return st
}

const silentHint = "is the server of the share up? the file is read as soon as it answers"

func silentText(path string) string { return path + " cannot be read: its file system does not answer" }

func (s *Store) candidateStatusLocked(st *Status, validity, now time.Time) {
	for _, sl := range s.slots() {
		if sl.state == None || sl.state == "" {
			continue
		}
		st.CandidateState, st.CandidateReason, st.CandidateHint = sl.state, sl.reason, sl.hint
		st.Misses, st.NoVerdicts = sl.misses, sl.noVerdicts
		if sl.cred != nil {
			sum := Summarize(sl.cred, validity)
			st.Candidate = &sum
			st.NextRetry = sl.next.Round(0)
			if free := s.freeLocked(); !s.spacedLocked(now) && free.After(sl.next) {
				st.NextRetry = free.Round(0)
			}
			switch sl.blocked {
			case Refused:
				st.CandidateState, st.NextRetry = Refused, time.Time{}
			case Early:
				st.CandidateState, st.NextRetry = Early, sl.cred.about.notBefore.Add(hubSkew)
			}
			if sl.blocked != "" {
				st.CandidateReason, st.CandidateHint = blockedText(sl)
			}
			if st.NextRetry.Before(now) {
				st.NextRetry = time.Time{}
			}
		}
		break
	}
	if s.settling && st.CandidateState == None {
		st.CandidateState = Settling
	}
}
