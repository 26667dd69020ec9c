package queue

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

var hardshipNames = [...]string{"press-7", "press-8", "oven"}

func (w *world) name() string { return hardshipNames[w.rnd(len(hardshipNames))] }

// hardship does one random thing of the kind that seldom happens.
func (w *world) hardship(k int) {
	switch k {
	case 0:
		w.fullDisk()
	case 1:
		w.cutsWhileOpening()
	case 2:
		w.dropAndMakeAnew()
	case 3:
		w.last = "another size of files"
		w.close()
		w.settleMay()
		w.o.SegmentBytes = minSegment << w.rnd(4)
		w.mustOpen()
		w.check()
	case 4:
		name := w.name()
		for range 3 {
			w.setAside(name)
		}
		w.requeue(name)
		w.chores()
		w.requeue(name)
		w.cut("setting aside and putting back")
		w.requeue(name)
	case 5:
		w.boundedFolder()
	}
}

const hardships = 6

// cut is a power cut after which nothing, something or everything of what was not synced is there.
func (w *world) cut(what string) {
	how, limit := w.rnd(3), w.fs.limit
	w.j.Close()
	w.fs.crash(func() bool { return how == 2 || how == 1 && w.rnd(2) == 0 })
	w.fs.limit = limit
	w.last = what + " and a power cut"
	w.mustOpen()
	w.check()
}

func (w *world) retry() error {
	w.j.w.retryAt = time.Time{}
	w.j.commit(false)
	return w.j.stopped()
}

func (w *world) fullDisk() {
	w.last = "a full disk"
	w.fs.limit = w.fs.usedLocked() + int64(w.rnd(4))*w.o.SegmentBytes
	for i := 0; i < 60 && w.j.stopped() == nil; i++ {
		w.append(w.name(), 0, 1+w.rnd(3), w.rnd(9000))
		if w.rnd(3) == 0 {
			w.chores()
		}
	}
	for range w.rnd(8) {
		w.ack(w.name(), w.rnd(30), w.rnd(3) == 0)
		w.turn()
		if w.rnd(4) == 0 {
			w.setAside(w.name())
			w.check()
		}
		if w.rnd(4) == 0 {
			w.requeue(w.name())
			w.check()
		}
		_ = w.retry() // it may be full still
		w.append(w.name(), 0, 1, w.rnd(9000))
		if w.rnd(5) == 0 {
			w.cut("a full disk")
		}
	}
	w.check()
	w.fs.limit = 0
	if err := w.retry(); err != nil {
		w.t.Fatalf("after %s: does not store again: %v", w.last, err)
	}
}

func (w *world) cutsWhileOpening() {
	w.cut("something")
	w.last = "power cuts while opening"
	for range 3 {
		w.j.Close()
		n := w.fs.calls + w.rnd(40)
		w.fs.fault = func(c int, _, _ string) error {
			if c >= n {
				return errPowerCut
			}
			return nil
		}
		if err := w.open(); err == nil {
			name := w.name()
			w.append(name, 0, 1+w.rnd(3), w.rnd(5000))
			w.ack(name, w.rnd(20), true)
			w.flush()
			w.chores()
			w.j.Close()
		} else if !errors.Is(err, errPowerCut) {
			w.t.Fatalf("open: %v", err)
		}
		how := w.rnd(3)
		w.fs.crash(func() bool { return how == 2 || how == 1 && w.rnd(2) == 0 })
	}
	w.mustOpen()
	w.check()
}

func (w *world) dropAndMakeAnew() {
	name := w.name()
	w.last = "dropping " + name
	if q, ok := w.j.queues[name]; !ok || !q.stored.Load() {
		return
	}
	done := make(chan error, 1)
	go func() { done <- w.j.Drop(name) }()
	if err := w.await(done); err != nil {
		w.t.Fatalf("drop: %v", err)
	}
	delete(w.qs, name)
	w.append(name, 0, w.rnd(3), 100)
}

// boundedFolder puts a bound on the folder that may be less than what it holds. Whatever was refused, it stores again once all that may be is delivered.
func (w *world) boundedFolder() {
	w.last = "a bound of the folder"
	w.close()
	w.settleMay()
	w.o.MaxBytes, w.o.SegmentBytes = int64(16+w.rnd(30))*minSegment, minSegment
	w.mustOpen()
	for range w.rnd(150) {
		w.append(w.name(), 0, 1+w.rnd(3), w.rnd(9000))
		if w.rnd(3) == 0 {
			w.chores()
		}
		if w.rnd(3) == 0 {
			w.ack(hardshipNames[w.rnd(2)], 20, w.rnd(3) == 0)
		}
		if w.rnd(10) == 0 {
			w.flush()
		}
		_ = w.retry()
	}
	w.check()
	for _, name := range hardshipNames {
		w.ack(name, 100_000, false)
	}
	for i := 0; w.retry() != nil || i == 0; i++ {
		if w.turn(); i > 10 {
			w.t.Fatalf("after %s: drained and does not store again: %+v", w.last, w.j.Stats())
		}
	}
	w.check()
	if s := w.j.Stats(); s.DiskBytes > w.o.MaxBytes && s.LiveBytes == 0 {
		w.t.Fatalf("after %s: the folder holds nothing and is larger than %d: %+v", w.last, w.o.MaxBytes, s)
	}
	w.close()
	w.o.MaxBytes = 0
	w.settleMay()
	w.mustOpen()
}

// TestHistoriesOfHardship mixes them with the usual.
func TestHistoriesOfHardship(t *testing.T) {
	n := histories() / 10
	for seed := range uint64(n) {
		r := rand.New(rand.NewPCG(seed, 77))
		w := newWorld(t, r.IntN)
		w.mustOpen()
		for range 1 + r.IntN(14) {
			if r.IntN(3) == 0 {
				w.hardship(r.IntN(hardships))
			} else {
				w.step(r.IntN(stepKinds))
			}
		}
		w.last += fmt.Sprintf(" (seed %d)", seed)
		w.check()
		w.close()
		w.settleMay()
		w.mustOpen()
		w.check()
		w.close()
	}
}
