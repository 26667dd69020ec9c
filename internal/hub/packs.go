package hub

import (
	"cmp"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"gatewayd/internal/bag"
	"gatewayd/internal/queue"
)

// packs is the part of a session that makes packs of readings. Identities whose
// readings travel alone have none. All but what mu guards belongs to Run's goroutine.
type packs struct {
	log    boundaries          // nil: packs are the same only while the process lives
	of     map[uint64]*pack    // by member: every pack that is closed and not acknowledged
	open   map[packPlace]*pack // those that take more members
	closed []*pack             // in the order in which they go
	again  []*pack             // whose members are read again, by unit
	wake   chan struct{}       // a record is on disk
	bytes  int                 // of the bodies in closed
	said   bool                // that packs cannot be written down
	budget *packBudget         // of all sessions
	held   int                 // capacity of all bodies at hand

	largest atomic.Int64 // capacity of the largest body in open; read by all
	shed    atomic.Bool  // somebody wants the largest one closed

	in        reader      // of log
	unwritten []unwritten // for whose records the journal had no room yet

	mu    sync.Mutex
	sent  map[uint64]*pack // by unit
	ended []*pack          // acknowledged, still in of
	fault error            // why the latest record is not on disk
	news  bool             // a record is on disk that in has not passed
	stale []uint64         // records that are to go
}

// packPlace is a route's open pack of one priority.
type packPlace struct {
	route string
	class uint8
}

var errApart = errors.New("a pack was too large and is taken apart")

// startPacks begins with what an earlier run has written down.
func (s *Session) startPacks() error {
	ps := &packs{of: map[uint64]*pack{}, open: map[packPlace]*pack{}, sent: map[uint64]*pack{}, wake: make(chan struct{}, 1), budget: &s.pacer.packs}
	if s.openPacks != nil {
		log, err := s.openPacks()
		if err != nil {
			return err
		}
		if err := ps.load(log); err != nil {
			return err
		}
	}
	ps.budget.join(ps)
	s.packs = ps
	s.sharedPacks.Store(ps)
	return nil
}

// reread begins anew with a fresh reader: what is open was never sent and is made
// again as it comes; what is closed stays what it is.
func (ps *packs) reread() {
	ps.sweep()
	for place, p := range ps.open {
		ps.shut(place, p)
		ps.release(p)
	}
	ps.closed, ps.again, ps.bytes = nil, nil, 0
	ps.shed.Store(false)
	for seq, p := range ps.of {
		if seq == p.unit() {
			ps.release(p)
			p.forget()
			ps.again = append(ps.again, p)
		}
	}
	ps.sort()
}

func (ps *packs) sort() {
	slices.SortFunc(ps.again, func(a, b *pack) int { return cmp.Compare(a.unit(), b.unit()) })
}

// sweep lets go of packs that the hub has. No member of them may be at hand.
func (ps *packs) sweep() {
	ps.mu.Lock()
	ended, stale := ps.ended, ps.stale
	ps.ended, ps.stale = nil, nil
	ps.mu.Unlock()
	for _, seq := range stale {
		ps.log.Ack(seq)
	}
	for _, p := range ended {
		ps.drop(p)
	}
}

func (ps *packs) drop(p *pack) {
	for _, seq := range p.seqs {
		if ps.of[seq] == p {
			delete(ps.of, seq)
		}
	}
	ps.notAgain(p)
	if i := slices.Index(ps.closed, p); i >= 0 {
		ps.remove(i)
	}
	ps.release(p)
}

func (ps *packs) notAgain(p *pack) {
	if i := slices.Index(ps.again, p); i >= 0 {
		ps.again = slices.Delete(ps.again, i, i+1)
	}
}

func (ps *packs) remove(i int) {
	ps.bytes -= len(ps.closed[i].body)
	ps.closed = slices.Delete(ps.closed, i, i+1)
}

// resting says that no pack waits to be sent, nor one that may have been sent before.
func (ps *packs) resting() bool {
	return ps == nil || len(ps.closed) == 0 && len(ps.again) == 0
}

// recorded is ready when a record is on disk; never where there are no packs.
func (ps *packs) recorded() <-chan struct{} {
	if ps == nil {
		return nil
	}
	return ps.wake
}

