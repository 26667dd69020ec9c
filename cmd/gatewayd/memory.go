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
// a reconnect storm, has left behind.
const trimEvery = 20 * time.Second

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
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		if held := m.HeapSys - m.HeapReleased; held > 8<<20 && held > m.HeapAlloc+m.HeapAlloc/2 || m.HeapAlloc > 16<<20 && m.LastGC < uint64(time.Now().Add(-time.Minute).UnixNano()) {
			debug.FreeOSMemory()
		}
	}
}
