package hub

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"gatewayd/internal/certstore"
	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/hub/hubtest"
)

// load appends numbered messages at about the given rate until stop is called,
// which returns how many there were.
func (r *rig) load(perSecond int) (stop func() int) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan int)
	go func() {
		begin, n := time.Now(), 0
		t := time.NewTicker(2 * time.Millisecond)
		defer t.Stop()
		for ctx.Err() == nil {
			<-t.C
			due := int(time.Since(begin).Seconds() * float64(perSecond))
			r.box.text(numbered(n, due)...)
			n = max(n, due)
		}
		done <- n
	}()
	return func() int {
		cancel()
		return <-done
	}
}

// checkStream fails unless first deliveries are 0 to n-1 in order and repeats carry
// the same id. It returns how many messages came more than once.
func (r *rig) checkStream(n int) (repeats int) {
	r.t.Helper()
	ids := map[string]string{}
	next := 0
	for _, m := range r.hub.Messages() {
		b := string(m.Body)
		if id, again := ids[b]; again {
			repeats++
			if id != m.ID {
				r.t.Fatalf("message %s came as %s and as %s", b, id, m.ID)
			}
			continue
		}
		ids[b] = m.ID
		if b != strconv.Itoa(next) {
			r.t.Fatalf("message %s came first where %d was due", b, next)
		}
		next++
	}
	if next != n {
		r.t.Fatalf("%d of %d messages arrived", next, n)
	}
	return repeats
}

func TestRotationUnderLoadLosesAndDelaysNothing(t *testing.T) {
	r := newRig(t, false, hubtest.Options{})
	r.start()
	r.connected()
	stop := r.load(2000)
	creds := []*certstore.Credential{r.store.Current()}
	carries := func(c *certstore.Credential) {
		serial := c.Leaf().SerialNumber.Text(16)
		r.await("a message under this certificate", 10*time.Second, func() bool {
			all := r.hub.Messages()
			return len(all) > 0 && all[len(all)-1].Serial == serial
		})
	}
	carries(creds[0])
	for i := range 30 {
		c := r.issue(certtest.Leaf{RSA: i == 7})
		creds = append(creds, c)
		r.store.offer(c)
		r.await("committed", 10*time.Second, func() bool { return same(r.store.Current(), c) })
		carries(c)
	}
	n := stop()
	r.drained()
	if repeats := r.checkStream(n); repeats > 0 {
		t.Errorf("%d messages came twice although acknowledgements were collected first", repeats)
	}
	var serials []string
	for _, m := range r.hub.Messages() {
		if len(serials) == 0 || serials[len(serials)-1] != m.Serial {
			serials = append(serials, m.Serial)
		}
	}
	var want []string
	for _, c := range creds {
		want = append(want, c.Leaf().SerialNumber.Text(16))
	}
	if !slices.Equal(serials, want) {
		t.Errorf("certificates in the order of their messages: %d different, want %d", len(serials), len(want))
	}
	gaps := slices.Clone(r.store.gaps[1:])
	slices.Sort(gaps)
	t.Logf("gap of %d rotations: median %s, longest %s; longest silence %s", len(gaps), gaps[len(gaps)/2], gaps[len(gaps)-1], r.box.longestSilence())
	if gaps[len(gaps)/2] > 250*time.Millisecond {
		t.Errorf("median gap %s", gaps[len(gaps)/2])
	}
	if st := r.s.Status(); st.Rotations != 30 || st.Rotation.To != creds[30].Fingerprint() || st.TrialFault != nil {
		t.Errorf("status %+v", st)
	}
	r.strict()
}

func TestRefusedCandidateNeverStopsTheFlow(t *testing.T) {
	for _, version := range []uint16{0x0303, 0x0304} {
		t.Run(fmt.Sprintf("TLS %#x", version), func(t *testing.T) { refusedCandidates(t, version) })
	}
}

func refusedCandidates(t *testing.T, version uint16) {
	r := newRig(t, false, hubtest.Options{MaxTLS: version})
	stranger := must(certtest.NewCA("stranger"))
	good := r.store.Current()
	r.start()
	r.connected()
	stop := r.load(1000)
	modes := []hubtest.Refusal{hubtest.TLSAlert, hubtest.ConnackFive, hubtest.CloseSilently, hubtest.AcceptThenDrop}
	n := 10
	if long {
		n = 50
	}
	for i := range n {
		var c *certstore.Credential
		switch i % 5 {
		case 4:
			c = issue(t, stranger, certtest.Leaf{CN: "dev-1"})
		default:
			c = r.issue(certtest.Leaf{})
			r.hub.RefuseFingerprint(c.SHA256(), modes[i%5])
		}
		r.store.offer(c)
		r.await("missed", 20*time.Second, func() bool { return r.store.missReason(c) != "" })
		if !same(r.store.Current(), good) {
			t.Fatal("a refused certificate was committed")
		}
	}
	sent := stop()
	r.drained()
	r.checkStream(sent)
	t.Logf("longest silence %s", r.box.longestSilence())
	if s := r.box.longestSilence(); s > time.Second && !raceEnabled {
		t.Errorf("the flow stopped for %s", s)
	}
	if st := r.s.Status(); st.State != StateConnected || st.TrialFault == nil {
		t.Errorf("status %+v", st)
	}
	// Only "accepted, then dropped", one in five, can cost the working connection.
	accepted := 0
	for _, c := range r.hub.Connections() {
		if c.Fingerprint == good.SHA256() {
			accepted++
		}
	}
	if accepted > 1+n/5 {
		t.Errorf("%d connections with the good certificate", accepted)
	}
}

