package downstream

// ring holds the acknowledgements that a client is owed, in the order of its
// messages (MQTT-4.6.0-2). The queue settles them in any order, because one
// client may write to several identities; they leave in order.
type ring struct {
	slots []ackSlot
	head  int    // of the oldest
	n     int    // owed
	first uint64 // number of the oldest
}

type ackSlot struct {
	id      uint16
	code    byte
	settled bool
}

// ringKept is the size up to which an empty ring keeps its memory.
const ringKept = 8

// push adds an unsettled acknowledgement and returns its number.
func (r *ring) push(id uint16) uint64 {
	if r.n == len(r.slots) {
		grown := make([]ackSlot, max(4, 2*r.n))
		for i := range r.n {
			grown[i] = r.slots[(r.head+i)%len(r.slots)]
		}
		r.slots, r.head = grown, 0
	}
	r.slots[(r.head+r.n)%len(r.slots)] = ackSlot{id: id}
	r.n++
	return r.first + uint64(r.n) - 1
}

// settle records the answer and tells whether the oldest can leave now.
func (r *ring) settle(number uint64, code byte) bool {
	i := number - r.first
	if i >= uint64(r.n) {
		return false
	}
	s := &r.slots[(r.head+int(i))%len(r.slots)]
	s.code, s.settled = code, true
	return r.slots[r.head].settled
}

// pop takes the oldest if it is settled.
func (r *ring) pop() (ackSlot, bool) {
	if r.n == 0 || !r.slots[r.head].settled {
		return ackSlot{}, false
	}
	s := r.slots[r.head]
	r.head = (r.head + 1) % len(r.slots)
	r.first++
	if r.n--; r.n == 0 && len(r.slots) > ringKept {
		r.slots, r.head = nil, 0
	}
	return s, true
}

// owes tells whether an id waits for its acknowledgement.
func (r *ring) owes(id uint16) bool {
	for i := range r.n {
		if r.slots[(r.head+i)%len(r.slots)].id == id {
			return true
		}
	}
	return false
}
