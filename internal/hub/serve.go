package hub

import (
	"context"
	"time"

	"go.uber.org/zap"

	"gatewayd/internal/queue"
)

// live is the working connection and what is known about it.
type live struct {
	c        *conn
	in       reader
	held     queue.Message // read, and waiting for its share of the send rate; Seq 0: none
	accepted time.Time
	proved   bool
	healthy  bool      // said so on the board
	idle     bool      // the queue had nothing more to give
	again    bool      // the reader was set back for the suspect
	unread   bool      // said that the queue cannot be read
	skipped  int       // messages left out since the reader began
	sendAt   time.Time // no sending before; zero: now
	control  uint64    // rounds above it answer for the current credential after a failed trial; 0: no question
}

// take makes c, whose CONNECT was accepted, the working connection. A fresh reader
// begins at the oldest unacknowledged message: resending is a consequence.
func (s *Session) take(c *conn) {
	if old := s.live.c; old != nil {
		s.remember(old)
	}
	s.live = live{c: c, in: s.q.newReader(), accepted: time.Now()}
	if s.packs != nil {
		s.packs.reread()
	}
	s.pace.begin(s.live.accepted)
	if s.suspicious.Load() {
		s.withPoison((*poison).connected)
	}
	c.open()
	c.ping() // the round trip that proves a connection with nothing to send
	s.board.count(ResultAccepted)
	s.board.set(func(st *Status) {
		s.shown = c
		st.Fingerprint, st.Remote, st.Transport, st.NextTry = c.cred.Fingerprint(), c.remote, c.over, time.Time{}
	})
	s.tellWay()
}

// tellWay says when the other way than the first has to be taken, and when that is over.
func (s *Session) tellWay() {
	if s.cfg.Transport != Auto {
		return
	}
	why := s.dial.ways.detour()
	var before *Fault
	s.board.set(func(st *Status) { before, st.Detour = st.Detour, why })
	switch {
	case why != nil && (before == nil || before.Kind != why.Kind):
		s.log().Warn("the hub cannot be reached over mqtt, mqtt-ws is taken", zap.Error(why), zap.String("hint", why.Hint))
	case why == nil && before != nil:
		s.log().Info("the hub is reached over mqtt again")
	}
}

// remember keeps what is in limbo on a connection that is given up: all of it is read and sent again.
func (s *Session) remember(c *conn) {
	left := c.sent()
	if len(left) == 0 {
		return
	}
	if s.limbo == nil || len(s.limbo) > maxWindow {
		s.limbo = make(map[uint64]struct{}, len(left))
	}
	for _, seq := range left {
		s.limbo[seq] = struct{}{}
	}
}

// serve works with the live connection, and with those that replace it, until one
// ends or ctx does.
func (s *Session) serve(ctx context.Context) *ending {
	defer s.abandonCut()
	// A write that is stuck when the session is told to stop must not outlast the
	// farewell.
	hurry := func(c *conn) func() bool {
		return context.AfterFunc(ctx, func() { c.hurryUp(s.cfg.Timing.Drain) })
	}
	stop := hurry(s.live.c)
	defer func() { stop() }()
	for ; ; s.turns.Add(1) {
		s.pump()
		s.look()
		s.stepCut(ctx)
		c := s.live.c
		s.alarm.arm()
		select {
		case <-ctx.Done():
			return s.farewell()
		case <-c.dead:
			if s.cut.phase != cutConnecting {
				return s.died()
			}
			if end := s.awaitSuccessor(ctx); end != nil {
				return end
			}
		case <-c.wake:
		case <-s.q.Ready():
			s.live.idle = false
		case <-s.creds.Changed():
		case r := <-s.cut.result:
			s.transportReady(r)
		case code := <-s.cut.connack():
			s.answered(code)
		case <-s.cut.dead():
			s.cutFailed(classify(s.cut.next.refusal(), StepConnect, s.cut.next.presented))
		case <-s.packs.recorded():
		case <-s.alarm.fired():
			s.alarm.rang()
		}
		if s.live.c != c {
			stop()
			stop = hurry(s.live.c)
		}
	}
}

// look draws conclusions from what the hub has answered so far, and sets the alarm
// for the next one.
func (s *Session) look() {
	l := &s.live
	now := time.Now()
	if l.c.firstAck.Load() != 0 {
		s.backoff.progress()
	}
	if rounds := l.c.rounds.Load(); rounds > 0 {
		s.cut.release()
		if !l.proved {
			s.prove(now)
		}
		if l.proved && rounds > l.control && l.control > 0 {
			l.control = 0
			s.judge.proved(s.creds, l.c.cred)
		}
	}
	if l.proved && l.c.firstAck.Load() != 0 {
		s.spare = spare{}
	}
	if l.proved && !l.healthy {
		s.healthy(now)
	}
	if stable := l.accepted.Add(s.cfg.Timing.Stable); l.proved && s.backoff.fails > 0 {
		if now.Before(stable) {
			s.alarm.at(stable)
		} else if _, waiting := l.c.stalledSince(); !waiting {
			s.backoff.progress()
		}
	}
	if delay := l.c.ackDelay.Swap(0); delay > 0 {
		s.pace.acked(now, time.Duration(delay))
	}
	if due := s.pace.grow(now, s.cfg.Timing.Stable); !due.IsZero() {
		s.alarm.at(due)
	}
	s.tellPace()
	if since, waiting := l.c.stalledSince(); waiting {
		if due := since.Add(s.cfg.Timing.Ack); now.Before(due) {
			s.alarm.at(due)
		} else {
			l.c.kill(errStalled)
		}
	}
	s.lookForGap(now)
}

