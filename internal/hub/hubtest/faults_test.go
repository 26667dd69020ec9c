package hubtest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/packet"
)

// inBubble runs a test with a rig in virtual time.
func inBubble(t *testing.T, opt Options, f func(r *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, opt)
		defer r.close()
		f(r)
	})
}

func TestRefusedFingerprintIsTurnedAwayUntilAllowed(t *testing.T) {
	for _, tt := range []struct {
		name string
		how  Refusal
		want func(c *client)
	}{
		{"CONNACK 5", ConnackFive, func(c *client) { c.wantConnack(packet.RefusedNotAuthorized) }},
		{"CONNACK 3", ConnackThree, func(c *client) { c.wantConnack(packet.RefusedUnavailable) }},
		{"silent close", CloseSilently, func(c *client) { c.wantClosed() }},
		{"hang", Hang, func(c *client) { c.wantQuiet(time.Hour) }},
		{"accepted, then dropped", AcceptThenDrop, func(c *client) { c.wantConnack(packet.Accepted); c.wantClosed() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, Options{}, func(r *rig) {
				good, bad := r.issue(leaf("press-7")), r.issue(leaf("press-7"))
				r.hub.RefuseFingerprint(strings.ToLower(bad.SHA256()), tt.how)
				for _, pair := range []*certtest.Pair{bad, good, bad} {
					c := r.dial(pair)
					c.send(connectPacket("press-7"))
					if pair == bad {
						tt.want(c)
					} else {
						c.wantConnack(packet.Accepted)
						c.alive()
					}
				}
				r.hub.AllowFingerprint(bad.SHA256())
				c := r.dial(bad)
				c.send(connectPacket("press-7"))
				c.wantConnack(packet.Accepted)
				c.publish(1, events("press-7", ""), "x")
				c.wantPuback(1)
				if m := r.hub.Messages(); m[0].Fingerprint != bad.SHA256() || m[0].Serial != bad.Leaf.SerialNumber.Text(16) {
					t.Errorf("message %+v does not name the certificate that brought it", m[0])
				}
			})
		})
	}
}

func TestRefusedFingerprintFailsTLSInBothVersions(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			inBubble(t, Options{}, func(r *rig) {
				pair := r.issue(leaf("press-7"))
				r.hub.RefuseFingerprint(pair.SHA256(), TLSAlert)
				working := r.online("press-7")
				conf := r.tlsConfig(pair.TLS())
				conf.MaxVersion = version
				c := r.dialWith(conf)
				if late := version == tls.VersionTLS13; (c.err == nil) != late {
					t.Errorf("handshake: %v", c.err)
				}
				if !c.handshakeRefused() {
					t.Error("the connection lives")
				}
				working.alive()
				synctest.Wait()
				all := r.hub.Connections()
				if last := all[len(all)-1]; last.Outcome != OutcomeTLS || last.Fingerprint != pair.SHA256() {
					t.Errorf("connection %+v, want the refused certificate named", last)
				}
			})
		})
	}
}

// A refusal that only shows after CONNACK 0 costs the working connection, as at the real hub.
func TestAcceptThenDropDisplaces(t *testing.T) {
	inBubble(t, Options{}, func(r *rig) {
		working := r.online("press-7")
		bad := r.issue(leaf("press-7"))
		r.hub.RefuseFingerprint(bad.SHA256(), AcceptThenDrop)
		c := r.dial(bad)
		c.send(connectPacket("press-7"))
		c.wantConnack(packet.Accepted)
		c.wantClosed()
		working.wantClosed()
	})
}

func TestRefusedIdentity(t *testing.T) {
	inBubble(t, Options{}, func(r *rig) {
		if err := r.hub.RefuseIdentity("press-7", ConnackThree); err != nil {
			t.Fatal(err)
		}
		c := r.dial(r.issue(leaf("press-7")))
		c.send(connectPacket("press-7"))
		c.wantConnack(packet.RefusedUnavailable)
		r.online("press-8")
		_ = r.hub.RefuseIdentity("press-7", 0)
		r.online("press-7")
		if err := r.hub.RefuseIdentity("nobody", ConnackFive); !errors.Is(err, ErrUnknownIdentity) {
			t.Errorf("unknown identity: %v", err)
		}
	})
}

func TestSilentConnectionIsDeafAndMute(t *testing.T) {
	inBubble(t, Options{}, func(r *rig) {
		c := r.online("press-7")
		if n := r.hub.GoSilent("press-7"); n != 1 {
			t.Fatalf("%d connections silenced, want 1", n)
		}
		c.publish(1, events("press-7", ""), "x")
		c.write(packet.AppendPing(nil, packet.PINGREQ))
		c.wantQuiet(time.Hour)
		young := r.online("press-7")
		young.alive()
		c.wantClosed()
		if n := len(r.hub.Messages()); n != 0 {
			t.Errorf("%d messages heard, want none", n)
		}
	})
}

