package certstore

import (
	"context"
	"encoding/binary"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"gatewayd/internal/certstore/certtest"
)

// timepiece is a wall clock that can be set, beside the virtual monotonic one.
type timepiece struct {
	c               *Clock
	offset          atomic.Int64
	synced, present bool
}

func newTimepiece(t testing.TB, dir string, build, wall time.Time) *timepiece {
	t.Helper()
	p := &timepiece{c: OpenClock(ClockOptions{StateDir: dir, Build: build})}
	p.set(wall)
	p.c.wall = func() time.Time { return time.Now().Add(time.Duration(p.offset.Load())) }
	p.c.daemons = func() (bool, bool) { return p.synced, p.present }
	p.c.lastWall = p.c.wall().Round(0)
	return p
}

func (p *timepiece) set(wall time.Time) { p.offset.Store(int64(time.Until(wall))) }

func (p *timepiece) want(t testing.TB, when string, now time.Time, trusted bool) {
	t.Helper()
	got, ok := p.c.Now()
	if d := got.Sub(now); ok != trusted || d < 0 || d > time.Minute {
		t.Errorf("%s: %v trusted %v, want %v trusted %v", when, got, ok, now, trusted)
	}
}

func TestBootInNineteenSeventy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		build := time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
		p := newTimepiece(t, dir, build, time.Unix(3, 0))
		p.c.tick(time.Now())
		p.want(t, "at boot", build, false)
		if got := p.c.TLSTime(nil); !got.Equal(build) {
			t.Errorf("dials at %v, want the build time", got)
		}
		ca, err := certtest.NewCA("hub")
		must(t, err)
		begins := time.Date(2026, 9, 1, 0, 0, 0, 0, time.UTC)
		pair, err := ca.Issue(certtest.Leaf{CN: "device", NotBefore: begins, NotAfter: begins.AddDate(1, 0, 0)})
		must(t, err)
		cred, err := Parse(pair.CertPEM, pair.KeyPEM, nil)
		must(t, err)
		if got := p.c.TLSTime(cred); !got.Equal(begins) {
			t.Errorf("dials at %v, want the certificate's NotBefore", got)
		}
		// The time arrives.
		real := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
		gen := p.c.Generation()
		p.set(real)
		p.synced = true
		p.c.tick(time.Now())
		p.want(t, "synchronised", real, true)
		if p.c.Generation() == gen {
			t.Error("the step was not noticed")
		}
		// The next boot starts from the last good time.
		q := newTimepiece(t, dir, build, time.Unix(3, 0))
		q.c.tick(time.Now())
		q.want(t, "second boot", real, false)
	})
}

func TestTrustInTheClock(t *testing.T) {
	base := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	synctest.Test(t, func(t *testing.T) {
		ca, err := certtest.NewCA("hub")
		must(t, err)
		server, err := ca.Issue(certtest.Leaf{CN: "hub", NotBefore: base.AddDate(0, -6, 0), NotAfter: base.AddDate(0, 6, 0)})
		must(t, err)
		steps := []struct {
			name    string
			do      func(p *timepiece)
			trusted bool
		}{
			{"no evidence", func(*timepiece) {}, false},
			{"the hub's certificate fits", func(p *timepiece) { p.c.Observed(server.Leaf) }, true},
			{"a step within the slack", func(p *timepiece) { p.offset.Add(-int64(time.Minute)) }, true},
			{"a day back, before the floor", func(p *timepiece) { p.offset.Add(-int64(24 * time.Hour)) }, false},
			{"and forward again", func(p *timepiece) { p.offset.Add(int64(25 * time.Hour)) }, true},
			{"beyond the hub's certificate", func(p *timepiece) { p.offset.Add(int64(365 * 24 * time.Hour)) }, false},
			{"a time daemon says so", func(p *timepiece) { p.present, p.synced = true, true }, true},
			{"its servers are out of reach", func(p *timepiece) { p.synced = false }, true},
			{"in 1970", func(p *timepiece) { p.set(time.Unix(0, 0)) }, false},
		}
		p := newTimepiece(t, t.TempDir(), base.AddDate(0, -1, 0), base)
		for _, s := range steps {
			s.do(p)
			time.Sleep(clockTick)
			p.c.tick(time.Now())
			if got := p.c.Status(); got.Trusted != s.trusted {
				t.Errorf("%s: %+v, want trusted %v", s.name, got, s.trusted)
			}
		}
	})
}

