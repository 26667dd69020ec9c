package queue

import (
	"errors"
	"io/fs"
	"slices"
)

const (
	// reserves are the files that only acknowledgements may take. There are two: a segment without messages is of no use once another one begins with a
	// snapshot, so that they can take turns for as long as it takes to drain a full disk, over any number of restarts.
	reserves      = 2
	reserveBytes  = 256 << 10
	reserveQueues = 256 // for so many queues; more need more
)

// reserveSize has room for a snapshot of all queues and what they have to say. The caller holds mu.
func (j *Journal) reserveSize() int64 {
	return min(reserveBytes*int64(1+len(j.queues)/reserveQueues), j.o.SegmentBytes)
}

// keepReserve prepares the reserves that are missing.
func (j *Journal) keepReserve() error {
	for {
		j.mu.Lock()
		size := j.reserveSize()
		var small []*slot
		j.reserve = slices.DeleteFunc(j.reserve, func(s *slot) bool {
			if s.size < size {
				small = append(small, s)
			}
			return s.size < size
		})
		missing := len(j.reserve) < reserves
		for _, s := range small {
			j.retired = append(j.retired, &segment{slot: s})
		}
		j.mu.Unlock()
		if !missing {
			return nil
		}
		s, err := j.createSlotOf(size)
		if isFull(err) {
			s, err = j.cutFree(size, err)
		}
		if err != nil {
			return err
		}
		j.mu.Lock()
		j.reserve = append(j.reserve, s)
		j.mu.Unlock()
	}
}

// cutFree makes a small file of a free one. The last one is left to compaction.
func (j *Journal) cutFree(size int64, full error) (*slot, error) {
	j.mu.Lock()
	n := len(j.free) - 1
	if n < 1 {
		j.mu.Unlock()
		return nil, full
	}
	s := j.free[n]
	j.free = j.free[:n]
	j.leastFree = min(j.leastFree, n)
	j.mu.Unlock()
	if j.cut(s, size) != nil {
		return nil, full
	}
	return s, nil
}

// cut makes a free file smaller. One that cannot be is tried again later, or forgotten when it was removed.
func (j *Journal) cut(s *slot, size int64) error {
	if s.size <= size {
		return nil
	}
	f, err := j.files.openFile(s.name, openWrite)
	if err == nil {
		err = errors.Join(f.truncate(size), f.sync(), f.Close())
	}
	if errors.Is(err, fs.ErrNotExist) {
		j.forgetSlot(s)
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if err != nil {
		j.retired = append(j.retired, &segment{slot: s})
		return err
	}
	j.slotBytes -= s.size - size
	s.size, s.warm = size, min(s.warm, size)
	return nil
}
