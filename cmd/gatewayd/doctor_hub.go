package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"gatewayd/internal/certstore"
	"gatewayd/internal/config"
	"gatewayd/internal/hub"
)

// seenByGateway asks what the running gateway makes of the files: it runs as
// another user, and it may live from the certificate that it read before.
func (d *doctor) seenByGateway(_ context.Context, p *patient) bool {
	if p.status == nil {
		return true
	}
	c := &p.status.Certificate
	switch {
	case c.Current == nil && c.Candidate == nil:
		return p.fault(stepFile, "the running gateway has no usable certificate: "+c.CandidateReason,
			sentenceOr(c.CandidateHint, "Compare the rights of the files with the user that runs the gateway; gatewayd reload -c "+d.file+" has it look again."))
	case c.CandidateState == certstore.Refused && c.CandidateReason != "":
		return p.fault(stepFile, "the running gateway does not take the files: "+c.CandidateReason, sentence(c.CandidateHint))
	case c.CandidateState == certstore.Missed || c.CandidateState == certstore.Rejected:
		step, _, _ := strings.Cut(c.CandidateReason, ":")
		return p.fault(stepOf("", hub.Step(step)), fmt.Sprintf("the new certificate is %s: %s", c.CandidateState, c.CandidateReason),
			sentenceOr(c.CandidateHint, "The last good one carries on. Register the new thumbprint or its issuer in the hub, or put the old files back."))
	}
	return true
}

// way tries the way to the hub itself: up to TLS beside a running gateway, to an
// answer of the hub otherwise.
func (d *doctor) way(ctx context.Context, p *patient) bool {
	id := p.cfg
	pool, err := certstore.LoadRoots(id.Hub.Trust, id.Hub.SystemRoots)
	if err != nil {
		return p.fault(stepFile, "hub.trust: "+reasonOf(err), "")
	}
	cfg := sessionConfig(*id, d.clock, func() *x509.CertPool { return pool }, d.cfg.Queue.SetAsideAfter)
	cfg.Timing.Dial, cfg.Timing.Connack = d.timeout, d.timeout
	road := roadOf(id)
	if f := d.closed.get(road); f != nil {
		return p.hubFault(string(f.Kind), f.Step, f.Text, f.Hint)
	}
	var r hub.ProbeResult
	switch {
	case d.takeOver && p.status != nil:
		// The gateway comes back within a second: to stay would find it.
		r = hub.Probe(ctx, cfg, p.cred)
		if f := r.Fault; f != nil && f.Kind == hub.Lost && f.Step == hub.StepSession {
			r.Fault = nil
			p.note("accepted; the gateway took its connection back before a further answer")
		}
	case d.mayConnect():
		r = hub.ProbeAndStay(ctx, cfg, p.cred, d.stay)
	default:
		r = hub.Reach(ctx, cfg, p.cred)
	}
	for _, s := range r.Steps {
		step := stepOf("", s.Step)
		if s.Step == hub.StepTLS {
			step = stepServer // whether it takes ours shows later
		}
		p.Passed = append(p.Passed, passed{step, s.Detail, millis(s.Took)})
	}
	if r.Fault != nil && ctx.Err() == nil {
		f := *r.Fault
		f.Hint += otherWay(ctx, cfg, p.cred, &f)
		d.closed.put(road, &f)
		return p.hubFault(string(f.Kind), f.Step, f.Text, f.Hint)
	}
	if b := r.Blocked; b != nil {
		p.note("port 8883 is blocked (%v): the way over port 443 is taken", b)
	}
	if !d.mayConnect() {
		p.ok(stepTLS, "the certificate was not refused")
	}
	return true
}

// roadOf names what identities have in common before TLS.
func roadOf(id *config.Identity) string {
	return fmt.Sprintf("%q", []string{id.HostName, id.GatewayHostName, id.Address, id.WebSocketAddress, id.Hub.Transport, id.Hub.Proxy.String()})
}

// roads remembers where nobody gets through: a hundred identities need not wait for
// the same closed port.
type roads struct {
	mu     sync.Mutex
	closed map[string]*hub.Fault // guarded by mu
}

func (r *roads) get(road string) *hub.Fault {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.closed[road]
}

