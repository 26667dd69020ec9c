package certstore

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

const (
	// hubSkew is how far the hub's clock may lag behind a trusted local one when a certificate becomes valid.
	hubSkew = 10 * time.Second
	// rejectedAfter is the number of misses at which an operator is told.
	rejectedAfter = 3
	// trialBurst is the default of Options.TrialBurst: an operator who corrects a file twice should not have to wait, a
	// renewer gone wild should.
	trialBurst = 3
)

// missLadder is the wait after each miss; its last step repeats. Early steps are short because a new thumbprint or issuer
// takes the hub minutes to know everywhere.
func missWait(misses int) time.Duration {
	ladder := [...]time.Duration{time.Minute, 2 * time.Minute, 5 * time.Minute, 10 * time.Minute, 20 * time.Minute, 30 * time.Minute, time.Hour}
	return ladder[min(misses, len(ladder))-1]
}

// state is what a Store knows; its methods need the lock.
type state struct {
	source  Source
	watched []string // source's files and the staged ones

	current      *Credential
	proved       bool
	fromLastGood bool

	files  slot // what Source holds
	staged slot // what the ".new" files beside it hold

	settling   bool
	superseded string    // fingerprint that a ".new" pair replaced while it is still in Source's files
	busyUntil  time.Time // the end of the time that past trials have used up

	replaced       *Credential // what the last Commit took the place of
	takenBack      string      // fingerprint that was committed and missed afterwards
	takenBackTimes int         // its misses, over commits

	generation   uint64
	lastRotation time.Time
	gap          time.Duration
	backwards    bool
	known        bool   // a credential of this identity was proved, now or in an earlier run
	remembered   string // fingerprint that NAME.json holds
	copied       string // fingerprint that NAME.pem holds
	unsaved      bool
	notPersisted string
	promote      string // fingerprint whose ".new" files take the place of Source's

	expiry    expiryStage
	expiryFor string // fingerprint that expiry speaks of
	heldBack  bool   // a due candidate waits for TrialSpacing, and this was said
	offered   string // fingerprint that was due when the session was last woken
	clockGen  uint64

	watch    string
	where    []string // problems of the files' place
	looseKey string   // the key file's mode when others may read it
	lines    []line
	counters counters
}

type counters struct{ committed, missed, rejected, staged uint64 }

type line struct {
	level  zapcore.Level
	text   string
	fields []zap.Field
}

func (st *state) say(level zapcore.Level, text string, fields ...zap.Field) {
	st.lines = append(st.lines, line{level, text, fields})
}

// slot is one place where a candidate can come from.
type slot struct {
	cred       *Credential    // valid and different from current, else nil
	state      CandidateState // without regard to blocked
	blocked    CandidateState // "" or why cred's validity forbids a trial now
	reason     string
	hint       string
	content    [sha256.Size]byte // of the bytes that were judged
	misses     int
	noVerdicts int
	next       time.Time // no trial before; carries a monotonic reading
	since      time.Time // when the files stopped being usable
	kind       IncompleteKind
	told       zapcore.Level // of the worst line about this trouble; zero (info) for none
}

// slots lists where a candidate can come from. Files named ".new" come first: whoever wrote them asked for a trial.
func (st *state) slots() [2]*slot { return [...]*slot{&st.staged, &st.files} }

// holding lists the slots whose candidate is c.
func (st *state) holding(c *Credential) []*slot {
	var found []*slot
	for _, sl := range st.slots() {
		if c != nil && sl.cred != nil && sl.cred.fingerprint == c.fingerprint {
			found = append(found, sl)
		}
	}
	return found
}

// dueLocked is the slot whose credential a session should try now.
func (s *Store) dueLocked(now time.Time) *slot {
	for _, sl := range s.slots() {
		if s.readyLocked(sl, now) {
			if !s.spacedLocked(now) {
				return nil
			}
			return sl
		}
	}
	return nil
}

