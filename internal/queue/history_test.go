package queue

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// step does one random thing.
func (w *world) step(k int) {
	names := [...]string{"press-7", "press-8", "oven"}
	name := names[w.rnd(len(names))]
	switch k {
	case 0, 1, 2:
		class := [...]uint8{0, 0, 0, 0, 5, 9}[w.rnd(6)]
		n, size := 1+w.rnd(6), w.rnd(200)
		if w.rnd(3) == 0 {
			size = 2000 + w.rnd(8000)
		}
		w.last = fmt.Sprintf("append of %d to %s", n, name)
		w.append(name, class, n, size)
	case 3:
		w.last = "acks of " + name
		w.ack(name, 1+w.rnd(20), w.rnd(2) == 0)
	case 4:
		w.last = "flush"
		w.flush()
	case 5:
		w.last = "chores"
		w.chores()
	case 6:
		w.last = "setting aside"
		w.setAside(name)
	case 7:
		w.last = "putting back"
		w.requeue(name)
	case 8:
		w.last = "acks of everything in " + name
		w.ack(name, 1000, false)
		w.flush()
		w.chores()
		w.flush()
	case 9:
		w.last = "clean stop"
		w.close()
		w.settleMay()
		w.mustOpen()
	case 10:
		w.last = "crash"
		how := w.rnd(3)
		if w.rnd(4) > 0 { // in the middle of something
			n := w.fs.calls + w.rnd(10)
			w.fs.fault = func(c int, _, _ string) error {
				if c >= n {
					return errPowerCut
				}
				return nil
			}
			switch w.rnd(4) {
			case 0:
				w.append(name, 0, 1+w.rnd(4), w.rnd(9000))
			case 1:
				w.ack(name, 30, true)
				w.flush()
			case 2:
				w.chores()
				w.flush()
			case 3:
				w.setAside(name)
			}
			w.append(name, 0, 1+w.rnd(4), w.rnd(3000))
		}
		w.j.Close()
		w.fs.crash(func() bool { return how == 2 || how == 1 && w.rnd(2) == 0 })
		w.mustOpen()
		w.check()
	case 11:
		w.last = "disk trouble"
		sticky, n := w.rnd(2) == 0, w.fs.calls+w.rnd(12)
		w.fs.fault = func(c int, call, name string) error {
			if c == n || sticky && c > n {
				return fmt.Errorf("injected into %s of %s", call, name)
			}
			return nil
		}
		w.append(name, 0, 1+w.rnd(4), w.rnd(3000))
		w.ack(name, 3, false)
		w.flush()
		w.chores()
		w.append(name, 0, 1, 10)
		w.fs.fault = nil
		w.j.w.retryAt = time.Time{}
		w.j.commit(false)
		if err := w.j.stopped(); err != nil {
			w.t.Fatalf("after %s: does not store again: %v", w.last, err)
		}
	case 12:
		w.last = "a lot that leaves in part"
		for range 3 + w.rnd(8) {
			w.append(name, uint8(w.rnd(2)*4), 4, 4000+w.rnd(4000))
			w.append("stalled", 0, 1, w.rnd(3000))
			w.ack(name, 100, w.rnd(3) == 0)
		}
		w.flush()
		w.chores()
	}
}

const stepKinds = 13

// TestEveryHistoryKeepsThePromises runs random histories of appends, acks, setting aside, compaction, clean stops, crashes that forget what was not synced,
// and failing calls, against a model.
func TestEveryHistoryKeepsThePromises(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWorld(rt, func(n int) int { return rapid.IntRange(0, n-1).Draw(rt, "n") })
		w.mustOpen()
		for _, k := range rapid.SliceOfN(rapid.IntRange(0, stepKinds-1), 1, 30).Draw(rt, "steps") {
			w.step(k)
		}
		w.last = "the whole history"
		w.check()
		w.close()
		w.mustOpen()
		w.last = "a clean stop"
		w.settleMay()
		w.check()
	})
}

// TestTenThousandHistories is the same with a plain random source: many more histories in the same time.
func TestTenThousandHistories(t *testing.T) {
	n := histories()
	var compacted, torn uint64
	for seed := range uint64(n) {
		r := rand.New(rand.NewPCG(seed, 7))
		w := newWorld(t, r.IntN)
		w.mustOpen()
		for range 1 + r.IntN(14) {
			w.step(r.IntN(stepKinds))
			if t.Failed() {
				break
			}
		}
		w.last += fmt.Sprintf(" (seed %d)", seed)
		w.check()
		w.close()
		compacted += w.compacted + w.j.Stats().Compacted
		torn += w.torn + w.j.Stats().Torn
	}
	if compacted == 0 || torn == 0 {
		t.Errorf("%d messages moved, %d tails torn: the histories do not reach what they are for", compacted, torn)
	}
	t.Logf("%d histories, %d messages moved by compaction, %d torn tails", n, compacted, torn)
}

// histories is how many TestTenThousandHistories runs: 10,000 (200 under the race detector, which sees nothing new in one goroutine), or what GATEWAYD_HISTORIES says.
func histories() int {
	if n, err := strconv.Atoi(os.Getenv("GATEWAYD_HISTORIES")); err == nil {
		return n
	}
	if underRace {
		return 200
	}
	return 10_000
}
