package queue

import (
	"hash/maphash"
	"sync/atomic"
)

const (
	internSlots = 512
	internMax   = 256 // bytes of a string that is worth it
)

// interner gives the same string for the same bytes, mostly: the names of a few sensors, topics and routes come back in every message, and thousands of
// readers would each make and keep their own. It holds 150 KiB at most. Safe for concurrent use.
type interner struct {
	seed  maphash.Seed
	slots [internSlots]atomic.Pointer[string]
}

func newInterner() *interner { return &interner{seed: maphash.MakeSeed()} }

func (t *interner) get(b []byte) string {
	if t == nil || len(b) == 0 || len(b) > internMax {
		return string(b)
	}
	slot := &t.slots[maphash.Bytes(t.seed, b)%internSlots]
	if s := slot.Load(); s != nil && *s == string(b) {
		return *s
	}
	s := string(b)
	slot.Store(&s)
	return s
}
