package hub

import (
	"context"
	"crypto/tls"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"gatewayd/internal/certstore"
)

// ProbeStep is one stage that a probe passed.
type ProbeStep struct {
	Step   Step
	Over   Transport // way that it was a step of
	Took   time.Duration
	Detail string
}

// ProbeResult is what a probe found: the steps that worked, and the first thing that
// is wrong.
type ProbeResult struct {
	Steps   []ProbeStep
	Blocked *Fault // why port 8883 was given up for 443; nil: it was not
	Fault   *Fault // nil: the identity can work
}

// Probe walks the way to the hub once, with cred: name, TCP, proxy, TLS and the
// server's certificate, the upgrade to WebSocket, CONNECT, and an answer after it. It
// publishes nothing. The hub keeps one connection per identity, so a probe interrupts
// a session that is connected as the same identity. Its time is bounded by cfg.Timing.
//
// With [Auto] the way over port 443 follows when port 8883 is blocked: its steps come
// behind those of the first, which ended with [ProbeResult.Blocked].
func Probe(ctx context.Context, cfg Config, cred *certstore.Credential) ProbeResult {
	return ProbeAndStay(ctx, cfg, cred, 0)
}

// ProbeAndStay is Probe and stays connected for a while after the last answer: a
// connection that the hub closes meanwhile was most likely displaced by another
// client with the same identity.
func ProbeAndStay(ctx context.Context, cfg Config, cred *certstore.Credential, stay time.Duration) ProbeResult {
	return probe(ctx, cfg, cred, func(p *prober, ctx context.Context, tr *transport) *Fault { return p.session(ctx, tr, stay) })
}

// Reach is Probe up to the point where CONNECT would be sent: it interrupts nobody,
// and cannot know what the hub thinks of the identity. A certificate that is refused
// in TLS is noticed.
func Reach(ctx context.Context, cfg Config, cred *certstore.Credential) ProbeResult {
	return probe(ctx, cfg, cred, (*prober).listen)
}

func probe(ctx context.Context, cfg Config, cred *certstore.Credential, last func(*prober, context.Context, *transport) *Fault) ProbeResult {
	cfg = cfg.withDefaults()
	p := prober{cfg: &cfg, cred: cred, at: time.Now()}
	if err := cfg.Validate(); err != nil {
		return ProbeResult{Fault: &Fault{Kind: Local, Step: StepName, Text: err.Error(), Err: err}}
	}
	tr, f := p.dial(ctx)
	if f == nil {
		f = last(&p, ctx, tr)
		_ = tr.raw.Close()
	}
	return ProbeResult{Steps: p.steps, Blocked: p.blocked, Fault: f}
}

type prober struct {
	cfg     *Config
	cred    *certstore.Credential
	at      time.Time
	over    Transport
	steps   []ProbeStep
	blocked *Fault
}

func (p *prober) passed(s Step, detail string) {
	now := time.Now()
	p.steps = append(p.steps, ProbeStep{Step: s, Over: p.over, Took: now.Sub(p.at), Detail: detail})
	p.at = now
}

// dial goes the ways in their order.
func (p *prober) dial(ctx context.Context) (*transport, *Fault) {
	d := dialer{cfg: p.cfg}
	ways := []Transport{p.cfg.Transport}
	if p.cfg.Transport == Auto {
		ways = []Transport{OverTLS, OverWebSocket}
	}
	for _, t := range ways {
		p.over = t
		within, cancel := context.WithTimeout(ctx, p.cfg.Timing.Dial/time.Duration(len(ways)))
		tr, f := d.walk(within, p.cred, t, p.passed)
		cancel()
		if f == nil || !f.blocked || t == ways[len(ways)-1] {
			return tr, f
		}
		p.blocked, p.at = f, time.Now()
	}
	return nil, nil
}

// listen waits for a moment for what the hub has to say against the certificate.
func (p *prober) listen(_ context.Context, tr *transport) *Fault {
	if tr.over == OverWebSocket {
		return nil // it has answered
	}
	_ = tr.nc.SetReadDeadline(time.Now().Add(refusalTime))
	_, err := tr.nc.Read(make([]byte, 1))
	if err == nil || timedOut(err) {
		return nil
	}
	return classify(err, StepTLS, tr.presented.Load())
}

// refusalTime is how long a TLS alert may take to arrive.
const refusalTime = time.Second

// session sends CONNECT and waits for one more answer: some refusals only show
// after the hub has said yes.
func (p *prober) session(ctx context.Context, tr *transport, stay time.Duration) *Fault {
	var wg sync.WaitGroup
	defer wg.Wait()
	var delivered, unknown atomic.Uint64
	c := newConn(settings{id: &p.cfg.Identity, product: p.cfg.Product, keepAlive: p.cfg.KeepAlive, window: 1,
		writeTimeout: p.cfg.Timing.Write, acked: func(uint64) int { return 1 }, delivered: &delivered, unknownAcks: &unknown}, p.cred, tr)
	c.start(&wg)
	defer c.kill(errEnded)
	if err := c.await(ctx, p.cfg.Timing.Connack); err != nil {
		return classify(err, StepConnect, c.presented)
	}
	p.passed(StepConnect, "accepted as "+p.cfg.ClientID())
	c.open()
	c.ping()
	c.send()
	answer, cancel := context.WithTimeout(ctx, p.cfg.Timing.Connack)
	defer cancel()
	for c.rounds.Load() == 0 {
		select {
		case <-c.wake:
		case <-c.dead:
			return classify(c.err, StepSession, c.presented)
		case <-answer.Done():
			return classify(answer.Err(), StepSession, c.presented)
		}
	}
	if f := p.stay(ctx, c, stay); f != nil {
		return f
	}
	p.passed(StepSession, "the hub answers")
	c.close()
	return nil
}

func (p *prober) stay(ctx context.Context, c *conn, d time.Duration) *Fault {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	case <-c.dead:
		return &Fault{Kind: Contested, Step: StepSession, Err: c.err, presented: c.presented,
			Text: "the hub accepted the connection and closed it soon after",
			Hint: "does another gateway or test tool connect as this identity? If not, the hub throttles, or the quota is used up"}
	}
	return nil
}

func describeTLS(nc *tls.Conn, presented bool) string {
	cs := nc.ConnectionState()
	detail := tls.VersionName(cs.Version)
	if len(cs.PeerCertificates) > 0 {
		leaf := cs.PeerCertificates[0]
		detail += fmt.Sprintf(", server %q by %q until %s", leaf.Subject.CommonName, leaf.Issuer.CommonName, leaf.NotAfter.UTC().Format(time.DateOnly))
	}
	if !presented {
		detail += ", no client certificate asked for"
	}
	return detail
}