// What waits for a time that can be believed, such as the end of a command's life, does
// not wait for the next look at the clock.
func TestEvidenceIsLookedAtAtOnce(t *testing.T) {
	base := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	synctest.Test(t, func(t *testing.T) {
		ca, err := certtest.NewCA("hub")
		must(t, err)
		server, err := ca.Issue(certtest.Leaf{CN: "hub", NotBefore: base.AddDate(0, -6, 0), NotAfter: base.AddDate(0, 6, 0)})
		must(t, err)
		p := newTimepiece(t, t.TempDir(), base.AddDate(0, -1, 0), base)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); _ = p.c.Run(ctx) }() // it returns nil
		time.Sleep(time.Second)
		p.want(t, "without evidence", base.Add(time.Second), false)
		p.c.Observed(server.Leaf)
		synctest.Wait()
		p.want(t, "with it", base.Add(time.Second), true)
		stop()
		<-done
	})
}

func TestUnsynchronisedDaemonDelaysTheHubsEvidence(t *testing.T) {
	base := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	synctest.Test(t, func(t *testing.T) {
		ca, err := certtest.NewCA("hub")
		must(t, err)
		server, err := ca.Issue(certtest.Leaf{CN: "hub", NotBefore: base.AddDate(0, -6, 0), NotAfter: base.AddDate(0, 6, 0)})
		must(t, err)
		p := newTimepiece(t, t.TempDir(), base.AddDate(0, -1, 0), base)
		p.present = true
		p.c.Observed(server.Leaf)
		p.c.tick(time.Now())
		p.want(t, "right after", base, false)
		time.Sleep(daemonGrace)
		p.c.tick(time.Now())
		p.want(t, "no time server for ten minutes", base.Add(daemonGrace), true)
	})
}

func TestClockThatRanAheadCorrectsItsFloor(t *testing.T) {
	base := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		must(t, os.WriteFile(filepath.Join(dir, "clock"), []byte("2099-01-01T00:00:00Z\n"), 0o600))
		p := newTimepiece(t, dir, base.AddDate(0, -1, 0), base)
		p.c.tick(time.Now())
		if _, trusted := p.c.Now(); trusted {
			t.Error("trusted behind the floor")
		}
		p.synced = true
		p.c.tick(time.Now())
		p.want(t, "synchronised", base, true)
		if f := newTimepiece(t, dir, base.AddDate(0, -1, 0), base).c.Status().Floor; f.Year() != 2026 {
			t.Errorf("the floor stays at %v", f)
		}
	})
}

func TestClockRunKeepsTheTimeAndEnds(t *testing.T) {
	base := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		must(t, os.WriteFile(filepath.Join(dir, "clock"), []byte("yesterday"), 0o600))
		p := newTimepiece(t, dir, base.AddDate(0, -1, 0), base)
		p.synced = true
		var writes atomic.Int64
		var heals atomic.Bool
		replace := p.c.disk.rename
		p.c.disk.rename = func(from, to string) error {
			writes.Add(1)
			if heals.Load() {
				return replace(from, to)
			}
			return os.ErrPermission
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- p.c.Run(ctx) }()
		time.Sleep(10*time.Hour + time.Minute)
		if n := writes.Load(); n < 10 || n > 11 {
			t.Errorf("%d writes in ten hours, want one per hour", n)
		}
		heals.Store(true)
		cancel()
		must(t, <-done)
		q := newTimepiece(t, dir, base.AddDate(0, -1, 0), time.Unix(0, 0))
		q.want(t, "after a stop", base.Add(10*time.Hour+time.Minute), false)
	})
}

// TestClockPastTwentyThirtyEight: times are 64 bits wide on every platform.
func TestClockPastTwentyThirtyEight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, year := range []int{2038, 2106, 2200} {
			wall := time.Date(year, 12, 31, 0, 0, 0, 0, time.UTC)
			dir := t.TempDir()
			p := newTimepiece(t, dir, time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), wall)
			p.synced = true
			p.c.tick(time.Now())
			p.want(t, "running", wall, true)
			newTimepiece(t, dir, time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), time.Unix(0, 0)).want(t, "floor", wall, false)
		}
	})
}

