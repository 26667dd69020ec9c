package hub

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/hub/hubtest"
	"gatewayd/internal/queue"
)

const (
	proxyUser     = "plant7"
	proxyPassword = "p:ss/w@rd hunter2"
)

// testProxy speaks the proxy side of HTTP CONNECT and of SOCKS 5, whichever comes.
type testProxy struct {
	addr   string
	answer func(target string) int // HTTP status or SOCKS reply; nil: connect
	login  bool                    // wants proxyUser and proxyPassword
	mute   atomic.Bool             // accepts and says nothing
	tunnel atomic.Int64            // connections made
	mu     sync.Mutex
	seen   []string // targets
}

// startProxy runs until the test ends; conf makes it an https proxy.
func startProxy(t testing.TB, p *testProxy, conf *tls.Config) *testProxy {
	t.Helper()
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	p.addr = l.Addr().String()
	if conf != nil {
		l = tls.NewListener(l, conf)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				stop := context.AfterFunc(ctx, func() { c.Close() })
				defer stop()
				p.serve(ctx, c)
			})
		}
	})
	t.Cleanup(func() { cancel(); l.Close(); wg.Wait() })
	return p
}

func (p *testProxy) serve(ctx context.Context, c net.Conn) {
	if p.mute.Load() {
		_, _ = io.Copy(io.Discard, c)
		return
	}
	in := bufio.NewReader(c)
	first, err := in.Peek(1)
	if err != nil {
		return
	}
	var target string
	if first[0] == 5 {
		target = p.socks(c, in)
	} else {
		target = p.http(c, in)
	}
	if target == "" {
		return
	}
	p.tunnel.Add(1)
	out, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer out.Close()
	stop := context.AfterFunc(ctx, func() { out.Close() })
	defer stop()
	go func() {
		defer out.Close()
		_, _ = io.Copy(out, in)
	}()
	_, _ = io.Copy(c, out)
}

func (p *testProxy) decide(target string) int {
	p.mu.Lock()
	p.seen = append(p.seen, target)
	p.mu.Unlock()
	if p.answer == nil {
		return 0
	}
	return p.answer(target)
}

