package hub

import (
	"encoding/binary"
	"errors"

	"gatewayd/internal/bag"
	"gatewayd/internal/queue"
)

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
