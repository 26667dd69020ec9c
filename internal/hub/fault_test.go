package hub

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/hub/hubtest"
)

// TestEveryFaultIsNamed feeds classify with what the libraries, the kernel and a hub
// really produce.
func TestEveryFaultIsNamed(t *testing.T) {
	other := must(certtest.NewCA("other"))
	dead := must(net.Listen("tcp", "127.0.0.1:0"))
	deadAddr := dead.Addr().String()
	dead.Close()
	tests := []struct {
		name   string
		opt    hubtest.Options
		change func(*rig)
		kind   Kind
		step   Step
		text   string
	}{
		{name: "no such name", change: func(r *rig) { r.cfg.Address = "no-such-host.invalid:8883" }, kind: Unreachable, step: StepName, text: "no-such-host.invalid"},
		{name: "nothing listens", change: func(r *rig) { r.cfg.Address = deadAddr }, kind: Unreachable, step: StepTCP, text: "connection refused"},
		{name: "TCP is accepted and nothing follows", change: func(r *rig) { r.hub.HangTLS(true); r.cfg.Timing.Dial = 200 * time.Millisecond }, kind: Unreachable, step: StepTLS, text: "no answer"},
		{name: "not TLS at all", change: func(r *rig) { r.cfg.Address = talker(r.t, "SSH-2.0-x\r\n") }, kind: Unreachable, step: StepTLS, text: "does not speak TLS"},
		{name: "captive portal", change: func(r *rig) { r.cfg.Address = talker(r.t, "HTTP/1.1 302 Found\r\n\r\n") }, kind: Unreachable, step: StepTLS, text: "web server"},
		{name: "closed before TLS", change: func(r *rig) { r.cfg.Address = talker(r.t, "") }, kind: Unreachable, step: StepTLS, text: "closed"},
		{name: "unknown authority", change: func(r *rig) { r.cfg.Roots = other.Pool }, kind: Untrusted, step: StepTLS, text: "unknown authority"},
		{name: "another server", change: func(r *rig) { r.cfg.HostName = "fabrikam.azure-devices.net" }, kind: Untrusted, step: StepTLS, text: "another name"},
		{name: "server certificate expired", opt: expiredServer(t), change: func(r *rig) { r.cfg.Roots = expiredCA.Pool }, kind: Untrusted, step: StepTLS, text: "not valid at this machine's time"},
		{name: "refused in TLS 1.2", opt: hubtest.Options{MaxTLS: tls.VersionTLS12}, change: refuse(hubtest.TLSAlert), kind: Refused, step: StepTLS, text: "refused in TLS"},
		{name: "refused in TLS 1.3", opt: hubtest.Options{MinTLS: tls.VersionTLS13}, change: refuse(hubtest.TLSAlert), kind: Refused, step: StepTLS, text: "refused in TLS"},
		{name: "TLS version", opt: hubtest.Options{MinTLS: tls.VersionTLS13}, change: func(r *rig) { r.cfg.Address = old(r.t) }, kind: Unreachable, step: StepTLS},
		{name: "CONNACK 5", change: refuse(hubtest.ConnackFive), kind: Refused, step: StepConnect, text: "code 5, not authorized"},
		{name: "CONNACK 3", change: refuse(hubtest.ConnackThree), kind: Unavailable, step: StepConnect, text: "code 3"},
		{name: "closed without a word", change: refuse(hubtest.CloseSilently), kind: Closed, step: StepConnect, text: "without an answer"},
		{name: "no CONNACK", change: func(r *rig) { refuse(hubtest.Hang)(r); r.cfg.Timing.Connack = 200 * time.Millisecond }, kind: Closed, step: StepConnect, text: "no answer to CONNECT"},
		{name: "accepted, then dropped", change: refuse(hubtest.AcceptThenDrop), kind: Lost, step: StepSession, text: "closed the connection"},
		{name: "id that MQTT cannot carry", change: func(r *rig) { r.cfg.DeviceID = "a#b" }, kind: Local, step: StepName, text: "a#b"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, false, tt.opt)
			tt.change(r)
			got := Probe(t.Context(), r.cfg, r.store.Current())
			f := got.Fault
			if f == nil {
				t.Fatalf("no fault; steps %+v", got.Steps)
			}
			// A hub that drops right after CONNACK may be quicker than the answer is read.
			early := tt.step == StepSession && f.Step == StepConnect && f.Kind == Closed
			if (f.Kind != tt.kind || f.Step != tt.step) && !early {
				t.Errorf("%s at %s (%s), want %s at %s; cause %#v", f.Kind, f.Step, f.Text, tt.kind, tt.step, f.Err)
			}
			if !strings.Contains(f.Text, tt.text) && !early {
				t.Errorf("text %q does not say %q", f.Text, tt.text)
			}
		})
	}
}