func (p *testProxy) http(c net.Conn, in *bufio.Reader) string {
	req, err := http.ReadRequest(in)
	if err != nil || req.Method != http.MethodConnect {
		fmt.Fprint(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
		return ""
	}
	if want := "Basic " + base64.StdEncoding.EncodeToString([]byte(proxyUser+":"+proxyPassword)); p.login && req.Header.Get("Proxy-Authorization") != want {
		fmt.Fprint(c, "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=x\r\nContent-Length: 0\r\n\r\n")
		return ""
	}
	if status := p.decide(req.Host); status != 0 {
		fmt.Fprintf(c, "HTTP/1.1 %d %s\r\nContent-Type: text/html\r\n\r\n<html>no</html>", status, http.StatusText(status))
		return ""
	}
	fmt.Fprint(c, "HTTP/1.0 200 Connection established\r\nProxy-agent: test\r\n\r\n")
	return req.Host
}

// socks is the server side of RFC 1928 and 1929.
func (p *testProxy) socks(c net.Conn, in *bufio.Reader) string {
	read := func(n int) []byte {
		b := make([]byte, n)
		_, _ = io.ReadFull(in, b)
		return b
	}
	methods := read(int(read(2)[1]))
	method := byte(0)
	if p.login {
		if method = 2; !bytes.Contains(methods, []byte{2}) {
			_, _ = c.Write([]byte{5, 255})
			return ""
		}
	}
	_, _ = c.Write([]byte{5, method})
	if p.login {
		user := read(int(read(2)[1]))
		password := read(int(read(1)[0]))
		if string(user) != proxyUser || string(password) != proxyPassword {
			_, _ = c.Write([]byte{1, 1})
			return ""
		}
		_, _ = c.Write([]byte{1, 0})
	}
	var host string
	switch head := read(4); head[3] {
	case 1:
		host = net.IP(read(4)).String()
	case 3:
		host = string(read(int(read(1)[0])))
	}
	port := read(2)
	target := net.JoinHostPort(host, fmt.Sprint(int(port[0])<<8|int(port[1])))
	reply := p.decide(target)
	_, _ = c.Write([]byte{5, byte(reply), 0, 1, 0, 0, 0, 0, 0, 0})
	if reply != 0 {
		return ""
	}
	return target
}

func (p *testProxy) url(scheme string, withLogin bool) *url.URL {
	u := &url.URL{Scheme: scheme, Host: p.addr}
	if withLogin {
		u.User = url.UserPassword(proxyUser, proxyPassword)
	}
	return u
}

func overWebSocket(r *rig) {
	r.cfg.Transport, r.cfg.Address = OverWebSocket, r.hub.WebSocketAddr()
}

// TestMessagesGoThroughEveryKindOfProxy has each proxy want a password, over both
// transports.
func TestMessagesGoThroughEveryKindOfProxy(t *testing.T) {
	for _, scheme := range []string{"http", "https", "socks5"} {
		for _, transport := range []Transport{OverTLS, OverWebSocket} {
			t.Run(scheme+" "+string(transport), func(t *testing.T) {
				r := newRig(t, false, hubtest.Options{WebSocket: "127.0.0.1:0"})
				if transport == OverWebSocket {
					overWebSocket(r)
				}
				var conf *tls.Config
				if scheme == "https" {
					ca := must(certtest.NewCA("proxy root"))
					conf = &tls.Config{Certificates: []tls.Certificate{must(ca.Issue(certtest.Leaf{CN: "proxy", DNS: []string{"127.0.0.1"}})).TLS()}}
					pool := r.hub.ServerPool().Clone()
					pool.AddCert(ca.Cert)
					r.cfg.Roots = func() *x509.CertPool { return pool }
				}
				p := startProxy(t, &testProxy{login: true}, conf)
				r.cfg.Proxy = ProxyAt(p.url(scheme, true))
				r.box.text(numbered(0, 200)...)
				r.start()
				r.drained()
				if got := len(r.hub.Messages()); got != 200 || p.tunnel.Load() != 1 {
					t.Errorf("%d messages over %d tunnels", got, p.tunnel.Load())
				}
				if p.seen[0] != r.cfg.Address {
					t.Errorf("the proxy was asked for %s, want %s", p.seen[0], r.cfg.Address)
				}
				if st := r.s.Status(); !strings.Contains(st.Remote, "through "+p.addr) || st.Transport != transport {
					t.Errorf("status says %q over %q", st.Remote, st.Transport)
				}
				if ws := r.hub.Connections()[0].WebSocket; ws != (transport == OverWebSocket) {
					t.Errorf("over WebSocket: %v", ws)
				}
				r.strict()
			})
		}
	}
}

// TestProxyFaultsAreNamed makes proxies fail in every way that they do.
func TestProxyFaultsAreNamed(t *testing.T) {
	dead := must(net.Listen("tcp", "127.0.0.1:0"))
	dead.Close()
	status := func(n int) func(string) int { return func(string) int { return n } }
	for _, tt := range []struct {
		name   string
		scheme string
		proxy  *testProxy
		change func(*rig, *testProxy)
		kind   Kind
		step   Step
		text   string
	}{
		{name: "no such name", scheme: "http", change: func(r *rig, p *testProxy) { p.addr = "no-such-proxy.invalid:3128" }, kind: Unreachable, step: StepName, text: "no-such-proxy.invalid"},
		{name: "nothing listens", scheme: "socks5", change: func(r *rig, p *testProxy) { p.addr = dead.Addr().String() }, kind: Unreachable, step: StepTCP, text: "proxy 127.0.0.1"},
		{name: "407", scheme: "http", proxy: &testProxy{login: true}, kind: ProxyRefused, step: StepProxy, text: "407"},
		{name: "401", scheme: "http", proxy: &testProxy{answer: status(401)}, kind: ProxyRefused, step: StepProxy, text: "401"},
		{name: "403", scheme: "http", proxy: &testProxy{answer: status(403)}, kind: ProxyRefused, step: StepProxy, text: "does not allow"},
		{name: "502", scheme: "http", proxy: &testProxy{answer: status(502)}, kind: Unreachable, step: StepProxy, text: "502 Bad Gateway"},
		{name: "503", scheme: "http", proxy: &testProxy{answer: status(503)}, kind: Unreachable, step: StepProxy, text: "503"},
		{name: "silent", scheme: "http", change: func(r *rig, p *testProxy) { p.mute.Store(true) }, kind: Unreachable, step: StepProxy, text: "does not answer"},
		{name: "silent SOCKS", scheme: "socks5", change: func(r *rig, p *testProxy) { p.mute.Store(true) }, kind: Unreachable, step: StepProxy, text: "does not answer"},
		{name: "SOCKS login", scheme: "socks5", proxy: &testProxy{login: true}, kind: ProxyRefused, step: StepProxy, text: "another user or password"},
		{name: "SOCKS ruleset", scheme: "socks5", proxy: &testProxy{answer: status(2)}, kind: ProxyRefused, step: StepProxy, text: "does not allow"},
		{name: "SOCKS unreachable", scheme: "socks5", proxy: &testProxy{answer: status(4)}, kind: Unreachable, step: StepProxy, text: "host unreachable"},
		{name: "SOCKS refused", scheme: "socks5", proxy: &testProxy{answer: status(5)}, kind: Unreachable, step: StepProxy, text: "connection refused"},
		{name: "not TLS", scheme: "https", kind: Unreachable, step: StepProxy, text: "TLS with it"},
		{name: "not SOCKS", scheme: "socks5", change: func(r *rig, p *testProxy) { p.addr = talker(r.t, "SSH-2.0-x\r\n") }, kind: Violation, step: StepProxy, text: "does not answer as a proxy"},
		{name: "not HTTP", scheme: "http", change: func(r *rig, p *testProxy) { p.addr = talker(r.t, "SSH-2.0-x\r\n") }, kind: Violation, step: StepProxy, text: "does not answer as a proxy"},
		{name: "hangs up", scheme: "http", change: func(r *rig, p *testProxy) { p.addr = talker(r.t, "") }, kind: Unreachable, step: StepProxy, text: "closed the connection"},
		{name: "endless answer", scheme: "http", change: func(r *rig, p *testProxy) {
			p.addr = talker(r.t, "HTTP/1.1 200 OK\r\nX: "+strings.Repeat("x", 1<<20))
		}, kind: Unreachable, step: StepProxy, text: "closed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, false, hubtest.Options{})
			r.cfg.Timing.Dial = time.Second
			if tt.proxy == nil {
				tt.proxy = &testProxy{}
			}
			p := startProxy(t, tt.proxy, nil)
			if tt.change != nil {
				tt.change(r, p)
			}
			u := p.url(tt.scheme, true)
			if tt.proxy.login {
				u.User = url.UserPassword(proxyUser, "hunter2-wrong")
			}
			r.cfg.Proxy = ProxyAt(u)
			f := Probe(t.Context(), r.cfg, r.store.Current()).Fault
			if f == nil {
				t.Fatal("no fault")
			}
			if f.Kind != tt.kind || f.Step != tt.step || !strings.Contains(f.Text, tt.text) {
				t.Errorf("%s at %s (%s), want %s at %s with %q; cause %#v", f.Kind, f.Step, f.Text, tt.kind, tt.step, tt.text, f.Err)
			}
			if f.Hint == "" {
				t.Error("no hint")
			}
			if all := fmt.Sprintf("%s %s %s %v", f, f.Text, f.Hint, f.Err); strings.Contains(all, "hunter2") {
				t.Errorf("the password is in %q", all)
			}
		})
	}
}

