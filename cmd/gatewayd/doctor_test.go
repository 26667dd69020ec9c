package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	pkcs12 "software.sslmate.com/src/go-pkcs12"

	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/hub/hubtest"
	"gatewayd/internal/queue"
)

// ailment is one broken set-up and what the doctor has to say about it.
type ailment struct {
	name    string
	opt     hubtest.Options
	before  func(*plant)           // before a gateway starts
	running func(*plant, *process) // with a gateway running; nil: none runs
	args    []string
	step    string // "" = nothing is wrong
	text    string // part of what is said
	next    string // part of what to do
	code    int    // 0: what follows from step
}

// examine runs the doctor and returns what it says of one identity.
func (s *plant) examine(name string, args ...string) (int, diagnosis, *patient) {
	s.t.Helper()
	args = append([]string{"doctor", "--json", "--timeout", "2s", "--stay", "0s", "-c", s.path("config.yaml"), name}, args...)
	var out, errs strings.Builder
	code := run(s.t.Context(), args, strings.NewReader(""), &out, &errs)
	var d diagnosis
	if err := json.Unmarshal([]byte(out.String()), &d); err != nil {
		s.t.Fatalf("doctor exits with %d, %v: %s%s", code, err, &out, &errs)
	}
	for _, p := range d.Identities {
		if p.Name == name {
			return code, d, p
		}
	}
	return code, d, nil
}

func (s *plant) edit(old, new string) {
	s.t.Helper()
	text := string(must(os.ReadFile(s.path("config.yaml")))(s.t))
	if !strings.Contains(text, old) {
		s.t.Fatalf("no %q in config.yaml", old)
	}
	s.write("config.yaml", strings.ReplaceAll(text, old, new))
}

func root(t testing.TB) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

func TestDoctorNamesTheFirstFault(t *testing.T) {
	t.Parallel()
	for _, group := range [][]ailment{configurationAilments(), fileAilments(), networkAilments(), proxyAilments(), hubAilments(), queueAilments(), runningAilments()} {
		for _, a := range group {
			t.Run(a.name, func(t *testing.T) {
				t.Parallel()
				a.check(t)
			})
		}
	}
}

func (a ailment) check(t *testing.T) {
	s := newPlant(t, a.opt, "press-7")
	if a.before != nil {
		a.before(s)
	}
	if a.running != nil {
		a.running(s, s.run())
	}
	accepted := s.hub.Counters("").Connects
	code, d, p := s.examine("press-7", a.args...)
	want := a.code
	if want == 0 && a.step != "" {
		want = exitRunning
	}
	if code != want {
		t.Errorf("exit code %d, want %d", code, want)
	}
	var f *finding
	switch {
	case p == nil && len(d.Configuration) > 0:
		f = &finding{stepConfiguration, strings.Join(d.Configuration, "\n"), d.Next}
	case len(d.Listeners) > 0:
		f = &finding{"listener", strings.Join(d.Listeners, "\n"), "-"}
	case p != nil:
		f = p.Fault
	}
	all, _ := json.MarshalIndent(d, "", " ")
	switch {
	case a.step == "" && f == nil:
	case a.step == "" || f == nil || f.Step != a.step || !strings.Contains(f.Text, a.text) || !strings.Contains(f.Next, a.next) || f.Next == "":
		t.Errorf("want %q with %q, next %q; got\n%s", a.step, a.text, a.next, all)
	}
	if a.running != nil && len(a.args) == 0 && a.step != stepContest {
		if now := s.hub.Counters("").Connects; now != accepted {
			t.Errorf("the doctor connected beside a running gateway")
		}
	}
}

