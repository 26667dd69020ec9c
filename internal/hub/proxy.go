package hub

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/net/http/httpproxy"
	"golang.org/x/net/proxy"
)

// maxAnswer bounds the head of an HTTP answer of a proxy or of the hub.
const maxAnswer = 32 << 10

// proxyURL may hold a password: nothing but its host is ever printed.
type proxyURL = url.URL

// Proxy says through which proxy, if any, a connection goes. The zero value is
// none. It is immutable.
type Proxy struct {
	choose func(*url.URL) (*url.URL, error)
}

// ProxyAt goes through one proxy: http, https or socks5, with user and password if
// it wants them. nil is none.
func ProxyAt(u *url.URL) Proxy {
	if u == nil {
		return Proxy{}
	}
	return Proxy{choose: func(*url.URL) (*url.URL, error) { return u, nil }}
}

// errEnvironment does not quote what may hold a password.
var errEnvironment = errors.New("HTTPS_PROXY of the environment is not the URL of an http, https or socks5 proxy")

// ProxyFromEnvironment does as HTTPS_PROXY and NO_PROXY, or https_proxy and
// no_proxy, say at the time of the call. As everywhere, the local host is never
// reached through a proxy then.
func ProxyFromEnvironment() Proxy {
	c := httpproxy.FromEnvironment()
	if c.HTTPSProxy == "" {
		return Proxy{}
	}
	// What it cannot read it takes for none or for something else, either of which
	// would be a way past the proxy.
	value := c.HTTPSProxy
	if !strings.Contains(value, "://") {
		value = "http://" + value
	}
	if u, err := url.Parse(value); err != nil || u.Hostname() == "" || defaultProxyPort(u.Scheme) == "" {
		return Proxy{choose: func(*url.URL) (*url.URL, error) { return nil, errEnvironment }}
	}
	return Proxy{choose: c.ProxyFunc()}
}

// find returns the proxy on the way to address, or nil.
func (p Proxy) find(address string) (*proxyURL, error) {
	if p.choose == nil {
		return nil, nil
	}
	u, err := p.choose(&url.URL{Scheme: "https", Host: address})
	if err != nil {
		return nil, errEnvironment
	}
	return u, nil
}

func defaultProxyPort(scheme string) string {
	return map[string]string{"http": "80", "https": "443", "socks5": "1080", "socks5h": "1080"}[scheme]
}

func proxyAddress(u *proxyURL) string {
	port := u.Port()
	if port == "" {
		port = defaultProxyPort(u.Scheme)
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// through asks the proxy at the other end of raw for a connection to target, whose
// name the proxy resolves.
func (d *dialer) through(ctx context.Context, raw net.Conn, u *proxyURL, target string) (net.Conn, *Fault) {
	release := bind(ctx, raw)
	var nc net.Conn
	var err error
	if strings.HasPrefix(u.Scheme, "socks5") {
		nc, err = socks(ctx, raw, u, target)
	} else {
		nc, err = d.tunnel(ctx, raw, u, target)
	}
	if late := release(); late != nil {
		err = late
	}
	if err != nil {
		return nil, classifyProxy(err, u, target)
	}
	return nc, nil
}

// bind makes the end of ctx interrupt what is done with nc, until release, which
// tells whether it did.
func bind(ctx context.Context, nc net.Conn) (release func() error) {
	stop := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Now()) })
	return func() error {
		if !stop() {
			return ctx.Err()
		}
		return nil
	}
}

// tunnel sends CONNECT (RFC 9110, 9.3.6).
func (d *dialer) tunnel(ctx context.Context, raw net.Conn, u *proxyURL, target string) (net.Conn, error) {
	nc := raw
	if u.Scheme == "https" {
		secure := tls.Client(raw, &tls.Config{MinVersion: tls.VersionTLS12, ServerName: u.Hostname(), RootCAs: d.cfg.Roots(),
			Time: func() time.Time { return d.cfg.Clock.TLSTime(nil) }})
		if err := secure.HandshakeContext(ctx); err != nil {
			return nil, &proxyTLSError{err}
		}
		nc = secure
	}
	req := http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: target}, Host: target, Header: http.Header{"User-Agent": {d.cfg.Product}}}
	if u.User != nil {
		password, _ := u.User.Password()
		req.Header.Set("Proxy-Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(u.User.Username()+":"+password)))
	}
	if err := req.Write(nc); err != nil {
		return nil, err
	}
	in := bufio.NewReader(io.LimitReader(nc, maxAnswer))
	resp, err := http.ReadResponse(in, &req)
	if err != nil {
		return nil, err
	}
	switch {
	case resp.StatusCode != http.StatusOK:
		return nil, statusError(resp.StatusCode)
	case in.Buffered() > 0:
		return nil, errors.New("sent data of its own behind its answer")
	}
	return nc, nil
}