// TestProxyCredentialsAreToldNobody looks into log and status, with a proxy that
// refuses them and with one that does not.
func TestProxyCredentialsAreToldNobody(t *testing.T) {
	core, logs := observer.New(zapcore.DebugLevel)
	r := newRig(t, false, hubtest.Options{})
	p := startProxy(t, &testProxy{login: true}, nil)
	u := p.url("http", true)
	u.User = url.UserPassword(proxyUser, "hunter2-wrong")
	r.cfg.Proxy = ProxyAt(u)
	s := newSession(r.cfg, r.box, r.store, r.pacer, zap.New(core))
	r.s = s
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Run(ctx) }()
	r.await("told", 10*time.Second, func() bool { return s.Status().State == string(ProxyRefused) })
	cancel()
	<-done
	var said strings.Builder
	fmt.Fprintf(&said, "%+v %v", s.Status(), s.Status().Fault)
	for _, e := range logs.All() {
		fmt.Fprintln(&said, e.Message, e.ContextMap())
	}
	if logs.Len() == 0 || strings.Contains(said.String(), "hunter2") || strings.Contains(said.String(), proxyUser) {
		t.Errorf("%d lines: %s", logs.Len(), said.String())
	}
	if left := time.Until(s.Status().NextTry); left < 5*time.Second {
		t.Errorf("tries again after %v: an account may be locked", left)
	}
}

