package hub

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"gatewayd/internal/certstore"
)

// transport is a finished connection on which no MQTT was sent yet. It proves
// nothing: with TLS 1.3 a refused certificate shows only at the first read.
type transport struct {
	nc        net.Conn // carries MQTT: TLS, or WebSocket over it
	raw       net.Conn // TCP, below everything
	over      Transport
	remote    string
	presented atomic.Bool // the server asked for the certificate and got it
}

// dialer makes transports for one identity. It is safe for concurrent use.
type dialer struct {
	cfg  *Config
	ways ways
	last atomic.Pointer[lastGood]
	step atomic.Pointer[Step] // that is waited for
}

// waits notes for which step it waits, and at tells.
func (d *dialer) waits(s Step) { d.step.Store(&s) }

func (d *dialer) at() Step {
	if s := d.step.Load(); s != nil {
		return *s
	}
	return ""
}

// lastGood is the address that led to the hub last, for when names do not resolve.
type lastGood struct{ host, ip string }

// walk goes one way to the hub, step by step; passed hears of each that worked. The
// whole is bounded by ctx.
func (d *dialer) walk(ctx context.Context, cred *certstore.Credential, t Transport, passed func(Step, string)) (*transport, *Fault) {
	say := passed
	if passed == nil {
		say = func(Step, string) {}
	}
	target := d.cfg.addressOver(t)
	proxy, err := d.cfg.Proxy.find(target)
	if err != nil {
		return nil, &Fault{Kind: Local, Step: StepProxy, Text: err.Error(), Err: err}
	}
	next := target
	if proxy != nil {
		next = proxyAddress(proxy)
	}
	if passed != nil {
		if f := d.resolve(ctx, next, say); f != nil {
			return nil, f.towards(proxy)
		}
	}
	d.waits(StepTCP)
	raw, err := d.tcp(ctx, next)
	if err != nil {
		f := classify(err, StepTCP, false)
		f.blocked = proxy == nil && f.Step == StepTCP && f.Kind == Unreachable
		return nil, f.towards(proxy)
	}
	raw = d.cfg.Wire.count(raw)
	tr := &transport{raw: raw, over: t}
	if a := raw.RemoteAddr(); a != nil {
		tr.remote = a.String()
	}
	say(StepTCP, tr.remote)
	if f := d.finish(ctx, tr, cred, proxy, target, say); f != nil {
		_ = raw.Close()
		return nil, f
	}
	if host, _, err := net.SplitHostPort(next); err == nil && d.cfg.DialContext == nil {
		if ip, _, err := net.SplitHostPort(raw.RemoteAddr().String()); err == nil {
			d.last.Store(&lastGood{host, ip})
		}
	}
	return tr, nil
}

// finish makes a transport of the TCP connection in tr.
func (d *dialer) finish(ctx context.Context, tr *transport, cred *certstore.Credential, proxy *proxyURL, target string, say func(Step, string)) *Fault {
	under := tr.raw
	if proxy != nil {
		var f *Fault
		d.waits(StepProxy)
		if under, f = d.through(ctx, tr.raw, proxy, target); f != nil {
			return f
		}
		say(StepProxy, "connects to "+target)
		tr.remote = target + " through " + tr.remote
	}
	d.waits(StepTLS)
	nc := tls.Client(under, d.tlsConfig(tr, cred))
	if err := nc.HandshakeContext(ctx); err != nil {
		f := classify(err, StepTLS, tr.presented.Load())
		// Who takes TLS apart on one port leaves the other alone, or does so there too and is found out there.
		f.blocked = f.Kind == Untrusted || f.Kind == Unreachable && !isAlert(err)
		return f
	}
	tr.nc = nc
	say(StepTLS, describeTLS(nc, tr.presented.Load()))
	if tr.over != OverWebSocket {
		return nil
	}
	d.waits(StepWebSocket)
	ws, f := upgrade(ctx, nc, tr, d.cfg)
	if f != nil {
		return f
	}
	tr.nc = ws
	say(StepWebSocket, "upgraded at "+webSocketPath)
	return nil
}

// resolve looks a name up only to tell about it.
func (d *dialer) resolve(ctx context.Context, address string, say func(Step, string)) *Fault {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return classify(err, StepName, false)
	}
	if d.cfg.DialContext != nil || net.ParseIP(host) != nil {
		return nil
	}
	found, err := net.DefaultResolver.LookupHost(ctx, host)
	if err != nil {
		return classify(err, StepName, false)
	}
	say(StepName, host+" is "+strings.Join(found, ", "))
	return nil
}

// tcp connects to address, whose name is resolved each time. When that fails, or
// takes two thirds of the time, the address that led to the hub last is tried: a name
// server that is away says nothing about the hub.
func (d *dialer) tcp(ctx context.Context, address string) (net.Conn, error) {
	if d.cfg.DialContext != nil {
		return d.cfg.DialContext(ctx, "tcp", address)
	}
	t := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: d.cfg.KeepAlive / 2, Interval: 15 * time.Second, Count: 4}}
	if d.cfg.KeepAliveAuto {
		// These probes would keep a link up whose silence is being measured.
		t.KeepAliveConfig.Enable, t.KeepAlive = false, -1
	}
	host, port, _ := net.SplitHostPort(address)
	last := d.last.Load()
	if last == nil || last.host != host {
		last = nil
	}
	raw, err := dialResolving(ctx, &t, address, last != nil)
	var dns *net.DNSError
	if last != nil && errors.As(err, &dns) {
		if again, e := t.DialContext(ctx, "tcp", net.JoinHostPort(last.ip, port)); e == nil {
			raw, err = again, nil
		}
	}
	if err != nil {
		return nil, err
	}
	setUserTimeout(raw, min(d.cfg.Timing.Write, d.cfg.KeepAlive))
	return raw, nil
}

// dialResolving leaves a third of the time when there is something else to try.
func dialResolving(ctx context.Context, t *net.Dialer, address string, another bool) (net.Conn, error) {
	if end, ok := ctx.Deadline(); ok && another {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, end.Add(-time.Until(end)/3))
		defer cancel()
	}
	return t.DialContext(ctx, "tcp", address)
}

func (d *dialer) tlsConfig(tr *transport, cred *certstore.Credential) *tls.Config {
	c := &tls.Config{
		MinVersion: tls.VersionTLS12,
		ServerName: d.cfg.serverName(),
		RootCAs:    d.cfg.Roots(),
		Time:       func() time.Time { return d.cfg.Clock.TLSTime(cred) },
		// Certificates would send none at all, and no error, when the server's list of
		// authorities does not name ours.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert, err := cred.TLSCertificate()
			if err != nil {
				return nil, fmt.Errorf("%w: %w", errEmptyCert, err)
			}
			tr.presented.Store(true)
			return cert, nil
		},
		// A cache is keyed by the server's name alone and would log one identity in as
		// another, or as its old certificate.
		ClientSessionCache: nil,
		// Port 8883 asks for the certificate at once.
		Renegotiation: tls.RenegotiateNever,
		// Publishes are gathered; small first records would undo that.
		DynamicRecordSizingDisabled: true,
	}
	if tr.over == OverWebSocket {
		// On port 443 the classic endpoint asks for it only when it has seen the request,
		// which TLS 1.2 calls a renegotiation and TLS 1.3 does not have.
		c.Renegotiation = tls.RenegotiateOnceAsClient
	}
	return c
}
