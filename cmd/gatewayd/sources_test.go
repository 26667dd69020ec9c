package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gatewayd/internal/hub/hubtest"
)

// tool finds a program that developers may lack and CI must not.
func tool(t *testing.T, names ...string) string {
	t.Helper()
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	if os.Getenv("CI") != "" {
		t.Fatalf("%s is not installed", names[0])
	}
	t.Skipf("%s is not installed", names[0])
	return ""
}

// withSources adds keys below downstream: to the standard configuration.
func (s *plant) withSources(keys string) {
	s.t.Helper()
	s.writeConfig("")
	text := must(os.ReadFile(s.path("config.yaml")))(s.t)
	s.write("config.yaml", strings.Replace(string(text), "downstream:\n", "downstream:\n"+keys, 1))
}

// mosquitto is a broker process whose sessions survive it.
type mosquitto struct {
	t       *testing.T
	program string
	dir     string
	address string
	cmd     *exec.Cmd
}

func newMosquitto(t *testing.T) *mosquitto {
	t.Helper()
	m := &mosquitto{t: t, program: tool(t, "mosquitto", "/usr/sbin/mosquitto"), dir: t.TempDir(), address: freeAddress(t)}
	_, port, _ := net.SplitHostPort(m.address)
	conf := "listener " + port + " 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location " + m.dir + "/\nautosave_interval 0\nmax_queued_messages 0\n"
	if os.Getuid() == 0 {
		conf += "user root\n"
	}
	check(t, os.WriteFile(filepath.Join(m.dir, "mosquitto.conf"), []byte(conf), 0o600))
	m.start()
	t.Cleanup(m.kill)
	return m
}

