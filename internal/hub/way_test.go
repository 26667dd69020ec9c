package hub

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/hub/hubtest"
)

// How a port may be blocked.
const (
	portOpen = iota
	portRefused
	portBlackHole  // SYN is dropped
	portMute       // TCP connects and TLS hears nothing
	portReset      // TCP connects and is reset
	portTakenApart // a box in between answers with a certificate of its own
)

// ports is a network with a hub on 8883 and 443, either of which may be blocked.
type ports struct {
	mqtt, ws atomic.Int32               // one of the port constants
	tries    atomic.Int32               // of 8883
	box      atomic.Pointer[tls.Config] // of what takes TLS apart
	told     atomic.Int32               // handshakes that such a box finished: it would get what is meant for the hub
}

// newWaysRig is newRig in a bubble with both ports and transport auto.
func newWaysRig(t testing.TB, opt hubtest.Options) (*rig, *ports) {
	over := hubtest.NewPipeListener()
	opt.WebSocketListener = over
	r := newRig(t, true, opt)
	p := &ports{}
	direct := r.cfg.DialContext
	r.cfg.Transport = Auto
	r.cfg.Timing.ReturnMin, r.cfg.Timing.ReturnMax = time.Minute, 4*time.Minute
	r.cfg.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		state, dial := p.mqtt.Load(), direct
		switch {
		case strings.HasSuffix(address, ":443"):
			state, dial = p.ws.Load(), over.DialContext
		default:
			p.tries.Add(1)
		}
		switch state {
		case portRefused:
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
		case portBlackHole:
			<-ctx.Done()
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: ctx.Err()}
		case portMute, portReset, portTakenApart:
			near, far := hubtest.Pipe()
			switch state {
			case portReset:
				far.Close()
			case portTakenApart:
				go p.takeApart(far)
			}
			return near, nil
		}
		return dial(ctx, network, address)
	}
	return r, p
}

// takeApart is the box's side of a connection.
func (p *ports) takeApart(c net.Conn) {
	defer c.Close()
	nc := tls.Server(c, p.box.Load())
	if nc.Handshake() == nil {
		if n, _ := nc.Read(make([]byte, 100)); n > 0 {
			p.told.Add(1)
		}
	}
}

// intercept makes such a box.
func (p *ports) intercept(t *testing.T) {
	ca := must(certtest.NewCA("helpful proxy"))
	pair := must(ca.Issue(certtest.Leaf{CN: hubtest.DefaultHostName, DNS: []string{hubtest.DefaultHostName}}))
	cert := must(tls.X509KeyPair(pair.CertPEM, pair.KeyPEM))
	p.box.Store(&tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert})
}

// TestAutoFallsBackAndReturns blocks port 8883 in every way, while messages flow, and
// opens it again.
func TestAutoFallsBackAndReturns(t *testing.T) {
	for how, name := range map[int32]string{portRefused: "refused", portBlackHole: "black hole", portMute: "mute", portReset: "reset", portTakenApart: "taken apart"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, p := newWaysRig(t, hubtest.Options{})
				p.mqtt.Store(how)
				p.intercept(t)
				start := time.Now()
				r.start()
				r.connected()
				if took := time.Since(start); took > 20*time.Second {
					t.Errorf("connected after %v", took)
				}
				if st := r.s.Status(); st.Transport != OverWebSocket || st.Fault != nil || st.Detour == nil {
					t.Errorf("over %q, fault %v, detour because %v", st.Transport, st.Fault, st.Detour)
				} else if how == portTakenApart && (st.Detour.Kind != Untrusted || !strings.Contains(st.Detour.Text, "helpful proxy")) {
					t.Errorf("detour because %v", st.Detour)
				}
				feeding := feed(r)
				time.Sleep(10 * time.Minute)
				if n := p.tries.Load(); n < 3 || n > 5 {
					t.Errorf("port 8883 was tried %d times in ten minutes", n)
				}
				if st := r.s.Status(); len(r.hub.ConnectionsOf("dev-1")) != 1 || st.TrialFault != nil || len(st.Connects) != 1 {
					t.Errorf("the looks at port 8883 show: %+v", st)
				}
				p.mqtt.Store(portOpen)
				r.await("return", 10*time.Minute, func() bool { return r.s.Status().Transport == OverTLS })
				time.Sleep(time.Minute)
				feeding()
				r.drained()
				if n := len(r.hub.ConnectionsOf("dev-1")); n != 2 {
					t.Errorf("%d connections", n)
				}
				inOrderOnce(t, r)
				if longest := r.box.longestSilence(); longest > time.Second {
					t.Errorf("the flow paused for %v", longest)
				}
				for text, want := range map[string]int{"the hub cannot be reached over mqtt, mqtt-ws is taken": 1, "the hub is reached over mqtt again": 1} {
					if n := r.logs.FilterMessage(text).Len(); n != want {
						t.Errorf("%d times said: %s", n, text)
					}
				}
				if p.told.Load() > 0 || r.s.Status().Detour != nil {
					t.Errorf("told the box %d times; detour %v", p.told.Load(), r.s.Status().Detour)
				}
				if st := r.s.Status(); st.Rotations != 0 || st.TrialFault != nil || len(r.store.commits) != 1 {
					t.Errorf("the return counts as a rotation: %+v, %d commits", st, len(r.store.commits))
				}
				r.strict()
				r.stop()
			})
		})
	}
}

