package hubtest

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/packet"
)

func sessionRows() []rowTest {
	withWill := func(r *rig, keepAlive uint16) *client {
		c := r.dial(r.issue(certtest.Leaf{CN: "press-7"}))
		p := connectPacket("press-7")
		p.KeepAlive = keepAlive
		p.Will = &packet.Will{Topic: events("press-7", "why=gone"), Payload: []byte("bye"), QoS: 1}
		c.send(p)
		c.wantConnack(packet.Accepted)
		return c
	}
	wantWill := func(r *rig, n int) {
		synctest.Wait()
		var wills []Message
		for _, m := range r.hub.Messages() {
			if m.Will && m.Properties["iothub-MessageType"] == "Will" && m.Properties["why"] == "gone" {
				wills = append(wills, m)
			}
		}
		if len(wills) != n {
			r.Fatalf("%d wills in %+v, want %d", len(wills), r.hub.Messages(), n)
		}
	}
	return []rowTest{
		{24, "24 takeover", Options{}, func(r *rig) {
			old := withWill(r, 60)
			young := r.online("press-7")
			old.wantClosed()
			young.alive()
			wantWill(r, 1)
			if c := r.hub.Connections()[0]; c.CloseReason != displaced || c.Row != 24 {
				r.Fatalf("first connection %+v, want it displaced", c)
			}
		}},
		{24, "24 takeover without will", Options{NoWillOnTakeover: true}, func(r *rig) {
			old := withWill(r, 60)
			r.online("press-7").alive()
			old.wantClosed()
			wantWill(r, 0)
		}},
		{24, "24 other identities stay", Options{}, func(r *rig) {
			device, module, other := r.online("press-7"), r.online("press-7/agent"), r.online("press-8")
			for _, c := range []*client{device, module, other} {
				c.alive()
			}
		}},
		{26, "26 keep-alive", Options{}, func(r *rig) {
			c := withWill(r, 10)
			for range 5 {
				c.wantQuiet(14 * time.Second)
				c.alive()
			}
			c.wantClosedWithin(16 * time.Second)
			r.wantClosedRow(26)
			wantWill(r, 1)
		}},
		{26, "26 the hub's own limit", Options{}, func(r *rig) {
			for _, k := range []uint16{0, 1178, 65535} {
				c := withWill(r, k)
				c.wantQuiet(maxKeepAlive - time.Second)
				c.wantClosedWithin(2 * time.Second)
			}
		}},
		{26, "26 traffic counts", Options{}, func(r *rig) {
			c := withWill(r, 10)
			for i := range uint16(10) {
				c.publish(0, events("press-7", ""), "x")
				c.wantQuiet(12 * time.Second)
				_ = i
			}
		}},
		{27, "27 disabled", Options{}, func(r *rig) {
			c := r.online("press-7")
			_ = r.hub.SetDisabled("press-7", true)
			c.wantClosed()
			r.wantClosedRow(27)
		}},
		{27, "27 deleted", Options{}, func(r *rig) {
			c := r.online("press-7")
			r.hub.RemoveDevice("press-7")
			c.wantClosed()
		}},
		{27, "27 CA removed", Options{}, func(r *rig) {
			c := r.online("press-7")
			r.hub.RemoveCA(r.ca.Cert)
			c.wantClosed()
		}},
		{27, "27 thumbprint removed", Options{}, func(r *rig) {
			p := r.issue(certtest.Leaf{CN: "self"})
			r.add(Device{DeviceID: "self", Thumbprints: []string{p.SHA256()}})
			c := r.dial(p)
			c.send(connectPacket("self"))
			c.wantConnack(packet.Accepted)
			r.add(Device{DeviceID: "self", Thumbprints: []string{strings.Repeat("0", 64), p.SHA256()}})
			c.alive()
			r.add(Device{DeviceID: "self", Thumbprints: []string{strings.Repeat("0", 64)}})
			c.wantClosed()
		}},
		{28, "28 token ends", Options{}, func(r *rig) {
			c := r.dial(nil)
			p := withToken("keyed", token("keyed", "secret", time.Now().Add(30*time.Second)))
			c.send(p)
			c.wantConnack(packet.Accepted)
			c.wantQuiet(29 * time.Second)
			c.wantClosedWithin(2 * time.Second)
			r.wantClosedRow(28)
		}},
		{29, "29 certificate ends, nothing", Options{}, func(r *rig) {
			c := r.dial(r.issue(certtest.Leaf{CN: "press-7", NotAfter: time.Now().Add(30 * time.Second)}))
			c.send(connectPacket("press-7"))
			c.wantConnack(packet.Accepted)
			c.wantQuiet(60 * time.Second)
			c.alive()
		}},
		{29, "29 certificate ends, cut", Options{CutAtNotAfter: true}, func(r *rig) {
			c := r.dial(r.issue(certtest.Leaf{CN: "press-7", NotAfter: time.Now().Add(30 * time.Second)}))
			c.send(connectPacket("press-7"))
			c.wantConnack(packet.Accepted)
			c.wantQuiet(29 * time.Second)
			c.wantClosedWithin(3 * time.Second)
			r.wantClosedRow(29)
		}},
		malformed("reserved type", []byte{0x00, 0}),
		malformed("length of five bytes", []byte{0x30, 0x80, 0x80, 0x80, 0x80, 1}),
		malformed("QoS 3", []byte{0x36, 5, 0, 1, 'a', 0, 1}),
		malformed("QoS 0 with DUP", []byte{0x38, 3, 0, 1, 'a'}),
		malformed("topic cut off", []byte{0x30, 3, 0, 9, 'a'}),
		malformed("empty topic", []byte{0x30, 2, 0, 0}),
		malformed("bad UTF-8", []byte{0x30, 3, 0, 1, 0xff}),
		malformed("U+0000", []byte{0x30, 3, 0, 1, 0}),
		malformed("wildcard #", []byte{0x30, 3, 0, 1, '#'}),
		malformed("wildcard +", []byte{0x30, 3, 0, 1, '+'}),
		malformed("packet id 0", []byte{0x32, 5, 0, 1, 'a', 0, 0}),
		malformed("no packet id", []byte{0x32, 3, 0, 1, 'a'}),
		malformed("SUBSCRIBE flags", []byte{0x80, 6, 0, 1, 0, 1, 'a', 0}),
		malformed("SUBSCRIBE without filter", []byte{0x82, 2, 0, 1}),
		malformed("PINGREQ with body", []byte{0xc0, 1, 0}),
		malformed("PUBREL", []byte{0x62, 2, 0, 1}),
		malformed("CONNACK from a client", []byte{0x20, 2, 0, 0}),
		malformed("AUTH", []byte{0xf0, 0}),
	}
}