// full says that enough is packed ahead.
func (ps *packs) full() bool {
	return len(ps.closed) >= readAheadPacks || ps.bytes >= readAheadBytes || len(ps.closed) > 0 && ps.budget.over()
}

// packed takes a reading into its pack; false: it travels alone.
func (s *Session) packed(m *queue.Message) bool {
	ps := s.packs
	ps.finishAgain(m.Priority, m.Seq)
	p := ps.of[m.Seq]
	if p != nil && m.Seq == p.made && !strings.HasPrefix(p.id, m.ID+".") {
		// The record is of a queue of this name that was dropped.
		ps.discard(p)
		p = nil
	}
	if p == nil && (m.Pack.MaxBytes == 0 || slices.ContainsFunc(m.Properties, func(q queue.Property) bool { return bag.IsSystem(q.Key) })) {
		return false // what a device says to the hub itself is not for a pack
	}
	if p == nil || len(p.seqs) == 1 {
		// What the hub would not take alone must not harm others either.
		if reason := s.unfit(m); reason != "" {
			s.setAside(m.Seq, reason)
			return true
		}
	}
	element := AppendElement(s.element[:0], m)
	s.element = element
	if p != nil {
		if p.id == "" {
			p.id = packID(m.ID, len(p.seqs))
		}
		ps.grow(p, m, element)
		if m.Seq == p.last() {
			ps.close(p)
		}
		return true
	}
	if len(element)+packLabels+len(m.Output)+propertyBytes(m.Properties) > maxPack {
		return false
	}
	place := packPlace{m.Route, m.Priority}
	p = ps.open[place]
	if p != nil && (!p.alike(m) || !p.fits(m, element)) {
		s.finish(place, p)
		p = nil
	}
	if p == nil {
		p = &pack{class: m.Priority, id: m.ID}
		ps.open[place] = p
	}
	p.seqs = append(p.seqs, m.Seq)
	ps.opened(p, ps.grow(p, m, element))
	ps.budget.ease()
	return true
}

// unfit is why the hub would not take a reading's properties.
func (s *Session) unfit(m *queue.Message) string {
	bare := *m
	bare.Payload = nil
	s.topic = appendTopic(s.topic[:0], s.events, &bare)
	return undeliverable(&bare, len(s.topic), false)
}

// close says that nothing more comes of a pack. One whose members are all gone goes
// with them.
func (ps *packs) close(p *pack) {
	ps.notAgain(p)
	if p.got == 0 {
		ps.discard(p)
		return
	}
	ps.closed = append(ps.closed, p)
	ps.bytes += len(p.body)
}

// discard forgets a pack and its record.
func (ps *packs) discard(p *pack) {
	ps.drop(p)
	ps.mu.Lock()
	record := p.record
	ps.mu.Unlock()
	if ps.log != nil && record != 0 {
		ps.log.Ack(record)
	}
}

// finishAgain closes packs of a priority whose last member would have come by now.
func (ps *packs) finishAgain(class uint8, seq uint64) {
	if len(ps.again) == 0 {
		return
	}
	for _, p := range slices.Clone(ps.again) {
		if p.class == class && p.last() < seq {
			ps.close(p)
		}
	}
}

// finish closes an open pack: from here on it is what it is.
func (s *Session) finish(place packPlace, p *pack) {
	ps := s.packs
	ps.shut(place, p)
	p.id = packID(p.id, len(p.seqs))
	for _, seq := range p.seqs {
		ps.of[seq] = p
	}
	ps.close(p)
	s.record(p, nil)
}

// nextPack is the pack to send next: of the highest priority, in order. nil when
// there is none whose record is on disk.
func (s *Session) nextPack() *pack {
	ps := s.packs
	if ps == nil {
		return nil
	}
	s.writeAgain()
	unread := ps.noteRecords()
	ps.mu.Lock()
	fault := ps.fault
	ps.fault = unread
	var best *pack
	for _, p := range ps.closed {
		if p.recorded && !p.done && (best == nil || p.class > best.class) {
			best = p
		}
	}
	ps.mu.Unlock()
	if fault != nil && !ps.said {
		ps.said = true
		s.log().Warn("packs cannot be written down: a crash now may deliver readings twice", zap.Error(fault))
	}
	return best
}

