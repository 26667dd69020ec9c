package hub

import (
	"context"
	"sync/atomic"
	"time"

	"gatewayd/internal/certstore"
)

type cutPhase int

// The phases of a cut-over. The working connection goes on sending while dialing and
// leaving; it pauses while draining, and for a moment while connecting.
const (
	cutNone cutPhase = iota
	cutDialing
	cutLeaving
	cutDraining
	cutConnecting
)

var cutNames = [...]string{"", "dialing", "waiting for answers to methods", "collecting acknowledgements", "connecting"}

// cutover is a trial of a candidate beside a working connection. The hub keeps one
// connection per identity and ends the old one when it accepts the new one, so
// everything that can fail before comes before: TLS first, then the outstanding
// acknowledgements, then CONNECT.
type cutover struct {
	phase  cutPhase
	home   bool // not a trial: the way back to port 8883, with the credential in use
	cred   *certstore.Credential
	cancel context.CancelFunc
	result chan trialResult // of the dialing goroutine, which sends exactly once
	tr     *transport
	next   *conn
	left   *atomic.Bool // nothing waits for an answer on the old connection any more
	place  func()       // gives the place among all identities' trials back; nil: has none

	stopped  time.Time // sending stopped
	resume   time.Time // sending goes on over the old connection if CONNECT is not answered by then
	deadline time.Time // of the phase

	// After trials that never reached the hub, the next one waits.
	backoff   backoff
	notBefore time.Time

	rotating *rotating
}

type trialResult struct {
	tr    *transport
	fault *Fault
	place func()
}

// rotating is what is measured of a cut-over until the new connection is proved.
type rotating struct {
	from, to         string
	start            time.Time // last acknowledgement on the old connection, or the stop of sending
	stopped, resumed time.Time
	left             int  // without acknowledgement at the end of the old connection
	busy             bool // there was something to send at once
}

// connack and dead are nil, and so never ready, but while connecting.
func (c *cutover) connack() <-chan byte {
	if c.next == nil {
		return nil
	}
	return c.next.connack
}

func (c *cutover) dead() <-chan struct{} {
	if c.next == nil {
		return nil
	}
	return c.next.dead
}

// holding says that nothing may be sent on the old connection.
func (c *cutover) holding() bool {
	return c.phase == cutDraining || c.phase == cutConnecting && time.Now().Before(c.resume)
}

func (c *cutover) release() {
	if c.place != nil && c.phase == cutNone {
		c.place()
		c.place = nil
	}
}

func (s *Session) setPhase(p cutPhase) {
	s.cut.phase = p
	s.board.set(func(st *Status) { st.Trial = cutNames[p] })
}

// stepCut begins a cut-over when a candidate is due, or the way back to port 8883,
// and moves it on.
func (s *Session) stepCut(ctx context.Context) {
	now := time.Now()
	switch s.cut.phase {
	case cutNone:
		s.beginCut(ctx, now)
	case cutLeaving:
		if !s.cut.left.Load() && now.Before(s.cut.deadline) {
			s.alarm.at(s.cut.deadline)
			return
		}
		s.cut.stopped, s.cut.deadline = now, now.Add(s.cfg.Timing.CutDrain)
		s.setPhase(cutDraining)
		poke(s.live.c.wake) // the answers go out before CONNECT
	case cutDraining:
		if !s.live.c.drained() && now.Before(s.cut.deadline) {
			s.alarm.at(s.cut.deadline)
			return
		}
		s.cut.next = s.connect(s.cut.cred, s.cut.tr)
		s.cut.tr = nil
		s.cut.deadline, s.cut.resume = now.Add(s.cfg.Timing.Connack), now.Add(s.cfg.Timing.CutPause)
		s.setPhase(cutConnecting)
		s.stepCut(ctx)
	case cutConnecting:
		if !now.Before(s.cut.deadline) {
			s.cutFailed(classify(errNoConnack, StepConnect, true))
			return
		}
		s.alarm.at(s.cut.deadline)
		if now.Before(s.cut.resume) {
			s.alarm.at(s.cut.resume)
		}
	}
}