func TestProbeTellsEveryStepOfAGoodIdentity(t *testing.T) {
	r := newRig(t, false, hubtest.Options{})
	got := Probe(t.Context(), r.cfg, r.store.Current())
	if got.Fault != nil {
		t.Fatal(got.Fault)
	}
	var steps []string
	for _, s := range got.Steps {
		steps = append(steps, string(s.Step))
	}
	if s := strings.Join(steps, " "); s != "tcp tls connect session" {
		t.Errorf("steps %s", s)
	}
	if d := got.Steps[1].Detail; !strings.Contains(d, "TLS 1.3") || !strings.Contains(d, "server") {
		t.Errorf("TLS detail %q", d)
	}
	r.strict()
}

func TestUnusableIdentityIsAState(t *testing.T) {
	r := newRig(t, false, hubtest.Options{})
	r.cfg.DeviceID = "a#b"
	r.start()
	r.await("told", 10*time.Second, func() bool { return r.s.Status().State == string(Local) })
	if f := r.s.Status().Fault; f == nil || !strings.Contains(f.Text, "a#b") || len(r.hub.Connections()) > 0 {
		t.Errorf("fault %v, %d connections", f, len(r.hub.Connections()))
	}
}

func TestLastGoodAddressHelpsWhenTheNameServerIsAway(t *testing.T) {
	r := newRig(t, false, hubtest.Options{})
	cfg := r.cfg.withDefaults()
	d := dialer{cfg: &cfg}
	_, port, _ := net.SplitHostPort(r.hub.Addr())
	cfg.Address = net.JoinHostPort("localhost", port)
	dial := func() {
		t.Helper()
		tr, fault := d.dial(t.Context(), r.store.Current())
		if fault != nil {
			t.Fatalf("%s: %v", cfg.Address, fault)
		}
		tr.raw.Close()
	}
	dial()
	last := *d.last.Load()
	if last.host != "localhost" || net.ParseIP(last.ip) == nil {
		t.Fatalf("remembers %+v", last)
	}
	cfg.Address = net.JoinHostPort("no-such-host.invalid", port)
	if _, fault := d.dial(t.Context(), r.store.Current()); fault == nil || fault.Step != StepName {
		t.Fatalf("another name's address was taken: %v", fault)
	}
	d.last.Store(&lastGood{"no-such-host.invalid", last.ip})
	dial()
}

func TestLostConnectionIsNamed(t *testing.T) {
	for _, tt := range []struct {
		err  error
		kind Kind
		text string
	}{
		{io.EOF, Lost, "the hub closed the connection"},
		{errHalfOpen, Lost, "the link is dead"},
		{errStalled, Stalled, "acknowledges nothing"},
		{context.DeadlineExceeded, Lost, "not confirmed"},
	} {
		if f := classify(tt.err, StepSession, true); f.Kind != tt.kind || !strings.Contains(f.Text, tt.text) {
			t.Errorf("%v: %s, %s", tt.err, f.Kind, f.Text)
		}
	}
}

func refuse(how hubtest.Refusal) func(*rig) {
	return func(r *rig) { r.hub.RefuseFingerprint(r.store.Current().SHA256(), how) }
}

// talker says something to whoever connects, and closes.
func talker(t testing.TB, say string) string {
	ln := must(net.Listen("tcp", "127.0.0.1:0"))
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, say)
			_, _ = c.Read(make([]byte, 2048))
			c.Close()
		}
	}()
	return ln.Addr().String()
}

// old is a server that speaks nothing above TLS 1.1.
func old(t testing.TB) string {
	ca := must(certtest.NewCA("old"))
	pair := must(ca.Issue(certtest.Leaf{CN: "old", DNS: []string{hubtest.DefaultHostName}}))
	ln := must(tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair.TLS()}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}))
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_ = c.(*tls.Conn).Handshake()
			c.Close()
		}
	}()
	return ln.Addr().String()
}

var expiredCA = must(certtest.NewCA("expired server"))

func expiredServer(t testing.TB) hubtest.Options {
	pair := must(expiredCA.Issue(certtest.Leaf{CN: "hub", DNS: []string{hubtest.DefaultHostName},
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(-24 * time.Hour)}))
	return hubtest.Options{ServerCert: pair.TLS()}
}