func (s *Store) readyLocked(sl *slot, now time.Time) bool {
	return sl.cred != nil && !now.Before(sl.next) && s.worthLocked(sl.cred) == ""
}

func (s *Store) spacedLocked(now time.Time) bool {
	return !s.freeLocked().After(now)
}

// freeLocked is when the next trial may begin.
func (s *Store) freeLocked() time.Time {
	return s.busyUntil.Add(-time.Duration(s.o.TrialBurst-1) * s.o.TrialSpacing)
}

func (s *Store) spendLocked() {
	now := time.Now()
	if s.busyUntil.Before(now) {
		s.busyUntil = now
	}
	s.busyUntil = s.busyUntil.Add(s.o.TrialSpacing)
}

// worthLocked says whether c's validity allows a trial: "" or the state that forbids it. With a current credential that
// is out of date itself there is nothing to lose, so the hub's clock may decide.
func (s *Store) worthLocked(c *Credential) CandidateState {
	now, trusted := s.o.Clock.Now()
	if s.current == nil || now.After(s.current.about.notAfter) {
		return ""
	}
	switch {
	case now.After(c.about.notAfter):
		return Refused
	case trusted && now.Before(c.about.notBefore.Add(hubSkew)) && now.Before(c.about.notAfter):
		return Early
	}
	return ""
}

// offerLocked takes what a slot's files hold: a credential or the reason why there is none.
func (s *Store) offerLocked(sl *slot, content [sha256.Size]byte, c *Credential, err error) {
	switch {
	case err != nil:
		s.unusableLocked(sl, content, err)
	case s.current == nil:
		s.current, s.proved, s.fromLastGood = c, false, false
		*sl = slot{state: None, content: content}
		s.say(zap.InfoLevel, "certificate loaded", credFields(c)...)
		wake(s.changed)
	case c.fingerprint == s.current.fingerprint, sl == &s.files && c.fingerprint == s.superseded:
		if sl.told > zap.InfoLevel {
			s.say(zap.InfoLevel, "certificate files are in order again")
		}
		if c.fingerprint == s.current.fingerprint {
			s.fromLastGood = false
		}
		*sl = slot{state: None, content: content}
	case sl.cred != nil && sl.cred.fingerprint == c.fingerprint && sl.content == content:
		// Moved or with another mode, but the same bytes: what was decided about it stands.
	default:
		if sl.cred == nil || sl.cred.fingerprint != c.fingerprint {
			s.counters.staged++
			s.say(zap.InfoLevel, "certificate candidate staged", credFields(c)...)
		}
		*sl = slot{cred: c, state: Staged, content: content}
		s.superseded = ""
	}
}

func (s *Store) unusableLocked(sl *slot, content [sha256.Size]byte, err error) {
	old := *sl
	*sl = slot{content: content, reason: err.Error(), state: Refused, since: time.Now()}
	var inc *Incomplete
	if errors.As(err, &inc) {
		sl.state, sl.kind = Waits, inc.Kind
		if old.state == Waits {
			sl.since, sl.told = old.since, old.told
		}
		return
	}
	fields := []zap.Field{zap.Error(err)}
	var inv *Invalid
	if errors.As(err, &inv) {
		sl.reason, sl.hint = inv.Reason, inv.Hint
		fields = []zap.Field{zap.String("reason", inv.Reason), zap.String("hint", inv.Hint)}
		if inv.Fingerprint != "" {
			fields = append(fields, zap.String("fingerprint", inv.Fingerprint))
		}
	}
	sl.told = zap.WarnLevel
	if old.state != Refused || old.reason != sl.reason {
		text := "certificate refused, the current one carries on"
		if s.current == nil {
			text = "certificate refused and there is no other"
		}
		s.say(zap.WarnLevel, text, fields...)
	}
}