func configurationAilments() []ailment {
	edit := func(old, new string) func(*plant) { return func(s *plant) { s.edit(old, new) } }
	return []ailment{
		{name: "nothing is wrong"},
		{name: "no file", before: func(s *plant) { os.Remove(s.path("config.yaml")) }, step: stepConfiguration, text: "config.yaml", code: exitUsage},
		{name: "broken YAML", before: func(s *plant) { s.write("config.yaml", "identities: [") }, step: stepConfiguration, text: "config.yaml:1", code: exitUsage},
		{name: "unknown key", before: edit("state_dir:", "state_folder:"), step: stepConfiguration, text: "state_folder", code: exitUsage},
		{name: "wrong type", before: edit("window: 64", "window: many"), step: stepConfiguration, text: "hub.window", code: exitUsage},
		{name: "route to nobody", before: edit(`to: "{1}"`, "to: press-8"), step: stepConfiguration, text: "routes[0].to", code: exitUsage},
		{name: "port taken", before: func(s *plant) {
			l := must(net.Listen("tcp", s.mqtt))(s.t)
			s.t.Cleanup(func() { l.Close() })
		}, step: "listener", text: "downstream.mqtt[0]"},
		{name: "users file missing", before: func(s *plant) {
			s.edit(fmt.Sprintf("{listen: %q}]\n  http", s.mqtt), fmt.Sprintf("{listen: %q, users_file: users}]\n  http", s.mqtt))
		}, step: stepConfiguration, text: "users_file", code: exitUsage},
		{name: "half a connection string", before: edit("DeviceId=press-7;", ""), step: stepConfiguration, text: "DeviceId", code: exitUsage},
	}
}

// spoil does something to the files of press-7.
func spoil(f func(t testing.TB, s *plant, cert, key string)) func(*plant) {
	return func(s *plant) { f(s.t, s, s.path("press-7.pem"), s.path("press-7.key")) }
}

func leaf(l certtest.Leaf) func(*plant) {
	return func(s *plant) { s.issue("press-7", l) }
}

// wrongPassphrase gives press-7 a PKCS#12 file that another passphrase opens.
func wrongPassphrase(s *plant) {
	pair := s.issue("press-7", certtest.Leaf{CN: "press-7"})
	der := must(pkcs12.Modern.Encode(pair.TLS().PrivateKey, pair.Leaf, []*x509.Certificate{}, "right"))(s.t)
	s.write("press-7.p12", string(der))
	s.write("press-7.pass", "wrong\n")
	s.edit("{cert: press-7.pem, key: press-7.key}", "{pkcs12: press-7.p12, passphrase_file: press-7.pass}")
}

// leftover puts an intermediate into the file that did not sign the certificate, as
// after a change of the intermediate.
func leftover(s *plant) {
	old, mid := must(s.ca.Intermediate("Plant CA"))(s.t), must(s.ca.Intermediate("Plant CA"))(s.t)
	pair := must(mid.Issue(certtest.Leaf{CN: "press-7"}))(s.t)
	check(s.t, pair.Write(s.path("press-7.pem"), s.path("press-7.key")))
	text := string(must(os.ReadFile(s.path("press-7.pem")))(s.t))
	one := strings.SplitAfter(text, "-----END CERTIFICATE-----\n")[0]
	other := must(old.Issue(certtest.Leaf{CN: "x"}))(s.t)
	check(s.t, other.Write(s.path("x.pem"), s.path("x.key")))
	rest := strings.SplitAfter(string(must(os.ReadFile(s.path("x.pem")))(s.t)), "-----END CERTIFICATE-----\n")[1]
	s.write("press-7.pem", one+rest)
}