func TestCandidateRefusedInTLSDoesNotTouchTheWorkingConnection(t *testing.T) {
	r := newRig(t, false, hubtest.Options{MaxTLS: 0x0303})
	r.start()
	r.connected()
	stop := r.load(1000)
	for range 10 {
		c := r.issue(certtest.Leaf{})
		r.hub.RefuseFingerprint(c.SHA256(), hubtest.TLSAlert)
		r.store.offer(c)
		r.await("missed", 10*time.Second, func() bool { return r.store.missReason(c) != "" })
	}
	n := stop()
	r.drained()
	if repeats := r.checkStream(n); repeats > 0 {
		t.Errorf("%d repeats", repeats)
	}
	if c := r.hub.Connections()[0]; !c.Closed.IsZero() {
		t.Errorf("the working connection ended: %+v", c)
	}
}

func TestSilentCandidatePausesTheFlowForAMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, true, hubtest.Options{})
		r.start()
		r.connected()
		stop := r.load(100)
		time.Sleep(time.Second)
		c := r.issue(certtest.Leaf{})
		r.hub.RefuseFingerprint(c.SHA256(), hubtest.Hang)
		r.store.offer(c)
		r.await("missed", time.Minute, func() bool { return r.store.missReason(c) != "" })
		n := stop()
		r.drained()
		r.checkStream(n)
		s := r.box.longestSilence()
		t.Logf("longest silence %s", s)
		if s > time.Second {
			t.Errorf("the flow stopped for %s", s)
		}
		if c := r.hub.Connections()[0]; !c.Closed.IsZero() {
			t.Errorf("the working connection ended: %+v", c)
		}
	})
}

func TestSlowAnswerToTheNewConnectStillRotates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, true, hubtest.Options{})
		r.start()
		r.connected()
		stop := r.load(100)
		time.Sleep(time.Second)
		r.hub.DelayConnack(5 * time.Second)
		c := r.issue(certtest.Leaf{})
		r.store.offer(c)
		r.await("committed", time.Minute, func() bool { return same(r.store.Current(), c) })
		n := stop()
		r.drained()
		if repeats := r.checkStream(n); repeats > r.s.cfg.Window {
			t.Errorf("%d repeats, more than a window", repeats)
		}
		r.strict()
	})
}

func TestOutageNeverDecidesARotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, true, hubtest.Options{})
		r.start()
		r.connected()
		// The hub takes no new connections while the old one lives on.
		r.hub.StopListening()
		c := r.issue(certtest.Leaf{})
		r.store.offer(c)
		time.Sleep(10 * time.Minute)
		if reason := r.store.missReason(c); reason != "" {
			t.Error("missed because of an outage:", reason)
		}
		// Then the old one ends too.
		r.hub.DropConnections("dev-1")
		time.Sleep(10 * time.Minute)
		if reason := r.store.missReason(c); reason != "" || same(r.store.Current(), c) {
			t.Error("an outage decided:", reason)
		}
		r.store.mu.Lock()
		if r.store.noVerdicts == 0 {
			t.Error("the failed trials were not told")
		}
		r.store.mu.Unlock()
	})
}

func TestRotationHappensRightAfterAnOutage(t *testing.T) {
	r := newRig(t, false, hubtest.Options{})
	r.cfg.Timing.RetryMax = 50 * time.Millisecond
	r.start()
	r.connected()
	r.hub.StopListening()
	r.hub.DropConnections("dev-1")
	c := r.issue(certtest.Leaf{})
	r.store.offer(c)
	r.box.text(numbered(0, 50)...)
	time.Sleep(100 * time.Millisecond)
	if err := r.hub.Resume(); err != nil {
		t.Fatal(err)
	}
	r.await("committed", 10*time.Second, func() bool { return same(r.store.Current(), c) })
	r.drained()
	r.checkStream(50)
}

func TestRefusedCandidateFoundOfflineFallsBackAtOnce(t *testing.T) {
	for _, mode := range []hubtest.Refusal{hubtest.TLSAlert, hubtest.ConnackFive, hubtest.CloseSilently, hubtest.AcceptThenDrop, hubtest.Hang} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, true, hubtest.Options{})
			c := r.issue(certtest.Leaf{})
			r.hub.RefuseFingerprint(c.SHA256(), mode)
			r.store.offer(c)
			r.box.text("x")
			begin := time.Now()
			r.start()
			r.drained()
			if took := time.Since(begin); took > 25*time.Second {
				t.Errorf("refusal %d: delivered after %s", mode, took)
			}
			if r.store.missReason(c) == "" {
				t.Errorf("refusal %d: no miss", mode)
			}
		})
	}
}

