package hub

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"gatewayd/internal/packet"
)

// Kind says what a failure means for pace and wording. The verdict on a
// certificate never hangs on it.
type Kind string

// The kinds of faults. The first group ramps its waits up to a minute, the
// second waits minutes from the start.
const (
	Unreachable Kind = "unreachable"           // name, route, port or proxy: nobody answered
	Untrusted   Kind = "server not trusted"    // the peer is not the hub, or the clock is wrong
	Unavailable Kind = "hub unavailable"       // the hub answered that it cannot serve now
	Closed      Kind = "closed without answer" // closed or silent before CONNECT was answered
	Lost        Kind = "connection lost"       // ended after CONNECT was accepted
	Stalled     Kind = "no acknowledgements"   // alive, but nothing is acknowledged: throttled or out of quota
	Violation   Kind = "protocol violation"    // the peer sent what no hub sends
	Local       Kind = "local fault"           // the key could not sign, or no file descriptor was left

	Refused      Kind = "refused"              // the hub said no to the identity or its certificate
	ProxyRefused Kind = "refused by the proxy" // user, password or destination
	Contested    Kind = "contested"            // somebody else keeps connecting as this identity
)

// slow kinds wait long from the first time on: trying again soon cannot help and
// feeds the hub's connection throttle.
func (k Kind) slow() bool { return k == Refused || k == ProxyRefused || k == Contested }

// Fault is one failure of a connection in words for an operator. It is immutable.
type Fault struct {
	Kind Kind
	Step Step   // how far the connection had come
	Text string // what happened
	Hint string // what to do about it; may be empty
	Err  error  // what the library or the network said; nil when nothing did

	// presented: the server asked for the client certificate and got it, so that
	// the failure may be the certificate's.
	presented bool
	// blocked: another port may lead to the hub, since nothing that proved to be the hub
	// has answered on this one.
	blocked bool
}

func (f *Fault) Error() string { return string(f.Step) + ": " + f.Text }

func (f *Fault) Unwrap() error { return f.Err }

// Step is a stage on the way to a working session.
type Step string

// The steps, in order. With a proxy the first two lead to it.
const (
	StepName      Step = "dns"
	StepTCP       Step = "tcp"
	StepProxy     Step = "proxy" // it connects on to the hub
	StepTLS       Step = "tls"
	StepWebSocket Step = "websocket"
	StepConnect   Step = "connect"
	StepSession   Step = "session"
)

// Errors that this package gives to a connection it ends itself.
var (
	errHalfOpen  = errors.New("no answer to a ping: the link is dead")
	errStalled   = errors.New("the hub is alive and acknowledges nothing")
	errLeftOut   = errors.New("the hub acknowledged later messages and not the oldest one")
	errNoConnack = errors.New("no answer to CONNECT")
	errReplaced  = errors.New("replaced by a connection with the new certificate")
	errEnded     = errors.New("ended by this side")
	errEmptyCert = errors.New("no client certificate to present")
)

// refusedError is a CONNACK with another code than 0.
type refusedError byte

func (e refusedError) Error() string {
	texts := [...]string{1: "protocol version refused", 2: "client id refused", 3: "server unavailable", 4: "bad user name", 5: "not authorized"}
	if int(e) < len(texts) && texts[e] != "" {
		return fmt.Sprintf("CONNECT answered with code %d, %s", byte(e), texts[e])
	}
	return fmt.Sprintf("CONNECT answered with code %d", byte(e))
}

// classify turns what the libraries and the network say into a fault. It is the
// only place that looks into their errors. presented says that the server got the
// client certificate.
func classify(err error, step Step, presented bool) *Fault {
	f := &Fault{Kind: Unreachable, Step: step, Text: err.Error(), Err: err, presented: presented}
	var dns *net.DNSError
	var refused refusedError
	var malformed *packet.Error
	var noTLS tls.RecordHeaderError
	switch {
	case errors.As(err, &dns):
		f.Step = StepName
		f.Text = "the name " + dns.Name + " cannot be resolved: " + dns.Err
		f.Hint = "look at the DNS server and at the host name"
	case errors.As(err, &refused):
		classifyConnack(f, refused)
	case errors.As(err, &malformed):
		f.Kind, f.Hint = Violation, "something between here and the hub speaks another protocol"
	case errors.As(err, &noTLS):
		f.Text = "what answers there does not speak TLS"
		f.Hint = "is the port right? Something in between may have taken the connection over"
		if bytes.HasPrefix(noTLS.RecordHeader[:], []byte("HTTP")) {
			f.Text += ": it is a web server"
			f.Hint = "look for a captive portal or a transparent proxy: the network wants a login, or lets only HTTP out"
		}
	case errors.Is(err, errEmptyCert):
		f.Kind = Local
	case errors.Is(err, errStalled):
		f.Kind, f.Hint = Stalled, "the hub throttles, or the daily message quota is used up (it resets at 00:00 UTC)"
	case errors.Is(err, errNoConnack):
		f.Kind, f.Hint = Closed, "the hub throttles connects, or something in between swallows what is sent"
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		f.Kind, f.Hint = Local, "raise the limit of open files"
	case classifyServerCert(f, err), classifyAlert(f, err):
	case step == StepSession:
		f.Kind = Lost
		f.Text = lostText(err)
		f.Hint = "it connects again; if it happens often, look at the link, at the hub's throttling, and for another client with this identity"
	case step == StepConnect || presented:
		f.Kind = Closed
		f.Text = closedText(err)
		f.Hint = "the certificate may be refused, the device disabled, or the hub throttles connects"
	case timedOut(err):
		f.Text = "no answer in time"
		f.Hint = "is the port open in the firewall?"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		f.Text = "the peer closed the connection during " + string(step)
		f.Hint = "does a firewall or proxy cut this connection, and is it the hub's port?"
	case errors.Is(err, syscall.ECONNREFUSED):
		f.Text = "connection refused: nothing listens on that port"
		f.Hint = "are host name and port right, and does a firewall refuse it?"
	}
	return f
}