func fileAilments() []ailment {
	hour := func(n int) time.Time { return time.Now().Add(time.Duration(n) * time.Hour) }
	return []ailment{
		{name: "certificate missing", before: spoil(func(_ testing.TB, _ *plant, cert, _ string) { os.Remove(cert) }), step: stepFile, text: "press-7.pem does not exist"},
		{name: "key missing", before: spoil(func(_ testing.TB, _ *plant, _, key string) { os.Remove(key) }), step: stepFile, text: "press-7.key does not exist"},
		{name: "certificate cut off", before: spoil(func(t testing.TB, s *plant, cert, _ string) {
			text := must(os.ReadFile(cert))(t)
			s.write("press-7.pem", string(text[:len(text)/2]))
		}), step: stepFile, text: "press-7.pem is cut off"},
		{name: "not a certificate", before: spoil(func(_ testing.TB, s *plant, _, _ string) { s.write("press-7.pem", "hello") }), step: stepFile, text: "neither PEM nor DER"},
		{name: "key that its user cannot read", before: func(s *plant) {
			root(s.t)
			check(s.t, os.MkdirAll(s.path("state"), 0o700))
			check(s.t, os.Chown(s.path("state"), 65534, 65534))
			check(s.t, os.Chmod(s.dir, 0o755))
			check(s.t, os.Chmod(filepath.Dir(s.dir), 0o755))
			check(s.t, os.Chmod(s.path("press-7.pem"), 0o644))
		}, step: stepFile, text: "press-7.key cannot be read by nobody", next: "chmod 640"},
		{name: "key that I cannot read", before: spoil(func(t testing.TB, _ *plant, _, key string) {
			if os.Geteuid() == 0 {
				t.Skip("root reads everything")
			}
			check(t, os.Chmod(key, 0))
		}), step: stepFile, text: "may not be read"},
		{name: "key that everybody can read", before: spoil(func(t testing.TB, _ *plant, _, key string) { check(t, os.Chmod(key, 0o644)) }), step: stepKey, text: "mode 0644"},
		{name: "wrong passphrase", before: wrongPassphrase, step: stepKey, text: "cannot be decrypted", next: "passphrase_file"},
		{name: "no key in the file", before: spoil(func(t testing.TB, s *plant, cert, _ string) {
			s.write("press-7.key", string(must(os.ReadFile(cert))(t)))
		}), step: stepKey, text: "no private key but a certificate"},
		{name: "key of another certificate", before: spoil(func(t testing.TB, s *plant, _, key string) {
			old := must(os.ReadFile(key))(t)
			s.issue("press-7", certtest.Leaf{CN: "press-7"})
			s.write("press-7.key", string(old))
		}), step: stepKey, text: "not the one of the certificate"},
		{name: "certificate of another identity", before: leaf(certtest.Leaf{CN: "press-8"}), step: stepFile, text: `for "press-8"`},
		{name: "chain of another intermediate", before: leftover, step: stepChain, text: "did not sign", next: "leaf first"},
		{name: "expired", before: leaf(certtest.Leaf{CN: "press-7", NotBefore: hour(-48), NotAfter: hour(-1)}), step: stepDates, text: "expired on", next: "Renew"},
		{name: "not yet valid", before: leaf(certtest.Leaf{CN: "press-7", NotBefore: hour(1)}), step: stepDates, text: "not valid before", next: "clock"},
		{name: "clock behind", before: func(s *plant) {
			check(s.t, os.MkdirAll(s.path("state"), 0o700))
			s.write("state/clock", hour(72).UTC().Format(time.RFC3339)+"\n")
		}, step: stepClock, text: "it was", next: "Set the clock"},
		{name: "no root of the hub", before: func(s *plant) { s.write("hub-ca.pem", "") }, step: stepFile, text: "hub.trust"},
	}
}

// speaker answers whoever connects with some bytes.
func speaker(t testing.TB, say string) string {
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, say)
			_, _ = c.Read(make([]byte, 2048)) // what it says does not matter
			c.Close()
		}
	}()
	return l.Addr().String()
}

// blackHole has a full queue of connections that nobody accepts: the kernel drops
// every further one without an answer.
func blackHole(t testing.TB) string {
	fd := must(syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0))(t)
	t.Cleanup(func() { syscall.Close(fd) })
	check(t, syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	check(t, syscall.Listen(fd, 0))
	sa := must(syscall.Getsockname(fd))(t).(*syscall.SockaddrInet4)
	address := fmt.Sprintf("127.0.0.1:%d", sa.Port)
	for range 3 {
		c, err := net.DialTimeout("tcp", address, 200*time.Millisecond)
		if err == nil {
			t.Cleanup(func() { c.Close() })
		}
	}
	return address
}

// tlsServer presents a certificate and hangs up.
func tlsServer(t testing.TB, pair *certtest.Pair) string {
	l := must(tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair.TLS()}}))(t)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.(*tls.Conn).Handshake() // the client decides
			c.Close()
		}
	}()
	return l.Addr().String()
}

// at has the identity dial another address.
func at(address func(*plant) string) func(*plant) {
	return func(s *plant) { s.edit("address: "+s.hub.Addr(), "address: "+address(s)) }
}

// server is at with a server whose certificate the CA in hub-ca.pem issued.
func server(l certtest.Leaf) func(*plant) {
	return at(func(s *plant) string {
		ca := must(certtest.NewCA("hub root"))(s.t)
		s.write("hub-ca.pem", string(ca.PEM()))
		return tlsServer(s.t, must(ca.Issue(l))(s.t))
	})
}

