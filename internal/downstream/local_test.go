package downstream

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"gatewayd/internal/packet"
)

// subscribe expects the code for one filter.
func (c *client) subscribe(filter string, qos byte) byte {
	c.t.Helper()
	c.send(packet.Subscribe{ID: 77, Subscriptions: []packet.Subscription{{Filter: filter, QoS: qos}}})
	a, err := packet.DecodeSuback(c.next(packet.SUBACK), c.v)
	if err != nil || a.ID != 77 || len(a.Codes) != 1 {
		c.t.Fatalf("%+v %v", a, err)
	}
	return a.Codes[0]
}

func (c *client) receive() packet.Publish {
	c.t.Helper()
	f := c.next(packet.PUBLISH)
	p, err := packet.DecodePublish(f, c.v)
	if err != nil {
		c.t.Fatal(err)
	}
	return p
}

// quiet expects that nothing waits to be read: the answer to a ping comes first.
func (c *client) quiet() {
	c.t.Helper()
	c.write(packet.AppendPing(nil, packet.PINGREQ))
	c.next(packet.PINGRESP)
}

func (c *client) ack(id uint16) { c.t.Helper(); c.send(packet.Ack{Type: packet.PUBACK, ID: id}) }

func c2d(n int) LocalMessage {
	return LocalMessage{Topic: "gateway/press-7/c2d/a=b", Payload: fmt.Append(nil, n), QoS: 1}
}

func TestOnlyTheGatewaysTopicsCanBeSubscribedTo(t *testing.T) {
	for _, tc := range []struct {
		filter string
		v5     byte
	}{
		{"gateway/#", 1}, {"gateway/+/c2d/#", 1}, {"gateway/press-7/status", 1},
		{"#", 0x80}, {"+/press-7/status", 0x80}, {"sensors/a/telemetry", 0x80}, {"gateway", 0x80}, {"$SYS/#", 0x80},
		{"gateway/#/x", packet.TopicFilterInvalid}, {"", packet.TopicFilterInvalid}, {"gateway/a+", packet.TopicFilterInvalid},
		{"$share/g/gateway/#", packet.SharedNotSupported},
	} {
		b := start(t, benchOptions{})
		if got := b.connect(packet.V5, "a").subscribe(tc.filter, 2); got != tc.v5 {
			t.Errorf("%q: %#x, want %#x", tc.filter, got, tc.v5)
		}
		want := tc.v5
		if want > 2 {
			want = packet.SubackFailure
		}
		if got := b.connect(packet.V311, "b").subscribe(tc.filter, 2); got != want {
			t.Errorf("3.1.1 %q: %#x, want %#x", tc.filter, got, want)
		}
	}
}

func TestSubscriptionsAreBounded(t *testing.T) {
	b := start(t, benchOptions{config: MQTTConfig{MaxSubscriptions: 2}})
	c := b.connect(packet.V5, "a")
	for filter, want := range map[string]byte{"gateway/a": 1, "gateway/b": 1} {
		if got := c.subscribe(filter, 1); got != want {
			t.Errorf("%s: %#x", filter, got)
		}
	}
	if got := c.subscribe("gateway/c", 1); got != packet.QuotaExceeded {
		t.Errorf("third: %#x", got)
	}
	if got := c.subscribe("gateway/a", 0); got != 0 {
		t.Errorf("the first again: %#x", got)
	}
	c.send(packet.Unsubscribe{ID: 5, Filters: []string{"gateway/a", "gateway/z"}})
	a, _ := packet.DecodeSuback(c.next(packet.UNSUBACK), c.v)
	if fmt.Sprint(a.Codes) != fmt.Sprint([]byte{0, packet.NoSubscriptionExisted}) {
		t.Errorf("UNSUBACK %v", a.Codes)
	}
	if got := c.subscribe("gateway/c", 1); got != 1 {
		t.Errorf("after unsubscribing: %#x", got)
	}
}

