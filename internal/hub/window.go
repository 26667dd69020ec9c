package hub

const (
	// telemetryIDs packet identifiers, 1 to 60,000, go to telemetry in turn; those
	// above belong to subscriptions and control messages, so that the two never meet.
	telemetryIDs = 60000
	// maxWindow keeps every identifier in flight unique with room to spare.
	maxWindow = 30000

	ringStart = 16
)

// window holds what was published on one connection and not yet acknowledged, in
// the order of sending. Acknowledgements may come in any order; they take effect
// in the order of sending. It is not safe for concurrent use.
type window struct {
	size  int      // most messages outstanding
	seqs  []uint64 // ring, a power of two long, grown on demand
	acked []bool   // beside seqs
	head  uint64   // ordinal of the oldest outstanding message on this connection
	n     int      // outstanding, the acknowledged behind a gap included
	early int      // acknowledged behind a gap
}

func (w *window) room() int { return w.size - w.n }

func (w *window) slot(ordinal uint64) int { return int(ordinal & uint64(len(w.seqs)-1)) }

// add takes in a message and returns its packet identifier. There must be room.
func (w *window) add(seq uint64) uint16 {
	if w.n == len(w.seqs) {
		w.grow()
	}
	ordinal := w.head + uint64(w.n)
	i := w.slot(ordinal)
	w.seqs[i], w.acked[i] = seq, false
	w.n++
	return uint16(ordinal%telemetryIDs) + 1
}

func (w *window) grow() {
	size := max(2*len(w.seqs), ringStart)
	seqs, acked := make([]uint64, size), make([]bool, size)
	for i := range w.n {
		from, to := w.slot(w.head+uint64(i)), int((w.head+uint64(i))&uint64(size-1))
		seqs[to], acked[to] = w.seqs[from], w.acked[from]
	}
	w.seqs, w.acked = seqs, acked
}

// ack notes an acknowledgement and appends to done the messages that it settles:
// none while an older one is still outstanding. known is false for an identifier
// that is not in flight or was acknowledged before.
func (w *window) ack(id uint16, done []uint64) (settled []uint64, known bool) {
	behind := (uint64(id) - 1 + telemetryIDs - w.head%telemetryIDs) % telemetryIDs
	if id == 0 || id > telemetryIDs || behind >= uint64(w.n) {
		return done, false
	}
	i := w.slot(w.head + behind)
	if w.acked[i] {
		return done, false
	}
	w.acked[i] = true
	w.early++
	for w.early > 0 && w.acked[w.slot(w.head)] {
		done = append(done, w.seqs[w.slot(w.head)])
		w.head++
		w.n--
		w.early--
	}
	return done, true
}

// sent appends what was sent and did not take effect, oldest first: what is outstanding, and what was acknowledged behind a
// gap.
func (w *window) sent(dst []uint64) []uint64 {
	for i := range w.n {
		dst = append(dst, w.seqs[w.slot(w.head+uint64(i))])
	}
	return dst
}

// outstanding appends what was sent and not acknowledged, oldest first.
func (w *window) outstanding(dst []uint64) []uint64 {
	for i := range w.n {
		if s := w.slot(w.head + uint64(i)); !w.acked[s] {
			dst = append(dst, w.seqs[s])
		}
	}
	return dst
}

// oldest is the first message that is still outstanding.
func (w *window) oldest() (seq uint64, ok bool) {
	if w.n == 0 {
		return 0, false
	}
	return w.seqs[w.slot(w.head)], true
}

// release gives a burst's memory back; only an empty window can.
func (w *window) release() {
	if w.n == 0 && len(w.seqs) > ringStart {
		w.seqs, w.acked = nil, nil
	}
}