func malformed(name string, b []byte) rowTest {
	return rowTest{30, "30 " + name, Options{}, func(r *rig) {
		c := r.online("press-7")
		c.write(b)
		c.wantClosed()
		r.wantRow(30)
	}}
}

// closedFor makes a row in which one publish ends the connection.
func closedFor(row int, name, topic, body string) rowTest {
	return rowTest{row, name, Options{}, func(r *rig) {
		c := r.online("press-7")
		c.publish(1, topic, body)
		c.wantClosed()
		r.wantRow(row)
		if n := len(r.hub.Messages()); n != 0 {
			r.Fatalf("%d messages accepted, want none", n)
		}
	}}
}

// tolerated makes a row in which lenient mode keeps the message that strict mode closes for.
func tolerated(row int, name, bag string) rowTest {
	return rowTest{row, name, Options{Lenient: true}, func(r *rig) {
		c := r.online("press-7")
		c.publish(1, events("press-7", bag), "x")
		c.wantPuback(1)
		r.wantRow(row)
	}}
}

// accepted makes a row in which a publish is kept with these properties.
func accepted(row int, name, identity, topic string, want map[string]string) rowTest {
	return rowTest{row, name, Options{}, func(r *rig) {
		c := r.online(identity)
		c.publish(1, topic, "x")
		c.wantPuback(1)
		m := r.hub.Messages()
		if len(m) != 1 || fmt.Sprint(m[0].Properties) != fmt.Sprint(want) || m[0].Topic != topic || m[0].Identity != identity {
			r.Fatalf("ledger %+v, want properties %v", m, want)
		}
		if v := r.hub.Violations(); len(v) != 0 {
			r.Fatalf("violations %+v, want none", v)
		}
	}}
}

