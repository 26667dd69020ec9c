package queue

import (
	"context"
	"crypto/rand"
	"encoding/hex"
)

const (
	maxReason   = 256 // bytes of why a message was set aside
	asideShare  = 4   // messages appended aside may take this part of MaxBytes, beside those that wait
	maxAppended = 10000
)

// AppendAside stores a message out of the way of the others from the start: it is kept, and not read until Requeue puts it back. Everything else is as for
// Append, whatever the policy: ErrFull is returned when what is set aside takes a quarter of Limits.MaxBytes, or is 10,000 messages.
func (q *Queue) AppendAside(ctx context.Context, m Message, reason string, done func(seq uint64, err error)) error {
	size := m.size()
	if size > MaxMessageBytes || m.Priority > MaxPriority || m.MaxAge < 0 {
		return ErrTooLarge
	}
	if q.j.o.ReadOnly {
		return ErrReadOnly
	}
	if err := q.admitAside(int64(size)); err != nil {
		return err
	}
	// The id cannot be made of the sequence, which the writer gives: the first one is left 0, which stands for the record's own.
	err := q.j.enqueue(ctx, &pend{q: q, done: done, m: m, class: asideClass, id: randomID(), reason: reason[:min(len(reason), maxReason)], size: uint32(size)})
	if err != nil {
		q.mu.Lock()
		q.held -= int64(size)
		q.mu.Unlock()
	}
	return err
}

func (q *Queue) admitAside(size int64) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.gone {
		return ErrClosed
	}
	used := int64(0)
	if l := q.lanes[asideClass]; l != nil {
		used = l.bytes
	}
	over := q.limits.MaxBytes > 0 && used+q.held+size > q.limits.MaxBytes/asideShare
	if over || q.asides >= maxAppended || !q.j.fits(size) {
		return ErrFull
	}
	q.held += size
	return nil
}

// randomID is a message id that no other message has.
func randomID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand
	return "a-" + hex.EncodeToString(b[:])
}
