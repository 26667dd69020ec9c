package hubtest

import (
	"errors"
	"fmt"
	"strings"
	"testing/synctest"
	"time"

	"gatewayd/internal/packet"
)

const (
	filterC2D     = "devices/press-7/messages/devicebound/#"
	filterMethods = "$iothub/methods/POST/#"
	filterReplies = "$iothub/twin/res/#"
	filterDesired = "$iothub/twin/PATCH/properties/desired/#"
	filterInputs  = "devices/press-7/modules/agent/inputs/#"
)

func (c *client) wantCodes(want string, filters ...string) {
	c.Helper()
	if got := fmt.Sprintf("%x", c.subscribe(filters...)); got != want {
		c.Fatalf("SUBACK %s, want %s", got, want)
	}
}

func (c *client) puback(id uint16) { c.Helper(); c.send(packet.Ack{Type: packet.PUBACK, ID: id}) }

func (r *rig) c2d(m C2D) {
	r.Helper()
	if err := r.hub.SendC2D(r.Context(), "press-7", m); err != nil {
		r.Fatal(err)
	}
}

func (r *rig) wantStates(want ...string) {
	r.Helper()
	synctest.Wait()
	var got []string
	for _, s := range r.hub.C2DStates("press-7") {
		got = append(got, fmt.Sprintf("%s %d", s.State, s.Deliveries))
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		r.Fatalf("C2D %v, want %v", got, want)
	}
}

// answer is what InvokeMethod returned.
type answer struct {
	status int
	body   []byte
	err    error
}

func (r *rig) invoke(name, payload string, timeout time.Duration) <-chan answer {
	ch := make(chan answer, 1)
	go func() {
		var a answer
		a.status, a.body, a.err = r.hub.InvokeMethod(r.Context(), "press-7", name, []byte(payload), timeout)
		ch <- a
	}()
	return ch
}

func (c *client) wantRequest(name string) (rid string) {
	c.Helper()
	p := c.wantPublish()
	rid, ok := strings.CutPrefix(p.Topic, "$iothub/methods/POST/"+name+"/?$rid=")
	if !ok || p.QoS != 0 {
		c.Fatalf("got %q QoS %d, want a call of %s", p.Topic, p.QoS, name)
	}
	return rid
}

func (r *rig) wantAnswer(ch <-chan answer, status int, err error) {
	r.Helper()
	if a := <-ch; a.status != status || !errors.Is(a.err, err) {
		r.Fatalf("answer %d %v, want %d %v", a.status, a.err, status, err)
	}
}

