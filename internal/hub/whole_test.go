package hub

import (
	"context"
	"net"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"gatewayd/internal/certstore"
	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/hub/hubtest"
	"gatewayd/internal/queue"
)

// TestRealQueueAndRealFiles runs a session with the parts that it has in the daemon:
// the journal and a watched folder of certificate files.
func TestRealQueueAndRealFiles(t *testing.T) {
	r := newRig(t, false, hubtest.Options{})
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "dev.pem"), filepath.Join(dir, "dev.key")
	write := func() *certtest.Pair {
		p := must(r.ca.Issue(certtest.Leaf{CN: "dev-1"}))
		if err := p.Write(cert, key); err != nil {
			t.Fatal(err)
		}
		return p
	}
	first := write()
	store := must(certstore.Open(certstore.Options{Identity: "dev-1", Source: certstore.Source{Cert: cert, Key: key}, CommonName: "dev-1", StateDir: filepath.Join(dir, "state")}))
	watcher := certstore.NewWatcher(certstore.WatcherOptions{})
	watcher.Add(store)
	journal := must(queue.Open(queue.Options{Dir: filepath.Join(dir, "queue")}))
	q := must(journal.Queue("dev-1", queue.Limits{}))
	r.s = NewSession(r.cfg, q, store, r.pacer, zap.NewNop())

	ctx, cancel := context.WithCancel(t.Context())
	stopped, stopJournal := context.WithCancel(context.Background())
	var wg, late sync.WaitGroup
	for _, run := range []func(context.Context) error{watcher.Run, r.s.Run} {
		wg.Go(func() {
			if err := run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	late.Go(func() { _ = journal.Run(stopped) })

	const n = 500
	for i := range n {
		if _, err := q.AppendWait(ctx, queue.Message{Payload: []byte(strconv.Itoa(i))}); err != nil {
			t.Fatal(err)
		}
		if i == n/2 {
			r.connected()
			second := write()
			r.await("the renewed files in use", 30*time.Second, func() bool { return r.s.Status().Rotations == 1 })
			if got := store.Current().Leaf(); !got.Equal(second.Leaf) || got.Equal(first.Leaf) {
				t.Error("another certificate is current")
			}
		}
	}
	r.await("queue drained", 30*time.Second, func() bool { return q.Stats().Messages == 0 })
	cancel()
	wg.Wait()
	stopJournal()
	late.Wait()
	if err := journal.Close(); err != nil {
		t.Error(err)
	}
	r.checkStream(n)
	if st := store.Status(); st.Committed != 1 || !st.Proved {
		t.Errorf("store %+v", st)
	}
	r.strict()
}

// cutConn resets the connection after so many bytes in either direction.
type cutConn struct {
	net.Conn
	left atomic.Int64
}

func (c *cutConn) take(n int, err error) (int, error) {
	if c.left.Add(-int64(n)) < 0 {
		c.Conn.Close()
		return n, &net.OpError{Op: "read", Net: "tcp", Err: syscall.ECONNRESET}
	}
	return n, err
}

func (c *cutConn) Read(b []byte) (int, error)  { return c.take(c.Conn.Read(b)) }
func (c *cutConn) Write(b []byte) (int, error) { return c.take(c.Conn.Write(b)) }

func TestResetAtAnyByteLosesNothing(t *testing.T) {
	r := newRig(t, false, hubtest.Options{})
	r.cfg.Timing = Timing{RetryMin: time.Microsecond, RetryMax: time.Millisecond, Stable: time.Microsecond}
	var dials atomic.Int64
	const step, last = 131, 8000
	r.cfg.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, network, r.hub.Addr())
		if err != nil {
			return nil, err
		}
		cut := &cutConn{Conn: c}
		if cut.left.Store(dials.Add(1) * step); dials.Load()*step > last {
			cut.left.Store(1 << 40)
		}
		return cut, nil
	}
	const n = 300
	r.box.text(numbered(0, n)...)
	r.start()
	r.drained()
	r.checkStream(n)
	if d := dials.Load(); d < 20 {
		t.Errorf("only %d connections were needed", d)
	}
	if len(r.box.aside) > 0 {
		t.Errorf("resets condemned messages: %v", r.box.aside)
	}
}

func TestThrottledHubIsServedAtItsPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, true, hubtest.Options{})
		r.hub.Throttle(20)
		r.box.text(numbered(0, 600)...)
		r.start()
		begin := time.Now()
		r.drained()
		if took := time.Since(begin); took > 40*time.Second {
			t.Errorf("600 messages at 20 per second took %s", took)
		}
		if n := len(r.hub.Connections()); n != 1 {
			t.Errorf("%d connections", n)
		}
		r.checkStream(600)
	})
}

func TestThrottleThatCutsStillLetsEverythingThrough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, true, hubtest.Options{MaxInbound: -1})
		r.cfg.Window = 500
		r.hub.Throttle(20)
		r.box.text(numbered(0, 1000)...)
		r.start()
		r.await("queue drained", time.Hour, func() bool { return r.box.waiting() == 0 })
		r.checkStream(1000)
		if len(r.box.aside) > 0 {
			t.Errorf("set aside %v", r.box.aside)
		}
	})
}

// TestFlappingLinkDeliversEverything has a link that is up for 20 s and down for 40 s.
func TestFlappingLinkDeliversEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, true, hubtest.Options{})
		up, dial := atomic.Bool{}, r.cfg.DialContext
		up.Store(true)
		r.cfg.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			if !up.Load() {
				return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ENETUNREACH}
			}
			return dial(ctx, network, address)
		}
		r.start()
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			for ctx.Err() == nil {
				time.Sleep(20 * time.Second)
				up.Store(false)
				r.hub.DropConnections("")
				time.Sleep(40 * time.Second)
				up.Store(true)
			}
		})
		n := 0
		for range 6 * 60 {
			r.box.text(numbered(n, n+5)...)
			n += 5
			time.Sleep(10 * time.Second)
		}
		cancel()
		wg.Wait()
		r.await("queue drained", 20*time.Minute, func() bool { return r.box.waiting() == 0 })
		r.checkStream(n)
	})
}
