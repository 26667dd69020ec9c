package cloud

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"gatewayd/internal/hub/hubtest"
	"gatewayd/internal/packet"
)

func TestC2DWaitsOnDiskForASubscriber(t *testing.T) {
	s := newSite(t, hubtest.Options{}, everything("press-7"))
	s.start()
	for i := range 3 {
		s.send("press-7", fmt.Sprint("m-", i), fmt.Sprint(i))
	}
	s.eventually("the hub is acknowledged", func() bool { return s.completed("press-7") == 3 })
	s.stop()
	s.start()
	c := s.connect(packet.V5, "plc", true)
	c.subscribe("gateway/+/c2d/#")
	for i := range 3 {
		p := c.take()
		if string(p.Payload) != fmt.Sprint(i) || p.QoS != 1 {
			t.Errorf("got %q at QoS %d", p.Payload, p.QoS)
		}
		want := fmt.Sprintf("gateway/press-7/c2d/%%24.mid=m-%d&%%24.to=%%2Fdevices%%2Fpress-7%%2Fmessages%%2FdeviceBound&k=v%%20w%%2Bx%%2Fy", i)
		if p.Topic != want {
			t.Errorf("topic %s, want %s", p.Topic, want)
		}
		if !slices.Contains(p.Properties.User, packet.UserProperty{Key: "k", Value: "v w+x/y"}) {
			t.Errorf("properties %v", p.Properties.User)
		}
	}
	// What was acknowledged is gone, for later subscribers and later runs.
	s.eventually("nothing waits", func() bool { return s.waiting("press-7") == 0 })
	late := s.connect(packet.V311, "late", true)
	late.subscribe("gateway/press-7/c2d/#")
	late.quiet()
	s.stop()
	s.start()
	again := s.connect(packet.V311, "plc", true)
	again.subscribe("gateway/press-7/c2d/#")
	again.quiet()
	s.strict()
}

// waiting counts C2D messages that nobody has acknowledged.
func (s *site) waiting(name string) int {
	id, err := s.g.cloud.identity(name)
	check(s.T, err)
	return int(id.waiting.Load())
}

func TestC2DStaysUntilOneSubscriberAcknowledges(t *testing.T) {
	s := newSite(t, hubtest.Options{}, everything("press-7"))
	s.start()
	a, b := s.connect(packet.V311, "a", true), s.connect(packet.V5, "b", true)
	a.subscribe("gateway/press-7/c2d/#")
	b.subscribe("gateway/#")
	s.drainRetained(b)
	s.send("press-7", "m-1", "one")
	a.receive()
	b.receive()
	if n := s.waiting("press-7"); n != 1 {
		t.Fatalf("%d messages wait, want 1: nobody has acknowledged", n)
	}
	a.nc.Close() // killed, and its session with it
	again := s.connect(packet.V311, "a", true)
	again.subscribe("gateway/press-7/c2d/#")
	if p := again.take(); string(p.Payload) != "one" {
		t.Errorf("got %q", p.Payload)
	}
	again.quiet()
	b.quiet() // it has it already
	s.eventually("nothing waits", func() bool { return s.waiting("press-7") == 0 })
	s.strict()
}

// drainRetained takes what a wide subscription gets besides messages.
func (s *site) drainRetained(c *client) {
	s.Helper()
	for {
		check(s.T, c.nc.SetReadDeadline(time.Now().Add(1500*time.Millisecond)))
		f, err := c.r.Next()
		if err != nil {
			return
		}
		if p, err := packet.DecodePublish(f, c.v); err == nil && p.QoS > 0 {
			c.send(packet.Ack{Type: packet.PUBACK, ID: p.ID})
		}
	}
}

// A subscriber whose session has no room for all of them gets them in order, and
// without waiting for the next look at what waits.
func TestLargeC2DComesInOrder(t *testing.T) {
	s := newSite(t, hubtest.Options{}, everything("press-7"))
	s.start()
	c := s.connect(packet.V5, "plc", true)
	c.subscribe("gateway/press-7/c2d/#")
	const n = 45
	body := strings.Repeat("x", 60_000)
	for i := range n {
		s.send("press-7", fmt.Sprint("m-", i), fmt.Sprint(i, " ", body))
	}
	s.eventually("stored", func() bool { return s.waiting("press-7") == n })
	for i := range n {
		if got, _, _ := strings.Cut(string(c.take().Payload), " "); got != fmt.Sprint(i) {
			t.Fatalf("got %s, want %d", got, i)
		}
	}
	c.quiet()
}