// socks speaks SOCKS 5 (RFC 1928 and 1929).
func socks(ctx context.Context, raw net.Conn, u *proxyURL, target string) (net.Conn, error) {
	var auth *proxy.Auth
	if u.User != nil {
		password, _ := u.User.Password()
		auth = &proxy.Auth{User: u.User.Username(), Password: password}
	}
	d, err := proxy.SOCKS5("tcp", proxyAddress(u), auth, already{raw})
	if err != nil {
		return nil, err
	}
	return d.(proxy.ContextDialer).DialContext(ctx, "tcp", target)
}

// already dials what is connected.
type already struct{ nc net.Conn }

func (a already) Dial(_, _ string) (net.Conn, error) { return a.nc, nil }

func (a already) DialContext(context.Context, string, string) (net.Conn, error) { return a.nc, nil }

// statusError is an HTTP answer that is not the one that was needed.
type statusError int

func (e statusError) Error() string {
	return strings.TrimSpace(fmt.Sprintf("answered with status %d %s", int(e), http.StatusText(int(e))))
}

// proxyTLSError is a failure of TLS with the proxy itself.
type proxyTLSError struct{ error }

func (e *proxyTLSError) Unwrap() error { return e.error }

// classifyProxy says what a proxy did instead of connecting.
func classifyProxy(err error, u *proxyURL, target string) *Fault {
	f := &Fault{Kind: Unreachable, Step: StepProxy, Text: err.Error(), Err: err, blocked: true}
	var status statusError
	var tlsErr *proxyTLSError
	said := func(text string) bool { return strings.Contains(err.Error(), text) } // x/net's SOCKS errors have no types
	switch {
	case errors.As(err, &tlsErr):
		f = classify(err, StepProxy, false)
		f.Text = "TLS with it: " + f.Text
		f.Hint = "is it an https:// proxy, and is its root in hub.trust?"
	case errors.As(err, &status) && (status == http.StatusProxyAuthRequired || status == http.StatusUnauthorized), // 401: tinyproxy
		said("username/password authentication failed"), said("no acceptable authentication methods"), said("invalid username/password"):
		f.Kind, f.blocked = ProxyRefused, false
		f.Text = "wants another user or password"
		if status != 0 {
			f.Text += fmt.Sprintf(" (status %d)", int(status))
		}
		f.Hint = "user:password@ in hub.proxy, special characters percent-encoded"
	case status == http.StatusForbidden, status == http.StatusMethodNotAllowed, said("connection not allowed by ruleset"):
		f.Kind = ProxyRefused
		f.Text = "does not allow connections to " + target
		if status != 0 {
			f.Text += fmt.Sprintf(" (status %d)", int(status))
		}
		f.Hint = "let it allow the port, or use transport: mqtt-ws or auto, since many proxies allow 443 only"
	case status != 0:
		f.Text += " when asked for " + target
		f.Hint = "can the proxy reach and resolve the hub?"
	case timedOut(err):
		f.Text = "does not answer when asked for " + target
		f.Hint = "the proxy is overloaded, or the port is blocked behind it"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), byPeer(err):
		f.Text = "closed the connection when asked for " + target
		f.Hint = "does the proxy speak " + u.Scheme + "?"
	case said("malformed HTTP"), said("unexpected protocol version"):
		f.Kind, f.blocked = Violation, false
		f.Text, f.Hint = "does not answer as a proxy", "does the proxy speak "+u.Scheme+"?"
	case strings.HasPrefix(u.Scheme, "socks5"):
		if _, reason, ok := strings.Cut(err.Error(), "unknown error "); ok {
			f.Text = "cannot connect to " + target + ": " + reason
		}
		f.Hint = "can the proxy reach and resolve the hub?"
	}
	return f.towards(u)
}

// towards says that a fault is the proxy's, or on the way to it.
func (f *Fault) towards(u *proxyURL) *Fault {
	if u != nil {
		if f.Step == StepProxy {
			f.Text = proxyAddress(u) + " " + f.Text
		} else {
			f.Text = "proxy " + proxyAddress(u) + ": " + f.Text
		}
		if f.Step == StepTCP {
			f.Hint = "is hub.proxy right, and the proxy running?"
		}
	}
	return f
}
