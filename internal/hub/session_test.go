package hub

import (
	"fmt"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"gatewayd/internal/hub/hubtest"
	"gatewayd/internal/queue"
)

func TestMessagesArriveInOrderWithTheirProperties(t *testing.T) {
	for _, tls := range []uint16{0x0303, 0x0304} {
		t.Run(fmt.Sprintf("TLS %#x", tls), func(t *testing.T) {
			r := newRig(t, false, hubtest.Options{MinTLS: tls, MaxTLS: tls})
			at := time.Date(2026, 3, 4, 5, 6, 7, 89e6, time.FixedZone("CET", 3600))
			r.box.put(queue.Message{Payload: []byte(`{"t":21}`), ContentType: "application/json", ContentEncoding: "utf-8",
				Accepted: at, AcceptedTrusted: true,
				Properties: []queue.Property{{Key: "sensor name", Value: "a/b+c=ö&%"}, {Key: "leer", Value: ""}}})
			r.box.text(numbered(0, 500)...)
			r.start()
			r.drained()
			got := r.hub.Messages()
			if len(got) != 501 {
				t.Fatalf("%d messages arrived, want 501", len(got))
			}
			want := map[string]string{"$.mid": "m-1", "$.ctime": "2026-03-04T04:06:07.089Z", "$.ct": "application/json", "$.ce": "utf-8",
				"sensor name": "a/b+c=ö&%", "leer": ""}
			for k, v := range want {
				if got[0].Properties[k] != v {
					t.Errorf("property %s = %q, want %q", k, got[0].Properties[k], v)
				}
			}
			if b := r.bodies()[1:]; !slices.Equal(b, numbered(0, 500)) {
				t.Error("out of order:", b)
			}
			c := r.hub.Connections()[0]
			if c.APIVersion != "2021-04-12" || c.ClientType != "gatewayd test/1" || c.CleanSession || c.ServerName != hubtest.DefaultHostName || c.KeepAlive != 4*time.Minute {
				t.Errorf("CONNECT as the hub saw it: %+v", c)
			}
			r.strict()
		})
	}
}

func TestModuleSpeaksUnderItsOwnName(t *testing.T) {
	r := newRig(t, false, hubtest.Options{})
	if err := r.hub.AddDevice(hubtest.Device{DeviceID: "dev-1", ModuleID: "mod a"}); err == nil {
		t.Log("the stand-in takes a blank in a module id")
	}
	if err := r.hub.AddDevice(hubtest.Device{DeviceID: "dev-1", ModuleID: "filter"}); err != nil {
		t.Fatal(err)
	}
	r.cfg.ModuleID = "filter"
	r.store = newStore(issue(t, r.ca, leaf("dev-1/filter")))
	r.box.put(queue.Message{Payload: []byte("x"), Output: "alarms"})
	r.start()
	r.drained()
	m := r.hub.Messages()[0]
	if m.Identity != "dev-1/filter" || m.Properties["$.on"] != "alarms" {
		t.Errorf("arrived as %q with output %q", m.Identity, m.Properties["$.on"])
	}
	r.strict()
}

func TestConnectionLossResendsWithTheSameIDAndKeepsTheOrder(t *testing.T) {
	r := newRig(t, false, hubtest.Options{})
	r.cfg.Timing.RetryMin = 10 * time.Millisecond
	r.cfg.Timing.Stable = time.Millisecond // or so many drops look like another client
	r.cfg.Window = 100
	r.start()
	n := 0
	for range 20 {
		r.box.text(numbered(n, n+200)...)
		n += 200
		time.Sleep(3 * time.Millisecond)
		r.hub.DropConnections("dev-1")
	}
	r.drained()
	first := map[string]string{} // body → id
	var order []string
	for _, m := range r.hub.Messages() {
		b := string(m.Body)
		if id, again := first[b]; again {
			if id != m.ID {
				t.Fatalf("message %s came again as %s, first as %s", b, m.ID, id)
			}
			if !m.Dup {
				t.Fatalf("message %s came again without the DUP flag", b)
			}
			continue
		}
		first[b] = m.ID
		order = append(order, b)
	}
	if !slices.Equal(order, numbered(0, n)) {
		t.Error("lost or out of order")
	}
	acks := r.box.acked()
	if !slices.IsSorted(acks) {
		t.Error("the queue heard of acknowledgements out of order")
	}
	r.strict()
}

