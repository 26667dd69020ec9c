package downstream

import (
	"math"
	"time"

	"gatewayd/internal/packet"
)

// session is what belongs to a client id, across connections. Its fields are
// guarded by Local.mu, the box guards itself.
type session struct {
	id, user string // the client id, or for an Azure SDK client what cannot be one
	azure    bool
	number   uint64 // never used again for another session
	conn     *conn  // nil while the client is away
	subs     map[string]subscription
	since    uint64        // Local.changes after the latest of them
	lasts    time.Duration // after the connection; 0 = not at all
	expires  time.Time     // while away
	will     *delayedWill
	box      outbox
}

type subscription struct {
	packet.Subscription
	identifier uint32 // 0 = none
}

type delayedWill struct {
	due  time.Time
	conn *conn
	will *packet.Will
}

// sessionExpiry is how long the session of a CONNECT may outlive its connection.
func (l *Local) sessionExpiry(p packet.Connect) time.Duration {
	if p.Version == packet.V311 {
		if p.CleanStart {
			return 0
		}
		return l.cfg.SessionExpiry
	}
	if p.Properties == nil {
		return 0
	}
	return l.boundExpiry(p.Properties.SessionExpiry)
}

func (l *Local) boundExpiry(seconds uint32) time.Duration {
	if seconds == math.MaxUint32 {
		return l.cfg.SessionExpiry
	}
	return min(time.Duration(seconds)*time.Second, l.cfg.SessionExpiry)
}

// attach makes c the connection of its client id. An earlier connection with the
// id ends, unless it is another user's.
func (l *Local) attach(c *conn, clean bool, lasts time.Duration) (present bool, err error) {
	l.mu.Lock()
	s := l.sessions[c.key]
	if s != nil && s.user != c.user {
		l.mu.Unlock()
		return false, errOwner
	}
	var old *conn
	var will *delayedWill
	if s != nil {
		old = s.conn
		if old == nil {
			l.away--
		}
		// A session that was to end with its connection ends with this takeover.
		if clean || s.lasts == 0 {
			will = s.will // the session ends here, and with it the delay
			l.forgetLocked(s)
			s = nil
		}
	}
	if s == nil {
		l.lastSession++
		s = &session{id: c.key, user: c.user, azure: c.azure != nil, number: l.lastSession}
		l.sessions[c.key] = s
	} else {
		present = true
		s.will = nil
	}
	s.box.resume(c)
	s.conn, s.lasts = c, lasts
	l.mu.Unlock()
	c.mu.Lock()
	c.session = s
	c.mu.Unlock()
	if old != nil {
		old.end(packet.SessionTakenOver)
	}
	if will != nil {
		will.conn.publishWill(will.will)
	}
	return present, nil
}

// detach ends the part of a connection in its session.
func (l *Local) detach(c *conn) {
	will := c.will
	l.mu.Lock()
	s := c.session
	if s.conn == c {
		s.conn = nil
		if s.lasts == 0 {
			l.forgetLocked(s)
		} else {
			s.expires = time.Now().Add(s.lasts)
			l.away++
			if delay := willDelay(will, s.lasts); delay > 0 {
				s.will = &delayedWill{due: time.Now().Add(delay), conn: c, will: will}
				will = nil
			}
			l.evictLocked()
		}
	} else if l.sessions[s.id] == s && willDelay(will, s.lasts) > 0 {
		// Taken over by a connection that goes on with the session.
		will = nil
	}
	l.mu.Unlock()
	if will != nil {
		c.publishWill(will)
	}
}

func willDelay(w *packet.Will, lasts time.Duration) time.Duration {
	if w == nil || w.Properties == nil {
		return 0
	}
	return min(time.Duration(w.Properties.WillDelay)*time.Second, lasts)
}

// evictLocked keeps the number of sessions of absent clients within its bound.
func (l *Local) evictLocked() {
	if l.away <= l.cfg.MaxSessions {
		return
	}
	var oldest *session
	for _, s := range l.sessions {
		if s.conn == nil && (oldest == nil || s.expires.Before(oldest.expires)) {
			oldest = s
		}
	}
	l.away--
	l.forgetLocked(oldest)
}

func (l *Local) forgetLocked(s *session) {
	if l.sessions[s.id] == s {
		delete(l.sessions, s.id)
	}
	delete(l.subscribers, s)
}

// setExpiry follows a DISCONNECT that changes the session's life; false when the
// standard forbids it (3.14.2.2.2: from zero to something else).
func (l *Local) setExpiry(s *session, seconds uint32) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s.lasts == 0 && seconds != 0 {
		return false
	}
	s.lasts = l.boundExpiry(seconds)
	return true
}

// sweep ends sessions and publishes wills whose time has come.
func (l *Local) sweep(now time.Time) {
	var wills []*delayedWill
	l.mu.Lock()
	if l.away > 0 && now.Sub(l.swept) >= time.Second {
		l.swept = now
		for _, s := range l.sessions {
			if s.conn != nil {
				continue
			}
			over := !now.Before(s.expires)
			if s.will != nil && (over || !now.Before(s.will.due)) {
				wills = append(wills, s.will)
				s.will = nil
			}
			if over {
				l.away--
				l.forgetLocked(s)
			}
		}
	}
	l.mu.Unlock()
	for _, w := range wills {
		w.conn.server.running.Go(func() { w.conn.publishWill(w.will) })
	}
}

// matchLocked makes the delivery of a message to a session; ok is false when no
// subscription matches. Overlapping subscriptions make one delivery (3.3.4).
func (s *session) matchLocked(m LocalMessage) (d delivery, ok bool) {
	if m.Azure && !s.azure {
		return d, false
	}
	for filter, sub := range s.subs {
		if !packet.Match(filter, m.Topic) {
			continue
		}
		ok = true
		d.qos = max(d.qos, min(sub.QoS, m.QoS))
		d.retain = d.retain || (m.Retain && sub.RetainAsPublished)
		if sub.identifier != 0 {
			d.identifiers = append(d.identifiers, sub.identifier)
		}
	}
	d.m = m
	return d, ok
}
