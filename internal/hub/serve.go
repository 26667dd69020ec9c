package hub

import (
	"context"
	"slices"
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
	skipped  int       // messages left out since the reader began
	sendAt   time.Time // no sending before; zero: now
	control  uint64    // rounds above it answer for the current credential after a failed trial; 0: no question
}

const (
	// brokenRead is the wait after the queue could not be read.
	brokenRead = 5 * time.Second
	// maxSkipped bounds the search for a message of another sensor.
	maxSkipped = 1000
)

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
}

// remember keeps what is in limbo on a connection that is given up.
func (s *Session) remember(c *conn) {
	left := c.outstanding()
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

// pump reads messages and publishes them while there is room, one write's worth at
// a time.
func (s *Session) pump() {
	l := &s.live
	left := s.allowance()
	for left > 0 && len(l.c.batch) < flushAt {
		u, ok := s.next()
		if !ok {
			break
		}
		if s.publish(u) && s.cut.rotating != nil {
			s.cut.rotating.busy = true
		}
		if u.p == nil {
			l.held = queue.Message{}
		}
		left--
	}
	if left <= 0 {
		s.packAhead()
	}
	full := len(l.c.batch) >= flushAt
	l.c.send()
	switch {
	case full && left > 0:
		poke(l.c.wake) // there may be more than one write takes
	case l.idle:
		l.c.rest()
	}
}

// allowance is how many messages may be read and published now.
func (s *Session) allowance() int {
	l := &s.live
	if s.cut.holding() {
		return 0
	}
	if time.Now().Before(l.sendAt) {
		s.alarm.at(l.sendAt)
		return 0
	}
	room := min(l.c.room(), s.pace.limit-l.c.inFlight())
	if !s.suspicious.Load() {
		return room
	}
	return min(room, s.carefully())
}

// carefully is how many messages may be published while one is suspected of killing
// connections.
func (s *Session) carefully() int {
	l := &s.live
	var p poison
	s.withPoison(func(now *poison) { p = *now })
	switch {
	case !p.careful():
		return maxWindow
	case l.c.inFlight() > 0:
		return 0 // one at a time, so that it is certain which one kills
	case p.quiet() && time.Since(l.accepted) < s.cfg.Timing.Quiet:
		s.alarm.at(l.accepted.Add(s.cfg.Timing.Quiet))
		return 0
	case p.cleared && !l.again:
		l.again = true
		s.rewind()
	}
	return 1
}

// rewind begins again at the oldest message that waits.
func (s *Session) rewind() {
	s.live.in, s.live.held, s.live.idle, s.live.skipped = s.q.newReader(), queue.Message{}, false, 0
	if s.packs != nil {
		s.packs.reread()
	}
}

// leaveOut says whether a message has to wait until it is known what the suspect
// does. When nothing else is there, or only more of the same sensor for a long way,
// the suspect goes without a comparison.
func (s *Session) leaveOut(seq uint64, source string) (skip bool) {
	if s.suspicious.Load() {
		s.withPoison(func(p *poison) { skip = p.skip(seq, source) })
	}
	if skip {
		s.live.skipped++
	}
	return skip
}

// unit is what is published at once: a message that travels alone, or a pack.
type unit struct {
	m *queue.Message
	p *pack
}

// next is what to publish next; false when there is nothing, or not yet. It is the
// caller's until done with it, and has its share of the send rate.
func (s *Session) next() (unit, bool) {
	for {
		u, ok := s.chooseUnit()
		if !ok {
			if !s.read() {
				return unit{}, false
			}
			continue
		}
		if wait, ok := s.pacer.send(); !ok {
			s.live.sendAt = time.Now().Add(wait)
			s.alarm.at(s.live.sendAt)
			return unit{}, false
		}
		return u, true
	}
}

// chooseUnit is the best of what is at hand.
func (s *Session) chooseUnit() (unit, bool) {
	l := &s.live
	for {
		p := s.nextPack()
		switch {
		case p != nil && (l.held.Seq == 0 || p.class >= l.held.Priority):
			if s.leaveOut(p.unit(), p.source()) {
				s.packs.remove(slices.Index(s.packs.closed, p))
				continue
			}
			return unit{p: p}, true
		case l.held.Seq != 0:
			return unit{m: &l.held}, true
		}
		return unit{}, false
	}
}

// packAhead packs what waits while there is no room in the window, so that writing
// packs down costs no time when there is.
func (s *Session) packAhead() {
	l := &s.live
	if s.packs == nil || s.suspicious.Load() || time.Now().Before(l.sendAt) {
		return
	}
	for l.held.Seq == 0 && s.read() {
	}
}

// read takes one message from the queue, into its pack or to be sent by itself. false
// when there is nothing to be had at the moment.
func (s *Session) read() bool {
	l := &s.live
	if s.packs != nil {
		s.packs.sweep()
		s.closeDue()
		if s.packs.full() {
			return false
		}
	}
	if l.idle {
		if l.skipped == 0 || !s.packs.resting() {
			return false
		}
		s.withPoison(func(p *poison) { p.alone() })
		s.rewind()
	}
	m, ok, err := l.in.Next()
	switch {
	case err != nil:
		s.cannotRead(err)
		return false
	case (!ok || l.skipped >= maxSkipped) && l.skipped > 0 && (s.packs.resting() || l.skipped >= maxSkipped):
		s.withPoison(func(p *poison) { p.alone() })
		s.rewind()
	case !ok:
		l.idle = true
		s.readAll()
	default:
		return s.arrange(&m)
	}
	return true
}

func (s *Session) cannotRead(err error) {
	s.log().Error("cannot read from the queue", zap.Error(err))
	s.live.sendAt = time.Now().Add(brokenRead)
	s.alarm.at(s.live.sendAt)
}

// readAll draws the conclusions from a queue that has nothing more to give.
func (s *Session) readAll() {
	if s.packs != nil {
		s.closeDue()
	}
	if !s.packs.resting() {
		return
	}
	s.limbo = nil // all that waits was read once more
	if s.live.c.inFlight() == 0 && s.suspicious.Load() {
		s.withPoison((*poison).forget) // it left the queue in another way
	}
}

// arrange puts a message that was read where it belongs.
func (s *Session) arrange(m *queue.Message) bool {
	if m.Pack.MaxBytes > 0 && s.packs == nil {
		if err := s.startPacks(); err != nil {
			s.rewind()
			s.cannotRead(err)
			return false
		}
	}
	if s.packs != nil && s.packed(m) {
		return true
	}
	if !s.leaveOut(m.Seq, m.Source) {
		s.live.held = *m
	}
	return true
}

// publish puts one message into the batch, or out of the way when the hub would
// close the connection over it.
func (s *Session) publish(u unit) bool {
	if u.p != nil {
		return s.publishPack(u.p)
	}
	m := u.m
	s.topic = appendTopic(s.topic[:0], s.events, m)
	if reason := undeliverable(m, len(s.topic), s.cfg.GatewayHostName != ""); reason != "" {
		s.setAside(m.Seq, reason)
		return false
	}
	return s.put(m.Seq, 1, m.Payload)
}

// put hands what has s.topic over to the connection.
func (s *Session) put(seq uint64, readings int, payload []byte) bool {
	_, again := s.limbo[seq]
	if again {
		delete(s.limbo, seq)
		s.board.set(func(st *Status) { st.Resent += uint64(readings) })
	}
	if err := s.live.c.publish(seq, string(s.topic), payload, again); err != nil {
		// The sizes were checked, so this is a message that nobody can send.
		s.condemn(seq, err.Error())
		s.live.c.kill(err)
		return false
	}
	return true
}

func (s *Session) setAside(seq uint64, reason string) {
	if err := s.q.SetAside(seq, reason); err != nil {
		s.log().Error("cannot set a message aside", zap.Uint64("seq", seq), zap.Error(err))
		return
	}
	s.board.set(func(st *Status) { st.SetAside++ })
	s.log().Warn("message set aside", zap.Uint64("seq", seq), zap.String("reason", reason))
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
}

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
	c.send()
	for c.inFlight() > 0 {
		select {
		case <-c.wake:
			c.send()
			continue
		case <-c.dead:
		case <-t.C:
		}
		break
	}
	c.close()
	s.lose()
	return &ending{cred: c.cred}
}