func TestEnvironmentChoosesTheProxy(t *testing.T) {
	for _, tt := range []struct{ https, no, address, want string }{
		{"", "", "h.example:8883", ""},
		{"http://p:3128", "", "h.example:8883", "p:3128"},
		{"p:3128", "", "h.example:443", "p:3128"},
		{"socks5://p", "", "h.example:8883", "p:1080"},
		{"http://p", "h.example", "h.example:8883", ""},
		{"http://p", ".example:443", "h.example:8883", "p:80"},
		{"http://p", "", "127.0.0.1:8883", ""},
		{"ftp://p:2", "", "h.example:8883", "error"},
		{"http://u:hunter2@p:3 128", "", "h.example:8883", "error"},
	} {
		t.Setenv("HTTPS_PROXY", tt.https)
		t.Setenv("NO_PROXY", tt.no)
		t.Setenv("https_proxy", "")
		t.Setenv("no_proxy", "")
		got := ""
		u, err := ProxyFromEnvironment().find(tt.address)
		switch {
		case err != nil:
			if got = "error"; strings.Contains(err.Error(), "hunter2") {
				t.Error(err)
			}
		case u != nil:
			got = proxyAddress(u)
		}
		if got != tt.want {
			t.Errorf("%+v: %s", tt, got)
		}
	}
}

// TestLargeMessagesAndManyGoOverWebSocket covers frames of every length form.
func TestLargeMessagesAndManyGoOverWebSocket(t *testing.T) {
	for _, v := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		r := newRig(t, false, hubtest.Options{WebSocket: "127.0.0.1:0", MaxTLS: v, MaxInbound: -1})
		overWebSocket(r)
		r.cfg.Window = 1000
		for _, size := range []int{0, 1, 100, 126, 4 << 10, 65 << 10, 250 << 10} {
			r.box.put(queue.Message{Payload: bytes.Repeat([]byte{'x'}, size)})
		}
		r.box.text(numbered(0, 5000)...)
		r.start()
		r.drained()
		if got := len(r.hub.Messages()); got != 5007 {
			t.Errorf("%d messages", got)
		}
		if n := r.hub.PingWebSockets("dev-1", 5*time.Second); n != 1 {
			t.Errorf("%d pongs", n)
		}
		r.strict()
		r.stop()
	}
}