func (m *mosquitto) start() {
	m.t.Helper()
	m.cmd = exec.Command(m.program, "-c", filepath.Join(m.dir, "mosquitto.conf"))
	check(m.t, m.cmd.Start())
	eventually(m.t, 10*time.Second, "the broker accepts", func() bool {
		c, err := net.Dial("tcp", m.address)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

func (m *mosquitto) kill() {
	_ = m.cmd.Process.Kill()
	_ = m.cmd.Wait()
}

// save has the broker write what it holds to its disk: it does not do that before
// it acknowledges, so that a kill would lose what only it has.
func (m *mosquitto) save() {
	m.t.Helper()
	file := filepath.Join(m.dir, "mosquitto.db")
	stamp := func() time.Time {
		info, err := os.Stat(file)
		if err != nil {
			return time.Time{}
		}
		return info.ModTime()
	}
	before := stamp()
	check(m.t, m.cmd.Process.Signal(syscall.SIGUSR1))
	eventually(m.t, 10*time.Second, "the broker has saved", func() bool { return stamp().After(before) })
}

// publishFor has sensors publish to an address for a while and then waits for
// their acknowledgements.
func publishFor(sensors []*sensor, d time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	var running sync.WaitGroup
	for _, one := range sensors {
		running.Go(func() { one.run(ctx) })
	}
	running.Wait()
}

// whole checks that what was acknowledged has arrived, first arrivals in order.
func whole(t *testing.T, s *plant, sensors []*sensor) (acked, again int) {
	t.Helper()
	all := bySensor(s.hub.Messages())
	for _, one := range sensors {
		a := all[one.name]
		if a == nil {
			a = &arrivals{}
		}
		missing := 0
		for n := range one.acked {
			if len(a.ids[n]) == 0 {
				missing++
			}
			again += max(0, len(a.ids[n])-1)
		}
		if missing > 0 {
			t.Errorf("%s: %d of %d acknowledged messages are missing", one.name, missing, one.acked)
		}
		for i := 1; i < len(a.firsts); i++ {
			if a.firsts[i] < a.firsts[i-1] {
				t.Errorf("%s: message %d arrived first after %d", one.name, a.firsts[i], a.firsts[i-1])
				break
			}
		}
		acked += one.acked
	}
	return acked, again
}

func TestNothingOfABrokerIsLostOverKillsOfEitherSide(t *testing.T) {
	t.Parallel()
	broker := newMosquitto(t)
	s := newPlant(t, hubtest.Options{MaxInbound: -1}, "press-1", "press-2")
	s.withSources(fmt.Sprintf("  broker: [{url: \"mqtt://%s\", client_id: gw, subscribe: [\"sensors/#\"]}]\n", broker.address))
	var sensors []*sensor
	for i := range 4 {
		name := fmt.Sprintf("b%d", i)
		sensors = append(sensors, &sensor{name: name, topic: "sensors/" + s.names[i%2] + "/" + name, address: broker.address, window: 50, size: 64,
			pace:  time.Millisecond / 2,
			tries: make(map[int]int)})
	}
	p := s.run()
	eventually(t, 10*time.Second, "the gateway has subscribed", func() bool {
		r, err := s.status()
		return err == nil && len(r.Brokers) == 1 && r.Brokers[0].Connected && r.Brokers[0].Fault == ""
	})
	time.Sleep(200 * time.Millisecond)

	// The gateway is killed while sensors publish as fast as they can.
	kills := 0
	load := soakFor(t, 5*time.Second)
	var publishing sync.WaitGroup
	publishing.Go(func() { publishFor(sensors, load) })
	for end := time.Now().Add(load); time.Now().Before(end); kills++ {
		time.Sleep(time.Duration(300+rand.IntN(700)) * time.Millisecond)
		p.kill()
		p = s.run()
	}
	publishing.Wait()
	// The broker is killed while it sends what has come meanwhile.
	for range 2 {
		p.kill()
		publishFor(sensors, 500*time.Millisecond)
		broker.save()
		p = s.run()
		before := len(s.hub.Messages())
		eventually(t, 20*time.Second, "messages arrive", func() bool { return len(s.hub.Messages()) > before+10 })
		broker.kill()
		broker.start()
		kills++
	}
	arrived := func() bool {
		all := bySensor(s.hub.Messages())
		for _, one := range sensors {
			if a := all[one.name]; a == nil || len(a.firsts) < one.acked {
				return false
			}
		}
		return true
	}
	for end := time.Now().Add(time.Minute); !arrived() && time.Now().Before(end); {
		time.Sleep(100 * time.Millisecond)
	}
	acked, again := whole(t, s, sensors)
	t.Logf("%d kills, %d messages acknowledged by the broker, %d came from it more than once", kills, acked, again)
	if acked < 500 {
		t.Errorf("only %d messages: no load", acked)
	}
	if code := p.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// program keeps 20 messages in flight and writes the numbers that were
// acknowledged to a file; started again, it goes on behind them.
const program = `
import json, os, sys
name, done = sys.argv[1], open(sys.argv[2], "a+")
done.seek(0)
acked = {int(line) for line in done}
n = max(acked, default=-1) + 1
waiting = set()
print(os.getpid(), file=open(sys.argv[3], "w"))
while True:
    while len(waiting) < 20:
        print(json.dumps({"id": n, "topic": "sensors/press-1/" + name, "payload": f"{name} {n}"}), flush=True)
        waiting.add(n)
        n += 1
    line = sys.stdin.readline()
    if not line:
        sys.exit(0)
    got = json.loads(line)
    waiting.discard(got.get("ack", got.get("nack")))
    if "ack" in got:
        print(got["ack"], file=done, flush=True)
`

// socketSource hands in numbered messages over a socket, again and again until
// each is acknowledged.
func handIn(ctx context.Context, path, name string, acked *int) {
	for n := 0; ctx.Err() == nil; {
		c, err := net.Dial("unix", path)
		if err != nil {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		r := bufio.NewScanner(c)
		for ctx.Err() == nil {
			fmt.Fprintf(c, `{"id":%d,"topic":"sensors/press-1/%s","payload":"%s %d"}`+"\n", n, name, name, n)
			if !r.Scan() {
				break
			}
			var answer struct{ Ack *int }
			if json.Unmarshal(r.Bytes(), &answer) == nil && answer.Ack != nil && *answer.Ack == n {
				n++
				*acked = n
			}
		}
		c.Close()
	}
}

func TestNothingOfAProgramIsLostOverKills(t *testing.T) {
	t.Parallel()
	python := tool(t, "python3")
	s := newPlant(t, hubtest.Options{MaxInbound: -1}, "press-1")
	s.write("plc.py", program)
	socket := filepath.Join(t.TempDir(), "s")
	s.withSources(fmt.Sprintf("  exec: [{name: plc, command: [%q, plc.py, plc, acked, pid]}]\n  socket: [{listen: \"unix://%s\"}]\n", python, socket))
	p := s.run()
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var running sync.WaitGroup
	overSocket := 0
	running.Go(func() { handIn(ctx, socket, "sock", &overSocket) })
	kills := 0
	for end := time.Now().Add(soakFor(t, 8*time.Second)); time.Now().Before(end); kills++ {
		time.Sleep(time.Duration(500+rand.IntN(1500)) * time.Millisecond)
		pid := s.number("pid")
		p.kill()
		if pid > 0 {
			eventually(t, 5*time.Second, "the program has ended with the gateway", func() bool { return syscall.Kill(pid, 0) == syscall.ESRCH })
		}
		p = s.run()
	}
	time.Sleep(time.Second)
	stop()
	running.Wait()
	s.drained(time.Minute)
	if code := p.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	acked := strings.Fields(string(must(os.ReadFile(s.path("acked")))(t)))
	all := bySensor(s.hub.Messages())
	for _, source := range []struct {
		name  string
		count int
		at    func(int) int
	}{{"plc", len(acked), func(i int) int { return must(strconv.Atoi(acked[i]))(t) }}, {"sock", overSocket, func(i int) int { return i }}} {
		a := all[source.name]
		if a == nil || source.count < 100 {
			t.Errorf("%s: only %d messages were acknowledged: no load", source.name, source.count)
			continue
		}
		missing := 0
		for i := range source.count {
			if len(a.ids[source.at(i)]) == 0 {
				missing++
			}
		}
		if missing > 0 {
			t.Errorf("%s: %d of %d acknowledged messages are missing", source.name, missing, source.count)
		}
	}
	t.Logf("%d kills, %d messages of the program and %d over the socket acknowledged", kills, len(acked), overSocket)
}

// number reads a number that a program has written; 0 = none.
func (s *plant) number(file string) int {
	text, err := os.ReadFile(s.path(file))
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return n
}

func TestReloadChangesSourcesAndNamesTheirFaults(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{}, "press-1")
	s.withSources("  exec:\n    - {name: stays, command: [sleep, \"1000\"]}\n    - {name: goes, command: [sleep, \"1000\"]}\n")
	s.run()
	var before report
	eventually(t, 10*time.Second, "both run", func() bool {
		before, _ = s.status()
		return len(before.Programs) == 2 && before.Programs[0].Running && before.Programs[1].Running
	})
	s.withSources("  exec:\n    - {name: stays, command: [sleep, \"1000\"]}\n    - {name: fails, command: [sh, -c, exit 3]}\n")
	if code, out := s.exitCode("reload", "-c", "config.yaml"); code != 0 || !strings.Contains(out, "brokers, programs or sockets") {
		t.Fatalf("%d %s", code, out)
	}
	eventually(t, 10*time.Second, "the status names the fault", func() bool {
		r, _ := s.status()
		return len(r.Programs) == 2 && r.FirstFault == "program fails: exit status 3" && r.Programs[0].PID == before.Programs[0].PID
	})
	if err := syscall.Kill(before.Programs[1].PID, 0); err != syscall.ESRCH {
		t.Errorf("the program that went still runs: %v", err)
	}
}
