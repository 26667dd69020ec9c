package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"sync"
	"testing"
	"time"

	"gatewayd/internal/hub/hubtest"
	"gatewayd/internal/packet"
)

// BenchmarkIdleSensors is what 10,000 connected MQTT sensors cost a real process, at
// first and after three storms in which all reconnect at once while 50 others go on
// sending 500 readings a second between them. The 10,000 are in a process of their
// own, so that the round trips of the others do not wait for them.
func BenchmarkIdleSensors(b *testing.B) {
	const sensors = 10000
	for b.Loop() {
		s := newPlant(b, hubtest.Options{MaxInbound: -1, Ledger: hubtest.CountOnly}, "press-7")
		s.writeConfig("hub: {trust: [hub-ca.pem], system_roots: false, window: 100}\n")
		s.other = freeAddress(b)
		s.listen(fmt.Sprintf("{listen: %q, max_connections: %d}", s.other, sensors+100))
		p := s.run()
		crowd := startCrowd(b, s.other, sensors)
		for round := range 4 {
			took, trips := s.storm(b, crowd)
			rss := p.usage(b).rss
			time.Sleep(10 * time.Second)
			b.ReportMetric(took.Seconds(), fmt.Sprintf("s-until-all-served-%d", round))
			b.ReportMetric(float64(trips[len(trips)*99/100].Microseconds())/1000, fmt.Sprintf("ms-p99-of-others-%d", round))
			b.ReportMetric(float64(rss)/(1<<20), fmt.Sprintf("MiB-RSS-busy-%d", round))
			b.ReportMetric(float64(p.usage(b).rss)/(1<<20), fmt.Sprintf("MiB-RSS-idle-%d", round))
		}
		p.kill()
	}
	b.ReportMetric(0, "ns/op")
}

// crowd is the process of many sensors; it is this test binary.
type crowd struct {
	in  io.Writer
	out *bufio.Reader
}

const asCrowd = "GATEWAYD_TEST_AS_CROWD"

func startCrowd(b *testing.B, address string, sensors int) crowd {
	b.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d", asCrowd, address, sensors))
	cmd.Stderr = os.Stderr
	in := must(cmd.StdinPipe())(b)
	out := must(cmd.StdoutPipe())(b)
	check(b, cmd.Start())
	b.Cleanup(func() { in.Close(); cmd.Wait() })
	return crowd{in, bufio.NewReader(out)}
}

// beCrowd has all sensors hang up and come back at once for each line of input, each
// with one reading that is acknowledged.
func beCrowd(spec string) {
	var address string
	var sensors int
	fmt.Sscan(spec, &address, &sensors)
	conns := make([]net.Conn, sensors)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		for _, c := range conns {
			if c != nil {
				c.Close()
			}
		}
		var group sync.WaitGroup
		atOnce := make(chan struct{}, 1000) // the kernel's backlog is bounded
		for i := range conns {
			atOnce <- struct{}{}
			group.Go(func() {
				defer func() { <-atOnce }()
				c, r, err := login(address, fmt.Sprint("sensor", i))
				if err == nil {
					err = reading(c, r, fmt.Sprintf("sensors/press-7/s%d", i))
				}
				if err != nil {
					fmt.Println(err)
				}
				conns[i] = c
			})
		}
		group.Wait()
		fmt.Println("ok")
	}
}

// storm has the crowd reconnect and returns how long that took and the round trips
// of the others meanwhile.
func (s *plant) storm(b *testing.B, many crowd) (took time.Duration, trips []time.Duration) {
	ctx, calm := context.WithCancel(context.Background())
	var others sync.WaitGroup
	var mu sync.Mutex
	for i := range 50 {
		c, r, err := login(s.other, fmt.Sprint("other", i))
		check(b, err)
		others.Go(func() {
			defer c.Close()
			tick := time.NewTicker(100 * time.Millisecond)
			defer tick.Stop()
			for ctx.Err() == nil {
				begin := time.Now()
				if err := reading(c, r, fmt.Sprintf("sensors/press-7/o%d", i)); err != nil {
					b.Error(err)
					return
				}
				mu.Lock()
				trips = append(trips, time.Since(begin))
				mu.Unlock()
				<-tick.C
			}
		})
		time.Sleep(2 * time.Millisecond) // spread over the interval
	}
	begin := time.Now()
	must(io.WriteString(many.in, "again\n"))(b)
	if line := must(many.out.ReadString('\n'))(b); line != "ok\n" {
		b.Fatalf("a sensor of many: %s", line)
	}
	took = time.Since(begin)
	calm()
	others.Wait()
	slices.Sort(trips)
	return took, trips
}

func login(address, name string) (net.Conn, *packet.Reader, error) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return nil, nil, err
	}
	hello, err := packet.Connect{Version: packet.V311, CleanStart: true, KeepAlive: 600, ClientID: name}.Append(nil, packet.V311)
	if err == nil {
		_, err = c.Write(hello)
	}
	if err != nil {
		return nil, nil, err
	}
	r := packet.NewReader(c, 1<<10)
	f, err := r.Next()
	if err == nil && (f.Type != packet.CONNACK || f.Body[1] != 0) {
		err = fmt.Errorf("%s: no CONNACK", name)
	}
	return c, r, err
}

// reading publishes and waits for the PUBACK.
func reading(c net.Conn, r *packet.Reader, topic string) error {
	m, err := packet.Publish{Topic: topic, QoS: 1, ID: 1, Payload: []byte(`{"celsius": 21.5}`)}.Append(nil, packet.V311)
	if err != nil {
		return err
	}
	if _, err := c.Write(m); err != nil {
		return err
	}
	f, err := r.Next()
	if err == nil && f.Type != packet.PUBACK {
		err = fmt.Errorf("packet type %d instead of PUBACK", f.Type)
	}
	return err
}