// own443 is port 443 of a loopback address of its own, or "" where it may not be bound.
func own443() string {
	address := fmt.Sprintf("127.%d.%d.%d:443", 100+time.Now().Nanosecond()%100, 1+os.Getpid()/250%250, 1+os.Getpid()%250)
	l, err := net.Listen("tcp", address)
	if err != nil {
		return ""
	}
	l.Close()
	return address
}

// only443 leaves the way over WebSocket.
func only443(s *plant) {
	host, _, err := net.SplitHostPort(s.hub.WebSocketAddr())
	if err != nil {
		s.t.Skip("port 443 cannot be bound")
	}
	s.edit("address: "+s.hub.Addr(), "address: "+host+":9") // where nobody listens
}

func networkAilments() []ailment {
	const host = hubtest.DefaultHostName
	day := func(n int) time.Time { return time.Now().AddDate(0, 0, n) }
	return []ailment{
		{name: "name unknown", before: at(func(*plant) string { return "no-such-host.invalid:8883" }), step: "dns", text: "no-such-host.invalid", next: "DNS"},
		{name: "port closed", before: func(s *plant) { s.hub.StopListening() }, step: "tcp", text: "connection refused"},
		{name: "8883 blocked and 443 open", opt: hubtest.Options{WebSocket: own443()}, before: only443, step: "tcp", text: "connection refused", next: "transport: auto"},
		{name: "black hole", before: at(func(s *plant) string { return blackHole(s.t) }), step: "tcp", text: "no answer in time", next: "firewall"},
		{name: "address of something else", before: at(func(s *plant) string { return speaker(s.t, "SSH-2.0-OpenSSH_9.6\r\n") }), step: stepTLS, text: "does not speak TLS"},
		{name: "captive portal", before: at(func(s *plant) string { return speaker(s.t, "HTTP/1.1 302 Found\r\nLocation: http://login/\r\n\r\n") }), step: stepTLS, text: "web server", next: "captive portal"},
		{name: "closed in TLS", before: at(func(s *plant) string { return speaker(s.t, "") }), step: stepTLS, text: "closed"},
		{name: "silent in TLS", before: func(s *plant) { s.hub.HangTLS(true) }, step: stepTLS, text: "no answer"},
		{name: "server with another name", before: server(certtest.Leaf{CN: "proxy", DNS: []string{"proxy.example"}}), step: stepServer, text: "another name"},
		{name: "server of an unknown CA", before: func(s *plant) {
			s.write("hub-ca.pem", string(must(certtest.NewCA("old root"))(s.t).PEM()))
		}, step: stepServer, text: "unknown authority", next: "hub.trust"},
		{name: "proxy that takes TLS apart", before: at(func(s *plant) string {
			ca := must(certtest.NewCA("Corporate Inspection CA"))(s.t)
			return tlsServer(s.t, must(ca.Issue(certtest.Leaf{CN: host, DNS: []string{host}}))(s.t))
		}), step: stepServer, text: "Corporate Inspection CA", next: "intercepts TLS"},
		{name: "server certificate expired", before: server(certtest.Leaf{CN: host, DNS: []string{host}, NotBefore: day(-9), NotAfter: day(-1)}), step: stepServer, text: "not valid", next: "clock"},
	}
}

// through has the identities go through a proxy.
func through(url func(*plant) string) func(*plant) {
	return func(s *plant) { s.edit("system_roots: false,", "system_roots: false, proxy: \""+url(s)+"\",") }
}

// proxySays is an HTTP proxy that answers everybody the same.
func proxySays(answer string) func(*plant) {
	return through(func(s *plant) string {
		l := must(net.Listen("tcp", "127.0.0.1:0"))(s.t)
		server := &http.Server{ErrorLog: quiet(), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			c, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				return
			}
			defer c.Close()
			_, _ = io.WriteString(c, answer)
		})}
		go func() { _ = server.Serve(l) }()
		s.t.Cleanup(func() { server.Close() })
		return "http://" + l.Addr().String()
	})
}