func publishRows() []rowTest {
	big := strings.Repeat("x", maxMessage)
	return []rowTest{
		{31, "31 QoS 2", Options{}, func(r *rig) {
			c := r.online("press-7")
			c.send(packet.Publish{Topic: events("press-7", ""), QoS: 2, ID: 1})
			c.wantClosed()
			r.wantRow(31)
		}},
		{32, "32 retain", Options{}, func(r *rig) {
			c := r.online("press-7")
			c.send(packet.Publish{Topic: events("press-7", "a=b"), QoS: 1, ID: 1, Retain: true})
			c.wantPuback(1)
			if p := r.hub.Messages()[0].Properties; p["mqtt-retain"] != "true" || p["a"] != "b" {
				r.Fatalf("properties %v, want mqtt-retain added", p)
			}
		}},
		closedFor(33, "33 body", events("press-7", ""), big+"x"),
		closedFor(33, "33 body with properties", events("press-7", "a=b"), big[1:]),
		{33, "33 far above", Options{}, func(r *rig) {
			c := r.online("press-7")
			c.write([]byte{0x30, 0xff, 0xff, 0xff, 0x7f})
			c.wantClosed()
			r.wantRow(33)
		}},
		accepted(33, "33 exactly at the limit", "press-7", events("press-7", "%24.ct="+strings.Repeat("y", 8)), map[string]string{"$.ct": "yyyyyyyy"}),
		closedFor(34, "34 unknown topic", "sensors/1", "x"),
		closedFor(34, "34 other device", events("press-8", ""), "x"),
		closedFor(34, "34 own module", "devices/press-7/modules/agent/messages/events/", "x"),
		closedFor(34, "34 longer id", "devices/press-7/messages/eventsandmore", "x"),
		closedFor(34, "34 methods of the hub", "$iothub/methods/POST/x/?$rid=1", "x"),
		{34, "34 will elsewhere", Options{}, func(r *rig) {
			c := r.dial(r.issue(certtest.Leaf{CN: "press-7"}))
			p := connectPacket("press-7")
			p.Will = &packet.Will{Topic: "elsewhere"}
			c.send(p)
			c.wantClosed()
			r.wantRow(34)
		}},
		closedFor(35, "35 bad escape", events("press-7", "a=%zz"), "x"),
		closedFor(35, "35 escape cut off", events("press-7", "a=%2"), "x"),
		closedFor(35, "35 raw slash", events("press-7", "a=b/c"), "x"),
		closedFor(35, "35 raw question mark", events("press-7", "?a=b"), "x"),
		closedFor(35, "35 duplicate", events("press-7", "a=b&%61=c"), "x"),
		closedFor(35, "35 duplicate among many", events("press-7", manyPairs(40)+"&k7=again"), "x"),
		closedFor(35, "35 no key", events("press-7", "a=b&=c"), "x"),
		closedFor(35, "35 not UTF-8", events("press-7", "a=%ff"), "x"),
		tolerated(35, "35 lenient", "a=%zz&b=c"),
		accepted(35, "35 null, empty and encoded", "press-7", events("press-7", "n&e=&%24.mid=m1&s=a%2Fb%20c"),
			map[string]string{"n": "", "e": "", "$.mid": "m1", "s": "a/b c"}),
		accepted(35, "35 slash after the bag", "press-7", events("press-7", "a=b/"), map[string]string{"a": "b"}),
		accepted(35, "35 no slash before an empty bag", "press-7", "devices/press-7/messages/events", map[string]string{}),
		accepted(35, "35 module", "press-7/agent", "devices/press-7/modules/agent/messages/events/$.on=out", map[string]string{"$.on": "out"}),
		accepted(36, "36 plus", "press-7", events("press-7", "a=b+c"), map[string]string{"a": "b+c"}),
		closedFor(37, "37 unknown system property", events("press-7", "%24.cts=now"), "x"),
		tolerated(37, "37 lenient", "$.cts=now"),
		closedFor(38, "38 long id", events("press-7", "$.mid="+strings.Repeat("a", 129)), "x"),
		closedFor(38, "38 foreign character", events("press-7", "$.mid=a%20b"), "x"),
		tolerated(38, "38 lenient", "$.mid=a%C3%A4"),
		{39, "39 window", Options{}, func(r *rig) {
			c := r.online("press-7")
			r.hub.DelayPuback(time.Minute)
			for i := range uint16(20) {
				c.publish(i+1, events("press-7", ""), "x")
			}
			c.wantQuiet(59 * time.Second)
			if n := len(r.hub.Messages()); n != 16 {
				r.Fatalf("%d messages read, want 16 before reading stops", n)
			}
			for i := range uint16(16) {
				c.wantPuback(i + 1)
			}
			c.wantQuiet(59 * time.Second)
			for i := range uint16(4) {
				c.wantPuback(17 + i)
			}
		}},
		{39, "39 no limit", Options{MaxInbound: -1}, func(r *rig) {
			c := r.online("press-7")
			r.hub.WithholdPuback(-1)
			for i := range uint16(100) {
				c.publish(i+1, events("press-7", ""), "x")
			}
			c.alive()
			if n := len(r.hub.Messages()); n != 100 {
				r.Fatalf("%d messages read, want 100", n)
			}
		}},
		{40, "40 throttle", Options{MaxInbound: -1}, func(r *rig) {
			r.hub.Throttle(10)
			c := r.online("press-7")
			start := time.Now()
			for i := range uint16(50) {
				c.publish(i+1, events("press-7", ""), "x")
			}
			for i := range uint16(50) {
				c.wantPuback(i + 1)
			}
			if got := time.Since(start); got < 4900*time.Millisecond || got > 5100*time.Millisecond {
				r.Fatalf("50 messages took %v at 10 a second", got)
			}
			for i := range uint16(110) {
				c.publish(i+1, events("press-7", ""), "x")
			}
			for {
				if _, err := c.next(20 * time.Second); err != nil {
					break
				}
			}
			synctest.Wait()
			if n := len(r.hub.Messages()); n > 152 || r.hub.Connected("press-7") {
				r.Fatalf("%d messages, still connected %v; want a close at the backlog limit", n, r.hub.Connected("press-7"))
			}
		}},
		{41, "41 quota, mute", Options{}, func(r *rig) {
			r.hub.SpendQuota(QuotaMute)
			c := r.online("press-7")
			c.publish(1, events("press-7", ""), "x")
			c.wantQuiet(50 * time.Second)
			r.hub.SpendQuota(QuotaLeft)
			c.publish(2, events("press-7", ""), "x")
			c.wantPuback(2)
			if got := r.hub.Counters("press-7"); got.Messages != 1 || got.Rejected != 1 {
				r.Fatalf("counters %+v", got)
			}
		}},
		{41, "41 quota, cut", Options{}, func(r *rig) {
			r.hub.SpendQuota(QuotaCut)
			c := r.online("press-7")
			c.publish(1, events("press-7", ""), "x")
			c.wantClosed()
		}},
		{42, "42 resend", Options{}, func(r *rig) {
			_ = r.hub.WithholdPubackOf("press-7", 1)
			c := r.online("press-7")
			c.publish(7, events("press-7", "$.mid=m1"), "x")
			c.wantQuiet(time.Second)
			c = r.online("press-7")
			c.send(packet.Publish{Topic: events("press-7", "$.mid=m1"), QoS: 1, ID: 7, Dup: true, Payload: []byte("x")})
			c.wantPuback(7)
			m := r.hub.Messages()
			if len(m) != 2 || m[0].ID != "m1" || m[1].ID != "m1" || m[0].Dup || !m[1].Dup || r.hub.Counters("press-7").Dups != 1 {
				r.Fatalf("ledger %+v, want the message twice", m)
			}
		}},
	}
}

