package hubtest

import (
	"context"
	"crypto/tls"
	"fmt"
	"sync"
	"testing"
	"time"

	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/packet"
)

// TestEverythingAtOnce calls everything from everywhere while clients come and go; it is there for the race
// detector and for deadlocks, and checks at the end that each identity still works.
func TestEverythingAtOnce(t *testing.T) {
	inBubble(t, Options{Lenient: true}, func(r *rig) {
		pairs := map[string]*certtest.Pair{}
		for _, name := range []string{"press-7", "press-8", "press-7/agent"} {
			pairs[name] = r.issue(leaf(name))
		}
		var wg sync.WaitGroup
		for name, pair := range pairs {
			for range 2 {
				wg.Go(func() {
					for i := range 15 {
						visit(r, name, pair, i)
					}
				})
			}
		}
		for name := range pairs {
			wg.Go(func() { meddle(r, name) })
		}
		wg.Wait()
		h := r.hub
		h.Throttle(0)
		h.DelayPuback(0)
		h.WithholdPuback(0)
		for name := range pairs {
			_ = h.SetDisabled(name, false)
			c := r.online(name)
			c.publish(1, c.topic(name), "x")
			for {
				f, err := c.next(patience)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				if f.Type == packet.PUBACK {
					break
				}
			}
		}
		total := h.Counters("")
		if got := uint64(len(h.Messages())); got != total.Messages {
			t.Errorf("%d messages in the ledger, %d counted", got, total.Messages)
		}
	})
}

func (c *client) topic(identity string) string {
	if identity == "press-7/agent" {
		return "devices/press-7/modules/agent/messages/events/"
	}
	return events(identity, "")
}

// visit is one short life of a device that does a bit of everything and may be cut at any point.
func visit(r *rig, name string, pair *certtest.Pair, i int) {
	raw, err := r.pipes.DialContext(r.Context(), "", "")
	if err != nil {
		r.Error(err)
		return
	}
	tc := tls.Client(raw, r.tlsConfig(pair.TLS()))
	c := &client{rig: r, nc: tc, in: packet.NewReader(tc, 0)}
	defer raw.Close()
	var b []byte
	for _, p := range []packet.Packet{
		connectPacket(name),
		packet.Subscribe{ID: 1, Subscriptions: []packet.Subscription{
			{Filter: filterC2D, QoS: 1}, {Filter: filterMethods}, {Filter: filterReplies}, {Filter: filterDesired},
		}},
		packet.Publish{Topic: c.topic(name), QoS: 1, ID: 7, Payload: []byte("x")},
		packet.Publish{Topic: "$iothub/twin/GET/?$rid=1"},
		packet.Publish{Topic: "$iothub/twin/PATCH/properties/reported/?$rid=2", Payload: []byte(fmt.Sprintf(`{"i":%d}`, i))},
		packet.Unsubscribe{ID: 2, Filters: []string{filterMethods}},
	} {
		b, _ = p.Append(b, packet.V311)
	}
	if _, err := tc.Write(b); err != nil {
		return
	}
	for range 12 {
		f, err := c.next(time.Second)
		if err != nil {
			return
		}
		if f.Type == packet.PUBLISH {
			if p, err := packet.DecodePublish(f, packet.V311); err == nil && p.QoS == 1 {
				c.puback(p.ID)
			}
		}
	}
}

// meddle uses the service side and the faults.
func meddle(r *rig, name string) {
	h := r.hub
	for i := range 60 {
		_ = h.SendC2D(r.Context(), name, C2D{MessageID: fmt.Sprint(i), TTL: time.Minute})
		_, _ = h.PatchDesired(name, fmt.Sprintf(`{"i":%d}`, i))
		ctx, cancel := context.WithTimeout(r.Context(), 10*time.Millisecond)
		_, _, _ = h.InvokeMethod(ctx, name, "m", nil, time.Second)
		cancel()
		switch i % 10 {
		case 0:
			h.DropConnections(name)
		case 1:
			h.Displace(name)
		case 2:
			_ = h.SetDisabled(name, i%4 == 0)
		case 3:
			h.GoSilent(name)
		case 4:
			h.Throttle(float64(1000 * (i % 2)))
		case 5:
			h.DelayPuback(time.Duration(i%3) * time.Millisecond)
		case 6:
			_ = h.WithholdPubackOf(name, i%2)
		case 7:
			d, _ := h.Device(name)
			_ = h.AddDevice(d)
		case 8:
			h.OnMessage(func(Message) { _ = h.Counters("") })
		case 9:
			_ = h.ResetTwin(name)
		}
		_, _, _, _ = h.Connections(), h.Messages(), h.Violations(), h.Live()
		_, _, _ = h.C2DStates(name), h.Twin(name), h.Subscribed(name)
		time.Sleep(20 * time.Millisecond)
	}
}