func proxyAilments() []ailment {
	return []ailment{
		{name: "proxy out of reach", before: through(func(s *plant) string { return "http://" + freeAddress(s.t) }), step: "tcp", text: "proxy"},
		{name: "proxy of unknown name", before: through(func(*plant) string { return "http://proxy.invalid:3128" }), step: "dns", text: "proxy.invalid"},
		{name: "proxy wants a login", before: proxySays("HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=x\r\nContent-Length: 0\r\n\r\n"), step: "proxy", text: "407"},
		{name: "proxy forbids the hub", before: proxySays("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"), step: "proxy", text: "403"},
		{name: "proxy that is none", before: through(func(s *plant) string { return "socks5://" + speaker(s.t, "HTTP/1.1 400 Bad Request\r\n\r\n") }), step: "proxy", text: ""},
	}
}

func hubAilments() []ailment {
	refuse := func(how hubtest.Refusal) func(*plant) {
		return func(s *plant) {
			pair := s.issue("press-7", certtest.Leaf{CN: "press-7"})
			s.hub.RefuseFingerprint(fmt.Sprintf("%x", fingerprint(pair.Leaf)), how)
		}
	}
	return []ailment{
		{name: "refused in TLS 1.2", opt: hubtest.Options{MaxTLS: tls.VersionTLS12}, before: refuse(hubtest.TLSAlert), step: stepTLS, text: "refused in TLS", next: "site CA"},
		{name: "refused in TLS 1.3", opt: hubtest.Options{MinTLS: tls.VersionTLS13}, before: refuse(hubtest.TLSAlert), step: stepTLS, text: "refused in TLS", next: "site CA"},
		{name: "unknown CA", before: func(s *plant) { s.hub.RemoveCA(s.ca.Cert) }, step: stepConnack, text: "code 5", next: "the hub must know that CA"},
		{name: "device unknown", before: func(s *plant) { s.hub.RemoveDevice("press-7") }, step: stepConnack, text: "code 5", next: "known to this hub"},
		{name: "device disabled", before: func(s *plant) { check(s.t, s.hub.SetDisabled("press-7", true)) }, step: stepConnack, text: "code 5", next: "enabled"},
		{name: "thumbprint not registered", before: func(s *plant) {
			check(s.t, s.hub.AddDevice(hubtest.Device{DeviceID: "press-7", Thumbprints: []string{strings.Repeat("AB", 32)}}))
		}, step: stepConnack, text: "code 5", next: "thumbprint"},
		{name: "hub unavailable", before: refuse(hubtest.ConnackThree), step: stepConnack, text: "code 3", next: "again"},
		{name: "silent after CONNECT", before: refuse(hubtest.Hang), step: stepConnack, text: "no answer to CONNECT"},
		{name: "closed after CONNECT", before: refuse(hubtest.CloseSilently), step: stepConnack, text: "without an answer"},
		{name: "contested", before: func(s *plant) { check(s.t, s.hub.Contest("press-7", 300*time.Millisecond)) }, args: []string{"--stay", "3s"},
			step: stepContest, text: "closed it", next: "another gateway"},
	}
}

// stored has a gateway store readings that no hub takes, and stops it.
func stored(n int, size int) func(*plant) {
	return func(s *plant) {
		s.hub.StopListening()
		p := s.run()
		s.accepted("sensors/press-7/s", strings.Repeat("x", size))
		for range n - 1 {
			s.post("sensors/press-7/s", strings.Repeat("x", size), "")
		}
		p.stop()
		check(s.t, s.hub.Resume())
	}
}

// accepted hands in a reading, also to a gateway that has just started.
func (s *plant) accepted(topic, body string) {
	s.t.Helper()
	eventually(s.t, 15*time.Second, "the reading is accepted", func() bool { return s.post(topic, body, "") == http.StatusAccepted })
}

func small(s *plant) {
	s.edit("    certificate: {", "    queue: {max_bytes: 1MiB}\n    certificate: {")
}

// damaged turns over bits in the middle of what was stored.
func damaged(s *plant) {
	stored(40, 8<<10)(s)
	files, err := filepath.Glob(s.path("state/queue/*"))
	check(s.t, err)
	var largest string
	var most int64
	for _, f := range files {
		if info, err := os.Stat(f); err == nil && info.Size() > most {
			largest, most = f, info.Size()
		}
	}
	f := must(os.OpenFile(largest, os.O_RDWR, 0))(s.t)
	defer f.Close()
	for _, off := range []int64{40 << 10, 90 << 10} {
		var b [64]byte
		must(f.ReadAt(b[:], off))(s.t)
		for i := range b {
			b[i] ^= 0x5a
		}
		must(f.WriteAt(b[:], off))(s.t)
	}
}

