package main

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"time"
)

// The collector runs when the heap has grown by so many per cent. At rest and at
// the start, where garbage is little, it runs early: that costs a few % of CPU at most,
// and what stays is packed instead of scattered over what was garbage. With more than
// busyBytes of garbage a second it would cost too much.
const (
	restPercent = 4
	busyPercent = 50
	busyBytes   = 4 << 20
)

// paceEvery is how often the above is decided, and memory looked for that a burst,
// such as the start or a reconnect storm, has left behind; trimRest is the least time
// between two times of giving it back, each of which takes about 30 ms with 500
// identities.
const (
	paceEvery = 2 * time.Second
	trimRest  = 30 * time.Second
)

// memory sets the garbage collector's pace unless the operator has (GOGC).
type memory struct {
	owned   bool // by the operator
	percent int
}

func newMemory() *memory {
	c := &memory{owned: os.Getenv("GOGC") != ""}
	c.set(restPercent)
	return c
}

func (c *memory) set(percent int) {
	if c.owned || c.percent == percent {
		return
	}
	c.percent = percent
	debug.SetGCPercent(percent)
}

// Run follows the load, and gives memory back to the system soon after a burst. The
// runtime does that too, but over many minutes and not below its last goal.
func (c *memory) Run(ctx context.Context) error {
	tick := time.NewTicker(paceEvery)
	defer tick.Stop()
	var floor, allocated uint64 // held after the last time; allocated at the last look
	var last time.Time
	var m runtime.MemStats
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		runtime.ReadMemStats(&m)
		busy := m.TotalAlloc-allocated > busyBytes*uint64(paceEvery/time.Second)
		allocated = m.TotalAlloc
		if busy {
			c.set(busyPercent)
			continue // what is given back now would be taken again
		}
		c.set(restPercent)
		if held := m.HeapSys - m.HeapReleased; held < floor+floor/16+512<<10 || time.Since(last) < trimRest {
			continue
		}
		debug.FreeOSMemory()
		runtime.ReadMemStats(&m)
		floor, last = m.HeapSys-m.HeapReleased, time.Now()
	}
}