func TestExpiredCurrentAlternatesUntilTheCandidateWorks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, true, hubtest.Options{})
		// The hub takes the old one no more, and does not know the new one yet.
		if err := r.hub.SetDisabled("dev-1", false); err != nil {
			t.Fatal(err)
		}
		r.hub.RefuseFingerprint(r.store.Current().SHA256(), hubtest.ConnackFive)
		c := r.issue(certtest.Leaf{})
		r.hub.RefuseFingerprint(c.SHA256(), hubtest.ConnackFive)
		r.store.offer(c)
		r.box.text("x")
		r.start()
		time.Sleep(2 * time.Hour)
		tried := map[string]int{}
		for _, c := range r.hub.Connections() {
			tried[c.Fingerprint]++
		}
		if len(tried) != 2 || r.store.missReason(c) != "" {
			t.Errorf("tried %v, miss %q", tried, r.store.missReason(c))
		}
		r.hub.AllowFingerprint(c.SHA256())
		r.await("committed", 11*time.Minute, func() bool { return same(r.store.Current(), c) })
		r.drained()
	})
}

func TestFirstCertificateConnectsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, true, hubtest.Options{})
		c := r.store.current
		r.store.current = nil
		r.start()
		time.Sleep(time.Hour)
		if st := r.s.Status(); st.State != StateNoCertificate {
			t.Errorf("state %q", st.State)
		}
		r.store.offer(c)
		r.await("connected", 10*time.Second, func() bool { return r.s.Status().State == StateConnected })
	})
}

func TestChangedCertificateEndsTheWaitOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, true, hubtest.Options{})
		r.hub.RefuseFingerprint(r.store.Current().SHA256(), hubtest.ConnackFive)
		r.start()
		time.Sleep(time.Hour) // the waits are minutes by now
		c := r.issue(certtest.Leaf{})
		begin := time.Now()
		r.store.offer(c)
		r.await("connected", time.Hour, func() bool { return same(r.store.Current(), c) })
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("the remedy waited %s", took)
		}
	})
}

func TestThirtyDaysOfRenewalsKeepOneConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, true, hubtest.Options{CutAtNotAfter: true})
		day := 24 * time.Hour
		r.store = newStore(r.issue(certtest.Leaf{NotAfter: time.Now().Add(2 * day)}))
		r.start()
		r.connected()
		for i := range 30 {
			time.Sleep(day)
			c := r.issue(certtest.Leaf{NotAfter: time.Now().Add(2 * day)})
			r.store.offer(c)
			r.box.text(strconv.Itoa(i))
			r.await("committed", time.Minute, func() bool { return same(r.store.Current(), c) })
			r.drained()
		}
		r.checkStream(30)
		if n := len(r.hub.Connections()); n != 31 {
			t.Errorf("%d connections for 30 renewals", n)
		}
		r.strict()
	})
}

// What waits for an answer on the old connection is given some time, in which sending
// goes on, and no more than that.
func TestAnswersComeBeforeTheOldConnectionIsReplaced(t *testing.T) {
	for _, wait := range []time.Duration{0, time.Second, time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, true, hubtest.Options{})
			r.cfg.Commands = &commander{leaving: func(_ Link, done func()) { time.AfterFunc(wait, done) }}
			r.start()
			r.connected()
			stop := r.load(500)
			time.Sleep(time.Second)
			next := r.issue(certtest.Leaf{})
			r.store.offer(next)
			time.Sleep(500 * time.Millisecond)
			before := len(r.hub.Messages())
			time.Sleep(400 * time.Millisecond)
			if st, want := r.s.Status(), map[bool]string{true: cutNames[cutLeaving]}[wait > 0]; st.Trial != want {
				t.Errorf("%v: trial %q, want %q", wait, st.Trial, want)
			}
			if sent := len(r.hub.Messages()) - before; sent < 150 {
				t.Errorf("%v: %d messages in 0.4 s", wait, sent)
			}
			time.Sleep(4 * time.Second)
			if !same(r.store.Current(), next) {
				t.Errorf("%v: not adopted", wait)
			}
			n := stop()
			time.Sleep(time.Second)
			r.checkStream(n)
			r.strict()
		})
	}
}

func TestStopDuringACutOverLeavesNothingBehind(t *testing.T) {
	for _, mode := range []string{"tls", "connack", "drain"} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, true, hubtest.Options{})
			r.start()
			r.connected()
			switch mode {
			case "tls":
				r.hub.HangTLS(true)
			case "connack":
				r.hub.DelayConnack(time.Minute)
			case "drain":
				r.hub.DelayPuback(time.Minute)
				r.box.text("x")
			}
			r.store.offer(r.issue(certtest.Leaf{}))
			time.Sleep(time.Second)
			begin := time.Now()
			r.stop() // the bubble fails the test if a goroutine is left
			if took := time.Since(begin); took > 6*time.Second {
				t.Errorf("%s: stopping took %s", mode, took)
			}
			if st := r.s.Status(); st.Trial != "" || st.State != StateStopped {
				t.Errorf("%s: %+v", mode, st)
			}
		})
	}
}