// onTinyDisk puts the state folder on a file system of 64 KiB.
func onTinyDisk(s *plant) {
	check(s.t, os.MkdirAll(s.path("state"), 0o700))
	if err := syscall.Mount("none", s.path("state"), "tmpfs", 0, "size=64k"); err != nil {
		s.t.Skipf("mount: %v", err)
	}
	s.t.Cleanup(func() { _ = syscall.Unmount(s.path("state"), syscall.MNT_DETACH) })
}

func queueAilments() []ailment {
	return []ailment{
		{name: "messages wait", before: stored(3, 100)},
		{name: "queue full", before: func(s *plant) { small(s); stored(10, 120<<10)(s) }, step: stepQueue, text: "queue is full to 9", next: "queue.max_bytes"},
		{name: "queue damaged", before: damaged, step: stepQueue, text: "damaged", next: "queue verify"},
		{name: "queue of a newer version", before: func(s *plant) {
			stored(1, 10)(s)
			s.hub.StopListening()
			newerQueue(s)
			check(s.t, s.hub.Resume())
		}, step: stepQueue, text: "version 99", next: "newer gatewayd"},
		{name: "messages set aside", before: setAside, step: stepQueue, text: "1 messages were set aside", next: "queue inspect press-7"},
		{name: "state_dir below a file", before: func(s *plant) {
			s.write("file", "")
			s.edit("state_dir: state", "state_dir: file/state")
		}, step: stepQueue, text: "is not a folder"},
		{name: "state_dir of another user", before: func(s *plant) {
			root(s.t)
			check(s.t, os.Mkdir(s.path("state"), 0o500))
			check(s.t, os.Chown(s.path("state"), 65534, 65534))
			check(s.t, os.Chmod(s.dir, 0o755))
			check(s.t, os.Chmod(filepath.Dir(s.dir), 0o755))
			for _, f := range []string{"press-7.pem", "press-7.key"} {
				check(s.t, os.Chown(s.path(f), 65534, 65534))
			}
		}, step: stepQueue, text: "permission denied"},
		{name: "state_dir with too long a name", before: func(s *plant) { s.edit("state_dir: state", "state_dir: "+strings.Repeat("long/", 30)+"state") },
			step: stepQueue, text: "control socket", next: "shorter"},
		{name: "state_dir held by something", before: func(s *plant) {
			stored(1, 10)(s)
			f := must(os.OpenFile(s.path("state/queue/lock"), os.O_RDWR, 0))(s.t)
			s.t.Cleanup(func() { f.Close() })
			check(s.t, syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB))
		}, step: stepQueue, text: "in use by a process"},
		{name: "disk full", before: onTinyDisk, step: stepQueue, text: "disk of state_dir is full", next: "Make room"},
	}
}

// setAside stores a message that the hub does not take.
func setAside(s *plant) {
	check(s.t, queue.Offline(s.t.Context(), queue.Options{Dir: s.path("state/queue")}, func(j *queue.Journal) error {
		q, err := j.Queue("press-7", queue.Limits{})
		if err != nil {
			return err
		}
		done := make(chan error, 1)
		if err := q.AppendAside(s.t.Context(), queue.Message{Topic: "sensors/press-7/s", Payload: []byte("x")}, "too large", func(_ uint64, err error) { done <- err }); err != nil {
			return err
		}
		return <-done
	}))
}

// newerQueue changes the version in the headers of what was stored.
func newerQueue(s *plant) {
	const magic = "GWJRNL\r\n"
	files, err := filepath.Glob(s.path("state/queue/*"))
	check(s.t, err)
	for _, name := range files {
		text := string(must(os.ReadFile(name))(s.t))
		for at := 0; ; at += len(magic) {
			i := strings.Index(text[at:], magic)
			if i < 0 {
				break
			}
			at += i
			text = text[:at+len(magic)] + "\x63" + text[at+len(magic)+1:]
		}
		check(s.t, os.WriteFile(name, []byte(text), 0o600))
	}
}

