package cloud

import (
	"encoding/json"
	"errors"
	"fmt"
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

// spawn runs the gateway as a process of its own and returns what kills it.
func (s *site) spawn() (kill func()) {
	s.Helper()
	text := must(json.Marshal(s.setup))(s.T)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), asProgram+"="+string(text))
	cmd.Stderr = os.Stderr
	check(s.T, cmd.Start())
	kill = sync.OnceFunc(func() {
		_ = cmd.Process.Kill() // SIGKILL
		_ = cmd.Wait()
	})
	s.Cleanup(kill)
	s.eventually("the gateway listens", func() bool {
		c, err := net.Dial("tcp", s.setup.MQTT)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return kill
}

func TestNothingAcknowledgedIsLostWhenTheGatewayIsKilled(t *testing.T) {
	s := newSite(t, hubtest.Options{}, everything("press-7"))
	kill := s.spawn()
	s.online()
	for i := range 20 {
		s.send("press-7", fmt.Sprint("m-", i), fmt.Sprint(i))
	}
	s.eventually("the hub is acknowledged", func() bool { return s.completed("press-7") > 0 })
	kill()
	kill = s.spawn()
	s.online()
	c := s.connect(packet.V311, "plc", true)
	c.subscribe("gateway/press-7/c2d/#")
	for i := range 20 {
		if p := c.take(); string(p.Payload) != fmt.Sprint(i) {
			t.Fatalf("got %s, want %d", p.Payload, i)
		}
	}
	c.quiet()
	s.eventually("everything is acknowledged to the hub", func() bool { return s.completed("press-7") == 20 })
	time.Sleep(200 * time.Millisecond) // for the notes to be synced
	kill()
	s.spawn()
	s.online()
	c = s.connect(packet.V311, "plc", true)
	c.subscribe("gateway/press-7/c2d/#")
	s.send("press-7", "m-7", "again") // its acknowledgement was lost, says the hub
	s.eventually("acknowledged", func() bool { return s.completed("press-7") == 21 })
	c.quiet()
}

// The gateway and the subscriber are killed again and again while messages flow.
// Every message arrives. One that was acknowledged comes again only when the kill
// came before the acknowledgement was on disk.
func TestC2DThroughKills(t *testing.T) {
	s := newSite(t, hubtest.Options{}, everything("press-7"))
	kill := s.spawn()
	const n = 400
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for i := range n {
			m := hubtest.C2D{MessageID: fmt.Sprint(i), Body: fmt.Append(nil, i)}
			for s.hub.SendC2D(t.Context(), "press-7", m) != nil && t.Context().Err() == nil {
				time.Sleep(5 * time.Millisecond)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	seen := map[string]time.Time{} // acknowledged, and when
	killed := time.Now()
	twice := 0
	for round := 0; len(seen) < n; round++ {
		if round == 100 {
			t.Fatalf("%d of %d messages after %d rounds", len(seen), n, round)
		}
		c := s.connect(packet.V311, "plc", round%3 > 0)
		if !c.resumed {
			c.subscribe("gateway/press-7/c2d/#")
		}
		for end := time.Now().Add(120 * time.Millisecond); time.Now().Before(end); {
			check(t, c.nc.SetReadDeadline(end))
			f, err := c.r.Next()
			var timeout net.Error
			if errors.As(err, &timeout) && timeout.Timeout() {
				break
			}
			p, err := packet.DecodePublish(f, c.v)
			check(t, err)
			body := string(p.Payload)
			if at, had := seen[body]; had {
				twice++
				if at.Before(killed.Add(-500 * time.Millisecond)) {
					t.Errorf("message %s came again %v after it was acknowledged", body, time.Since(at))
				}
			}
			c.send(packet.Ack{Type: packet.PUBACK, ID: p.ID})
			seen[body] = time.Now()
		}
		if round%2 == 0 {
			c.nc.Close() // the subscriber
			continue
		}
		kill() // the gateway
		killed = time.Now()
		kill = s.spawn()
	}
	<-sent
	var missing []string
	for i := range n {
		if _, ok := seen[fmt.Sprint(i)]; !ok {
			missing = append(missing, fmt.Sprint(i))
		}
	}
	if len(missing) > 0 || len(seen) != n {
		t.Errorf("missing: %v", missing)
	}
	t.Logf("%d messages, %d of them twice", n, twice)
	if v := s.hub.Violations(); slices.ContainsFunc(v, func(v hubtest.Violation) bool { return v.Row == 48 }) {
		t.Errorf("acknowledged out of order: %+v", v)
	}
}

func TestReportedPropertiesSurviveAKill(t *testing.T) {
	s := newSite(t, hubtest.Options{}, everything("press-7"))
	s.hub.StopListening()
	kill := s.spawn()
	c := s.connect(packet.V5, "plc", true)
	if code := c.publish("gateway/press-7/twin/reported", `{"a":1}`); code != 0 {
		t.Fatalf("PUBACK code %#x", code)
	}
	kill()
	check(t, s.hub.Resume())
	s.spawn()
	s.eventually("the hub has it", func() bool { return sameJSON(string(s.hub.Twin("press-7").Reported), `{"a":1,"$version":2}`) })
}