func TestStopCollectsAcknowledgementsAndSaysGoodbye(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, true, hubtest.Options{})
		r.start()
		r.connected()
		r.hub.DelayPuback(2 * time.Second)
		r.box.text(numbered(0, 10)...)
		time.Sleep(time.Millisecond)
		r.stop()
		if n := r.box.waiting(); n != 0 {
			t.Errorf("%d messages not acknowledged after a stop that had time to wait", n)
		}
		time.Sleep(time.Second)
		if c := r.hub.Connections()[0]; c.Closed.IsZero() || c.Row != 0 {
			t.Errorf("not an orderly end: %+v", c)
		}
		if got := len(r.hub.Messages()); got != 10 {
			t.Errorf("%d messages arrived", got)
		}
	})
}

func TestStopIsBoundedWhenTheHubIsMute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, true, hubtest.Options{})
		r.start()
		r.connected()
		r.hub.GoSilent("dev-1")
		big := make([]byte, 200<<10)
		for range 16 {
			r.box.put(queue.Message{Payload: big})
		}
		time.Sleep(time.Second)
		begin := time.Now()
		r.stop()
		if took := time.Since(begin); took > 12*time.Second {
			t.Errorf("stopping took %s", took)
		}
	})
}

func TestHalfOpenLinkIsNoticedWithinOneAndAHalfKeepAlives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, true, hubtest.Options{})
		r.cfg.KeepAlive = time.Minute
		r.start()
		r.connected()
		r.hub.GoSilent("dev-1")
		begin := time.Now()
		r.await("noticed", 10*time.Minute, func() bool { return len(r.hub.Connections()) > 1 })
		if took := time.Since(begin); took > 92*time.Second {
			t.Errorf("noticed after %s", took)
		}
		r.connected()
	})
}

func TestIdleConnectionStaysUpForDays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, true, hubtest.Options{})
		r.start()
		r.connected()
		time.Sleep(3 * 24 * time.Hour)
		if n := len(r.hub.Connections()); n != 1 {
			t.Errorf("%d connections in three idle days", n)
		}
		r.box.text("still here")
		r.drained()
		r.strict()
	})
}

func TestConnackAloneDoesNotResetTheBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, true, hubtest.Options{})
		if err := r.hub.RefuseIdentity("dev-1", hubtest.AcceptThenDrop); err != nil {
			t.Fatal(err)
		}
		r.box.text("x")
		r.start()
		time.Sleep(time.Hour)
		// Full jitter up to a minute: about 120 in the hour, 3,600 or more without growth.
		if n := len(r.hub.Connections()); n > 200 || n < 60 {
			t.Errorf("%d connects in an hour", n)
		}
		if st := r.s.Status(); st.State != string(Lost) && st.State != string(Closed) || st.Fault == nil {
			t.Errorf("status %+v", st)
		}
		if err := r.hub.RefuseIdentity("dev-1", 0); err != nil {
			t.Fatal(err)
		}
		r.drained()
		r.connected()
		if st := r.s.Status(); st.Attempt != 0 || st.Fault != nil {
			t.Errorf("after recovery: %+v", st)
		}
	})
}

func TestRefusalWaitsLongAndOutageRampsUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, true, hubtest.Options{})
		if err := r.hub.SetDisabled("dev-1", true); err != nil {
			t.Fatal(err)
		}
		r.start()
		time.Sleep(24 * time.Hour)
		n := len(r.hub.Connections())
		if n < 100 || n > 300 { // 5 to 10 minutes apart
			t.Errorf("%d connects in a day of refusals", n)
		}
		if st := r.s.Status(); st.State != string(Refused) {
			t.Errorf("state %q", st.State)
		}
		if err := r.hub.SetDisabled("dev-1", false); err != nil {
			t.Fatal(err)
		}
		r.await("connected", 11*time.Minute, func() bool { return r.s.Status().State == StateConnected })
	})
}