// feed puts two messages a second into the queue until told to stop.
func feed(r *rig) (stop func()) {
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for i := 0; ; i++ {
			select {
			case <-end:
				return
			case <-time.After(500 * time.Millisecond):
				r.box.text(fmt.Sprint(i))
			}
		}
	}()
	return func() { close(end); <-ended }
}

// inOrderOnce wants every message at the hub exactly once and in order.
func inOrderOnce(t *testing.T, r *rig) {
	t.Helper()
	for i, body := range r.bodies() {
		if body != fmt.Sprint(i) {
			t.Fatalf("message %d is %s", i, body)
		}
	}
}

// TestAutoStaysOnRefusals has the hub say no in every way: that is no blocked port.
func TestAutoStaysOnRefusals(t *testing.T) {
	for _, how := range []hubtest.Refusal{hubtest.ConnackFive, hubtest.TLSAlert, hubtest.CloseSilently, hubtest.ConnackThree} {
		synctest.Test(t, func(t *testing.T) {
			r, _ := newWaysRig(t, hubtest.Options{})
			r.hub.RefuseFingerprint(r.store.Current().SHA256(), how)
			r.start()
			time.Sleep(10 * time.Minute)
			all := r.hub.Connections()
			if len(all) == 0 {
				t.Error("never tried")
			}
			for _, c := range all {
				if c.WebSocket {
					t.Errorf("refusal %d led to port 443", how)
				}
			}
			r.stop()
		})
	}
}

// TestReturnThatFailsTouchesNothing has port 8883 open and the hub refuse CONNECT
// there, as a gateway in between does that knows the identity on 443 only.
func TestReturnThatFailsTouchesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, p := newWaysRig(t, hubtest.Options{})
		p.mqtt.Store(portRefused)
		r.start()
		r.connected()
		r.hub.RefuseFingerprint(r.store.Current().SHA256(), hubtest.ConnackFive)
		p.mqtt.Store(portOpen)
		feeding := feed(r)
		time.Sleep(20 * time.Minute)
		feeding()
		r.drained()
		st := r.s.Status()
		if st.Transport != OverWebSocket || st.State != StateConnected || st.TrialFault != nil || len(r.store.missed) > 0 || r.store.noVerdicts > 0 {
			t.Errorf("%+v", st)
		}
		if longest := r.box.longestSilence(); longest > time.Second {
			t.Errorf("the flow paused for %v", longest)
		}
		inOrderOnce(t, r)
		r.stop()
	})
}

// TestOutageOfBothPortsEndsOnEither opens the one or the other.
func TestOutageOfBothPortsEndsOnEither(t *testing.T) {
	for _, first := range []Transport{OverTLS, OverWebSocket} {
		synctest.Test(t, func(t *testing.T) {
			r, p := newWaysRig(t, hubtest.Options{})
			p.mqtt.Store(portBlackHole)
			p.ws.Store(portBlackHole)
			r.start()
			r.await("told", 5*time.Minute, func() bool { return r.s.Status().Fault != nil })
			if f := r.s.Status().Fault; f.Kind != Unreachable || !strings.Contains(f.Text, "over mqtt-ws, tcp: no answer in time") {
				t.Errorf("fault %s: %v", f.Kind, f)
			}
			if first == OverTLS {
				p.mqtt.Store(portOpen)
			} else {
				p.ws.Store(portOpen)
			}
			r.await("connected", 5*time.Minute, func() bool { return r.s.Status().State == StateConnected })
			if got := r.s.Status().Transport; got != first {
				t.Errorf("over %s, want %s", got, first)
			}
			// The other way round, in the middle of the work: 443 goes, 8883 comes.
			if first == OverWebSocket {
				p.ws.Store(portRefused)
				p.mqtt.Store(portOpen)
				r.hub.DropConnections("dev-1")
				r.await("moved", time.Minute, func() bool { return r.s.Status().Transport == OverTLS })
			}
			r.stop()
		})
	}
}

