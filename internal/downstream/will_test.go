package downstream

import (
	"fmt"
	"testing"
	"time"

	"gatewayd/internal/packet"
)

func TestWillIsAnOrdinaryMessage(t *testing.T) {
	will := &packet.Will{Topic: "sensors/a/telemetry", Payload: []byte("gone"), QoS: 1, Retain: true}
	bothVersions(t, func(t *testing.T, v packet.Version) {
		b := start(t, benchOptions{})
		c := b.dial()
		c.hello(packet.Connect{Version: v, ClientID: "a", CleanStart: true, Will: will})
		c.nc.Close()
		eventually(t, "the will is stored", func() bool { return len(b.sink.messages()) == 1 })
		if m := b.sink.messages()[0]; string(m.Payload) != "gone" || m.Source != "a" ||
			fmt.Sprint(m.Properties) != "[{mqtt-retain true} {mqtt-will true} {sensor a} {identity press-7}]" {
			t.Errorf("%+v", m)
		}
		c = b.dial()
		c.hello(packet.Connect{Version: v, ClientID: "a", CleanStart: true, Will: will})
		c.send(packet.Disconnect{})
		c.closed(0)
		c.nc.Close()
		eventually(t, "gone", func() bool { return b.mqtt.Stats().Connections == 0 })
		if n := len(b.sink.messages()); n != 1 {
			t.Errorf("a client that said goodbye left a will: %d messages", n)
		}
	})
	t.Run("delayed until the client is back", func(t *testing.T) {
		t.Parallel()
		b := start(t, benchOptions{})
		delayed := *will
		delayed.Properties = &packet.Properties{WillDelay: 1}
		p := packet.Connect{Version: packet.V5, ClientID: "a", Will: &delayed, Properties: &packet.Properties{SessionExpiry: 60}}
		c := b.dial()
		c.hello(p)
		c.nc.Close()
		eventually(t, "gone", func() bool { return b.local.Stats().Away == 1 })
		c = b.dial()
		c.hello(p)
		time.Sleep(1700 * time.Millisecond)
		if n := len(b.sink.messages()); n != 0 {
			t.Errorf("the will came although the client was back: %d", n)
		}
		c.nc.Close()
		eventually(t, "the will is stored", func() bool { return len(b.sink.messages()) == 1 })
	})
	t.Run("not when the gateway stops", func(t *testing.T) {
		t.Parallel()
		b := start(t, benchOptions{})
		c := b.dial()
		c.hello(packet.Connect{Version: packet.V5, ClientID: "a", Will: will})
		b.stop()
		if n := len(b.sink.messages()); n != 0 {
			t.Errorf("%d messages", n)
		}
	})
}