func classifyConnack(f *Fault, code refusedError) {
	if byte(code) == packet.RefusedUnavailable {
		f.Kind, f.Hint = Unavailable, "the hub cannot serve now; it is tried again. If this lasts, look at the health of the service"
		return
	}
	f.Kind = Refused
	f.Hint = "is the device known to this hub and enabled, and its thumbprint or issuing CA registered?"
	if !f.presented {
		f.Hint = "the server did not ask for a client certificate: is something in between that takes TLS apart?"
	}
}

// classifyServerCert recognises a server whose certificate does not prove it is
// the hub. The device's own certificate has no part in that.
func classifyServerCert(f *Fault, err error) bool {
	var host x509.HostnameError
	var unknown x509.UnknownAuthorityError
	var invalid x509.CertificateInvalidError
	var verify *tls.CertificateVerificationError
	switch {
	case errors.As(err, &host):
		f.Text = "the server's certificate is for another name: " + host.Error()
		f.Hint = "look at host_name and address; a proxy that intercepts TLS does this too"
	case errors.As(err, &unknown):
		f.Text = "the server's certificate comes from an unknown authority"
		f.Hint = "add the root to hub.trust, or look for a proxy that intercepts TLS"
		if unknown.Cert != nil {
			f.Text += ": " + unknown.Cert.Issuer.String()
		}
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		f.Text = "the server's certificate is not valid at this machine's time: " + invalid.Detail
		f.Hint = "look at the clock first"
	case errors.As(err, &invalid), errors.As(err, &verify):
		f.Text = "the server's certificate is not acceptable: " + err.Error()
	default:
		return false
	}
	f.Kind = Untrusted
	return true
}

// classifyAlert recognises a TLS alert from the peer: crypto/tls wraps it in a
// net.OpError whose Op is "remote error", around an unexported type.
func classifyAlert(f *Fault, err error) bool {
	if !isAlert(err) {
		return false
	}
	var op *net.OpError
	_ = errors.As(err, &op)
	f.Kind = Refused
	if f.Step == StepConnect {
		f.Step = StepTLS // with TLS 1.3 the refusal shows at the first read, after CONNECT was sent
	}
	f.Text = "refused in TLS: " + op.Err.Error()
	f.Hint = "does the hub know the issuing CA, is the chain whole, is the certificate valid now?"
	if !f.presented {
		f.Kind, f.Hint = Unreachable, "the server refused this client's TLS before it saw a certificate"
	}
	return true
}

func isAlert(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

func lostText(err error) string {
	switch {
	case errors.Is(err, errHalfOpen):
		return err.Error()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "the hub closed the connection"
	case errors.Is(err, syscall.ECONNRESET):
		return "the connection was reset"
	case timedOut(err):
		return "what was sent is not confirmed by the network"
	}
	return err.Error()
}

func closedText(err error) string {
	if timedOut(err) {
		return "connected, then no answer"
	}
	return "connected, then closed without an answer"
}

func timedOut(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, syscall.ETIMEDOUT)
}

// byPeer says that the other side ended the connection in an orderly way or with
// a reset: not a dead link and not this side.
func byPeer(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// contested is the fault that nobody tells: MQTT 3.1.1 has no word for a
// connection that was displaced.
func contested(times int, within time.Duration) *Fault {
	return &Fault{Kind: Contested, Step: StepSession,
		Text: fmt.Sprintf("the last %d connections were accepted and closed by the hub within %s", times, within),
		Hint: "does another gateway or test tool connect as this identity?"}
}
