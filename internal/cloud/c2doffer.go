package cloud

import (
	"slices"
	"strconv"
	"time"

	"go.uber.org/zap"

	"gatewayd/internal/bag"
	"gatewayd/internal/downstream"
	"gatewayd/internal/queue"
)

// restoreC2D reads what an earlier run left in the queue: messages that wait, and
// notes about those that were acknowledged, whose own departure may not have reached
// the disk.
func (id *Identity) restoreC2D() error {
	s := &id.c2d
	gone := map[uint64]bool{}
	r := id.q.Reader()
	for {
		m, ok, err := r.Next()
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		switch m.Source {
		case sourceC2D:
			props := bag.Parse(m.Topic)
			p := &pending{seq: m.Seq, id: bag.Lookup(props, "$.mid"), expires: expiry(props), offer: new(downstream.Offer)}
			p.mid = keyOf(p.id)
			s.waiting = append(s.waiting, p)
			s.seen.add(p.mid)
		case sourceDone:
			if seq, err := strconv.ParseUint(bag.Lookup(m.Properties, noteSeq), 10, 64); err == nil {
				gone[seq] = true
			}
			s.seen.add(keyOf(m.Topic))
			s.notes = append(s.notes, m.Seq)
		}
	}
	s.waiting = slices.DeleteFunc(s.waiting, func(p *pending) bool {
		if gone[p.seq] {
			id.q.Ack(p.seq)
		}
		return gone[p.seq]
	})
	id.waiting.Store(int32(len(s.waiting)))
	return nil
}

// noteSeq is the property of a note that names the message.
const noteSeq = "seq"

// subscribed offers what waits to whoever has come.
func (id *Identity) subscribed() {
	if id.opt().C2D && id.waiting.Load() > 0 {
		id.post(id.offerAll)
	}
}

// offer publishes one message to the local clients that did not get it yet.
func (id *Identity) offer(p *pending, props []queue.Property, payload []byte) {
	m := downstream.LocalMessage{
		Topic: string(bag.Append([]byte(id.topic("c2d/")), props)), Payload: payload, QoS: 1, Properties: props,
		ContentType: bag.Lookup(props, "$.ct"), Offer: p.offer, Round: id.c2d.round,
		Acked: func() { id.post(func() { id.finish(p, nil) }) },
	}
	if _, trusted := id.c.cfg.Clock.Now(); trusted {
		m.Expires = p.expires
	}
	if _, err := id.c.local.Publish(m); err != nil {
		id.log().Warn("C2D message not offered to local clients", zap.Uint64("seq", p.seq), zap.Error(err))
	}
}

// offerAll goes through everything that waits: what has expired leaves, the rest is
// offered.
func (id *Identity) offerAll() {
	if id.parked.Load() {
		return
	}
	id.c2d.round = new(downstream.Round)
	id.scan(0, func(p *pending, m queue.Message) bool {
		id.offer(p, bag.Parse(m.Topic), m.Payload)
		return true
	})
	id.watchWaiting(time.Now())
}

// scan reads the messages that wait, above a sequence, until use returns false.
// Those that the queue has given up because of their age are forgotten.
func (id *Identity) scan(after uint64, use func(*pending, queue.Message) bool) {
	s := &id.c2d
	if len(s.waiting) == 0 {
		return
	}
	id.expire()
	r := id.q.Reader()
	at := 0 // of waiting
	var last uint64
	for {
		m, ok, err := r.Next()
		if err != nil {
			id.log().Warn("C2D messages cannot be read", zap.Error(err))
			return
		}
		if !ok {
			last = ^uint64(0)
		} else {
			last = m.Seq
		}
		for at < len(s.waiting) && s.waiting[at].seq < last && !s.waiting[at].leaving {
			id.drop(at)
		}
		if !ok {
			return
		}
		if at == len(s.waiting) || s.waiting[at].seq != m.Seq {
			continue
		}
		p := s.waiting[at]
		at++
		if m.Seq > after && !p.leaving && !use(p, m) {
			return
		}
	}
}

// expire takes out what is past its $.exp.
func (id *Identity) expire() {
	s := &id.c2d
	now, trusted := id.c.cfg.Clock.Now()
	for i := 0; trusted && i < len(s.waiting); {
		p := s.waiting[i]
		if p.leaving || p.expires.IsZero() || now.Before(p.expires) {
			i++
			continue
		}
		id.q.Ack(p.seq)
		id.drop(i)
	}
}

// drop forgets a message that nobody acknowledged in time.
func (id *Identity) drop(i int) {
	p := id.c2d.waiting[i]
	id.log().Warn("C2D message expired before a local client acknowledged it", zap.Uint64("seq", p.seq))
	id.leave(p)
}

// leave takes a message out of those that wait.
func (id *Identity) leave(p *pending) {
	s := &id.c2d
	s.waiting = slices.DeleteFunc(s.waiting, func(w *pending) bool { return w == p })
	id.waiting.Store(int32(len(s.waiting)))
	for _, done := range p.done {
		done()
	}
	if soon := time.Now().Add(offerSoon); s.round.Behind() && soon.Before(s.checkAt) {
		s.checkAt = soon
		id.wakeAt(soon)
	}
	if len(s.fifo) > 0 {
		id.pumpC2D() // there is room again
	}
}

// finish follows the first acknowledgement of a message: a note of its id is synced
// before the message leaves the queue, so that it is recognised after a restart too.
// done, when not nil, is called after that.
func (id *Identity) finish(p *pending, done func()) {
	if !slices.Contains(id.c2d.waiting, p) {
		if done != nil {
			done()
		}
		return
	}
	if done != nil {
		p.done = append(p.done, done)
	}
	if p.leaving {
		return
	}
	p.leaving = true
	if p.id == "" {
		id.finished(p, 0)
		return
	}
	note := queue.Message{Source: sourceDone, Topic: p.id, MaxAge: noteAge,
		Properties: []queue.Property{{Key: noteSeq, Value: strconv.FormatUint(p.seq, 10)}}}
	err := id.q.Append(never(), note, func(seq uint64, err error) {
		id.post(func() {
			if err != nil {
				seq = 0
			}
			id.finished(p, seq)
		})
	})
	if err != nil {
		// Without room for the note the message leaves all the same: to keep it would
		// deliver it again for certain.
		id.finished(p, 0)
	}
}

// finished lets a message go; note is the sequence of its note, 0 = there is none.
func (id *Identity) finished(p *pending, note uint64) {
	s := &id.c2d
	id.q.Ack(p.seq)
	if note > 0 {
		s.notes = append(s.notes, note)
	}
	for len(s.notes) > window {
		id.q.Ack(s.notes[0])
		s.notes = s.notes[1:]
	}
	id.leave(p)
}
