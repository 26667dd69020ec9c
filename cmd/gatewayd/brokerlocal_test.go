package main

import (
	"fmt"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"gatewayd/internal/hub/hubtest"
)

// listener is a mosquitto_sub with a session that the broker keeps. Its lines are
// topic, RETAIN flag and payload.
func (m *mosquitto) listener(id, filter string) (lines *syncBuffer, end func()) {
	m.t.Helper()
	host, port, _ := net.SplitHostPort(m.address)
	cmd := exec.Command(tool(m.t, "mosquitto_sub"), "-h", host, "-p", port, "-V", "5", "-i", id, "-c", "-x", "3600", "-q", "1", "-t", filter, "-F", "%t %r %p")
	lines = &syncBuffer{}
	cmd.Stdout = lines
	check(m.t, cmd.Start())
	end = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	m.t.Cleanup(end)
	return lines, end
}

func (m *mosquitto) publish(topic, body string) {
	m.t.Helper()
	if out, err := mosquittoPub(m.t, m.address, topic, body); err != nil {
		m.t.Fatalf("%v: %s", err, out)
	}
}

// What comes from the cloud goes to a site broker that wants it, and its clients
// answer, through kills of either side.
func TestCloudTopicsReachTheSiteBroker(t *testing.T) {
	t.Parallel()
	m := newMosquitto(t)
	s := newPlant(t, hubtest.Options{}, "press-7")
	subscribe := func(filter string) {
		s.withSources(fmt.Sprintf("  broker: [{url: %q, subscribe: [%q], local_topics: true}]\n", "mqtt://"+m.address, filter))
	}
	subscribe("sensors/#")
	p := s.run()
	online := func() {
		t.Helper()
		eventually(t, 20*time.Second, "online", func() bool {
			r, err := s.status()
			return err == nil && len(r.Brokers) == 1 && r.Brokers[0].Connected && s.hub.Connected("press-7") && len(s.hub.Subscribed("press-7")) == 4
		})
	}
	online()
	if _, err := s.hub.PatchDesired("press-7", `{"speed":7}`); err != nil {
		t.Fatal(err)
	}
	c2d := func(id string) {
		t.Helper()
		check(t, s.hub.SendC2D(t.Context(), "press-7", hubtest.C2D{MessageID: id, Body: []byte("body " + id)}))
	}
	waiting := func() bool {
		status, _ := s.ask("GET", "/v1/c2d/press-7?wait=0s", "")
		return status == 200
	}
	completed := func(n int) {
		t.Helper()
		eventually(t, 20*time.Second, "acknowledged to the hub", func() bool {
			all := s.hub.C2DStates("press-7")
			return len(all) == n && all[n-1].State == hubtest.C2DCompleted
		})
	}
	// Nobody has subscribed at the broker: the message waits.
	c2d("m-1")
	completed(1)
	time.Sleep(300 * time.Millisecond)
	if !waiting() {
		t.Error("a C2D message went to a broker without a subscriber")
	}
	seen, end := m.listener("plc", "gateway/#")
	has := func(what string) {
		t.Helper()
		defer func() {
			if t.Failed() {
				t.Log(seen.String())
			}
		}()
		eventually(t, 30*time.Second, what+" at the broker's client", func() bool { return strings.Contains(seen.String(), what) })
	}
	has(`gateway/press-7/twin/desired 1 {`)
	has(`"speed":7`)
	has(`gateway/press-7/status 1 {`)
	has("body m-1\n")
	eventually(t, 20*time.Second, "nothing waits", func() bool { return !waiting() })

	// A method, answered by a client of the broker.
	answer := make(chan string, 1)
	go func() {
		status, body, err := s.hub.InvokeMethod(t.Context(), "press-7", "start", []byte(`{"at":1}`), 20*time.Second)
		answer <- fmt.Sprint(status, " ", string(body), " ", err)
	}()
	has("gateway/press-7/methods/start/")
	_, rest, _ := strings.Cut(seen.String(), "gateway/press-7/methods/start/")
	rid, _, _ := strings.Cut(rest, " ")
	m.publish("gateway/press-7/methods/res/201/"+rid, `{"ok":true}`)
	if got := <-answer; got != `201 {"ok":true} <nil>` {
		t.Errorf("the method was answered with %s", got)
	}
	m.publish("gateway/press-7/twin/reported", `{"door":"open"}`)
	eventually(t, 20*time.Second, "reported", func() bool { return strings.Contains(string(s.hub.Twin("press-7").Reported), `"door":"open"`) })

	// The gateway dies while messages wait for it, the broker while they wait for that.
	p.kill()
	c2d("m-2")
	p = s.run()
	has("body m-2\n")
	m.save()
	m.kill()
	eventually(t, 20*time.Second, "the broker is missed", func() bool { r, err := s.status(); return err == nil && !r.Brokers[0].Connected })
	c2d("m-3")
	completed(3)
	p.kill()
	subscribe("$share/g/#") // brings everything back
	p = s.run()
	end()
	seen, _ = m.listener("plc", "gateway/#") // it tries until the broker is back
	m.start()
	seen, _ = m.listener("plc", "gateway/#")
	has("body m-3\n")
	eventually(t, 20*time.Second, "nothing waits", func() bool { return !waiting() })

	// A reading comes in, what the gateway itself published does not.
	m.publish("sensors/press-7/a", "reading")
	s.drained(20 * time.Second)
	eventually(t, 20*time.Second, "the reading", func() bool { return len(s.hub.Messages()) > 0 })
	for _, got := range s.hub.Messages() {
		if string(got.Body) != "reading" {
			t.Errorf("came back as a reading: %s %s", got.Topic, got.Body)
		}
	}
	if log := p.log.String(); strings.Contains(log, "message refused") {
		t.Errorf("own messages are refused instead of left alone:\n%s", log)
	}
	if code := p.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}