// lookForGap gives a connection up on which one acknowledgement seems to be lost: those that come later are of no use, and
// the window fills. A hub that is merely slow is slow with all of them, in their order. One that goes on like this is
// given more and more time.
func (s *Session) lookForGap(now time.Time) {
	l := &s.live
	if s.leftOut > 0 && now.Sub(l.accepted) > forgiveAfter*s.cfg.Timing.Stable {
		s.leftOut = 0
	}
	since, leftOut := l.c.leftOutSince()
	if !leftOut {
		return
	}
	if due := since.Add(double(s.cfg.Timing.LeftOut, s.leftOut, s.cfg.Timing.Ack)); now.Before(due) {
		s.alarm.at(due)
		return
	}
	s.leftOut++
	l.c.kill(errLeftOut)
}

// forgiveAfter is how many times as long as a stable connection one has to live until lost acknowledgements before it do
// not count any more.
const forgiveAfter = 10

// tellPace says when throttling begins, and when the last of it is gone.
func (s *Session) tellPace() {
	if s.pace.limit == s.paceTold {
		return
	}
	before := s.paceTold
	s.paceTold = s.pace.limit
	s.board.set(func(st *Status) { st.Window, st.Throttled = s.pace.limit, s.pace.throttled() })
	switch {
	case before == s.pace.most:
		s.log().Warn("acknowledgements come late or not at all: fewer messages in flight", zap.Int("window", s.pace.limit))
	case !s.pace.throttled():
		s.log().Info("as many messages in flight as configured again", zap.Int("window", s.pace.limit))
	}
}

// prove commits the credential once the hub has answered something that counts: a
// message acknowledged, or any round trip on a connection that then lived on.
func (s *Session) prove(now time.Time) {
	l := &s.live
	if l.c.firstAck.Load() == 0 {
		if s.spare.turn {
			return // a round trip is what the other one had too
		}
		wait := s.cfg.Timing.ProofSlow
		if l.c.inFlight() == 0 {
			wait = s.cfg.Timing.ProofIdle
		}
		if due := l.accepted.Add(wait); now.Before(due) {
			s.alarm.at(due)
			return
		}
	}
	l.proved = true
	s.cfg.Clock.Observed(l.c.server())
	before := s.creds.Current()
	s.creds.Commit(l.c.cred, s.rotated())
	s.spare.committed(before, l.c.cred)
	s.judge.proved(s.creds, l.c.cred)
}

// healthy says on the board and in the log that the session works. After a fault it
// takes what refutes it: a message acknowledged, nothing left to send, or time.
func (s *Session) healthy(now time.Time) {
	l := &s.live
	stable := l.accepted.Add(s.cfg.Timing.Stable)
	switch {
	case s.told == "", s.told != Contested && l.c.firstAck.Load() != 0:
	case s.told == Stalled && l.c.inFlight() > 0:
		return
	case now.Before(stable) && (s.told == Contested || !l.idle || l.c.inFlight() > 0):
		s.alarm.at(stable)
		return
	}
	l.healthy = true
	s.told, s.woken = "", ""
	s.board.state(StateConnected)
	s.board.set(func(st *Status) { st.Fault, st.Attempt = nil, 0 })
	s.log().Info("connected to the hub", zap.String("remote", l.c.remote), zap.String("transport", string(l.c.over)), zap.String("fingerprint", l.c.cred.Fingerprint()))
}

// died describes the live connection after its end.
func (s *Session) died() *ending {
	l := &s.live
	err := l.c.err
	e := &ending{cred: l.c.cred, fault: classify(err, StepSession, l.c.presented), accepted: l.accepted,
		proved: l.proved, byPeer: byPeer(err), answered: l.c.rounds.Load() > 0, acked: l.c.firstAck.Load() != 0}
	if s.keep != nil && l.c.diedSilently(err) {
		s.keep.died(time.Duration(l.c.silence.Load()))
	}
	if left := l.c.outstanding(); len(left) > 0 {
		e.oldest, e.inFlight = left[0], len(left)
	}
	s.lose()
	return e
}

// lose lets go of the live connection, which has ended.
func (s *Session) lose() {
	c := s.live.c
	s.remember(c)
	s.live = live{}
	if s.packs != nil {
		s.packs.reread() // an outage may be long, and all identities' packs are many
	}
	s.board.set(func(st *Status) {
		s.shown = nil
		if at := c.lastAck.Load(); at > 0 {
			st.Progress = c.born.Add(time.Duration(at))
		}
	})
}

// farewell ends the work in order: no new messages, outstanding acknowledgements
// for a bounded time, DISCONNECT.
func (s *Session) farewell() *ending {
	s.abandonCut()
	c := s.live.c
	t := time.NewTimer(s.cfg.Timing.Drain)
	defer t.Stop()
	left := s.leave(c, 0)
	c.send()
	for c.inFlight() > 0 || !left.Load() {
		select {
		case <-c.wake:
			c.send()
			continue
		case <-c.dead:
		case <-t.C:
		}
		break
	}
	c.send() // the latest answers
	c.close()
	s.lose()
	return &ending{cred: c.cred}
}
