package downstream

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gatewayd/internal/packet"
	"gatewayd/internal/queue"
)

// journalSink is the real queue.
type journalSink struct{ q *queue.Queue }

func (s journalSink) Append(ctx context.Context, _ string, m queue.Message, done func(uint64, error)) error {
	return s.q.Append(ctx, m, done)
}

func newJournalSink(t testing.TB) Sink {
	t.Helper()
	j, err := queue.Open(queue.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { j.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait(); j.Close() })
	q, err := j.Queue("press-7", queue.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	return journalSink{q}
}

// BenchmarkDurableAcks measures acknowledged QoS 1 messages of 256 bytes; client and
// server share the machine. Run it with -benchtime=200000x or more.
func BenchmarkDurableAcks(b *testing.B) {
	for _, sink := range []string{"commit=2ms", "journal"} {
		for _, load := range []struct{ sensors, inFlight int }{{500, 10}, {500, 1}, {1, 1000}} {
			b.Run(fmt.Sprintf("%s/sensors=%d/inflight=%d", sink, load.sensors, load.inFlight), func(b *testing.B) {
				o := benchOptions{commit: 2 * time.Millisecond}
				if sink == "journal" {
					o.sink = newJournalSink(b)
				}
				s := start(b, o)
				if s.sink != nil {
					s.sink.counts = true
				}
				publish(b, func(id string) *client { return s.connect(packet.V311, id) }, load.sensors, load.inFlight)
			})
		}
	}
}

func publish(b *testing.B, connect func(id string) *client, sensors, inFlight int) {
	clients := make([]*client, sensors)
	for i := range clients {
		clients[i] = connect(fmt.Sprint("sensor", i))
	}
	each := max(b.N/sensors, inFlight)
	b.ResetTimer()
	cpu := processorTime()
	begin := time.Now()
	var group sync.WaitGroup
	for _, c := range clients {
		group.Go(func() { c.pump(each, inFlight) })
	}
	group.Wait()
	total := float64(each * sensors)
	b.ReportMetric(total/time.Since(begin).Seconds(), "acks/s")
	b.ReportMetric(float64(processorTime()-cpu)/total/1e3, "cpu-µs/msg")
	b.ReportMetric(0, "ns/op")
}

// pump sends n messages with so many in flight and waits for all acknowledgements.
func (c *client) pump(n, inFlight int) {
	w := bufio.NewWriterSize(c.nc, 16<<10)
	payload := strings.Repeat("x", 256)
	var buf []byte
	sent := 0
	send := func() {
		sent++
		buf, _ = telemetry(uint16(sent%60000+1), payload).Append(buf[:0], c.v)
		w.Write(buf)
	}
	for sent < min(inFlight, n) {
		send()
	}
	w.Flush()
	for acked := 0; acked < n; acked++ {
		if _, err := c.r.Next(); err != nil {
			c.t.Error(err)
			return
		}
		if sent < n {
			send()
		}
		if c.r.Buffered() == 0 {
			w.Flush()
		}
	}
}

func processorTime() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkIdleSensors measures the memory of this process with 10,000 connected
// sensors that have each sent one QoS 1 message, and again after reconnect storms
// during which others go on sending 500 messages a second. The sensors are in a
// process of their own.
func BenchmarkIdleSensors(b *testing.B) {
	const sensors = 10000
	s := start(b, benchOptions{commit: 2 * time.Millisecond, config: MQTTConfig{MaxConnections: sensors + 200}})
	s.sink.counts = true
	runtime.GC()
	before := residentBytes()
	storm := startSensors(b, s.mqtt.Addr().String(), sensors)
	for i := range 4 {
		trips := make(chan []time.Duration, 1)
		go func() { trips <- measureTrips(s, 50, 500, 3*time.Second) }()
		begin := time.Now()
		storm.connect(b)
		took := time.Since(begin)
		p99 := quantile(<-trips, 0.99)
		if n := s.mqtt.Stats().Connections; n < sensors {
			b.Fatalf("%d connected", n)
		}
		resident := residentBytes()
		b.Logf("round %d: %d sensors in %v, p99 of others meanwhile %v, RSS %.1f MiB, %.1f KiB per sensor, %d goroutines", i, sensors, took.Round(time.Millisecond), p99,
			float64(resident)/(1<<20), float64(resident-before)/sensors/1024, runtime.NumGoroutine())
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		b.Logf("heap live %.1f MiB, in use %.1f, stacks %.1f, other %.1f, not given back %.1f", mib(m.HeapAlloc), mib(m.HeapInuse), mib(m.StackInuse),
			mib(m.Sys-m.HeapSys-m.StackSys), mib(m.HeapIdle-m.HeapReleased))
		b.ReportMetric(float64(resident)/(1<<20), fmt.Sprintf("MiB-round-%d", i))
	}
	b.ReportMetric(0, "ns/op")
}

func mib(n uint64) float64 { return float64(n) / (1 << 20) }

func residentBytes() int64 {
	text, _ := os.ReadFile("/proc/self/statm")
	fields := strings.Fields(string(text))
	if len(fields) < 2 {
		return 0
	}
	pages, _ := strconv.ParseInt(fields[1], 10, 64)
	return pages * int64(os.Getpagesize())
}

// sensorProcess is this test binary, started again to be many clients.
type sensorProcess struct {
	in  io.Writer
	out *bufio.Reader
}

const sensorEnv = "DOWNSTREAM_TEST_SENSORS"

func startSensors(t testing.TB, address string, n int) *sensorProcess {
	t.Helper()
	p, stop := startSelf(t, sensorEnv+"="+address+" "+strconv.Itoa(n))
	t.Cleanup(stop)
	return p
}

// startSelf starts this test binary with one more variable in its environment.
func startSelf(t testing.TB, env string) (p *sensorProcess, stop func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), env)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return &sensorProcess{in: stdin, out: bufio.NewReader(stdout)}, func() { stdin.Close(); cmd.Wait() }
}