// beginCut dials a candidate while the working connection goes on. Only a proved
// connection is worth a comparison.
func (s *Session) beginCut(ctx context.Context, now time.Time) {
	if !s.live.proved || s.judge.suspect != nil {
		return
	}
	cand := s.creds.Candidate()
	if cand == nil || same(cand, s.live.c.cred) {
		s.beginReturn(ctx, now)
		return
	}
	if !same(cand, s.cut.cred) {
		s.cut.backoff, s.cut.notBefore = backoff{t: &s.cfg.Timing}, time.Time{}
	}
	if now.Before(s.cut.notBefore) {
		s.alarm.at(s.cut.notBefore)
		return
	}
	s.beginDial(ctx, cand, s.dial.dial)
}

// beginReturn looks, now and then, whether port 8883 is open again. What is found
// then replaces the connection over WebSocket as a candidate's would.
func (s *Session) beginReturn(ctx context.Context, now time.Time) {
	due, wanted := s.dial.ways.back()
	switch {
	case !wanted, s.live.c.over != OverWebSocket:
	case now.Before(due):
		s.alarm.at(due)
	default:
		s.cut.home = true
		s.beginDial(ctx, s.live.c.cred, s.dial.home)
	}
}

type dialFunc func(context.Context, *certstore.Credential) (*transport, *Fault)

func (s *Session) beginDial(ctx context.Context, cred *certstore.Credential, dial dialFunc) {
	ctx, cancel := context.WithCancel(ctx)
	result := make(chan trialResult, 1)
	s.cut.cred, s.cut.cancel, s.cut.result = cred, cancel, result
	s.setPhase(cutDialing)
	s.wg.Go(func() { result <- s.trial(ctx, cred, dial) })
}

// trial waits for a place among all trials and finishes TLS with the candidate.
func (s *Session) trial(ctx context.Context, cand *certstore.Credential, dial dialFunc) trialResult {
	place, err := s.pacer.trial(ctx)
	if err == nil {
		err = s.pacer.connect(ctx)
	}
	if err != nil {
		return trialResult{place: place, fault: classify(err, StepName, false)}
	}
	tr, fault := dial(ctx, cand)
	return trialResult{tr: tr, fault: fault, place: place}
}

// transportReady ends the dialing. Answers that the hub waits for belong on the old
// connection; when they are given, it pauses.
func (s *Session) transportReady(r trialResult) {
	s.cut.cancel()
	s.cut.result, s.cut.place = nil, r.place
	if r.fault != nil {
		s.cutFailed(r.fault)
		return
	}
	s.cut.tr = r.tr
	s.cut.deadline = time.Now().Add(s.cfg.Timing.CutDrain)
	s.setPhase(cutLeaving)
	s.cut.left = s.leave(s.live.c, s.cfg.Timing.CutDrain*2/3)
}

// leave has what waits for an answer on a connection answered within wait. What is
// returned becomes true when that is done, which wakes the session.
func (s *Session) leave(c *conn, wait time.Duration) *atomic.Bool {
	left := new(atomic.Bool)
	if s.cfg.Commands == nil {
		left.Store(true)
		return left
	}
	s.cfg.Commands.Leaving(c, wait, func() {
		left.Store(true)
		poke(c.wake)
	})
	return left
}

// answered takes the hub's answer to the new CONNECT.
func (s *Session) answered(code byte) {
	if code != 0 {
		s.cutFailed(classify(refusedError(code), StepConnect, s.cut.next.presented))
		return
	}
	old, next := s.live.c, s.cut.next
	if s.cut.home {
		s.dial.ways.works(OverTLS, nil, &s.cfg.Timing)
	} else {
		s.cut.rotating = s.measure(old, next)
	}
	s.cut.next, s.cut.home = nil, false
	s.setPhase(cutNone)
	s.take(next)
	// The hub has ended it already, or is about to.
	old.kill(errReplaced)
}

