package main

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"time"
)

// memoryPercent makes the collector run when the heap has grown by half: on a
// small box memory is scarcer than the few per cent of CPU that it costs.
const memoryPercent = 50

// trimEvery is how often memory is looked at that a burst, such as the start or
// a reconnect storm, has left behind; trimRest is the least time between two times
// of giving back, each of which takes about 30 ms with 500 identities.
const (
	trimEvery = 10 * time.Second
	trimRest  = 40 * time.Second
)

// tuneMemory sets the collector's pace unless the operator has.
func tuneMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(memoryPercent)
	}
}

// trimMemory gives memory back to the system soon after a burst. The runtime
// does it too, but over many minutes and not below its last goal.
func trimMemory(ctx context.Context) error {
	tick := time.NewTicker(trimEvery)
	defer tick.Stop()
	var floor, allocated uint64 // held after the last time; allocated at the last look
	var last time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		quiet := m.TotalAlloc-allocated < m.HeapAlloc // in a burst it would only be taken again
		allocated = m.TotalAlloc
		if held := m.HeapSys - m.HeapReleased; !quiet || held < floor+floor/8+1<<20 || time.Since(last) < trimRest {
			continue
		}
		debug.FreeOSMemory()
		runtime.ReadMemStats(&m)
		floor, last = m.HeapSys-m.HeapReleased, time.Now()
	}
}