// TestBoxOnEitherPortIsNotTrusted: whichever port a box takes apart, the identity goes the other way or none.
func TestBoxOnEitherPortIsNotTrusted(t *testing.T) {
	for name, how := range map[string][2]int32{
		"both": {portTakenApart, portTakenApart}, "443, and 8883 is blocked": {portRefused, portTakenApart}, "8883, and 443 is blocked": {portTakenApart, portRefused},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, p := newWaysRig(t, hubtest.Options{})
				p.intercept(t)
				p.mqtt.Store(how[0])
				p.ws.Store(how[1])
				r.start()
				time.Sleep(10 * time.Minute)
				st := r.s.Status()
				if f := st.Fault; f == nil || f.Kind != Untrusted || !strings.Contains(f.Text, "helpful proxy") || !strings.Contains(f.Text, "; and over mqtt") {
					t.Errorf("fault %v", st.Fault)
				}
				if n := len(r.hub.Connections()); n > 0 || p.told.Load() > 0 {
					t.Errorf("%d connections, told the box %d times", n, p.told.Load())
				}
				if n := p.tries.Load(); n < 5 || n > 60 {
					t.Errorf("%d tries in ten minutes", n)
				}
				p.ws.Store(portOpen)
				r.await("connected", 2*time.Minute, func() bool { return r.s.Status().State == StateConnected })
				r.stop()
			})
		})
	}
}

// TestRotationWhileFallenBack renews the certificate over port 443.
func TestRotationWhileFallenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, p := newWaysRig(t, hubtest.Options{})
		p.mqtt.Store(portBlackHole)
		r.start()
		r.connected()
		feeding := feed(r)
		time.Sleep(time.Minute)
		next := r.issue(certtest.Leaf{})
		r.store.offer(next)
		r.await("rotated", time.Minute, func() bool { return same(r.store.Current(), next) })
		feeding()
		r.drained()
		inOrderOnce(t, r)
		if longest := r.box.longestSilence(); longest > time.Second || r.s.Status().Transport != OverWebSocket {
			t.Errorf("the flow paused for %v, over %s", longest, r.s.Status().Transport)
		}
		r.stop()
	})
}

func TestAddressesOfBothTransports(t *testing.T) {
	for _, tt := range []struct {
		transport         Transport
		address, ws       string
		wantTLS, wantOver string
	}{
		{Auto, "", "", "h.example:8883", "h.example:443"},
		{Auto, "10.0.0.1:18883", "", "10.0.0.1:18883", "10.0.0.1:443"},
		{Auto, "10.0.0.1:18883", "10.0.0.2:8443", "10.0.0.1:18883", "10.0.0.2:8443"},
		{Auto, "[fe80::1]:8883", "", "[fe80::1]:8883", "[fe80::1]:443"},
		{OverWebSocket, "10.0.0.1:8443", "", "", "10.0.0.1:8443"},
		{OverWebSocket, "10.0.0.1", "", "", "10.0.0.1:443"},
		{OverWebSocket, "", "", "", "h.example:443"},
	} {
		c := Config{Identity: Identity{HostName: "h.example", Address: tt.address, WebSocketAddress: tt.ws}, Transport: tt.transport}
		if got := c.addressOver(OverTLS); tt.wantTLS != "" && got != tt.wantTLS {
			t.Errorf("%+v: %s", tt, got)
		}
		if got := c.addressOver(OverWebSocket); got != tt.wantOver {
			t.Errorf("%+v: %s", tt, got)
		}
	}
}

// sluggish is a connection whose writes take a while.
type sluggish struct {
	net.Conn
	takes *atomic.Int64
}

func (s sluggish) Write(p []byte) (int, error) {
	time.Sleep(time.Duration(s.takes.Load()))
	return s.Conn.Write(p)
}

// TestPingOfTheHubWaitsForASlowWrite pings while a write takes longer than the five
// seconds after which the library gives up.
func TestPingOfTheHubWaitsForASlowWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, p := newWaysRig(t, hubtest.Options{})
		p.mqtt.Store(portRefused)
		var takes atomic.Int64
		dial := r.cfg.DialContext
		r.cfg.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			c, err := dial(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return sluggish{c, &takes}, nil
		}
		r.start()
		r.connected()
		takes.Store(int64(20 * time.Second))
		r.box.text("over a slow link")
		time.Sleep(time.Second)
		begin := time.Now()
		if n := r.hub.PingWebSockets("dev-1", time.Minute); n != 1 {
			t.Errorf("%d answers", n)
		}
		if took := time.Since(begin); took < 15*time.Second {
			t.Errorf("answered after %v: no write was under way", took)
		}
		r.drained()
		if n := len(r.hub.ConnectionsOf("dev-1")); n != 1 {
			t.Errorf("%d connections", n)
		}
		r.stop()
	})
}