func TestRetainedValuesReachLaterSubscribers(t *testing.T) {
	bothVersions(t, func(t *testing.T, v packet.Version) {
		b := start(t, benchOptions{})
		publish := func(payload string) {
			b.local.Publish(LocalMessage{Topic: "gateway/press-7/status", Payload: []byte(payload), Retain: true, QoS: 1})
		}
		publish("old")
		publish("new")
		c := b.connect(v, "a")
		c.subscribe("gateway/+/status", 1)
		if p := c.receive(); string(p.Payload) != "new" || !p.Retain || p.QoS != 1 {
			t.Errorf("received %+v", p)
		}
		publish("newest")
		if p := c.receive(); string(p.Payload) != "newest" || p.Retain {
			t.Errorf("live value: %+v", p)
		}
		publish("")
		d := b.connect(v, "b")
		d.subscribe("gateway/+/status", 1)
		d.quiet()
	})
}

func TestDeliveryCarriesWhatMQTT5Has(t *testing.T) {
	b := start(t, benchOptions{})
	c := b.connect(packet.V5, "a")
	c.send(packet.Subscribe{ID: 1, Properties: &packet.Properties{SubscriptionIDs: []uint32{9}},
		Subscriptions: []packet.Subscription{{Filter: "gateway/#", QoS: 1}}})
	c.next(packet.SUBACK)
	m := c2d(1)
	m.ResponseTopic, m.CorrelationData, m.ContentType = "gateway/press-7/methods/res/200/1", []byte("1"), "application/json"
	m.Properties = append(m.Properties, willMarkForTest)
	m.Expires = time.Now().Add(time.Hour)
	if n, err := b.local.Publish(m); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	p := c.receive().Properties
	if p.ResponseTopic != m.ResponseTopic || string(p.CorrelationData) != "1" || p.ContentType != m.ContentType || len(p.User) != 1 ||
		p.MessageExpiry < 3500 || len(p.SubscriptionIDs) != 1 || p.SubscriptionIDs[0] != 9 {
		t.Errorf("properties %+v", p)
	}
}

func TestReceiveMaximumOfTheClientIsRespected(t *testing.T) {
	b := start(t, benchOptions{})
	c := b.dial()
	c.hello(packet.Connect{Version: packet.V5, ClientID: "a", CleanStart: true, Properties: &packet.Properties{ReceiveMaximum: 2, SessionExpiry: 60}})
	c.subscribe("gateway/#", 1)
	for i := range 5 {
		b.local.Publish(c2d(i))
	}
	first := c.receive()
	c.receive()
	c.quiet()
	c.ack(first.ID)
	if p := c.receive(); string(p.Payload) != "2" {
		t.Errorf("after one ack: %s", p.Payload)
	}
	c.quiet()
	// The same holds for what is sent again on the next connection.
	c.nc.Close()
	c = b.dial()
	if a := c.hello(packet.Connect{Version: packet.V5, ClientID: "a", Properties: &packet.Properties{ReceiveMaximum: 1, SessionExpiry: 60}}); !a.SessionPresent {
		t.Fatal("no session")
	}
	for i := 1; i < 5; i++ {
		p := c.receive()
		if want := fmt.Sprint(i); string(p.Payload) != want || p.Dup != (i < 3) {
			t.Errorf("got %s dup %v, want %s", p.Payload, p.Dup, want)
		}
		c.quiet()
		c.ack(p.ID)
	}
}

func TestSessionSurvivesTheConnection(t *testing.T) {
	bothVersions(t, func(t *testing.T, v packet.Version) {
		b := start(t, benchOptions{})
		persistent := packet.Connect{Version: v, ClientID: "a"}
		if v == packet.V5 {
			persistent.Properties = &packet.Properties{SessionExpiry: 60}
		}
		c := b.dial()
		if a := c.hello(persistent); a.SessionPresent {
			t.Error("session present before there was one")
		}
		c.subscribe("gateway/#", 1)
		b.local.Publish(c2d(1))
		unacked := c.receive()
		c.nc.Close()
		eventually(t, "gone", func() bool { return b.local.Stats().Away == 1 })
		var acked atomic.Bool
		m := c2d(2)
		m.Acked = func() { acked.Store(true) }
		if n, _ := b.local.Publish(m); n != 1 {
			t.Errorf("%d took it while away", n)
		}
		c = b.dial()
		if a := c.hello(persistent); !a.SessionPresent {
			t.Error("session lost")
		}
		if p := c.receive(); p.ID != unacked.ID || !p.Dup || string(p.Payload) != "1" {
			t.Errorf("resent %+v", p)
		}
		p := c.receive()
		if string(p.Payload) != "2" || p.Dup {
			t.Errorf("kept %+v", p)
		}
		c.ack(p.ID)
		eventually(t, "acked", acked.Load)
		// A client that wants to start anew gets nothing of it.
		c.nc.Close()
		c = b.connect(v, "a")
		c.quiet()
	})
}

