package cloud

import (
	"fmt"
	"runtime"
	"testing"

	"gatewayd/internal/downstream"
	"gatewayd/internal/hub"
	"gatewayd/internal/queue"
)

// An idle identity with everything switched on costs little memory.
func TestAnIdleIdentityIsSmall(t *testing.T) {
	const n = 1000
	dir := t.TempDir()
	j := must(queue.Open(queue.Options{Dir: dir + "/queue"}))(t)
	defer j.Close()
	c := New(Config{Journal: j, StateDir: dir, Report: func(string) map[string]any {
		return map[string]any{"version": "1.2.3", "uptime": 1, "queue": map[string]any{"messages": 0, "bytes": 0, "oldestSeconds": 0},
			"certificate": map[string]any{"validFrom": "2026-01-01T00:00:00Z", "validUntil": "2027-01-01T00:00:00Z"}}
	}})
	c.Attach(downstream.NewLocal(downstream.LocalConfig{}, c))
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	ids := make([]*Identity, n)
	for i := range ids {
		o := everything(fmt.Sprint("press-", i))
		o.ReportKey = "gatewayd"
		id := must(c.Add(o))(t)
		ids[i] = id
		l := &fakeLink{done: make(chan struct{})}
		id.Filters(hub.Identity{DeviceID: o.Name})
		c.settle = 0
		id.twinConnected(l)
		id.twinAnswered(l, topic{rid: id.twin.rid, status: 200}, []byte(`{"desired":{"speed":1,"$version":2},"reported":{"$version":1}}`))
		id.nextTwin()
		id.twinAnswered(l, topic{rid: id.twin.rid, status: 204, version: 2}, nil)
		id.showState(State{Connected: true, State: "connected"})
		l.sent = nil
	}
	after := heap()
	per := int64(after-before) / n
	t.Logf("%d bytes of heap per identity", per)
	if per > 6<<10 {
		t.Errorf("%d bytes of heap per identity", per)
	}
	runtime.KeepAlive(ids)
}
