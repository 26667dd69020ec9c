package hub

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"time"

	"gatewayd/internal/bag"
	"gatewayd/internal/queue"
)

// boundaries is where a session writes down which readings make a pack.
type boundaries interface {
	newReader() reader
	Append(ctx context.Context, m queue.Message, done func(seq uint64, err error)) error
	Ack(seq uint64)
}

// packWait bounds how long a record may wait for the journal to take it in.
const packWait = 250 * time.Millisecond

// load reads the records. Where two name the same reading the later one holds: the
// earlier pack was taken apart.
func (ps *packs) load(log boundaries) error {
	var all []*pack
	ps.log, ps.in = log, log.newReader()
	for {
		m, ok, err := ps.in.Next()
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		p, err := parseRecord(m.Payload)
		if err != nil {
			log.Ack(m.Seq)
			continue
		}
		p.record, p.recorded = m.Seq, true
		if p.id != "" {
			p.made = p.seqs[0]
		}
		all = append(all, p)
		for _, seq := range p.seqs {
			ps.of[seq] = p
		}
	}
	for _, p := range all {
		p.seqs = slices.DeleteFunc(p.seqs, func(seq uint64) bool { return ps.of[seq] != p })
		if len(p.seqs) == 0 {
			log.Ack(p.record)
			continue
		}
		ps.again = append(ps.again, p)
	}
	ps.sort()
	return nil
}

// record writes down what a pack is made of. Until that is on disk it is not sent.
func (s *Session) record(p *pack, done func()) {
	ps := s.packs
	settled := func(seq uint64, err error) {
		ps.mu.Lock()
		p.record, p.recorded, ps.news = seq, true, true
		if err != nil {
			p.record, ps.fault = 0, err
		}
		if done != nil && err == nil {
			done()
		}
		ps.mu.Unlock()
		poke(ps.wake)
	}
	if ps.log == nil {
		settled(0, nil)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), packWait)
	defer cancel()
	err := ps.log.Append(ctx, queue.Message{Source: "gatewayd", Topic: "pack", Payload: appendRecord(nil, p)}, settled)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		ps.unwritten = append(ps.unwritten, unwritten{p, done})
	case err != nil:
		// A disk that takes nothing must be drained all the same. What is sent now is the
		// same again after every reconnect, but not after a crash.
		settled(0, err)
	}
}

// unwritten is a pack for whose record the journal had no room yet.
type unwritten struct {
	p    *pack
	done func()
}

// writeAgain tries the records that found no room.
func (s *Session) writeAgain() {
	if len(s.packs.unwritten) == 0 {
		return
	}
	all := s.packs.unwritten
	s.packs.unwritten = nil
	for _, u := range all {
		s.record(u.p, u.done)
	}
	if len(s.packs.unwritten) > 0 {
		s.alarm.at(time.Now().Add(packWait))
	}
}

// noteRecords lets the log's reader pass what was written, so that the log need not
// remember each acknowledgement.
func (ps *packs) noteRecords() error {
	ps.mu.Lock()
	news := ps.news
	ps.news = false
	ps.mu.Unlock()
	if !news || ps.in == nil {
		return nil
	}
	for {
		if _, ok, err := ps.in.Next(); !ok || err != nil {
			return err
		}
	}
}

// packRecordVersion is the first byte of a record.
const packRecordVersion = 1

// errPackRecord is a record that another version wrote, or nobody.
var errPackRecord = errors.New("not a record of a pack")

// appendRecord writes down what a pack is made of: version, class, number of
// members, the first one's number and the steps to the others, all but the first two
// as uvarint, then the id, which may be missing.
func appendRecord(dst []byte, p *pack) []byte {
	dst = append(dst, packRecordVersion, p.class)
	dst = binary.AppendUvarint(dst, uint64(len(p.seqs)))
	last := uint64(0)
	for _, seq := range p.seqs {
		dst = binary.AppendUvarint(dst, seq-last)
		last = seq
	}
	return append(dst, p.id...)
}

func parseRecord(b []byte) (*pack, error) {
	if len(b) < 2 || b[0] != packRecordVersion || b[1] > queue.MaxPriority {
		return nil, errPackRecord
	}
	p := &pack{class: b[1]}
	b = b[2:]
	next := func() uint64 {
		v, n := binary.Uvarint(b)
		if n <= 0 {
			b = nil
			return 0
		}
		b = b[n:]
		return v
	}
	n := next()
	if n == 0 || n > uint64(len(b)) {
		return nil, errPackRecord
	}
	p.seqs = make([]uint64, n)
	last := uint64(0)
	for i := range p.seqs {
		step := next()
		if step == 0 || last+step < last {
			return nil, errPackRecord
		}
		last += step
		p.seqs[i] = last
	}
	if len(b) > bag.MaxMessageID {
		return nil, errPackRecord
	}
	p.id = string(b)
	return p, nil
}
