package downstream

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"gatewayd/internal/packet"
	"gatewayd/internal/queue"
)

// BenchmarkAgainstMosquitto measures acknowledged QoS 1 messages of 256 bytes of
// this listener before the journal, which syncs, and of Mosquitto, which does not,
// in one run on one machine.
func BenchmarkAgainstMosquitto(b *testing.B) {
	path, err := exec.LookPath("mosquitto")
	if err != nil {
		path = "/usr/sbin/mosquitto" // where Debian has it, often not in a user's PATH
		if _, err := os.Stat(path); err != nil {
			b.Skip("mosquitto is not installed")
		}
	}
	for _, load := range []struct{ sensors, inFlight int }{{500, 10}, {1, 1000}} {
		name := fmt.Sprintf("sensors=%d/inflight=%d", load.sensors, load.inFlight)
		b.Run("mosquitto/"+name, func(b *testing.B) {
			address := startMosquitto(b, path)
			publish(b, func(id string) *client {
				nc, err := net.Dial("tcp", address)
				if err != nil {
					b.Fatal(err)
				}
				b.Cleanup(func() { nc.Close() })
				c := &client{t: b, nc: nc, r: packet.NewReader(nc, 0)}
				c.hello(packet.Connect{Version: packet.V311, ClientID: id, CleanStart: true})
				return c
			}, load.sensors, load.inFlight)
		})
		b.Run("gatewayd/"+name, func(b *testing.B) {
			s := start(b, benchOptions{sink: newJournalSink(b)})
			publish(b, func(id string) *client { return s.connect(packet.V311, id) }, load.sensors, load.inFlight)
		})
	}
}

func startMosquitto(b *testing.B, path string) (address string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	address = l.Addr().String()
	_, port, _ := net.SplitHostPort(address)
	l.Close()
	conf := filepath.Join(b.TempDir(), "mosquitto.conf")
	text := "listener " + port + " 127.0.0.1\nallow_anonymous true\nmax_inflight_messages 0\nlog_dest none\nset_tcp_nodelay true\n"
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(path, "-c", conf)
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	eventually(b, "mosquitto listens", func() bool {
		nc, err := net.Dial("tcp", address)
		if err == nil {
			nc.Close()
		}
		return err == nil
	})
	return address
}

// BenchmarkRoundTrip measures publish to PUBACK at 1,000 messages a second over 100
// sensors with the journal, beside what one sync of this disk takes.
func BenchmarkRoundTrip(b *testing.B) {
	const sensors, rate = 100, 1000
	var mu sync.Mutex
	var syncs []time.Duration
	j, err := queue.Open(queue.Options{Dir: b.TempDir(), ObserveSync: func(d time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		syncs = append(syncs, d)
	}})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { j.Run(ctx) })
	b.Cleanup(func() { cancel(); running.Wait(); j.Close() })
	q, err := j.Queue("press-7", queue.Limits{})
	if err != nil {
		b.Fatal(err)
	}
	s := start(b, benchOptions{sink: journalSink{q}})
	trips := measureTrips(s, sensors, rate, 5*time.Second)
	mu.Lock()
	defer mu.Unlock()
	b.ReportMetric(ms(quantile(trips, 0.5)), "ms-p50")
	b.ReportMetric(ms(quantile(trips, 0.99)), "ms-p99")
	b.ReportMetric(ms(quantile(syncs, 0.5)), "ms-sync-p50")
	b.ReportMetric(ms(quantile(syncs, 0.99)), "ms-sync-p99")
	b.ReportMetric(0, "ns/op")
}

// measureTrips has sensors send at a steady rate in all and returns the round trips.
func measureTrips(s *bench, sensors, rate int, lasts time.Duration) []time.Duration {
	var mu sync.Mutex
	var trips []time.Duration
	var group sync.WaitGroup
	for i := range sensors {
		c := s.connect(packet.V311, fmt.Sprint("trip", i))
		group.Go(func() {
			tick := time.NewTicker(time.Second * time.Duration(sensors) / time.Duration(rate))
			defer tick.Stop()
			for end := time.Now().Add(lasts); time.Now().Before(end); {
				<-tick.C
				begin := time.Now()
				c.send(telemetry(1, "x"))
				c.puback(1)
				mu.Lock()
				trips = append(trips, time.Since(begin))
				mu.Unlock()
			}
		})
		time.Sleep(time.Second / time.Duration(rate)) // spread over the interval
	}
	group.Wait()
	return trips
}

func quantile(d []time.Duration, q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return d[int(float64(len(d)-1)*q)]
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
