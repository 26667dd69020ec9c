package downstream

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"gatewayd/internal/packet"
	"gatewayd/internal/queue"
)

func bothVersions(t *testing.T, f func(t *testing.T, v packet.Version)) {
	for _, v := range []packet.Version{packet.V311, packet.V5} {
		t.Run(fmt.Sprintf("level %d", v), func(t *testing.T) { t.Parallel(); f(t, v) })
	}
}

func TestPubackComesOnlyAfterTheSync(t *testing.T) {
	bothVersions(t, func(t *testing.T, v packet.Version) {
		b := start(t, benchOptions{})
		b.sink.set(func() { b.sink.held = true })
		c := b.connect(v, "a")
		c.send(telemetry(7, "x"))
		c.write(packet.AppendPing(nil, packet.PINGREQ))
		c.next(packet.PINGRESP) // and not the PUBACK, although the PUBLISH came first
		b.sink.set(func() { b.sink.held = false })
		if code := c.puback(7); code != 0 {
			t.Errorf("code %#x", code)
		}
		m := b.sink.messages()[0]
		if m.Source != "a" || m.Topic != "sensors/a/telemetry" || m.Route != "telemetry" || string(m.Payload) != "x" ||
			m.ContentType != "application/json" || fmt.Sprint(m.Properties) != "[{sensor a} {identity press-7}]" {
			t.Errorf("stored %+v", m)
		}
	})
}

func TestAcksComeInOrderOverSeveralIdentities(t *testing.T) {
	b := start(t, benchOptions{routes: []Route{{Match: "to/+", To: "{1}"}}})
	c := b.connect(packet.V5, "a")
	b.sink.set(func() { b.sink.held = true })
	for id := uint16(1); id <= 6; id++ {
		topic := [3]string{"to/press-7", "to/press-8", "to/nobody"}[id%3]
		c.send(packet.Publish{Topic: topic, QoS: 1, ID: id})
	}
	eventually(t, "appended", func() bool { b.sink.mu.Lock(); defer b.sink.mu.Unlock(); return len(b.sink.waiting) == 4 })
	b.sink.set(func() {
		b.sink.held = false
		w := b.sink.waiting
		w[0], w[3] = w[3], w[0] // another identity's sync may be over first
	})
	for id := uint16(1); id <= 6; id++ {
		want := byte(0)
		if id%3 == 2 {
			want = packet.TopicNameInvalid
		}
		if code := c.puback(id); code != want {
			t.Errorf("PUBACK %d with %#x, want %#x", id, code, want)
		}
	}
}

func TestOneSensorWithManyInFlightSharesSyncs(t *testing.T) {
	const commit, messages = 5 * time.Millisecond, 5000
	b := start(t, benchOptions{commit: commit})
	c := b.connect(packet.V311, "a")
	go func() {
		var buf []byte
		for i := range messages {
			buf, _ = telemetry(uint16(i%1000+1), "x").Append(buf, c.v)
		}
		c.nc.Write(buf)
	}()
	begin := time.Now()
	for i := range messages {
		c.puback(uint16(i%1000 + 1))
	}
	rate := messages / time.Since(begin).Seconds()
	if single := 1 / commit.Seconds(); rate < 50*single {
		t.Errorf("%.0f messages/s with %d syncs, one sync per message gives %.0f", rate, b.sink.syncs, single)
	}
}

func TestNoRouteIsRefusedNotDropped(t *testing.T) {
	nowhere := packet.Publish{Topic: "nowhere", QoS: 1, ID: 3}
	t.Run("MQTT 5 gets reason 0x90 and goes on", func(t *testing.T) {
		b := start(t, benchOptions{})
		c := b.connect(packet.V5, "a")
		c.send(nowhere)
		if code := c.puback(3); code != packet.TopicNameInvalid {
			t.Errorf("code %#x", code)
		}
		c.send(telemetry(4, "x"))
		c.puback(4)
	})
	t.Run("3.1.1 gets what it is owed, then the end, and the log one line", func(t *testing.T) {
		b := start(t, benchOptions{})
		for range 3 {
			c := b.connect(packet.V311, "a")
			c.send(telemetry(1, "x"))
			c.send(nowhere)
			c.send(telemetry(4, "never read"))
			c.puback(1)
			c.closed(0)
		}
		if n := b.logs("message refused"); n != 1 {
			t.Errorf("%d log lines", n)
		}
		refused := b.gate.Ledger().Sources()[0].Refused["no_route"]
		if refused != 3 {
			t.Errorf("counted %d", refused)
		}
	})
	t.Run("QoS 0 ends the connection too", func(t *testing.T) {
		b := start(t, benchOptions{})
		c := b.connect(packet.V5, "a")
		c.send(packet.Publish{Topic: "nowhere"})
		c.closed(packet.TopicNameInvalid)
	})
}

