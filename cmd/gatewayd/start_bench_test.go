package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatewayd/internal/hub/hubtest"
)

// shipped builds gatewayd as it is shipped: the test binary starts slower and holds
// more.
func shipped(b *testing.B) string {
	b.Helper()
	path := filepath.Join(b.TempDir(), "gatewayd")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("go build: %v\n%s", err, out)
	}
	return path
}

// named are the names of n identities.
func named(n int) []string {
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprintf("d%d", i)
	}
	return names
}

// startUntilReady starts the program as systemd does and returns how long it takes
// until READY=1 arrives.
func (s *plant) startUntilReady(b *testing.B, path string) (*process, time.Duration) {
	b.Helper()
	socket := filepath.Join(b.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	p := &process{t: b, done: make(chan struct{})}
	p.cmd = exec.Command(path, "run", "-c", "config.yaml")
	p.cmd.Dir, p.cmd.Env = s.dir, append(os.Environ(), "NOTIFY_SOCKET="+socket)
	p.cmd.Stdout, p.cmd.Stderr = &p.log, &p.log
	check(b, l.SetReadDeadline(time.Now().Add(30*time.Second)))
	start := time.Now()
	check(b, p.cmd.Start())
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait() // the exit code is of no interest
	}()
	b.Cleanup(p.kill)
	for buf := make([]byte, 4096); ; {
		n, err := l.Read(buf)
		if err != nil {
			b.Fatalf("no READY: %v\n%s", err, p.log.String())
		}
		if strings.Contains(string(buf[:n]), "READY=1") {
			return p, time.Since(start)
		}
	}
}

// BenchmarkColdStart is the time from exec to READY with 100 identities and an empty
// queue: first on a new state folder, then on one that was used.
func BenchmarkColdStart(b *testing.B) {
	path := shipped(b)
	for b.Loop() {
		s := newPlant(b, hubtest.Options{}, named(100)...)
		p, first := s.startUntilReady(b, path)
		const again = 5
		var worst, sum, cpu time.Duration
		for range again {
			check(b, p.cmd.Process.Signal(os.Interrupt))
			<-p.done
			var d time.Duration
			p, d = s.startUntilReady(b, path)
			sum, worst, cpu = sum+d, max(worst, d), cpu+p.usage(b).cpu
		}
		p.kill()
		b.ReportMetric(millis(first), "ms-first")
		b.ReportMetric(millis(sum/again), "ms-again")
		b.ReportMetric(millis(worst), "ms-worst")
		// What a machine that others use too cannot distort much.
		b.ReportMetric(millis(cpu/again), "cpu-ms-again")
	}
}

// BenchmarkIdleOne is what the shipped program weighs: its file, and its memory with
// one connected identity that has had nothing to do for half a minute.
func BenchmarkIdleOne(b *testing.B) {
	path := shipped(b)
	for b.Loop() {
		info, err := os.Stat(path)
		if err != nil {
			b.Fatal(err)
		}
		s := newPlant(b, hubtest.Options{}, "press-7")
		p, _ := s.startUntilReady(b, path)
		eventually(b, 15*time.Second, "connected", func() bool { return s.hub.Connected("press-7") })
		time.Sleep(30 * time.Second)
		rss := p.usage(b).rss
		p.kill()
		b.ReportMetric(float64(info.Size())/(1<<20), "MiB-file")
		b.ReportMetric(float64(rss)/(1<<20), "MiB-RSS")
	}
}