// TestTimeStepExpiresNothing: certificates are judged anew and none is lost when the clock jumps by decades.
func TestTimeStepExpiresNothing(t *testing.T) {
	virtual(t, func(t *testing.T, r *rig) {
		real := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
		p := newTimepiece(t, t.TempDir(), real.AddDate(0, -5, 0), time.Unix(5, 0))
		r.o.Clock = p.c
		valid := certtest.Leaf{NotBefore: real.Add(-24 * time.Hour), NotAfter: real.AddDate(0, 1, 0)}
		good := r.put(valid)
		r.run()
		p.c.tick(time.Now())
		r.wantCurrent(good)
		r.store.Commit(good, 0)
		next := r.put(valid)
		time.Sleep(settled)
		r.wantCandidate(next) // not "not yet valid": this clock knows nothing
		drain(r.store.Changed())
		if st := r.store.Status(); st.ClockTrusted {
			t.Error("1970 trusted")
		}
		p.set(real)
		p.synced = true
		p.c.tick(time.Now())
		time.Sleep(settled)
		select {
		case <-r.store.Changed():
		default:
			t.Error("the session was not told of the time")
		}
		r.wantCurrent(good)
		r.wantCandidate(next)
		if st := r.store.Status(); !st.ClockTrusted || st.Expiry != "" {
			t.Errorf("status %+v", st)
		}
		// Back by a day and forward by a year: waits go by the monotonic clock.
		r.store.Miss(next, "closed")
		missed := time.Now()
		p.offset.Add(-int64(24 * time.Hour))
		p.c.tick(time.Now())
		time.Sleep(30 * time.Second)
		p.offset.Add(int64(366 * 24 * time.Hour))
		p.c.tick(time.Now())
		for r.store.Candidate() == nil {
			time.Sleep(time.Second)
			if time.Since(missed) > 2*time.Minute {
				t.Fatal("a retry waits for the wall clock")
			}
		}
		r.wantCurrent(good)
		if st := r.store.Status(); st.Expiry != "expired" {
			t.Errorf("expired unseen: %+v", st)
		}
	})
}

func TestTimeDaemonsAreAsked(t *testing.T) {
	dir := t.TempDir()
	nobody := "127.0.0.1:1"
	if synced, present := timeDaemons(filepath.Join(dir, "none"), nobody); synced || present {
		t.Errorf("nobody: %v %v", synced, present)
	}
	if synced, present := timeDaemons(dir, nobody); synced || !present {
		t.Errorf("timesyncd that waits: %v %v", synced, present)
	}
	must(t, os.WriteFile(filepath.Join(dir, "synchronized"), nil, 0o600))
	if synced, present := timeDaemons(dir, nobody); !synced || !present {
		t.Errorf("timesyncd: %v %v", synced, present)
	}
	for leap, want := range map[uint16]bool{0: true, 1: true, 2: true, 3: false} {
		synced, present := timeDaemons(filepath.Join(dir, "none"), chronyd(t, leap))
		if synced != want || !present {
			t.Errorf("chronyd with leap status %d: %v %v", leap, synced, present)
		}
	}
}

// chronyd answers one tracking request.
func chronyd(t testing.TB, leap uint16) string {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		var req [1024]byte
		n, from, err := conn.ReadFrom(req[:])
		if err != nil || n != chronyRequestLen || req[0] != 6 || req[1] != 1 || binary.BigEndian.Uint16(req[4:]) != chronyTracking {
			return
		}
		reply := make([]byte, 104)
		reply[0], reply[1] = 6, 2
		binary.BigEndian.PutUint16(reply[4:], chronyTracking)
		binary.BigEndian.PutUint16(reply[6:], chronyReply)
		copy(reply[16:20], req[8:12])
		binary.BigEndian.PutUint16(reply[54:], leap)
		_, _ = conn.WriteTo(reply, from)
	}()
	return conn.LocalAddr().String()
}
