package hub

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/hub/hubtest"
	"gatewayd/internal/queue"
)

// benchHub names the certificate authority of a stand-in hub in a process of its
// own, so that processor time and memory are those of the sessions alone.
const benchHub = "GATEWAYD_BENCH_HUB"

func TestMain(m *testing.M) {
	if ca := os.Getenv(benchHub); ca != "" {
		serveBench(ca)
		return
	}
	os.Exit(m.Run())
}

// serveBench prints its address and its own authority, and serves until its standard
// input ends.
func serveBench(caHex string) {
	ca := must(x509.ParseCertificate(must(hex.DecodeString(caHex))))
	h := must(hubtest.New(hubtest.Options{ClientCAs: []*x509.Certificate{ca}, Ledger: hubtest.CountOnly, MaxInbound: -1,
		WebSocket: "127.0.0.1:0"}))
	for i := range 1000 {
		if err := h.AddDevice(hubtest.Device{DeviceID: fmt.Sprintf("dev-%d", i)}); err != nil {
			panic(err)
		}
	}
	fmt.Printf("%s %s %s\n", h.Addr(), h.WebSocketAddr(), hex.EncodeToString(h.ServerCAPEM()))
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
		cancel()
	}()
	_ = h.Run(ctx)
}

// elsewhere starts a hub in another process and returns what a session needs to
// reach it.
func elsewhere(b testing.TB, ca *certtest.CA) Config {
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), benchHub+"="+hex.EncodeToString(ca.Cert.Raw))
	cmd.Stderr = os.Stderr
	in, out := must(cmd.StdinPipe()), must(cmd.StdoutPipe())
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		in.Close()
		_ = cmd.Wait()
	})
	said := strings.Fields(must(bufio.NewReader(out).ReadString('\n')))
	if len(said) != 3 {
		b.Fatal("the hub's process said something else")
	}
	addr, ws, pem := said[0], said[1], said[2]
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(must(hex.DecodeString(pem))) {
		b.Fatal("the hub's process said something else")
	}
	return Config{Identity: Identity{HostName: hubtest.DefaultHostName, Address: addr, WebSocketAddress: ws}, Roots: func() *x509.CertPool { return roots }}
}

// endless hands out the same message again and again until it was asked for n.
type endless struct {
	ready   chan struct{}
	m       queue.Message
	n, next uint64
	acked   uint64
	done    chan struct{}
}

func (e *endless) newReader() reader             { return e }
func (e *endless) Ready() <-chan struct{}        { return e.ready }
func (e *endless) SetAside(uint64, string) error { return nil }

func (e *endless) Ack(uint64) {
	if e.acked++; e.acked == e.n {
		close(e.done)
	}
}

func (e *endless) Next() (queue.Message, bool, error) {
	if e.next == e.n {
		return queue.Message{}, false, nil
	}
	e.next++
	e.m.Seq = e.next
	return e.m, true, nil
}

// BenchmarkPublish measures acknowledged messages of 256 B over mutual TLS 1.3, with
// the hub in another process on the same machine.
func BenchmarkPublish(b *testing.B) {
	for i, window := range []int{1, 16, 100, 1000, 1, 16, 100, 1000} {
		over := []Transport{OverTLS, OverWebSocket}[i/4]
		b.Run(fmt.Sprintf("%s/window=%d", over, window), func(b *testing.B) {
			ca := must(certtest.NewCA("bench"))
			cfg := elsewhere(b, ca)
			cfg.Transport = over
			cfg.Name, cfg.DeviceID, cfg.Window = "dev-0", "dev-0", window
			m := queue.Message{ID: "0123456789abcdef-0123456789", Payload: make([]byte, 256), Accepted: time.Now(), AcceptedTrusted: true,
				ContentType: "application/json", ContentEncoding: "utf-8", Properties: []queue.Property{{Key: "sensor", Value: "press-7/temperature"}}}
			box := &endless{ready: make(chan struct{}, 1), m: m, n: uint64(b.N), done: make(chan struct{})}
			s := newSession(cfg, box, newStore(issue(b, ca, certtest.Leaf{CN: "dev-0"})), NewPacer(Pace{}), zap.NewNop())
			ctx, cancel := context.WithCancel(b.Context())
			b.ReportAllocs()
			before := cpu()
			b.ResetTimer()
			ended := make(chan struct{})
			go func() { defer close(ended); _ = s.Run(ctx) }()
			<-box.done
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "msg/s")
			b.ReportMetric(float64((cpu()-before).Microseconds())/float64(b.N), "cpu-µs/msg")
			cancel()
			<-ended
		})
	}
}

// BenchmarkIdleIdentities connects 500 identities and reports the resident memory
// that each costs, first untouched and then after a burst of 50 messages.
func BenchmarkIdleIdentities(b *testing.B) {
	for _, over := range []Transport{OverTLS, OverWebSocket} {
		b.Run(string(over), func(b *testing.B) { benchmarkIdle(b, over) })
	}
}

func benchmarkIdle(b *testing.B, over Transport) {
	const n = 500
	ca := must(certtest.NewCA("bench"))
	cfg := elsewhere(b, ca)
	cfg.Transport = over
	boxes := make([]*memoryBox, n)
	sessions := make([]*Session, n)
	pacer := NewPacer(Pace{Connects: 1000})
	for i := range n {
		cfg.Name = fmt.Sprintf("dev-%d", i)
		cfg.DeviceID = cfg.Name
		boxes[i] = newBox()
		sessions[i] = newSession(cfg, boxes[i], newStore(issue(b, ca, certtest.Leaf{CN: cfg.Name})), pacer, zap.NewNop())
	}
	before, goroutines := rss(), runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan struct{}, n)
	begin := time.Now()
	for _, s := range sessions {
		go func() { _ = s.Run(ctx); done <- struct{}{} }()
	}
	waitAll(b, sessions, func(s *Session) bool { return s.Status().State == StateConnected })
	b.ReportMetric(time.Since(begin).Seconds(), "s-to-connect")
	b.ReportMetric(float64(rss()-before)/n/1024, "KiB/identity")
	b.ReportMetric(float64(runtime.NumGoroutine()-goroutines)/n, "goroutines/identity")
	for _, box := range boxes {
		for range 50 {
			box.put(queue.Message{Payload: make([]byte, 256)})
		}
	}
	waitAll(b, sessions, func(s *Session) bool { return s.Status().Delivered == 50 })
	for _, box := range boxes {
		box.mu.Lock()
		box.all, box.gone, box.acks, box.ackAt, box.first = nil, nil, nil, nil, 0
		box.mu.Unlock()
	}
	time.Sleep(200 * time.Millisecond)
	b.ReportMetric(float64(rss()-before)/n/1024, "KiB/identity-after-burst")
	cancel()
	for range n {
		<-done
	}
}

func waitAll(b *testing.B, sessions []*Session, ready func(*Session) bool) {
	for _, s := range sessions {
		for end := time.Now().Add(time.Minute); !ready(s); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				b.Fatalf("%+v", s.Status())
			}
		}
	}
}

func cpu() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// rss is the resident memory in bytes after a collection.
func rss() int {
	for range 2 {
		debug.FreeOSMemory()
	}
	for _, line := range strings.Split(string(must(os.ReadFile("/proc/self/status"))), "\n") {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			return must(strconv.Atoi(strings.Fields(v)[0])) * 1024
		}
	}
	panic("no VmRSS")
}