func TestDropDisplaceAndContest(t *testing.T) {
	inBubble(t, Options{}, func(r *rig) {
		a, b := r.online("press-7"), r.online("press-8")
		if n := r.hub.DropConnections(""); n != 2 {
			t.Errorf("%d dropped, want 2", n)
		}
		a.wantClosed()
		b.wantClosed()
		a = r.online("press-7")
		r.hub.Displace("press-7")
		a.wantClosed()
		r.wantClosedRow(24)
		if err := r.hub.Contest("press-7", 10*time.Second); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			a = r.online("press-7")
			a.wantQuiet(9 * time.Second)
			a.wantClosedWithin(2 * time.Second)
			r.wantClosedRow(24)
		}
		_ = r.hub.Contest("press-7", 0)
		r.online("press-7").wantQuiet(30 * time.Second)
	})
}

func TestDelayedPubacksKeepTheirOrder(t *testing.T) {
	inBubble(t, Options{MaxInbound: -1}, func(r *rig) {
		c := r.online("press-7")
		_ = r.hub.DelayPubackOf("press-7", 4*time.Second)
		c.publish(1, events("press-7", ""), "x")
		synctest.Wait()
		_ = r.hub.DelayPubackOf("press-7", 0)
		c.publish(2, events("press-7", ""), "x")
		start := time.Now()
		c.wantPuback(1)
		c.wantPuback(2)
		if got := time.Since(start); got != 4*time.Second {
			t.Errorf("PUBACKs after %v, want 4s", got)
		}
		c.publish(3, events("press-7", ""), "x")
		c.wantPuback(3)
		if got := r.hub.Counters("press-7").Acked; got != 3 {
			t.Errorf("%d acknowledged, want 3", got)
		}
	})
}

func TestWithheldPubacksNeverCome(t *testing.T) {
	inBubble(t, Options{}, func(r *rig) {
		c := r.online("press-7")
		r.hub.WithholdPuback(2)
		for i := range uint16(4) {
			c.publish(i+1, events("press-7", ""), "x")
		}
		c.wantPuback(3)
		c.wantPuback(4)
		c.wantQuiet(30 * time.Second)
		if got := r.hub.Counters("press-7"); got.Messages != 4 || got.Acked != 2 {
			t.Errorf("counters %+v, want 4 messages and 2 acknowledged", got)
		}
	})
}

func TestJudgeDecidesTheFateOfAMessage(t *testing.T) {
	inBubble(t, Options{}, func(r *rig) {
		fates := map[string]Fate{"keep": Keep, "keep only": KeepOnly, "keep and cut": KeepAndCut, "lose": Lose, "cut": Cut}
		r.hub.Judge(func(m Message) Fate { return fates[string(m.Body)] })
		for body, fate := range fates {
			before := len(r.hub.Messages())
			c := r.online("press-7")
			c.publish(1, events("press-7", ""), body)
			switch fate {
			case Keep:
				c.wantPuback(1)
			case KeepOnly, Lose:
				c.wantQuiet(30 * time.Second)
			case KeepAndCut, Cut:
				c.wantClosed()
			}
			kept := len(r.hub.Messages()) - before
			if want := map[Fate]int{Keep: 1, KeepOnly: 1, KeepAndCut: 1}[fate]; kept != want {
				t.Errorf("%s: %d kept, want %d", body, kept, want)
			}
		}
		r.hub.Judge(nil)
		c := r.online("press-7")
		c.publish(1, events("press-7", ""), "cut")
		c.wantPuback(1)
	})
}

func TestConnackAndTLSCanHang(t *testing.T) {
	inBubble(t, Options{}, func(r *rig) {
		r.hub.DelayConnack(3 * time.Second)
		c := r.dial(r.issue(leaf("press-7")))
		c.send(connectPacket("press-7"))
		c.wantQuiet(2 * time.Second)
		c.wantConnack(packet.Accepted)
		r.hub.DelayConnack(0)
		r.hub.HangTLS(true)
		if c := r.dial(nil); !isTimeout(c.err) {
			t.Errorf("handshake: %v, want it to hang", c.err)
		}
		r.hub.HangTLS(false)
		r.online("press-8").alive()
		c.alive()
	})
}