func TestQueueTroubleIsNeverAcked(t *testing.T) {
	t.Run("MQTT 5 is told at once", func(t *testing.T) {
		b := start(t, benchOptions{})
		c := b.connect(packet.V5, "a")
		for id, err := range []error{queue.ErrFull, queue.ErrDisk, queue.ErrClosed} {
			b.sink.set(func() { b.sink.refuse = err })
			c.send(telemetry(uint16(id+1), "x"))
			if code := c.puback(uint16(id + 1)); code != packet.QuotaExceeded {
				t.Errorf("%v: code %#x", err, code)
			}
		}
	})
	t.Run("MQTT 5 is told when the sync fails", func(t *testing.T) {
		b := start(t, benchOptions{})
		b.sink.set(func() { b.sink.failing = queue.ErrDisk })
		c := b.connect(packet.V5, "a")
		c.send(telemetry(1, "x"))
		if code := c.puback(1); code != packet.QuotaExceeded {
			t.Errorf("code %#x", code)
		}
	})
	t.Run("3.1.1 waits and gets its ack when there is room", func(t *testing.T) {
		b := start(t, benchOptions{})
		b.sink.set(func() { b.sink.refuse = queue.ErrFull })
		c := b.connect(packet.V311, "a")
		c.send(telemetry(1, "x"))
		time.Sleep(100 * time.Millisecond)
		b.sink.set(func() { b.sink.refuse = nil })
		c.puback(1)
	})
	t.Run("3.1.1 is closed when the sync fails", func(t *testing.T) {
		b := start(t, benchOptions{})
		b.sink.set(func() { b.sink.failing = queue.ErrDisk })
		c := b.connect(packet.V311, "a")
		c.send(telemetry(1, "x"))
		c.closed(0)
	})
	t.Run("too large for the queue is permanent", func(t *testing.T) {
		b := start(t, benchOptions{})
		b.sink.set(func() { b.sink.refuse = queue.ErrTooLarge })
		c := b.connect(packet.V5, "a")
		c.send(telemetry(1, "x"))
		if code := c.puback(1); code != packet.ImplementationError {
			t.Errorf("code %#x", code)
		}
	})
}

func TestQoS2IsRefusedAsTheVersionsAllow(t *testing.T) {
	bothVersions(t, func(t *testing.T, v packet.Version) {
		b := start(t, benchOptions{})
		c := b.dial()
		a := c.hello(packet.Connect{Version: v, ClientID: "a", CleanStart: true})
		if v == packet.V5 && (!a.Properties.Has(packet.PropMaximumQoS) || a.Properties.MaximumQoS != 1) {
			t.Errorf("CONNACK %+v", a.Properties)
		}
		c.send(packet.Publish{Topic: "sensors/a/telemetry", QoS: 2, ID: 1})
		c.closed(packet.QoSNotSupported)
		if b.logs("client broke the protocol") != 1 {
			t.Error("no log line")
		}
		if len(b.sink.messages()) > 0 {
			t.Error("stored")
		}
	})
}

func TestReceiveMaximumIsEnforced(t *testing.T) {
	b := start(t, benchOptions{config: MQTTConfig{InFlight: 2}})
	b.sink.set(func() { b.sink.held = true })
	c := b.dial()
	if a := c.hello(packet.Connect{Version: packet.V5, CleanStart: true}); a.Properties.ReceiveMaximum != 2 || a.Properties.AssignedClientID == "" {
		t.Errorf("CONNACK %+v", a.Properties)
	}
	for id := uint16(1); id <= 3; id++ {
		c.send(telemetry(id, "x"))
	}
	c.closed(packet.ReceiveMaxExceeded)
}

func TestOldClientBeyondTheWindowIsReadNoFurther(t *testing.T) {
	b := start(t, benchOptions{config: MQTTConfig{InFlight: 2}})
	b.sink.set(func() { b.sink.held = true })
	c := b.connect(packet.V311, "a")
	for id := uint16(1); id <= 20; id++ {
		c.send(telemetry(id, "x"))
	}
	time.Sleep(50 * time.Millisecond)
	b.sink.mu.Lock()
	waiting := len(b.sink.waiting)
	b.sink.mu.Unlock()
	if waiting != 2 {
		t.Errorf("%d appended", waiting)
	}
	b.sink.set(func() { b.sink.held = false })
	for id := uint16(1); id <= 20; id++ {
		c.puback(id)
	}
}

func TestResendOnTheSameConnectionGetsOneAck(t *testing.T) {
	b := start(t, benchOptions{})
	b.sink.set(func() { b.sink.held = true })
	c := b.connect(packet.V311, "a")
	p := telemetry(1, "x")
	c.send(p)
	p.Dup = true
	c.send(p)
	c.send(telemetry(2, "y"))
	eventually(t, "appended", func() bool { b.sink.mu.Lock(); defer b.sink.mu.Unlock(); return len(b.sink.waiting) >= 2 })
	b.sink.set(func() { b.sink.held = false })
	c.puback(1)
	c.puback(2)
	if n := len(b.sink.messages()); n != 2 {
		t.Errorf("%d stored", n)
	}
}