func TestC2DWithAKnownIDIsNotDeliveredAgain(t *testing.T) {
	s := newSite(t, hubtest.Options{}, everything("press-7"))
	s.start()
	c := s.connect(packet.V311, "plc", true)
	c.subscribe("gateway/press-7/c2d/#")
	s.send("press-7", "m-1", "first")
	s.send("press-7", "m-1", "first") // as after a lost PUBACK
	s.send("press-7", "", "no id")
	s.send("press-7", "", "no id")
	for _, want := range []string{"first", "no id", "no id"} {
		if p := c.take(); string(p.Payload) != want {
			t.Errorf("got %q, want %q", p.Payload, want)
		}
	}
	s.eventually("all is acknowledged", func() bool { return s.completed("press-7") == 4 && s.waiting("press-7") == 0 })
	s.stop()
	s.start()
	c = s.connect(packet.V311, "plc", true)
	c.subscribe("gateway/press-7/c2d/#")
	s.send("press-7", "m-1", "first")
	s.eventually("acknowledged without a delivery", func() bool { return s.completed("press-7") == 5 })
	c.quiet()
	s.strict()
}

func TestOnlyTheLatestIDsAreRemembered(t *testing.T) {
	s := newSite(t, hubtest.Options{}, everything("press-7"))
	s.start()
	c := s.connect(packet.V311, "plc", true)
	c.subscribe("gateway/press-7/c2d/#")
	for i := range window + 10 {
		s.send("press-7", fmt.Sprint("m-", i), "x")
		c.take()
	}
	s.eventually("nothing waits", func() bool { return s.waiting("press-7") == 0 })
	id, _ := s.g.cloud.identity("press-7")
	s.eventually("old notes leave the queue", func() bool { return id.q.Stats().Messages == window })
	if n := len(id.c2d.seen.keys); n != window {
		t.Errorf("%d ids remembered, want %d", n, window)
	}
}

func TestExpiredC2DIsNotDelivered(t *testing.T) {
	s := newSite(t, hubtest.Options{}, everything("press-7"))
	s.start()
	check(t, s.hub.SendC2D(t.Context(), "press-7", hubtest.C2D{MessageID: "short", Body: []byte("old"), TTL: 300 * time.Millisecond}))
	check(t, s.hub.SendC2D(t.Context(), "press-7", hubtest.C2D{MessageID: "long", Body: []byte("new"), TTL: time.Hour}))
	s.eventually("stored", func() bool { return s.completed("press-7") == 2 })
	time.Sleep(400 * time.Millisecond)
	c := s.connect(packet.V5, "plc", true)
	c.subscribe("gateway/press-7/c2d/#")
	p := c.take()
	if string(p.Payload) != "new" || p.Properties.MessageExpiry < 3000 || p.Properties.MessageExpiry > 3600 {
		t.Errorf("got %q with expiry %d", p.Payload, p.Properties.MessageExpiry)
	}
	c.quiet()
}

// Through reconnects and changes of certificate nothing is lost and nothing comes
// twice to one subscriber.
func TestC2DThroughReconnectsAndRotations(t *testing.T) {
	s := newSite(t, hubtest.Options{}, everything("press-7"))
	s.start()
	c := s.connect(packet.V311, "plc", true)
	c.subscribe("gateway/press-7/c2d/#")
	const n = 200
	got := make(chan string, n)
	go func() {
		defer close(got)
		for range n {
			got <- string(c.take().Payload)
		}
	}()
	sent := numbered("m-", n)
	for i, m := range sent {
		s.eventually("the hub has room", func() bool {
			return s.hub.SendC2D(t.Context(), "press-7", hubtest.C2D{MessageID: m, Body: []byte(m)}) == nil
		})
		switch i % 50 {
		case 5:
			s.rotate("press-7")
		case 45:
			s.hub.DropConnections("press-7")
		}
		time.Sleep(4 * time.Millisecond)
	}
	var all []string
	for m := range got {
		all = append(all, m)
	}
	c.quiet()
	slices.Sort(all)
	slices.Sort(sent)
	if !slices.Equal(all, sent) {
		t.Errorf("got %d messages: %v", len(all), all)
	}
	s.eventually("all is acknowledged to the hub", func() bool { return s.completed("press-7") == n })
	if r := s.g.sessions["press-7"].Status().Rotations; r < 2 {
		t.Errorf("%d rotations happened", r)
	}
	s.strict()
}