func TestNoNetworkAtTheStartIsAStateAndNotAnExit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, true, hubtest.Options{})
		r.hub.StopListening()
		r.box.text("kept")
		r.start()
		time.Sleep(10 * time.Minute)
		if st := r.s.Status(); st.State != string(Unreachable) || st.Fault.Step != StepTCP {
			t.Errorf("status %+v", st)
		}
	})
}

func TestContestedIdentityIsRecognised(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, true, hubtest.Options{})
		r.start()
		r.connected()
		if err := r.hub.Contest("dev-1", 5*time.Second); err != nil {
			t.Fatal(err)
		}
		r.await("contested", 10*time.Minute, func() bool { return r.s.Status().State == string(Contested) })
		before := len(r.hub.Connections())
		time.Sleep(time.Hour)
		if n := len(r.hub.Connections()) - before; n > 40 {
			t.Errorf("%d connects in an hour against another client", n)
		}
		if st := r.s.Status(); st.State != string(Contested) {
			t.Errorf("state %q while contested", st.State)
		}
		if err := r.hub.Contest("dev-1", 0); err != nil {
			t.Fatal(err)
		}
		r.await("connected", time.Hour, func() bool { return r.s.Status().State == StateConnected })
	})
}

func TestWithheldAcknowledgementIsResentOnANewConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, true, hubtest.Options{})
		r.start()
		r.connected()
		r.hub.WithholdPuback(1)
		r.box.text(numbered(0, 5)...)
		time.Sleep(5 * time.Second)
		if got := r.box.acked(); len(got) != 0 {
			t.Errorf("the queue heard of %v although the oldest is not acknowledged", got)
		}
		r.await("queue drained", 10*time.Second, func() bool { return r.box.waiting() == 0 })
		// What was acknowledged behind the gap is sent again too, and says so.
		if st := r.s.Status(); st.Resent != 5 || st.Throttled {
			t.Errorf("%d resent, throttled: %t", st.Resent, st.Throttled)
		}
		if got := r.box.acked(); !slices.Equal(got, []uint64{1, 2, 3, 4, 5}) {
			t.Errorf("acknowledged %v", got)
		}
		for i, m := range r.hub.Messages() {
			if m.Dup != (i >= 5) {
				t.Errorf("message %d, %s: DUP is %t", i, m.Body, m.Dup)
			}
		}
	})
}

// TestLostAcknowledgementsCauseNoStorm: a hub that goes on losing some is given more and more time, and one that is slow
// with all of them in their order is never given up for that.
func TestLostAcknowledgementsCauseNoStorm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, true, hubtest.Options{})
		var n atomic.Int64
		r.hub.Judge(func(hubtest.Message) hubtest.Fate {
			if n.Add(1)%20 == 0 {
				return hubtest.KeepOnly
			}
			return hubtest.Keep
		})
		r.start()
		feeding := feed(r)
		time.Sleep(time.Hour)
		feeding()
		if n := len(r.hub.Connections()); n < 10 || n > 45 {
			t.Errorf("%d connections in an hour", n)
		}
		r.hub.Judge(nil)
		r.drained()
		r.stop()
	})
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, true, hubtest.Options{})
		r.hub.DelayPuback(100 * time.Second)
		r.start()
		feeding := feed(r)
		time.Sleep(time.Hour)
		feeding()
		if n := len(r.hub.Connections()); n != 1 {
			t.Errorf("%d connections to a slow hub", n)
		}
		r.hub.DelayPuback(0)
		r.drained()
		inOrderOnce(t, r)
		r.stop()
	})
}