// closeDue closes the open packs whose time has come, and sets the alarm for the
// others.
func (s *Session) closeDue() {
	ps := s.packs
	if ps == nil {
		return
	}
	s.makeRoom()
	now := time.Now()
	var due []packPlace
	for place, p := range ps.open {
		// A pack with which a suspect is to be compared goes at once.
		if at := p.due(s.live.idle); now.Before(at) && !(s.live.idle && s.live.skipped > 0) {
			s.alarm.at(at)
		} else {
			due = append(due, place)
		}
	}
	slices.SortFunc(due, func(a, b packPlace) int {
		return cmp.Or(cmp.Compare(b.class, a.class), cmp.Compare(ps.open[a].unit(), ps.open[b].unit()))
	})
	for _, place := range due {
		s.finish(place, ps.open[place])
	}
	if s.live.idle {
		for len(ps.again) > 0 {
			ps.close(ps.again[0])
		}
	}
}

// publishPack puts a pack into the batch.
func (s *Session) publishPack(p *pack) bool {
	ps := s.packs
	ps.remove(slices.Index(ps.closed, p))
	m, err := p.message(&s.pacer.writers)
	ps.release(p)
	reason := ""
	if err != nil {
		reason = err.Error()
	} else {
		s.topic = appendTopic(s.topic[:0], s.events, &m)
		reason = undeliverable(&m, len(s.topic), s.cfg.GatewayHostName != "")
	}
	if reason != "" {
		s.condemn(p.unit(), reason)
		if len(p.seqs) > 1 {
			s.live.c.kill(errApart) // its members are read again on the next one
		}
		return false
	}
	ps.mu.Lock()
	gone := p.done // acknowledged at the last moment, on an earlier connection
	if !gone {
		ps.sent[p.unit()], p.count = p, p.got
	}
	ps.mu.Unlock()
	return !gone && s.put(m.Seq, p.got, m.Payload)
}

// ack acknowledges the members of a pack, then its record: in that order, so that
// members which come back after a crash find it. It returns how many readings were in
// what the hub has taken.
func (ps *packs) ack(q outbox, unit uint64) (readings int, ok bool) {
	ps.mu.Lock()
	p := ps.sent[unit]
	if p == nil || p.done {
		ps.mu.Unlock()
		return 0, p != nil
	}
	p.done = true
	delete(ps.sent, unit)
	record, readings := p.record, p.count
	ps.mu.Unlock()
	for _, seq := range p.seqs {
		q.Ack(seq)
	}
	if record != 0 {
		ps.log.Ack(record)
	}
	ps.mu.Lock()
	ps.ended = append(ps.ended, p)
	ps.mu.Unlock()
	return readings, true
}

// condemn takes what the hub will not take out of the way. A pack is taken apart
// first: each of its members goes alone, and only the one that is at fault is set
// aside.
func (s *Session) condemn(unit uint64, reason string) {
	var p *pack
	if s.packs != nil {
		s.packs.sweep()
		if p = s.packs.of[unit]; p != nil && p.unit() != unit {
			p = nil
		}
	}
	switch {
	case p == nil:
		s.setAside(unit, reason)
	case len(p.seqs) == 1:
		s.setAside(unit, reason)
		s.packs.discard(p)
	default:
		s.takeApart(p)
		s.log().Warn("pack taken apart to find the message in it", zap.String("id", p.id), zap.Int("messages", len(p.seqs)), zap.String("reason", reason))
	}
}

// takeApart makes a pack of each member. The old record goes when all new ones are on
// disk.
func (s *Session) takeApart(p *pack) {
	ps := s.packs
	ps.drop(p)
	ps.mu.Lock()
	p.split = len(p.seqs)
	delete(ps.sent, p.unit())
	ps.mu.Unlock()
	one := func() { // with ps.mu held
		if p.split--; p.split == 0 && p.record != 0 {
			ps.stale = append(ps.stale, p.record)
		}
	}
	for _, seq := range p.seqs {
		single := &pack{class: p.class, seqs: []uint64{seq}}
		ps.of[seq] = single
		ps.again = append(ps.again, single)
		s.record(single, one)
	}
	ps.sort()
}