func (s *Store) commitLocked(c *Credential, gap time.Duration) {
	if c == nil {
		return
	}
	if s.current != nil && s.current.fingerprint == c.fingerprint {
		if !s.proved {
			s.proved = true
			s.provedLocked(c)
		}
		return
	}
	old := s.current
	s.spendLocked()
	held := s.holding(c)
	for _, sl := range held {
		if sl == &s.staged {
			s.promote = c.fingerprint
			if old != nil {
				s.superseded = old.fingerprint
			}
		}
		*sl = slot{state: None, content: sl.content}
	}
	if s.promote != c.fingerprint {
		s.promote = ""
	}
	s.current, s.proved, s.fromLastGood = c, true, false
	s.replaced = old
	if len(held) == 0 {
		s.takeBackLocked(old)
	}
	s.counters.committed++
	s.lastRotation, s.gap = time.Now().Round(0), gap
	s.backwards = old != nil && c.about.notBefore.Before(old.about.notBefore)
	s.provedLocked(c)
	level, text := zap.InfoLevel, "certificate committed"
	if s.backwards {
		level, text = zap.WarnLevel, "certificate committed, but it is older than the one before"
	}
	s.say(level, text, append(credFields(c), zap.Duration("gap", gap))...)
	wake(s.changed)
}

// provedLocked counts a credential that the hub accepted, unless it is the one that the last run left.
func (s *Store) provedLocked(c *Credential) {
	s.known = true
	if c.fingerprint != s.remembered {
		s.generation++
		s.unsaved = true
	}
	if s.o.KeepLastGood && c.fingerprint != s.copied {
		s.unsaved = true
	}
}

// takeBackLocked makes c a candidate again when it was current before the present one
// and is what the files hold: still, or because they went back to it during the trial.
func (s *Store) takeBackLocked(c *Credential) {
	if c == nil || s.replaced == nil || c.fingerprint != s.replaced.fingerprint || s.files.cred != nil || s.files.state != None {
		return
	}
	if s.takenBack != c.fingerprint {
		s.takenBack, s.takenBackTimes = c.fingerprint, 0
	}
	s.files = slot{cred: c, state: Staged, content: s.files.content, misses: s.takenBackTimes}
	s.replaced, s.superseded = nil, ""
}

func (s *Store) missLocked(c *Credential, reason string) {
	held := s.holding(c)
	if len(held) == 0 {
		s.takeBackLocked(c)
		held = s.holding(c)
	}
	if len(held) == 0 {
		return
	}
	s.spendLocked()
	s.counters.missed++
	var misses int
	hint := s.missHint(c)
	for _, sl := range held {
		sl.misses++
		misses = sl.misses
		sl.next = time.Now().Add(missWait(sl.misses))
		sl.reason, sl.hint, sl.state = reason, hint, Missed
		if sl.misses >= rejectedAfter {
			sl.state = Rejected
		}
	}
	if s.takenBack == c.fingerprint {
		s.takenBackTimes = misses
	}
	s.offered = ""
	fields := append(credFields(c), zap.String("reason", reason), zap.String("hint", hint), zap.Int("attempt", misses))
	switch misses {
	case 1:
		s.say(zap.WarnLevel, "certificate candidate missed, the current one carries on", fields...)
	case rejectedAfter:
		s.counters.rejected++
		s.say(zap.ErrorLevel, "certificate candidate rejected, the current one carries on", fields...)
	}
}

// missHint says what an operator can do about a credential that the hub did not take.
func (s *Store) missHint(c *Credential) string {
	if s.current != nil && s.current.about.issuer != c.about.issuer {
		return fmt.Sprintf("the issuer changed from %q to %q: is the new one registered in the hub or the enrollment group?", s.current.about.issuer, c.about.issuer)
	}
	return "is the thumbprint or the issuing CA entered in the hub, and the device enabled?"
}

func credFields(c *Credential) []zap.Field {
	return []zap.Field{zap.String("fingerprint", c.fingerprint), zap.String("sha1", c.SHA1()), zap.String("sha256", c.SHA256()),
		zap.Time("not_after", c.about.notAfter)}
}