func TestSpentQuotaIsToldAndNothingIsLost(t *testing.T) {
	for _, q := range []hubtest.Quota{hubtest.QuotaMute, hubtest.QuotaCut} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, true, hubtest.Options{})
			r.start()
			r.connected()
			r.hub.SpendQuota(q)
			r.box.text(numbered(0, 100)...)
			time.Sleep(2 * time.Hour)
			if n := len(r.hub.Connections()); n > 350 {
				t.Errorf("%d connects in two hours", n)
			}
			if st := r.s.Status(); st.State == StateConnected || st.SetAside != 0 {
				t.Errorf("status %+v", st)
			}
			r.hub.SpendQuota(hubtest.QuotaLeft)
			r.drained()
			r.connected()
			if len(r.box.aside) > 0 {
				t.Errorf("set aside: %v", r.box.aside)
			}
		})
	}
}

func TestPoisonMessageIsSetAsideAndTheRestFlows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, true, hubtest.Options{})
		r.hub.Judge(func(m hubtest.Message) hubtest.Fate {
			if string(m.Body) == "7" || string(m.Body) == "8" {
				return hubtest.Cut
			}
			return hubtest.Keep
		})
		for i := range 40 {
			r.box.put(queue.Message{Payload: []byte(strconv.Itoa(i)), Source: strconv.Itoa(i % 4)})
		}
		r.start()
		r.await("queue drained", 15*time.Minute, func() bool { return r.box.waiting() == 0 })
		if len(r.box.aside) != 2 || r.box.aside[8] == "" || r.box.aside[9] == "" {
			t.Errorf("set aside: %v", r.box.aside)
		}
		if st := r.s.Status(); st.SetAside != 2 {
			t.Errorf("%d set aside", st.SetAside)
		}
		last, seen := map[int]int{}, map[string]bool{}
		for _, b := range r.bodies() {
			n, _ := strconv.Atoi(b)
			if n < last[n%4] && !seen[b] {
				t.Errorf("sensor %d: %d first came after %d", n%4, n, last[n%4])
			}
			last[n%4], seen[b] = max(n, last[n%4]), true
		}
		if n := len(r.hub.Connections()); n > 30 {
			t.Errorf("%d connections for two messages", n)
		}
	})
}

func TestMessageThatTheHubWouldNotTakeIsNeverSent(t *testing.T) {
	bad := map[string]queue.Message{
		"too large":     {Payload: make([]byte, 256<<10)},
		"reserved name": {Properties: []queue.Property{{Key: "$.cdid", Value: "x"}}},
		"bad id":        {Properties: []queue.Property{{Key: "$.mid", Value: "x y"}}},
		"twice":         {Properties: []queue.Property{{Key: "a", Value: "1"}, {Key: "a", Value: "2"}}},
		"empty name":    {Properties: []queue.Property{{Key: "", Value: "1"}}},
		"not UTF-8":     {Properties: []queue.Property{{Key: "a", Value: "\xff"}}},
		"long topic":    {Properties: []queue.Property{{Key: "a", Value: string(make([]byte, 30000))}}},
	}
	r := newRig(t, false, hubtest.Options{})
	for _, m := range bad {
		r.box.put(m)
	}
	r.box.text("good")
	r.start()
	r.drained()
	if got := r.bodies(); !slices.Equal(got, []string{"good"}) || len(r.box.aside) != len(bad) {
		t.Errorf("arrived %v, set aside %v", got, r.box.aside)
	}
	if n := len(r.hub.Connections()); n != 1 {
		t.Errorf("%d connections", n)
	}
	r.strict()
}

func TestLargestMessageGoesThrough(t *testing.T) {
	r := newRig(t, false, hubtest.Options{})
	for range 20 {
		r.box.put(queue.Message{Payload: make([]byte, 256<<10-64)})
	}
	r.start()
	r.drained()
	if len(r.hub.Messages()) != 20 || len(r.box.aside) > 0 {
		t.Errorf("%d arrived, set aside %v", len(r.hub.Messages()), r.box.aside)
	}
	r.strict()
}

func TestSendRateIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, true, hubtest.Options{})
		r.pacer.SetRates(0, 50)
		r.box.text(numbered(0, 500)...)
		r.start()
		begin := time.Now()
		r.drained()
		if took := time.Since(begin); took < 9*time.Second || took > 15*time.Second {
			t.Errorf("500 messages at 50 per second took %s", took)
		}
	})
}
