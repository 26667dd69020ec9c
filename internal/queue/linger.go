package queue

import (
	"context"
	"time"
)

// linger lets the producers whose appends have just completed come back before the next group is taken.
//
// Producers that wait for their syncs, or have so many appends in flight, would otherwise settle into two halves, each of which waits for the sync of the
// other: twice the syncs, and each writes whole blocks. How many there are is known, those just answered and those who came meanwhile; so the writer waits
// until most of them are there, for a fraction of a sync at most. Where they do not come back at once, as most sensors, it soon stops trying.
type linger struct {
	crowd    int           // producers in play at the last group: answered by it or waiting behind it
	answered time.Time     // when its callbacks were done
	sync     time.Duration // what its sync took
	skip     int           // groups for which it is not tried
	misses   int           // times in a row that they did not come
}

const (
	lingerLeast = 4                    // fewer producers are not worth a timer
	lingerMost  = 2 * time.Millisecond //
	lingerShare = 2                    // part of the time of a sync that it may take
	lingerSkip  = 10                   // after so many misses in a row it is tried once in 1,024 groups
)

// gather waits as linger says. The writer calls it when something waits.
func (j *Journal) gather(ctx context.Context) {
	l := &j.w.linger
	limit := min(l.sync/lingerShare, lingerMost)
	goal := l.crowd - l.crowd/8
	if j.o.SyncInterval > 0 || goal < lingerLeast || time.Since(l.answered) >= limit {
		return
	}
	if l.skip > 0 {
		l.skip--
		return
	}
	p := &j.pend
	p.mu.Lock()
	n, others := len(p.recs), len(p.ctl)
	if n == 0 || n >= goal || others > 0 {
		p.mu.Unlock()
		return
	}
	p.goal = goal
	p.mu.Unlock()
	t := time.NewTimer(limit)
	defer t.Stop()
	missed := false
	select {
	case <-j.wake:
	case <-t.C:
		missed = true
	case <-ctx.Done():
	}
	p.mu.Lock()
	p.goal = 0
	n = len(p.recs)
	p.mu.Unlock()
	if !missed || n >= goal {
		l.misses = 0
		return
	}
	l.misses = min(l.misses+1, lingerSkip)
	l.skip = 1<<l.misses - 1
}

// waiting is how many messages stand behind the group under way.
func (j *Journal) waiting() int {
	j.pend.mu.Lock()
	defer j.pend.mu.Unlock()
	return len(j.pend.recs)
}
