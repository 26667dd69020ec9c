package queue

// restAfter is how many ticks without a group the writer keeps what the last burst made it allocate: three seconds.
const restAfter = int(3 * 2)

// rest gives the memory of a burst back once nothing has been written for a while: buffers of the writer and, when nobody reads either, frames.
func (j *Journal) rest() {
	w := &j.w
	j.mu.Lock()
	syncs := j.stats.Syncs
	j.mu.Unlock()
	if syncs != w.rested {
		w.rested, w.idle = syncs, 0
		return
	}
	if w.idle++; w.idle%restAfter != 0 {
		return
	}
	j.cache.trim()
	j.lastList.Store(nil)
	j.pieces.forget()
	if w.idle > restAfter {
		return // done the first time
	}
	w.b = newBuilder()
	p := &j.pend
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.recs) == 0 {
		p.recs, p.spare, p.free, p.chunks = nil, nil, nil, nil
		p.arena, p.spareA = &arena{}, &arena{}
	}
}
