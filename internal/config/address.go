package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// Address is where a listener binds.
type Address struct {
	Network string // "tcp" or "unix"; "" = no listener
	Address string // host:port, or the absolute path of a socket
	TLS     bool   // written as tls:// or wss://
	// WebSocket is MQTT over WebSocket, written as ws:// or wss://.
	WebSocket bool
}

// Enabled is false for the empty address.
func (a Address) Enabled() bool { return a.Network != "" }

// String is the form of the file.
func (a Address) String() string {
	switch {
	case a.Network == "unix":
		return "unix://" + a.Address
	case a.WebSocket && a.TLS:
		return "wss://" + a.Address
	case a.WebSocket:
		return "ws://" + a.Address
	case a.TLS:
		return "tls://" + a.Address
	}
	return a.Address
}

// Local tells whether only programs of this machine can connect.
func (a Address) Local() bool {
	if a.Network == "unix" {
		return true
	}
	host, _, err := net.SplitHostPort(a.Address)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.Unmap().IsLoopback()
}

// maxSocketPath is sun_path of unix(7) without its final zero.
const maxSocketPath = 107

// ParseAddress reads host:port, tls://host:port, ws://host:port, wss://host:port
// or unix:///path. An empty host is every address of the machine; port 0 lets the
// system choose.
func ParseAddress(s string) (Address, error) {
	if path, ok := strings.CutPrefix(s, "unix://"); ok {
		if !strings.HasPrefix(path, "/") || strings.HasSuffix(path, "/") || strings.ContainsRune(path, 0) {
			return Address{}, fmt.Errorf("%s is not a socket (use unix:///path/to/socket)", quote(s))
		}
		if len(path) > maxSocketPath {
			return Address{}, fmt.Errorf("a socket's path has at most %d bytes, this one %d", maxSocketPath, len(path))
		}
		return Address{Network: "unix", Address: path}, nil
	}
	a := Address{Network: "tcp", Address: s}
	if scheme, rest, found := strings.Cut(s, "://"); found {
		switch scheme {
		case "tls", "ws", "wss":
			a.Address, a.TLS, a.WebSocket = rest, scheme != "ws", scheme != "tls"
		}
	}
	if err := hostPort(a.Address, 0); err != nil {
		return Address{}, fmt.Errorf("%s is not an address: %w (use host:port, tls://host:port or unix:///path)", quote(s), err)
	}
	return a, nil
}

// hostPort checks host:port with a numeric port from least on.
func hostPort(s string, least int) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		if strings.Contains(s, "://") {
			return errors.New("unknown scheme")
		}
		var ae *net.AddrError
		if errors.As(err, &ae) {
			return errors.New(ae.Err)
		}
		return err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || int(n) < least {
		return fmt.Errorf("the port is not a number from %d to 65535", least)
	}
	if host == "" && least > 0 {
		return errors.New("the host is missing")
	}
	if _, err := netip.ParseAddr(host); err != nil && host != "" && !validHost(host) {
		return errors.New("the host has a character that host names cannot have")
	}
	return nil
}

// validHost admits what a DNS name can be made of, and the underscore that
// some sites use.
func validHost(s string) bool {
	return s != "" && len(s) <= 253 && s[0] != '.' && s[0] != '-' && !strings.ContainsFunc(s, func(r rune) bool {
		return !alphanumeric(r) && r != '-' && r != '.' && r != '_'
	})
}

func alphanumeric(r rune) bool {
	return r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
}

// Proxy is the way out through a proxy. The zero value is none.
type Proxy struct {
	Env bool     // as HTTPS_PROXY of the environment says
	url *url.URL // with user and password
}

// URL is nil without a proxy of its own. It may hold a password: use it to
// dial, never to print.
func (p Proxy) URL() *url.URL { return p.url }

// String leaves the password out.
func (p Proxy) String() string {
	switch {
	case p.Env:
		return "env"
	case p.url == nil:
		return ""
	}
	return p.url.Redacted()
}

// GoString is String: %#v must not print a password either.
func (p Proxy) GoString() string { return strconv.Quote(p.String()) }

// MarshalText is String.
func (p Proxy) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// parseProxy never quotes what it reads, which may hold a password.
func parseProxy(s string) (Proxy, error) {
	switch s {
	case "":
		return Proxy{}, nil
	case "env":
		return Proxy{Env: true}, nil
	}
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" {
		return Proxy{}, errors.New(`is not http://, https:// or socks5:// with host:port (percent-encode special characters of a password), and not "env"`)
	}
	switch u.Scheme {
	case "http", "https", "socks5":
	default:
		return Proxy{}, errors.New("the scheme is none of http, https, socks5")
	}
	if err := hostPort(u.Host, 1); err != nil {
		return Proxy{}, fmt.Errorf("host and port are needed: %w", err)
	}
	if password, _ := u.User.Password(); u.Scheme == "socks5" && u.User != nil &&
		(u.User.Username() == "" || password == "" || len(u.User.Username()) > 255 || len(password) > 255) {
		return Proxy{}, errors.New("socks5 has a user and a password of 1 to 255 bytes, or neither") // RFC 1929
	}
	return Proxy{url: u}, nil
}
