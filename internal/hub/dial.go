package hub

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync/atomic"
	"time"

	"gatewayd/internal/certstore"
)

// transport is a finished TLS connection on which nothing was sent yet. It proves
// nothing: with TLS 1.3 a refused certificate shows only at the first read.
type transport struct {
	nc        net.Conn // TLS
	raw       net.Conn // below it
	remote    string
	presented atomic.Bool // the server asked for the certificate and got it
}

// dialer makes transports for one identity. It is safe for concurrent use.
type dialer struct {
	cfg  *Config
	last atomic.Pointer[string] // the address that worked last, for when names do not resolve
}

// dial connects and finishes TLS with cred. The whole of it is bounded by
// Timing.Dial.
func (d *dialer) dial(ctx context.Context, cred *certstore.Credential) (*transport, *Fault) {
	ctx, cancel := context.WithTimeout(ctx, d.cfg.Timing.Dial)
	defer cancel()
	raw, err := d.tcp(ctx)
	if err != nil {
		return nil, classify(err, StepTCP, false)
	}
	return d.secure(ctx, raw, cred)
}

func (d *dialer) tcp(ctx context.Context) (net.Conn, error) {
	address := d.cfg.dialAddress()
	if d.cfg.DialContext != nil {
		return d.cfg.DialContext(ctx, "tcp", address)
	}
	t := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: d.cfg.KeepAlive / 2, Interval: 15 * time.Second, Count: 4}}
	raw, err := t.DialContext(ctx, "tcp", address)
	var dns *net.DNSError
	if last := d.last.Load(); last != nil && errors.As(err, &dns) {
		// The name server is away, which says nothing about the hub.
		if again, e := t.DialContext(ctx, "tcp", *last); e == nil {
			raw, err = again, nil
		}
	}
	if err != nil {
		return nil, err
	}
	setUserTimeout(raw, min(d.cfg.Timing.Write, d.cfg.KeepAlive))
	return raw, nil
}

// secure takes TLS over raw, which it owns from now on.
func (d *dialer) secure(ctx context.Context, raw net.Conn, cred *certstore.Credential) (*transport, *Fault) {
	tr := &transport{raw: raw}
	if a := raw.RemoteAddr(); a != nil {
		tr.remote = a.String()
	}
	nc := tls.Client(raw, d.tlsConfig(tr, cred))
	if err := nc.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, classify(err, StepTLS, tr.presented.Load())
	}
	tr.nc = nc
	if d.cfg.DialContext == nil {
		d.last.Store(&tr.remote)
	}
	return tr, nil
}

func (d *dialer) tlsConfig(tr *transport, cred *certstore.Credential) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		ServerName: d.cfg.serverName(),
		RootCAs:    d.cfg.Roots(),
		Time:       func() time.Time { return d.cfg.Clock.TLSTime(cred) },
		// Certificates would send none at all, and no error, when the server's list of
		// authorities does not name ours.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert := cred.TLSCertificate()
			if cert == nil || len(cert.Certificate) == 0 {
				return nil, errEmptyCert
			}
			tr.presented.Store(true)
			return cert, nil
		},
		// A cache is keyed by the server's name alone and would log one identity in as
		// another, or as its old certificate. Renegotiation is not needed on port 8883
		// when the certificate is presented at once.
		ClientSessionCache: nil,
		Renegotiation:      tls.RenegotiateNever,
		// Publishes are gathered; small first records would undo that.
		DynamicRecordSizingDisabled: true,
	}
}