// put remembers a fault that has nothing to do with the identity.
func (r *roads) put(road string, f *hub.Fault) {
	if f.Kind != hub.Unreachable || f.Step != hub.StepName && f.Step != hub.StepTCP && f.Step != hub.StepProxy {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed == nil {
		r.closed = make(map[string]*hub.Fault)
	}
	r.closed[road] = f
}

func (d *doctor) mayConnect() bool {
	return d.takeOver || d.report == nil && d.unknown == nil
}

// stepOf gives a fault of a session its place in the doctor's order.
func stepOf(kind hub.Kind, step hub.Step) string {
	switch {
	case kind == hub.Contested:
		return stepContest
	case kind == hub.Stalled:
		return stepThrottle
	case kind == hub.Untrusted:
		return stepServer
	case step == hub.StepConnect:
		return stepConnack
	case step == hub.StepSession:
		return stepSession
	case step == "":
		return stepFile
	}
	return string(step)
}

// hubFault says what the hub, or who is in between, made of it. A chain that looked
// odd is the cause where the certificate was refused.
func (p *patient) hubFault(kind string, step hub.Step, text, hint string) bool {
	at := stepOf(hub.Kind(kind), step)
	refused := hub.Kind(kind) == hub.Refused || hub.Kind(kind) == hub.Closed
	if !refused {
		return p.fault(at, text, sentenceOr(hint, "Look at gatewayd status and the log of the gateway."))
	}
	if p.chain != "" {
		return p.fault(stepChain, p.chain+"; and the hub refuses it: "+text,
			"Put the leaf first and then each intermediate that leads to a CA which the hub knows, nothing else.")
	}
	r := p.cert.Report
	next := sentence(hint)
	if r.ChainTop == "self-signed" {
		next += fmt.Sprintf(" The certificate is self-signed: the hub must have its thumbprint %s.", r.SHA256)
	} else {
		next += fmt.Sprintf(" The file ends at the issuer %s: the hub must know that CA and have it verified, or its intermediates are missing in the file.", r.ChainTop)
	}
	return p.fault(at, text, strings.TrimSpace(next))
}

// otherWay looks for the one that is left when port 8883 is closed.
func otherWay(ctx context.Context, cfg hub.Config, cred *certstore.Credential, f *hub.Fault) string {
	if cfg.Transport != hub.OverTLS || f.Kind != hub.Unreachable || f.Step != hub.StepTCP && f.Step != hub.StepTLS {
		return ""
	}
	cfg.Transport = hub.OverWebSocket
	if host, _, err := net.SplitHostPort(cfg.Address); err == nil && cfg.WebSocketAddress == "" {
		cfg.WebSocketAddress = net.JoinHostPort(host, "443")
	}
	if hub.Reach(ctx, cfg, cred).Fault != nil {
		return ""
	}
	return ". Port 443 leads to the hub: set hub.transport: auto, and 8883 is given up for it when it is blocked"
}

// quietLimit is how long a connected session with messages in flight may go without
// an acknowledgement, and one that connects without an answer, before that is told.
const quietLimit = 10 * time.Second

// contestFrom connections that were accepted and lost within a minute each look like
// two clients that displace each other.
const contestFrom = 3

// session is what the running gateway's session says.
func (d *doctor) session(ctx context.Context, p *patient) bool {
	if p.status == nil || d.takeOver {
		if d.unknown != nil && !d.takeOver {
			p.note("not connected to the hub, because a gateway may be running: %v; --take-over connects", d.unknown)
		}
		return true
	}
	s := d.settled(ctx, p)
	now := d.report.Now
	switch {
	case s.Fault != nil && !s.Connected:
		f := s.Fault
		hint := f.Hint
		if s.NextTry != nil {
			hint = sentence(hint) + fmt.Sprintf(" The gateway tries again at %s", s.NextTry.Format(time.RFC3339))
		}
		if n := s.Connects[hub.ResultAccepted]; f.Kind == string(hub.Lost) && n >= contestFrom && now.Sub(d.report.Started) < time.Duration(n)*time.Minute {
			return p.fault(stepContest, fmt.Sprintf("the hub accepted %d connections since the start and closed each soon after", n),
				"Does another gateway or test tool connect as this identity? Stop it. If there is none, the hub throttles or the daily quota is used up.")
		}
		return p.hubFault(f.Kind, hub.Step(f.Step), f.Text, strings.TrimSpace(hint))
	case !s.Connected:
		return p.fault(stepSession, fmt.Sprintf("not connected yet: %s since %s", s.State, s.Since.Format(time.RFC3339)),
			"Run this command again in a minute.")
	case len(s.Refused) > 0:
		text, hint := s.flowFault(p.cfg)
		return p.fault(stepSession, text, sentence(hint))
	case s.Unacked != nil, s.Throttled:
		text, hint := s.flowFault(p.cfg)
		return p.fault(stepThrottle, text, sentence(hint))
	}
	p.ok(stepConnack, "the gateway is connected since %s to %s", s.Since.Format(time.RFC3339), s.Remote)
	p.ok(stepSession, "%d messages delivered, %d in flight", s.Delivered, s.InFlight)
	return true
}

// settlingFor is how long a session that is connecting is waited for.
const settlingFor = 5 * time.Second

// settled waits a little for a session that is just connecting.
func (d *doctor) settled(ctx context.Context, p *patient) *identityReport {
	s := p.status
	for end := time.Now().Add(min(settlingFor, d.timeout)); !s.Connected && s.Fault == nil && time.Now().Before(end); {
		select {
		case <-ctx.Done():
			return s
		case <-time.After(500 * time.Millisecond):
		}
		r, err := askReport(ctx, d.cfg)
		if err != nil || r == nil {
			return s
		}
		for i := range r.Identities {
			if r.Identities[i].Name == p.Name {
				s = &r.Identities[i]
			}
		}
	}
	p.status = s
	return s
}

func sentenceOr(hint, other string) string {
	if hint == "" {
		return other
	}
	return sentence(hint)
}

// askReport gets the report of the gateway that runs on the state folder: over its
// control socket, or, where that is closed to this user, from its admin address.
// nil without an error: none runs.
func askReport(ctx context.Context, cfg *config.Config) (*report, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	text, err := askControl(ctx, cfg, "status", controlRequest{})
	if errors.Is(err, errNotRunning) {
		return nil, nil
	}
	raw := []byte(text)
	if err != nil {
		if !cfg.Admin.Listen.Enabled() {
			return nil, err
		}
		var other error
		if raw, other = askAdmin(ctx, cfg.Admin.Listen, "/status"); other != nil {
			return nil, err
		}
	}
	var r report
	if err := json.Unmarshal(raw, &r); err != nil {
		return nil, fmt.Errorf("the answer of the running gateway is not a status: %w", err)
	}
	return &r, nil
}