func TestWebSocketFaultsAreNamed(t *testing.T) {
	for _, tt := range []struct {
		name   string
		opt    hubtest.Options
		change func(*rig)
		kind   Kind
		step   Step
		text   string
	}{
		{name: "503", change: func(r *rig) { r.hub.FailUpgrades(503) }, kind: Unavailable, step: StepWebSocket, text: "503"},
		{name: "404", change: func(r *rig) { r.hub.FailUpgrades(404) }, kind: Violation, step: StepWebSocket, text: "404"},
		{name: "401", change: func(r *rig) { r.hub.FailUpgrades(401) }, kind: Refused, step: StepWebSocket, text: "401"},
		{name: "refused in TLS 1.2", opt: hubtest.Options{MaxTLS: tls.VersionTLS12}, change: refuse(hubtest.TLSAlert), kind: Refused, step: StepTLS, text: "refused in TLS"},
		{name: "refused in TLS 1.3", opt: hubtest.Options{MinTLS: tls.VersionTLS13}, change: refuse(hubtest.TLSAlert), kind: Refused, step: StepWebSocket, text: "refused in TLS"},
		{name: "CONNACK 5", change: refuse(hubtest.ConnackFive), kind: Refused, step: StepConnect, text: "code 5"},
		{name: "closed without a word", change: refuse(hubtest.CloseSilently), kind: Closed, step: StepConnect, text: "without an answer"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.opt.WebSocket = "127.0.0.1:0"
			r := newRig(t, false, tt.opt)
			overWebSocket(r)
			tt.change(r)
			got := Probe(t.Context(), r.cfg, r.store.Current())
			f := got.Fault
			if f == nil {
				t.Fatalf("no fault; steps %+v", got.Steps)
			}
			if f.Kind != tt.kind || f.Step != tt.step || !strings.Contains(f.Text, tt.text) {
				t.Errorf("%s at %s (%s), want %s at %s with %q; cause %#v", f.Kind, f.Step, f.Text, tt.kind, tt.step, tt.text, f.Err)
			}
		})
	}
}

func TestReachInterruptsNobody(t *testing.T) {
	t.Parallel()
	for _, ws := range []bool{false, true} {
		r := newRig(t, false, hubtest.Options{WebSocket: "127.0.0.1:0"})
		if ws {
			overWebSocket(r)
		}
		r.start()
		r.connected()
		got := Reach(t.Context(), r.cfg, r.store.Current())
		if got.Fault != nil || len(got.Steps) < 2 {
			t.Errorf("%+v", got)
		}
		if n := len(r.hub.ConnectionsOf("dev-1")); n != 1 || !r.hub.Connected("dev-1") {
			t.Errorf("%d connections", n)
		}
		bad := r.issue(certtest.Leaf{})
		r.hub.RefuseFingerprint(bad.SHA256(), hubtest.TLSAlert)
		if got := Reach(t.Context(), r.cfg, bad); got.Fault == nil || got.Fault.Kind != Refused {
			t.Errorf("a refusal in TLS is not noticed: %+v", got)
		}
	}
}

// TestRotationWorksOverWebSocket is the same cut-over over the other transport.
func TestRotationWorksOverWebSocket(t *testing.T) {
	t.Parallel()
	r := newRig(t, false, hubtest.Options{WebSocket: "127.0.0.1:0"})
	overWebSocket(r)
	r.start()
	r.connected()
	next := r.issue(certtest.Leaf{})
	for i := range 200 {
		if i == 100 {
			r.store.offer(next)
		}
		r.box.text(fmt.Sprint(i))
	}
	r.await("rotated", 20*time.Second, func() bool { return same(r.store.Current(), next) })
	r.drained()
	if got := len(r.hub.Messages()); got < 200 {
		t.Errorf("%d messages", got)
	}
	r.strict()
}

// A connection over WebSocket is freed when it is given up, however that is: a gateway
// makes new ones for years.
func TestWebSocketConnectionsAreFreed(t *testing.T) {
	r := newRig(t, false, hubtest.Options{WebSocket: "127.0.0.1:0"})
	overWebSocket(r)
	cfg := r.cfg.withDefaults()
	const n = 5
	var freed atomic.Int32
	for range n {
		func() { // nothing of it is left on the stack
			d := dialer{cfg: &cfg}
			tr, fault := d.dial(t.Context(), r.store.Current())
			if fault != nil {
				t.Fatal(fault)
			}
			runtime.AddCleanup(tr.nc.(*stream).wire, func(struct{}) { freed.Add(1) }, struct{}{})
			_ = tr.raw.Close()
			if _, err := tr.nc.Read(make([]byte, 1)); err == nil {
				t.Fatal("read from a closed connection")
			}
		}()
	}
	for end := time.Now().Add(20 * time.Second); freed.Load() < n; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d of %d are freed", freed.Load(), n)
		}
		runtime.GC()
	}
}
