//go:build !only_pebble && !only_bbolt

package main

import (
	"context"
	"fmt"

	"gatewayd/internal/queue"
)

type journal struct {
	j       *queue.Journal
	q       []*queue.Queue
	r       []*queue.Reader
	stop    context.CancelFunc
	stopped chan error
}

func openJournal(dir string, queues int) *journal {
	j, err := queue.Open(queue.Options{Dir: dir})
	check(err)
	ctx, stop := context.WithCancel(context.Background())
	e := &journal{j: j, stop: stop, stopped: make(chan error, 1)}
	go func() { e.stopped <- j.Run(ctx) }()
	for i := range queues {
		q, err := j.Queue(fmt.Sprintf("device-%04d", i), queue.Limits{})
		check(err)
		e.q = append(e.q, q)
		e.r = append(e.r, q.Reader())
	}
	return e
}

func (e *journal) append(q int, payload []byte, done func()) {
	err := e.q[q].Append(context.Background(), queue.Message{
		Source: "sensor-0001", Topic: "sensors/0001/telemetry", Route: "telemetry", ContentType: "application/json", ContentEncoding: "utf-8", Payload: payload,
	}, func(_ uint64, err error) { check(err); done() })
	check(err)
}

func (e *journal) next(q int) (uint64, []byte, bool) {
	m, ok, err := e.r[q].Next()
	check(err)
	return m.Seq, m.Payload, ok
}

// ack acknowledges one by one, as a session does: seq and what came before it was acknowledged already.
func (e *journal) ack(q int, seq uint64) { e.q[q].Ack(seq) }

func (e *journal) close() {
	e.stop()
	check(<-e.stopped)
	check(e.j.Close())
}
