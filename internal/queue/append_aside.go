package queue

import "context"

// maxReason bounds why a message was set aside.
const maxReason = 256

// AppendAside stores a message out of the way of the others from the start: it is kept and never read until Requeue puts it back. Everything else is as
// for Append.
func (q *Queue) AppendAside(ctx context.Context, m Message, reason string, done func(seq uint64, err error)) error {
	return q.append(ctx, m, pend{class: asideClass, reason: reason[:min(len(reason), maxReason)]}, done)
}