// connect has all sensors drop their connections and come back at once.
func (p *sensorProcess) connect(t testing.TB) {
	t.Helper()
	if _, err := io.WriteString(p.in, "again\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := p.out.ReadString('\n'); err != nil || line != "ok\n" {
		t.Fatalf("sensors: %q %v", line, err)
	}
}

func TestMain(m *testing.M) {
	if spec := os.Getenv(sensorEnv); spec != "" {
		var address string
		var n int
		fmt.Sscan(spec, &address, &n)
		beSensors(address, n)
		return
	}
	if address := os.Getenv(attackersEnv); address != "" {
		beAttackers(address)
		return
	}
	os.Exit(m.Run())
}

func beSensors(address string, n int) {
	conns := make([]net.Conn, n)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		for _, c := range conns {
			if c != nil {
				c.Close()
			}
		}
		slots := make(chan struct{}, 500)
		var group sync.WaitGroup
		for i := range conns {
			slots <- struct{}{}
			group.Go(func() {
				defer func() { <-slots }()
				for conns[i] = nil; conns[i] == nil; {
					conns[i] = beSensor(address, i)
				}
			})
		}
		group.Wait()
		fmt.Println("ok")
	}
}

func beSensor(address string, i int) net.Conn {
	nc, err := net.Dial("tcp", address)
	if err != nil {
		return nil
	}
	b, _ := packet.Connect{Version: packet.V311, ClientID: fmt.Sprint("sensor", i), CleanStart: true, KeepAlive: 600}.Append(nil, packet.V311)
	b, _ = telemetry(1, "x").Append(b, packet.V311)
	nc.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := nc.Write(b); err != nil {
		nc.Close()
		return nil
	}
	var answer [8]byte // CONNACK and PUBACK
	for n := 0; n < len(answer); {
		m, err := nc.Read(answer[n:])
		if err != nil {
			nc.Close()
			return nil
		}
		n += m
	}
	nc.SetDeadline(time.Time{})
	return nc
}