func TestDesiredChangesReachASubscriber(t *testing.T) {
	inBubble(t, Options{}, func(r *rig) {
		c := r.online("press-7")
		if v, err := r.hub.PatchDesired("press-7", `{"a":{"b":1,"c":2}}`); v != 2 || err != nil {
			t.Fatalf("version %d %v", v, err)
		}
		c.wantQuiet(time.Second) // not subscribed
		c.wantCodes("01", filterDesired)
		_, _ = r.hub.PatchDesired("press-7", `{"a":{"c":null}}`)
		p := c.wantPublish()
		if p.Topic != "$iothub/twin/PATCH/properties/desired/?$version=3" || string(p.Payload) != `{"$version":3,"a":{"c":null}}` {
			t.Errorf("got %q %s", p.Topic, p.Payload)
		}
		_ = r.hub.LoseDesired("press-7", 1)
		_, _ = r.hub.PatchDesired("press-7", `{"lost":1}`)
		_, _ = r.hub.PatchDesired("press-7", `{"seen":1}`)
		if p := c.wantPublish(); !strings.HasSuffix(p.Topic, "$version=5") {
			t.Errorf("got %q, want a gap", p.Topic)
		}
		if got := string(r.hub.Twin("press-7").Desired); got != `{"$version":5,"a":{"b":1},"lost":1,"seen":1}` {
			t.Errorf("desired %s", got)
		}
		_ = r.hub.ResetTwin("press-7")
		if got := r.hub.Twin("press-7"); got.DesiredVersion != 1 || string(got.Desired) != `{"$version":1}` {
			t.Errorf("after reset %+v", got)
		}
		for _, bad := range []string{"", "[]", `{"a b":1}`, fmt.Sprintf(`{"a":"%s"}`, strings.Repeat("x", maxValue+1))} {
			if _, err := r.hub.PatchDesired("press-7", bad); err == nil {
				t.Errorf("patch %.20q was accepted", bad)
			}
		}
	})
}

func TestCallbackSeesAMessageBeforeItsPuback(t *testing.T) {
	inBubble(t, Options{Ledger: CountOnly}, func(r *rig) {
		c := r.online("press-7")
		var seen []string
		r.hub.OnMessage(func(m Message) { seen = append(seen, m.ID+string(m.Body)) })
		c.publish(1, events("press-7", "$.mid=a"), "1")
		c.wantPuback(1)
		if fmt.Sprint(seen) != "[a1]" {
			t.Errorf("seen %v", seen)
		}
		r.hub.OnMessage(nil)
		c.publish(2, events("press-7", "$.mid=b"), "2")
		c.wantPuback(2)
		if len(seen) != 1 || len(r.hub.Messages()) != 0 || r.hub.Counters("").Messages != 2 || r.hub.Counters("press-7").Bytes != 2 {
			t.Errorf("seen %v, counters %+v", seen, r.hub.Counters(""))
		}
	})
}

// A client that keeps one TLS session cache for all identities logs one in as another; the stand-in has to let
// that happen, so that a test can see it.
func TestSharedSessionCacheIsFoundOut(t *testing.T) {
	inBubble(t, Options{}, func(r *rig) {
		cache := tls.NewLRUClientSessionCache(8)
		for i, name := range []string{"press-7", "press-8"} {
			conf := r.tlsConfig(r.issue(leaf(name)).TLS())
			conf.ClientSessionCache = cache
			c := r.dialWith(conf)
			c.send(connectPacket(name))
			if i == 0 {
				c.wantConnack(packet.Accepted)
				c.alive()
				continue
			}
			c.wantConnack(packet.RefusedNotAuthorized)
			if last := r.hub.Connections()[1]; !last.Resumed || last.CommonName != "press-7" {
				t.Errorf("connection %+v, want a resumed one under the first name", last)
			}
		}
	})
}

func TestWaitSeesWhatHappens(t *testing.T) {
	inBubble(t, Options{}, func(r *rig) {
		go func() {
			time.Sleep(time.Second)
			c := r.online("press-7")
			time.Sleep(time.Second)
			c.publish(1, events("press-7", ""), "x")
		}()
		start := time.Now()
		if err := r.hub.WaitConnected(r.Context(), "press-7"); err != nil || time.Since(start) != time.Second {
			t.Errorf("connected after %v: %v", time.Since(start), err)
		}
		if err := r.hub.WaitMessages(r.Context(), "press-7", 1); err != nil || time.Since(start) != 2*time.Second {
			t.Errorf("message after %v: %v", time.Since(start), err)
		}
		ctx, cancel := context.WithTimeout(r.Context(), time.Second)
		defer cancel()
		if err := r.hub.WaitMessages(ctx, "press-7", 2); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("wait for what never comes: %v", err)
		}
	})
}