func manyPairs(n int) string {
	parts := make([]string, n)
	for i := range parts {
		parts[i] = fmt.Sprintf("k%d=v", i)
	}
	return strings.Join(parts, "&")
}

// TestMessagesOfADisplacedConnectionCountForNothing: what the hub has read of the old connection and not yet judged
// when the new one is accepted must not turn up behind what the client has sent again.
func TestMessagesOfADisplacedConnectionCountForNothing(t *testing.T) {
	inBubble(t, Options{}, func(r *rig) {
		judging, free := make(chan struct{}), make(chan struct{})
		r.hub.Judge(func(m Message) Fate {
			if string(m.Body) == "late" {
				close(judging)
				<-free
			}
			return Keep
		})
		old := r.online("press-7")
		var both []byte // at once, so that the hub has read the second too
		for i, body := range []string{"late", "later"} {
			p := packet.Publish{Topic: events("press-7", ""), Payload: []byte(body), ID: uint16(i + 1), QoS: 1}
			both = must(p.Append(both, packet.V311))(t)
		}
		old.write(both)
		<-judging
		c := r.online("press-7")
		c.publish(1, events("press-7", ""), "again")
		c.wantPuback(1)
		close(free)
		c.alive()
		synctest.Wait()
		if got := r.hub.Messages(); len(got) != 1 || string(got[0].Body) != "again" {
			t.Errorf("%d messages arrived, first %q", len(got), got[0].Body)
		}
	})
}