func TestOutgoingAndIncomingIDsAreSeparate(t *testing.T) {
	b := start(t, benchOptions{})
	c := b.connect(packet.V311, "a")
	c.subscribe("gateway/#", 1)
	b.local.Publish(c2d(1))
	p := c.receive()
	c.send(telemetry(p.ID, "x")) // the same id in the other direction
	c.puback(p.ID)
	var acked atomic.Bool
	b.local.mu.Lock()
	box := &b.local.sessions["a"].box
	b.local.mu.Unlock()
	box.mu.Lock()
	if len(box.flying) != 1 {
		t.Error("the publish took the delivery away")
	}
	box.flying[0].d.acked = &acknowledgement{call: func() { acked.Store(true) }}
	box.mu.Unlock()
	c.ack(p.ID)
	eventually(t, "acked", acked.Load)
}

func TestSecondClientWithTheSameIDTakesOver(t *testing.T) {
	bothVersions(t, func(t *testing.T, v packet.Version) {
		b := start(t, benchOptions{})
		first := b.connect(v, "a")
		second := b.connect(v, "a")
		first.closed(packet.SessionTakenOver)
		second.send(telemetry(1, "x"))
		second.puback(1)
	})
}

// Such a session may not be a later one's (3.1.1: 3.1.2-6), also where the takeover is what ends it.
func TestSessionForOneConnectionEndsWithATakeover(t *testing.T) {
	bothVersions(t, func(t *testing.T, v packet.Version) {
		b := start(t, benchOptions{})
		first := b.dial()
		first.hello(packet.Connect{Version: v, ClientID: "same", CleanStart: true})
		first.subscribe("gateway/#", 1)
		second := b.dial()
		if a := second.hello(packet.Connect{Version: v, ClientID: "same"}); a.SessionPresent {
			t.Error("the session is present")
		}
		if s := b.local.Stats(); s.Subscribers != 0 || s.Sessions != 1 {
			t.Errorf("%+v", s)
		}
	})
}

func TestSessionsAreBounded(t *testing.T) {
	b := start(t, benchOptions{local: LocalConfig{MaxSessions: 3}})
	for i := range 6 {
		c := b.dial()
		c.hello(packet.Connect{Version: packet.V311, ClientID: fmt.Sprint(i)})
		c.send(packet.Disconnect{})
		c.closed(0)
		c.nc.Close()
		eventually(t, "detached", func() bool { return b.mqtt.Stats().Connections == 0 })
	}
	if s := b.local.Stats(); s.Away != 3 || s.Sessions != 3 {
		t.Errorf("%+v", s)
	}
	c := b.dial()
	if a := c.hello(packet.Connect{Version: packet.V311, ClientID: "5"}); !a.SessionPresent {
		t.Error("the latest was evicted")
	}
	c = b.dial()
	if a := c.hello(packet.Connect{Version: packet.V311, ClientID: "0"}); a.SessionPresent {
		t.Error("the oldest was kept")
	}
}

func TestSessionQueueIsBounded(t *testing.T) {
	b := start(t, benchOptions{local: LocalConfig{QueueMessages: 4}})
	c := b.dial()
	c.hello(packet.Connect{Version: packet.V311, ClientID: "a"})
	c.subscribe("gateway/#", 1)
	c.nc.Close()
	eventually(t, "gone", func() bool { return b.local.Stats().Away == 1 })
	took := 0
	for i := range 10 {
		n, _ := b.local.Publish(c2d(i))
		took += n
	}
	if took != 4 {
		t.Errorf("%d were taken", took)
	}
	m := c2d(0)
	m.QoS = 0
	if n, _ := b.local.Publish(m); n != 0 {
		t.Error("QoS 0 was kept for an absent client")
	}
}

func TestExpiredAndOversizeDeliveriesAreLeftOut(t *testing.T) {
	b := start(t, benchOptions{})
	c := b.dial()
	c.hello(packet.Connect{Version: packet.V5, ClientID: "a", CleanStart: true, Properties: &packet.Properties{MaximumPacketSize: 64}})
	c.subscribe("gateway/#", 1)
	old, large := c2d(1), c2d(2)
	old.Expires = time.Now().Add(-time.Second)
	large.Payload = make([]byte, 100)
	for _, m := range []LocalMessage{old, large, c2d(3)} {
		b.local.Publish(m)
	}
	if p := c.receive(); string(p.Payload) != "3" {
		t.Errorf("received %q", p.Payload)
	}
}

