package downstream

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// endpoint is where a listener binds.
type endpoint struct {
	network   string // tcp or unix
	address   string // host:port or path
	secure    bool
	websocket bool
}

// parseEndpoint reads host:port or scheme://rest; a bare host:port is tcp.
func parseEndpoint(listen string, schemes ...string) (endpoint, error) {
	scheme, rest, found := strings.Cut(listen, "://")
	if !found {
		scheme, rest = "tcp", listen
	}
	if !slices.Contains(schemes, scheme) {
		return endpoint{}, fmt.Errorf("%q: the scheme must be one of %s", listen, strings.Join(schemes, ", "))
	}
	if scheme == "unix" {
		if !filepath.IsAbs(rest) {
			return endpoint{}, fmt.Errorf("%q: a socket needs an absolute path: unix:///path", listen)
		}
		return endpoint{network: "unix", address: rest}, nil
	}
	if _, port, err := net.SplitHostPort(rest); err != nil || port == "" {
		return endpoint{}, fmt.Errorf("%q is not host:port", listen)
	}
	e := endpoint{network: "tcp", address: rest}
	e.secure = scheme == "tls" || scheme == "wss" || scheme == "https"
	e.websocket = scheme == "ws" || scheme == "wss"
	return e, nil
}

// private tells whether only this machine can reach the endpoint.
func (e endpoint) private() bool {
	if e.network == "unix" {
		return true
	}
	host, _, _ := net.SplitHostPort(e.address)
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// listen binds. A socket file that nobody listens on any more is replaced; who
// may connect is decided by the group and mode 0660 of the file.
func (e endpoint) listen() (net.Listener, error) {
	if e.network != "unix" {
		return net.Listen(e.network, e.address)
	}
	if err := removeStale(e.address); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", e.address)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(e.address, 0o660); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

func removeStale(path string) error {
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Type() != os.ModeSocket {
		return nil // absent, or something that net.Listen must not replace and will refuse
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
		return fmt.Errorf("listen unix %s: another process listens there", path)
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		return os.Remove(path)
	}
	return nil
}
