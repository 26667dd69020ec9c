package queue

const (
	chunkBytes = 32 << 10 // of an arena
	keepChunks = 32       // unused ones that are kept
	keepPends  = 2 << 10  // the same of records
	reusePends = 64       // so many settled records are taken back at a time
)

// arena keeps payloads and properties until they are written, in chunks: what thousands of small appends need is neither one allocation each nor twice as
// much as they need. Guarded by the lock of pending.
type arena struct {
	full  [][]byte
	cur   []byte
	props []Property
}

// oversized: a stall of the disk made a buffer grow far beyond what is used of it now.
func oversized(used, size, always int) bool { return size > always && used < size/8 }

// keep copies the parts of m that the caller may use again. Properties handed out stay valid when their slice grows: the old backing lives as long as they do.
func (p *pending) keep(m *Message) {
	a := p.arena
	if n := len(m.Payload); n > chunkBytes/4 {
		m.Payload = append(make([]byte, 0, n), m.Payload...)
	} else {
		if n > cap(a.cur)-len(a.cur) {
			if a.cur != nil {
				a.full = append(a.full, a.cur)
			}
			a.cur = p.chunk()
		}
		at := len(a.cur)
		a.cur = append(a.cur, m.Payload...)
		m.Payload = a.cur[at:len(a.cur):len(a.cur)]
	}
	at := len(a.props)
	a.props = append(a.props, m.Properties...)
	m.Properties = a.props[at:len(a.props):len(a.props)]
}

func (p *pending) chunk() []byte {
	n := len(p.chunks)
	if n == 0 {
		return make([]byte, 0, chunkBytes)
	}
	c := p.chunks[n-1]
	p.chunks = p.chunks[:n-1]
	return c[:0]
}

// add copies r to the end of what waits.
func (p *pending) add(r *pend) {
	p.keep(&r.m)
	var own *pend
	if n := len(p.free); n > 0 {
		own = p.free[n-1]
		p.free = p.free[:n-1]
	} else {
		own = new(pend)
	}
	*own = *r
	p.recs = append(p.recs, own)
}

// reuse takes records back that are settled.
func (p *pending) reuse(recs []*pend) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, r := range recs {
		if len(p.free) < keepPends {
			*r = pend{}
			p.free = append(p.free, r)
		}
		recs[i] = nil
	}
}

// reuseArena takes the arena back that take handed out, once what it holds is written or given up. Called again it does nothing.
func (p *pending) reuseArena(a *arena) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.spareA != nil {
		return
	}
	if oversized(len(p.spare), cap(p.spare), keepPends) {
		p.spare = nil
	}
	for i, c := range a.full {
		if len(p.chunks) < keepChunks {
			p.chunks = append(p.chunks, c)
		}
		a.full[i] = nil
	}
	a.full, a.cur = a.full[:0], a.cur[:0]
	if oversized(len(a.props), cap(a.props), 4<<10) {
		a.props = nil
	}
	clear(a.props)
	a.props = a.props[:0]
	p.spareA = a
}
