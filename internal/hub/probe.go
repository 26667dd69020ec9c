package hub

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"gatewayd/internal/certstore"
)

// ProbeStep is one stage that a probe passed.
type ProbeStep struct {
	Step   Step
	Took   time.Duration
	Detail string
}

// ProbeResult is what a probe found: the steps that worked, and the first thing that
// is wrong.
type ProbeResult struct {
	Steps []ProbeStep
	Fault *Fault // nil: the identity can work
}

// Probe walks the way to the hub once, with cred: name, TCP, TLS and the server's
// certificate, CONNECT, and an answer after it. It publishes nothing. The hub keeps
// one connection per identity, so a probe interrupts a session that is connected as
// the same identity. Its time is bounded by cfg.Timing.
func Probe(ctx context.Context, cfg Config, cred *certstore.Credential) ProbeResult {
	cfg = cfg.withDefaults()
	p := prober{cfg: &cfg, cred: cred, at: time.Now()}
	p.fault = p.run(ctx)
	return ProbeResult{Steps: p.steps, Fault: p.fault}
}

type prober struct {
	cfg   *Config
	cred  *certstore.Credential
	at    time.Time
	steps []ProbeStep
	fault *Fault
}

func (p *prober) passed(s Step, detail string) {
	now := time.Now()
	p.steps = append(p.steps, ProbeStep{Step: s, Took: now.Sub(p.at), Detail: detail})
	p.at = now
}

func (p *prober) run(ctx context.Context) *Fault {
	if err := p.cfg.Validate(); err != nil {
		return &Fault{Kind: Local, Step: StepName, Text: err.Error(), Err: err}
	}
	dialing, cancel := context.WithTimeout(ctx, p.cfg.Timing.Dial)
	defer cancel()
	if f := p.resolve(dialing); f != nil {
		return f
	}
	d := dialer{cfg: p.cfg}
	raw, err := d.tcp(dialing)
	if err != nil {
		return classify(err, StepTCP, false)
	}
	p.passed(StepTCP, raw.RemoteAddr().String())
	tr, f := d.secure(dialing, raw, p.cred)
	if f != nil {
		return f
	}
	p.passed(StepTLS, describeTLS(tr))
	return p.session(ctx, tr)
}

func (p *prober) resolve(ctx context.Context) *Fault {
	host, _, err := net.SplitHostPort(p.cfg.dialAddress())
	if err != nil {
		return classify(err, StepName, false)
	}
	if p.cfg.DialContext != nil || net.ParseIP(host) != nil {
		return nil
	}
	found, err := net.DefaultResolver.LookupHost(ctx, host)
	if err != nil {
		return classify(err, StepName, false)
	}
	p.passed(StepName, host+" is "+strings.Join(found, ", "))
	return nil
}

// session sends CONNECT and waits for one more answer: some refusals only show
// after the hub has said yes.
func (p *prober) session(ctx context.Context, tr *transport) *Fault {
	var wg sync.WaitGroup
	defer wg.Wait()
	var delivered, unknown atomic.Uint64
	c := newConn(settings{id: p.cfg.Identity, product: p.cfg.Product, keepAlive: p.cfg.KeepAlive, window: 1,
		writeTimeout: p.cfg.Timing.Write, acked: func(uint64) {}, delivered: &delivered, unknownAcks: &unknown}, p.cred, tr)
	c.start(&wg)
	defer c.kill(errEnded)
	if err := c.await(ctx, p.cfg.Timing.Connack); err != nil {
		return classify(err, StepConnect, c.presented)
	}
	p.passed(StepConnect, "accepted as "+p.cfg.ClientID())
	c.open()
	c.ping()
	c.send()
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Timing.Connack)
	defer cancel()
	for c.rounds.Load() == 0 {
		select {
		case <-c.wake:
		case <-c.dead:
			return classify(c.err, StepSession, c.presented)
		case <-ctx.Done():
			return classify(ctx.Err(), StepSession, c.presented)
		}
	}
	p.passed(StepSession, "the hub answers")
	c.close()
	return nil
}

func describeTLS(tr *transport) string {
	nc, ok := tr.nc.(*tls.Conn)
	if !ok {
		return ""
	}
	cs := nc.ConnectionState()
	detail := tls.VersionName(cs.Version)
	if len(cs.PeerCertificates) > 0 {
		leaf := cs.PeerCertificates[0]
		detail += fmt.Sprintf(", server %q by %q until %s", leaf.Subject.CommonName, leaf.Issuer.CommonName, leaf.NotAfter.UTC().Format(time.DateOnly))
	}
	if !tr.presented.Load() {
		detail += ", no client certificate asked for"
	}
	return detail
}