// measure notes what the gap is reckoned from. The time before the stop counts only
// when the old connection was busy until then.
func (s *Session) measure(old, next *conn) *rotating {
	r := &rotating{from: old.cred.Fingerprint(), to: next.cred.Fingerprint(),
		start: s.cut.stopped, stopped: s.cut.stopped, resumed: time.Now(), left: old.inFlight()}
	if at := old.lastAck.Load(); at > 0 {
		if last := old.born.Add(time.Duration(at)); last.After(s.cut.stopped.Add(-time.Second)) {
			r.start = last
		}
	}
	return r
}

// rotated ends the measurement, when there is one, and returns the gap.
func (s *Session) rotated() time.Duration {
	r := s.cut.rotating
	if r == nil {
		return 0
	}
	s.cut.rotating = nil
	rot := Rotation{At: time.Now(), From: r.from, To: r.to, Resent: r.left,
		Pause: r.resumed.Sub(r.stopped), Gap: r.resumed.Sub(r.stopped)}
	if at := s.live.c.firstAck.Load(); at > 0 && r.busy {
		rot.Gap = s.live.c.born.Add(time.Duration(at)).Sub(r.start)
	}
	s.board.set(func(st *Status) {
		st.Rotation, st.TrialFault = rot, nil
		st.Rotations++
	})
	return rot.Gap
}

// cutFailed gives the candidate up and goes on with the old connection. When the
// hub had seen the candidate, the old connection is the control: the next answer on
// it is the verdict.
func (s *Session) cutFailed(f *Fault) {
	if s.cut.home {
		// No verdict hangs on it, and nobody has to know.
		s.dial.ways.later(&s.cfg.Timing)
		s.dropCut()
		return
	}
	reached := s.cut.phase == cutConnecting || f.presented
	s.endCut(f)
	if !reached {
		s.creds.NoVerdict(s.cut.cred, f.Error())
		s.cut.notBefore = time.Now().Add(s.cut.backoff.next(f.Kind))
		return
	}
	s.judge.failed(s.cut.cred, f)
	s.live.control = s.live.c.rounds.Load()
	s.live.c.ping()
}

// endCut notes a failed trial and drops what it holds.
func (s *Session) endCut(f *Fault) {
	s.dropCut()
	s.board.set(func(st *Status) { st.TrialFault = f })
	s.board.count(string(f.Kind))
}

// abandonCut ends a cut-over that is under way, because the connection beside it
// has ended or the session does.
func (s *Session) abandonCut() {
	if s.cut.phase == cutDialing {
		s.cut.cancel()
		r := <-s.cut.result
		s.cut.result, s.cut.place, s.cut.tr = nil, r.place, r.tr
	}
	s.dropCut()
	s.cut.rotating = nil
}

// dropCut lets go of what a cut-over holds.
func (s *Session) dropCut() {
	if s.cut.tr != nil {
		_ = s.cut.tr.raw.Close()
		s.cut.tr = nil
	}
	if s.cut.next != nil {
		s.cut.next.kill(errEnded)
		s.cut.next = nil
	}
	s.cut.home = false
	s.setPhase(cutNone)
	s.cut.release()
}

// awaitSuccessor waits for the answer to the new CONNECT when the old connection
// has ended first, as it does when the hub accepts the new one. Unless that is what
// happened, the trial has failed and is over.
func (s *Session) awaitSuccessor(ctx context.Context) (end *ending) {
	next, cred := s.cut.next, s.cut.cred
	err := next.await(ctx, time.Until(s.cut.deadline))
	if err == nil {
		s.answered(0)
		return nil
	}
	fault := classify(err, StepConnect, next.presented)
	if s.cut.home {
		s.dial.ways.later(&s.cfg.Timing)
		s.dropCut()
	} else {
		s.endCut(fault)
	}
	s.lose()
	return &ending{cred: cred, fault: fault}
}