func TestPropertiesOfMQTT5Travel(t *testing.T) {
	b := start(t, benchOptions{routes: []Route{{Match: "#", To: "press-7", Properties: map[string]string{"line": "1"}}}})
	c := b.connect(packet.V5, "a")
	props := &packet.Properties{ContentType: "text/plain", PayloadFormat: 1, MessageExpiry: 60, TopicAlias: 3,
		User: []packet.UserProperty{{Key: "k", Value: "1"}, {Key: "k", Value: "2"}, {Key: "line", Value: "forged"}}}
	c.send(packet.Publish{Topic: "t", QoS: 1, ID: 1, Properties: props, Retain: true})
	c.puback(1)
	c.send(packet.Publish{QoS: 1, ID: 2, Properties: &packet.Properties{TopicAlias: 3}})
	c.puback(2)
	got := b.sink.messages()
	if m := got[0]; m.ContentType != "text/plain" || m.ContentEncoding != "utf-8" || m.MaxAge != time.Minute ||
		fmt.Sprint(m.Properties) != "[{k 2} {line 1} {mqtt-retain true} {identity press-7}]" {
		t.Errorf("stored %+v", m)
	}
	if got[1].Topic != "t" {
		t.Errorf("alias led to %q", got[1].Topic)
	}
	c.send(packet.Publish{Topic: "t", QoS: 1, ID: 3, Properties: &packet.Properties{User: []packet.UserProperty{{Key: "$.mid", Value: "x"}}}})
	if code := c.puback(3); code != packet.ImplementationError {
		t.Errorf("system property: code %#x", code)
	}
}

func TestTopicAliasRules(t *testing.T) {
	for name, tc := range map[string]struct {
		alias uint16
		code  byte
	}{"above the maximum": {17, packet.TopicAliasInvalid}, "never set": {5, packet.ProtocolError}} {
		t.Run(name, func(t *testing.T) {
			b := start(t, benchOptions{})
			c := b.connect(packet.V5, "a")
			c.send(packet.Publish{QoS: 1, ID: 1, Properties: &packet.Properties{TopicAlias: tc.alias}})
			c.closed(tc.code)
		})
	}
}

func TestConnectIsRefusedAsTheVersionsAsk(t *testing.T) {
	b := start(t, benchOptions{})
	for name, tc := range map[string]struct {
		p    packet.Connect
		code byte
	}{
		"3.1.1 without id and clean session": {packet.Connect{Version: packet.V311}, packet.RefusedClientID},
		"3.1.1 id too long":                  {packet.Connect{Version: packet.V311, ClientID: strings.Repeat("x", 300)}, packet.RefusedClientID},
		"5 id too long":                      {packet.Connect{Version: packet.V5, ClientID: strings.Repeat("x", 300)}, packet.InvalidClientID},
		"5 extended authentication":          {packet.Connect{Version: packet.V5, ClientID: "a", Properties: &packet.Properties{AuthMethod: "SCRAM"}}, packet.BadAuthMethod},
		"5 will with QoS 2":                  {packet.Connect{Version: packet.V5, ClientID: "a", Will: &packet.Will{Topic: "t", QoS: 2}}, packet.QoSNotSupported},
	} {
		t.Run(name, func(t *testing.T) {
			c := b.dial()
			if a := c.hello(tc.p); a.Code != tc.code {
				t.Errorf("CONNACK %#x, want %#x", a.Code, tc.code)
			}
			c.closed(0)
		})
	}
	t.Run("an unknown level", func(t *testing.T) {
		c := b.dial()
		c.write([]byte("\x10\x0c\x00\x04MQTT\x03\x02\x00\x00\x00\x00"))
		if a, _ := packet.DecodeConnack(c.next(packet.CONNACK), packet.V311); a.Code != packet.RefusedVersion {
			t.Errorf("CONNACK %#x", a.Code)
		}
		c.closed(0)
	})
}

func TestStopAnswersForWhatWasRead(t *testing.T) {
	bothVersions(t, func(t *testing.T, v packet.Version) {
		b := start(t, benchOptions{})
		b.sink.set(func() { b.sink.held = true })
		c := b.connect(v, "a")
		for id := uint16(1); id <= 100; id++ {
			c.send(telemetry(id, "x"))
		}
		eventually(t, "appended", func() bool { b.sink.mu.Lock(); defer b.sink.mu.Unlock(); return len(b.sink.waiting) == 100 })
		stopped := make(chan struct{})
		go func() { b.stop(); close(stopped) }()
		time.Sleep(20 * time.Millisecond)
		b.sink.set(func() { b.sink.held = false })
		for id := uint16(1); id <= 100; id++ {
			c.puback(id)
		}
		c.closed(packet.ServerShuttingDown)
		c.nc.Close()
		<-stopped
	})
}