func downRows() []rowTest {
	return []rowTest{
		{43, "43 unknown filter", Options{}, func(r *rig) {
			c := r.online("press-7")
			c.wantCodes("018080", filterC2D, "sensors/#", "devices/press-8/messages/devicebound/#")
			c.alive()
		}},
		{43, "43 no filters of the client's own making", Options{}, func(r *rig) {
			c := r.online("press-7")
			c.wantCodes("808080", "#", "devices/press-7/messages/devicebound/+", "$iothub/credentials/res/#")
			c.alive()
		}},
		{43, "43 edge", Options{Edge: true}, func(r *rig) { r.online("press-7").wantCodes("01", "sensors/#") }},
		{44, "44 QoS 2", Options{}, func(r *rig) {
			c := r.online("press-7")
			c.send(packet.Subscribe{ID: 1, Subscriptions: []packet.Subscription{{Filter: filterC2D, QoS: 2}, {Filter: filterMethods}}})
			f, err := c.next(patience)
			if a, bad := packet.DecodeSuback(f, packet.V311); err != nil || bad != nil || fmt.Sprintf("%x", a.Codes) != "0100" {
				r.Fatalf("SUBACK %x, want 0100", a.Codes)
			}
		}},
		{45, "45 too many", Options{MaxFilters: 2}, func(r *rig) {
			c := r.online("press-7")
			c.wantCodes("01010180", filterC2D, filterMethods, filterC2D, filterDesired)
			r.wantRow(45)
			c.send(packet.Unsubscribe{ID: 3, Filters: []string{filterMethods}})
			if f, err := c.next(patience); err != nil || f.Type != packet.UNSUBACK {
				r.Fatalf("got %v (%v), want UNSUBACK", f.Type, err)
			}
			c.wantCodes("01", filterDesired)
		}},
		{46, "46 module and C2D", Options{}, func(r *rig) {
			c := r.online("press-7/agent")
			c.wantCodes("8001", filterC2D, filterInputs)
			r.wantRow(46)
		}},
		{46, "46 device and inputs", Options{}, func(r *rig) {
			r.online("press-7").wantCodes("80", filterInputs)
			r.wantRow(46)
		}},
		{47, "47 lock runs out", Options{}, func(r *rig) {
			c := r.online("press-7")
			c.wantCodes("01", filterC2D)
			r.c2d(C2D{MessageID: "m/1", Body: []byte("go"), Properties: map[string]string{"k": "a b"}, Ack: "full"})
			want := "devices/press-7/messages/devicebound/%24.mid=m%2F1&%24.to=%2Fdevices%2Fpress-7%2Fmessages%2FdeviceBound&iothub-ack=full&k=a%20b"
			first := c.wantPublish()
			if first.Topic != want || first.QoS != 1 || string(first.Payload) != "go" {
				r.Fatalf("got %q QoS %d %q", first.Topic, first.QoS, first.Payload)
			}
			c.wantQuiet(59 * time.Second)
			again := c.wantPublish()
			if again.Topic != want || again.Dup || again.ID == first.ID {
				r.Fatalf("redelivery %+v", again)
			}
			c.puback(first.ID)
			r.wantStates("locked 2")
			c.puback(again.ID)
			r.wantStates("completed 2")
			if v := r.hub.Violations(); len(v) != 0 {
				r.Fatalf("violations %+v, want none", v)
			}
		}},
		{47, "47 connection lost", Options{RedeliverWithDup: true}, func(r *rig) {
			c := r.online("press-7")
			c.wantCodes("01", filterC2D)
			r.c2d(C2D{MessageID: "1"})
			r.c2d(C2D{MessageID: "2"})
			c.puback(c.wantPublish().ID)
			c.wantPublish()
			_ = c.nc.Close()
			r.wantStates("completed 1", "queued 1")
			// The session keeps its subscription, so nothing has to be asked for.
			c = r.dial(r.issue(leaf("press-7")))
			c.send(connectPacket("press-7"))
			if !c.wantConnack(packet.Accepted).SessionPresent {
				r.Fatal("session not present")
			}
			p := c.wantPublish()
			if !p.Dup || !strings.Contains(p.Topic, "%24.mid=2") {
				r.Fatalf("redelivery %+v", p)
			}
			c.wantCodes("01", filterC2D)
			c.puback(p.ID)
			r.wantStates("completed 1", "completed 2")
		}},
		{47, "47 session present is a switch", Options{NoSessionPresent: true}, func(r *rig) {
			r.online("press-7")
			c := r.dial(r.issue(leaf("press-7")))
			c.send(connectPacket("press-7"))
			if c.wantConnack(packet.Accepted).SessionPresent {
				r.Fatal("session present")
			}
		}},
		{47, "47 time to live", Options{}, func(r *rig) {
			r.c2d(C2D{MessageID: "1", TTL: time.Minute})
			r.c2d(C2D{MessageID: "2", TTL: 90 * time.Second})
			time.Sleep(61 * time.Second)
			c := r.online("press-7")
			c.wantCodes("01", filterC2D)
			p := c.wantPublish()
			if !strings.Contains(p.Topic, "%24.mid=2&") || !strings.Contains(p.Topic, "%24.exp=2") {
				r.Fatalf("got %q", p.Topic)
			}
			r.wantStates("expired 0", "locked 1")
			for range 2 {
				time.Sleep(45 * time.Second)
				c.alive()
			}
			r.wantStates("expired 0", "expired 1")
		}},
		{47, "47 clean session", Options{CleanSessionDropsC2D: true}, func(r *rig) {
			r.c2d(C2D{MessageID: "1"})
			c := r.dial(r.issue(leaf("press-7")))
			p := connectPacket("press-7")
			p.CleanStart = true
			c.send(p)
			if c.wantConnack(packet.Accepted).SessionPresent {
				r.Fatal("session present")
			}
			r.wantStates("dropped 0")
		}},
		{48, "48 out of order", Options{}, func(r *rig) {
			c := r.online("press-7")
			c.wantCodes("01", filterC2D)
			r.c2d(C2D{MessageID: "1"})
			r.c2d(C2D{MessageID: "2"})
			c.wantPublish()
			c.puback(c.wantPublish().ID)
			c.wantClosed()
			r.wantRow(48)
		}},
		{48, "48 lenient", Options{Lenient: true}, func(r *rig) {
			c := r.online("press-7")
			c.wantCodes("01", filterC2D)
			r.c2d(C2D{MessageID: "1"})
			r.c2d(C2D{MessageID: "2"})
			one, two := c.wantPublish(), c.wantPublish()
			c.puback(two.ID)
			c.puback(one.ID)
			r.wantStates("completed 1", "completed 1")
			r.wantRow(48)
			c.alive()
		}},
		{49, "49 full", Options{}, func(r *rig) {
			for range maxC2DQueue {
				r.c2d(C2D{})
			}
			if err := r.hub.SendC2D(r.Context(), "press-7", C2D{}); !errors.Is(err, ErrQueueFull) {
				r.Fatalf("51st message: %v, want %v", err, ErrQueueFull)
			}
			if err := r.hub.SendC2D(r.Context(), "press-7/agent", C2D{}); !errors.Is(err, ErrNoC2D) {
				r.Fatalf("to a module: %v, want %v", err, ErrNoC2D)
			}
			if err := r.hub.SendC2D(r.Context(), "press-8", C2D{Body: make([]byte, maxC2DBody+1)}); !errors.Is(err, ErrTooLarge) {
				r.Fatalf("large: %v, want %v", err, ErrTooLarge)
			}
		}},
		{50, "50 made-up rid", Options{}, func(r *rig) {
			c := r.online("press-7")
			c.publish(0, "$iothub/methods/res/200/?$rid=none", "{}")
			c.alive()
			r.wantRow(50)
		}},
		{50, "50 late is quiet, reused is not", Options{}, func(r *rig) {
			c := r.online("press-7")
			c.wantCodes("01", filterMethods)
			ch := r.invoke("reboot", `{"in":5}`, 10*time.Second)
			rid := c.wantRequest("reboot")
			r.wantAnswer(ch, 0, ErrMethodTimeout)
			c.publish(0, "$iothub/methods/res/200/?$rid="+rid, "{}")
			c.alive()
			if v := r.hub.Violations(); len(v) != 0 {
				r.Fatalf("violations %+v, want none", v)
			}
			c.publish(0, "$iothub/methods/res/200/?$rid="+rid, "{}")
			c.alive()
			r.wantRow(50)
		}},
		{50, "50 only where it was asked", Options{}, func(r *rig) {
			c := r.online("press-7")
			c.wantCodes("01", filterMethods)
			ch := r.invoke("reboot", "", time.Minute)
			rid := c.wantRequest("reboot")
			c = r.online("press-7")
			c.publish(0, "$iothub/methods/res/200/?$rid="+rid, "{}")
			c.alive()
			r.wantRow(50)
			r.wantAnswer(ch, 0, ErrMethodTimeout)
		}},
		{50, "50 a proper answer", Options{MaxMethods: 1}, func(r *rig) {
			r.wantAnswer(r.invoke("reboot", "", 0), 0, ErrNotOnline)
			c := r.online("press-7")
			r.wantAnswer(r.invoke("reboot", "", 0), 0, ErrNotOnline)
			c.wantCodes("01", filterMethods)
			ch := r.invoke("reboot", "", 0)
			rid := c.wantRequest("reboot")
			r.wantAnswer(r.invoke("reboot", "", 0), 0, ErrTooManyMethods)
			c.publish(3, "$iothub/methods/res/207/?$rid="+rid, `{"ok":true}`)
			if a := <-ch; a.status != 207 || string(a.body) != `{"ok":true}` || a.err != nil {
				r.Fatalf("answer %+v", a)
			}
			c.wantPuback(3)
		}},
		{51, "51 status", Options{}, func(r *rig) {
			c := r.online("press-7")
			c.publish(0, "$iothub/methods/res/ok/?$rid=1", "{}")
			c.wantClosed()
			r.wantRow(51)
		}},
		{51, "51 body", Options{}, func(r *rig) {
			c := r.online("press-7")
			c.wantCodes("01", filterMethods)
			ch := r.invoke("reboot", "", time.Minute)
			c.publish(0, "$iothub/methods/res/200/?$rid="+c.wantRequest("reboot"), "not json")
			c.wantClosed()
			r.wantRow(51)
			r.wantAnswer(ch, 0, ErrMethodTimeout)
		}},
		{52, "52 large answer", Options{}, func(r *rig) {
			c := r.online("press-7")
			c.wantCodes("01", filterMethods)
			ch := r.invoke("reboot", "", time.Minute)
			c.publish(0, "$iothub/methods/res/200/?$rid="+c.wantRequest("reboot"), `"`+strings.Repeat("x", maxMethodBody)+`"`)
			r.wantAnswer(ch, 0, ErrTooLarge)
			r.wantRow(52)
		}},
	}
}
