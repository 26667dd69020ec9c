package certstore

import (
	"fmt"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"gatewayd/internal/certstore/certtest"
)

// BenchmarkPoll is one look at unchanged files, which every identity takes each ten seconds, without and with a share that
// may hang on the way.
func BenchmarkPoll(b *testing.B) {
	for _, of := range []struct {
		name  string
		table map[string]mount
	}{{"local", map[string]mount{"/": {"8:1", false}}}, {"share", map[string]mount{"/": {"0:30", true}}}} {
		b.Run(of.name, func(b *testing.B) {
			r := newRig(b)
			r.put(certtest.Leaf{})
			r.open()
			w := NewWatcher(WatcherOptions{PollOnly: true})
			w.table = func() map[string]mount { return of.table }
			f := &follower{subject: r.store, w: w, judged: r.store.first()}
			b.ReportAllocs()
			for b.Loop() {
				now := time.Now()
				f.w.approach(f)
				f.compare(now)
				f.tick(now)
			}
		})
	}
}

// BenchmarkIdleIdentity reports the memory of a store that is watched and has nothing to do.
func BenchmarkIdleIdentity(b *testing.B) {
	const many = 500
	r := newRig(b)
	dir := b.TempDir()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	w := NewWatcher(WatcherOptions{})
	stores := make([]*Store, many)
	for i := range stores {
		src := Source{Cert: filepath.Join(dir, fmt.Sprintf("%d.pem", i)), Key: filepath.Join(dir, fmt.Sprintf("%d.key", i))}
		must(b, r.issue(certtest.Leaf{}).Write(src.Cert, src.Key))
		s, err := Open(Options{Identity: fmt.Sprint(i), Source: src, CommonName: press})
		must(b, err)
		w.Add(s)
		stores[i] = s
	}
	r.watcher = w
	r.runWatcher()
	eventually(b, "all watched", func() bool {
		for _, s := range stores {
			if s.Status().Watch == "" {
				return false
			}
		}
		return true
	})
	for range 3 {
		runtime.GC()
	}
	runtime.ReadMemStats(&after)
	for b.Loop() {
		stores[0].Status()
	}
	b.ReportMetric(float64(after.HeapInuse+after.StackInuse-before.HeapInuse-before.StackInuse)/many, "B/identity")
	runtime.KeepAlive(stores)
}