func connected(s *plant) {
	s.t.Helper()
	eventually(s.t, 15*time.Second, "connected", func() bool { id, ok := s.identityStatus("press-7"); return ok && id.Connected })
}

func runningAilments() []ailment {
	faulty := func(s *plant) {
		eventually(s.t, 15*time.Second, "a fault", func() bool { id, ok := s.identityStatus("press-7"); return ok && id.Fault != nil })
	}
	return []ailment{
		{name: "running: nothing is wrong", running: func(s *plant, _ *process) { connected(s) }},
		{name: "running: taken over", running: func(s *plant, _ *process) { connected(s) }, args: []string{"--take-over", "--stay", "2s"}},
		{name: "running: certificate missing", before: spoil(func(_ testing.TB, _ *plant, cert, _ string) { os.Remove(cert) }), running: func(*plant, *process) {}, step: stepFile, text: "does not exist"},
		{name: "running: identity unknown to it", before: func(s *plant) { s.edit("DeviceId=press-7", "DeviceId=press-8") }, running: func(s *plant, _ *process) { s.writeConfig("") },
			step: stepConfiguration, text: "the file has changed", next: "gatewayd reload"},
		{name: "running: another one on the same state_dir", before: func(s *plant) {
			text := string(must(os.ReadFile(s.path("config.yaml")))(s.t))
			s.write("other.yaml", strings.ReplaceAll(text, "DeviceId=press-7", "DeviceId=press-8"))
			s.gatewayd("run", "-c", "other.yaml")
			eventually(s.t, 15*time.Second, "it runs", func() bool { _, err := s.status(); return err == nil })
		}, step: stepConfiguration, text: "other.yaml", next: "state_dir of its own"},
		{name: "running: device disabled", before: func(s *plant) { check(s.t, s.hub.SetDisabled("press-7", true)) }, running: func(s *plant, _ *process) { faulty(s) },
			step: stepConnack, text: "code 5", next: "tries again at"},
		{name: "running: silent after CONNECT", before: func(s *plant) { s.hub.DelayConnack(time.Hour) }, running: func(s *plant, _ *process) {
			eventually(s.t, 15*time.Second, "connecting", func() bool { return len(s.hub.Connections()) > 0 })
		}, step: stepSession, text: "not connected yet"},
		{name: "running: contested", before: func(s *plant) { check(s.t, s.hub.Contest("press-7", 100*time.Millisecond)) }, running: func(s *plant, _ *process) {
			eventually(s.t, 60*time.Second, "contested", func() bool {
				id, ok := s.identityStatus("press-7")
				return ok && id.Fault != nil && id.Connects["accepted"] >= contestFrom
			})
		}, step: stepContest, text: "accepted 3 connections", next: "another gateway"},
		{name: "running: throttled", before: func(s *plant) { s.hub.WithholdPuback(-1) }, running: func(s *plant, _ *process) {
			connected(s)
			s.accepted("sensors/press-7/s", "reading")
			eventually(s.t, 30*time.Second, "no acknowledgement for long", func() bool {
				id, ok := s.identityStatus("press-7")
				return ok && id.InFlight == 1 && time.Since(id.Since) > quietLimit+time.Second
			})
		}, step: stepThrottle, text: "acknowledged", next: "quota"},
		{name: "running: new certificate refused", running: func(s *plant, _ *process) {
			connected(s)
			pair := must(s.ca.Issue(certtest.Leaf{CN: "press-7"}))(s.t)
			s.hub.RefuseFingerprint(fmt.Sprintf("%x", fingerprint(pair.Leaf)), hubtest.ConnackFive)
			check(s.t, pair.Write(s.path("press-7.pem"), s.path("press-7.key")))
			eventually(s.t, 20*time.Second, "missed", func() bool {
				id, ok := s.identityStatus("press-7")
				return ok && id.Certificate.CandidateState == "missed"
			})
		}, step: stepConnack, text: "new certificate is missed"},
		{name: "running: hub out of reach", running: func(s *plant, _ *process) {
			connected(s)
			s.hub.StopListening()
			s.hub.DropConnections("")
			faulty(s)
		}, step: "tcp", text: "connection refused"},
	}
}
