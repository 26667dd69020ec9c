package hub

import (
	"slices"
	"time"

	"go.uber.org/zap"

	"gatewayd/internal/queue"
)

const (
	// brokenRead is the wait after the queue could not be read.
	brokenRead = 5 * time.Second
	// maxSkipped bounds the search for a message of another sensor.
	maxSkipped = 1000
)

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
		l.idle, l.unread = true, false
		s.readAll()
	default:
		return s.arrange(&m)
	}
	return true
}

func (s *Session) cannotRead(err error) {
	if !s.live.unread {
		s.live.unread = true
		s.log().Error("cannot read from the queue", zap.Error(err))
	}
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
	s.live.unread = false
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
