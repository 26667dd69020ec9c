package main

import (
	"encoding/binary"
	"sync"
)

// engine is what every store must do for the comparison: take messages in groups, give them back in order per queue, forget what was delivered.
type engine interface {
	// append calls done after the message is synced.
	append(queue int, payload []byte, done func())
	// next returns the next message of a queue behind what it returned before.
	next(queue int) (seq uint64, payload []byte, ok bool)
	// ack forgets everything of a queue up to seq, lazily.
	ack(queue int, seq uint64)
	close()
}

// store is the part of the alternatives behind the common group commit.
type store interface {
	commit(ops []op) error // one synced batch
	next(queue int, after uint64) (seq uint64, payload []byte, ok bool)
	last(queue int) uint64
	close()
}

type op struct {
	queue   int
	seq     uint64
	payload []byte
	upTo    uint64 // not 0: forget up to here instead
	done    func()
}

// front gives a store the same group commit as the journal: all that waits goes in one synced batch.
type front struct {
	s    store
	mu   sync.Mutex
	wait []op
	acks map[int]uint64
	seqs []uint64
	read []uint64
	wake chan struct{}
	stop chan struct{}
	done chan struct{}
}

func newFront(s store, queues int) *front {
	f := &front{s: s, acks: map[int]uint64{}, seqs: make([]uint64, queues), read: make([]uint64, queues), wake: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{})}
	go f.run()
	return f
}

func (f *front) append(queue int, payload []byte, done func()) {
	f.mu.Lock()
	f.seqs[queue]++
	f.wait = append(f.wait, op{queue: queue, seq: f.seqs[queue], payload: append([]byte(nil), payload...), done: done})
	f.mu.Unlock()
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

func (f *front) ack(queue int, seq uint64) {
	f.mu.Lock()
	f.acks[queue] = seq
	f.mu.Unlock()
}

func (f *front) next(queue int) (uint64, []byte, bool) {
	seq, p, ok := f.s.next(queue, f.read[queue])
	if ok {
		f.read[queue] = seq
	}
	return seq, p, ok
}

func (f *front) run() {
	defer close(f.done)
	for {
		stopping := false
		select {
		case <-f.wake:
		case <-f.stop:
			stopping = true
		}
		f.mu.Lock()
		ops, acks := f.wait, f.acks
		f.wait, f.acks = nil, map[int]uint64{}
		f.mu.Unlock()
		n := len(ops)
		for q, seq := range acks {
			ops = append(ops, op{queue: q, upTo: seq})
		}
		if len(ops) > 0 {
			if err := f.s.commit(ops); err != nil {
				panic(err)
			}
			for i := range ops[:n] {
				ops[i].done()
			}
		}
		if stopping {
			return
		}
	}
}

func (f *front) close() {
	close(f.stop)
	<-f.done
	f.s.close()
}

func key(queue int, seq uint64) []byte {
	k := binary.BigEndian.AppendUint32(make([]byte, 0, 12), uint32(queue))
	return binary.BigEndian.AppendUint64(k, seq)
}

// meta is what travels with every message; the alternatives store it in front of the payload, as the simplest code would.
const meta = "sensor-0001\x00sensors/0001/telemetry\x00telemetry\x00application/json\x00utf-8\x00"