type fakeCommands struct {
	got  chan Command
	fail error
	late error // what done is told
}

func (f *fakeCommands) Do(_ context.Context, c Command, done func(error)) error {
	if f.fail != nil {
		return f.fail
	}
	f.got <- c
	go done(f.late)
	return nil
}

func TestWhatLocalClientsPublishToTheGatewayIsHandedOn(t *testing.T) {
	commands := &fakeCommands{got: make(chan Command, 10)}
	b := start(t, benchOptions{commands: commands, routes: []Route{{Match: "#", To: "press-7"}}})
	c := b.connect(packet.V5, "a")
	publish := func(topic string, id uint16) byte {
		c.send(packet.Publish{Topic: topic, QoS: 1, ID: id, Payload: []byte("{}")})
		return c.puback(id)
	}
	if code := publish("gateway/press-7/methods/res/200/r1", 1); code != 0 {
		t.Errorf("method response: %#x", code)
	}
	if g := <-commands.got; g.Kind != MethodResponse || g.Identity != "press-7" || g.Status != 200 || g.RequestID != "r1" || g.Client != "a" || string(g.Payload) != "{}" {
		t.Errorf("%+v", g)
	}
	if code := publish("gateway/press-7/twin/reported", 2); code != 0 {
		t.Errorf("reported: %#x", code)
	}
	if g := <-commands.got; g.Kind != Reported || g.Identity != "press-7" {
		t.Errorf("%+v", g)
	}
	for i, topic := range []string{"gateway", "gateway/x", "gateway/press-7/status", "gateway/press-7/methods/res/x/1", "gateway//twin/reported", "gateway/press-7/methods/res/99999999999/1"} {
		if code := publish(topic, uint16(10+i)); code != packet.TopicNameInvalid {
			t.Errorf("%s: %#x", topic, code)
		}
	}
	commands.fail = fmt.Errorf("%w: nobody asked", ErrNoRoute)
	if code := publish("gateway/press-7/twin/reported", 20); code != packet.TopicNameInvalid {
		t.Errorf("refused by the receiver: %#x", code)
	}
	if n := len(b.sink.messages()); n != 0 {
		t.Errorf("%d of them were routed", n)
	}
}

func TestWhoIsRefusedLaterIsInTheLogToo(t *testing.T) {
	for _, version := range []packet.Version{packet.V311, packet.V5} {
		b := start(t, benchOptions{commands: &fakeCommands{got: make(chan Command, 1), late: fmt.Errorf("%w: not JSON", ErrProperty)}})
		c := b.connect(version, "a")
		c.send(packet.Publish{Topic: "gateway/press-7/twin/reported", QoS: 1, ID: 1})
		if version == packet.V311 {
			c.closed(0)
		} else if code := c.puback(1); code != packet.ImplementationError {
			t.Errorf("%#x", code)
		}
		if n, counted := b.logs("message refused"), b.gate.Ledger().Sources()[0].Refused["property"]; n != 1 || counted != 1 {
			t.Errorf("version %d: %d log lines, counted %d", version, n, counted)
		}
	}
}

func TestPublishTakesOnlyTheGatewaysTopics(t *testing.T) {
	l := NewLocal(LocalConfig{RetainedBytes: 300}, nil)
	for _, topic := range []string{"", "sensors/a", "gateway", "gateway/+/x"} {
		if _, err := l.Publish(LocalMessage{Topic: topic}); !errors.Is(err, ErrLocalTopic) {
			t.Errorf("%q: %v", topic, err)
		}
	}
	if _, err := l.Publish(LocalMessage{Topic: "gateway/a", Payload: make([]byte, 100), Retain: true}); err != nil {
		t.Error(err)
	}
	if _, err := l.Publish(LocalMessage{Topic: "gateway/b", Payload: make([]byte, 100), Retain: true}); !errors.Is(err, ErrRetainedFull) {
		t.Errorf("beyond the bound: %v", err)
	}
	if _, err := l.Publish(LocalMessage{Topic: "gateway/a", Payload: make([]byte, 110), Retain: true}); err != nil {
		t.Errorf("replacing: %v", err)
	}
}
