package downstream

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"golang.org/x/crypto/bcrypt"

	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/packet"
	"gatewayd/internal/queue"
)

var willMarkForTest = queue.Property{Key: "k", Value: "v"}

func usersFile(t testing.TB, lines ...string) *Users {
	t.Helper()
	path := filepath.Join(t.TempDir(), "users")
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	u, err := LoadUsers(path)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func userLine(t testing.TB, name, password string) string {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte(password), minBcryptCost)
	if err != nil {
		t.Fatal(err)
	}
	return name + ":" + string(hash)
}

func login(v packet.Version, id, user, password string) packet.Connect {
	return packet.Connect{Version: v, ClientID: id, CleanStart: true, HasUsername: user != "", Username: user, HasPassword: password != "", Password: []byte(password)}
}

func TestPasswordsLetIn(t *testing.T) {
	t.Parallel()
	users := usersFile(t, "# comment", "", userLine(t, "press", "secret"))
	b := start(t, benchOptions{config: MQTTConfig{Users: users, ACL: []ACLRule{{User: "press", Publish: []string{"#"}}}}})
	for name, tc := range map[string]struct {
		user, password string
		v311, v5       byte
	}{
		"right":         {"press", "secret", 0, 0},
		"right again":   {"press", "secret", 0, 0},
		"wrong":         {"press", "Secret", packet.RefusedCredentials, packet.BadCredentials},
		"unknown user":  {"other", "secret", packet.RefusedCredentials, packet.BadCredentials},
		"no password":   {"press", "", packet.RefusedCredentials, packet.BadCredentials},
		"nothing":       {"", "", packet.RefusedNotAuthorized, packet.NotAuthorized},
		"too long":      {"press", strings.Repeat("x", 100), packet.RefusedCredentials, packet.BadCredentials},
		"with a suffix": {"press", "secret\x00x", packet.RefusedCredentials, packet.BadCredentials},
	} {
		t.Run(name, func(t *testing.T) {
			if a := b.dial().hello(login(packet.V311, "a", tc.user, tc.password)); a.Code != tc.v311 {
				t.Errorf("3.1.1: %#x, want %#x", a.Code, tc.v311)
			}
			if tc.user == "" && tc.password != "" {
				return
			}
			if a := b.dial().hello(login(packet.V5, "a", tc.user, tc.password)); a.Code != tc.v5 {
				t.Errorf("5: %#x, want %#x", a.Code, tc.v5)
			}
		})
	}
	for _, line := range b.logged.All() {
		for _, f := range line.Context {
			if strings.Contains(f.String, "ecret") {
				t.Errorf("a password is in the log: %+v", line)
			}
		}
	}
}

func TestUsersFileProblemsNameTheLineAndNoHash(t *testing.T) {
	weak, _ := bcrypt.GenerateFromPassword([]byte("x"), bcrypt.MinCost)
	good := userLine(t, "a", "x")
	for name, tc := range map[string]struct{ text, want string }{
		"no colon":      {"a", "line 1: not name:bcrypt-hash"},
		"no name":       {":" + string(weak), "line 1: not name:bcrypt-hash"},
		"no hash":       {good + "\nb:plain", `line 2: "b" has no bcrypt hash`},
		"cost too low":  {"a:" + string(weak), `line 1: "a" has bcrypt cost 4, not 8 to 14`},
		"cost too high": {strings.Replace(good, "$08$", "$31$", 1), `line 1: "a" has bcrypt cost 31`},
		"twice":         {good + "\n" + good, `line 2: "a" is there twice`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parseUsers(strings.NewReader(tc.text))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Fatalf("got %v, want %s", err, tc.want)
			}
			if strings.Contains(err.Error(), "plain") || strings.Contains(err.Error(), "$2a$") {
				t.Errorf("the hash is in the error: %v", err)
			}
		})
	}
}

func TestReloadedUsersCountAtOnce(t *testing.T) {
	t.Parallel()
	u := usersFile(t, userLine(t, "a", "one"))
	ctx := context.Background()
	if err := u.Check(ctx, "a", []byte("one")); err != nil {
		t.Fatal(err)
	}
	os.WriteFile(u.path, []byte(userLine(t, "a", "two")), 0o600)
	if err := u.Reload(); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(u.Check(ctx, "a", []byte("one")), errCredentials) || u.Check(ctx, "a", []byte("two")) != nil {
		t.Error("the old password counts")
	}
	os.WriteFile(u.path, []byte("broken"), 0o600)
	if err := u.Reload(); err == nil || u.Check(ctx, "a", []byte("two")) != nil {
		t.Errorf("a broken file: %v", err)
	}
	// Nobody is called a liar because others are being checked.
	for range cap(u.verifying) {
		u.verifying <- struct{}{}
	}
	over, cancel := context.WithCancel(ctx)
	cancel()
	if err := u.Check(over, "a", []byte("three")); !errors.Is(err, errBusy) {
		t.Errorf("while others are checked: %v", err)
	}
	if err := u.Check(over, "a", []byte("two")); err != nil {
		t.Errorf("a known password while others are checked: %v", err)
	}
}

func TestUserLineIsReadBack(t *testing.T) {
	t.Parallel()
	line, err := UserLine("press 7", "secret")
	if err != nil {
		t.Fatal(err)
	}
	if u := usersFile(t, line); u.Check(context.Background(), "press 7", []byte("secret")) != nil {
		t.Error("refused")
	}
	for _, name := range []string{"", "a:b", "a\n", " a", "#a"} {
		if _, err := UserLine(name, "x"); err == nil {
			t.Errorf("name %q was accepted", name)
		}
	}
}

func TestAccessRules(t *testing.T) {
	a := access{mutual: true, rules: []ACLRule{
		{User: "*", Publish: []string{"sensors/%u/#", "ids/%c"}, Subscribe: []string{"gateway/%u/c2d/#"}},
		{User: "boss", Publish: []string{"#"}, Subscribe: []string{"gateway/#"}},
		{User: "", Publish: []string{"open/+"}},
	}}
	for _, tc := range []struct {
		user, client, topic string
		want                bool
	}{
		{"a", "x", "sensors/a/t", true}, {"a", "x", "sensors/b/t", false}, {"a", "x", "ids/x", true}, {"a", "x", "ids/y", false},
		{"boss", "x", "anything/at/all", true}, {"", "x", "sensors//t", false}, {"", "x", "ids/x", false}, {"", "x", "open/1", true},
		{"+", "x", "sensors/b/t", false}, {"#", "x", "sensors/b/t", false}, {"a/b", "x", "sensors/a/b/t", false},
		{"a", "#", "ids/y", false}, {"a", "+", "ids/y", false}, {"%c", "b", "sensors/b/t", false},
	} {
		if got := a.mayPublish(tc.user, tc.client, tc.topic); got != tc.want {
			t.Errorf("publish %+v: %v", tc, got)
		}
	}
	for _, tc := range []struct {
		user, filter string
		want         bool
	}{
		{"a", "gateway/a/c2d/#", true}, {"a", "gateway/a/c2d/x", true}, {"a", "gateway/+/c2d/#", false}, {"a", "gateway/#", false},
		{"a", "gateway/b/c2d/#", false}, {"boss", "gateway/+/status", true}, {"boss", "gateway/#", true},
	} {
		if got := a.maySubscribe(tc.user, "x", tc.filter); got != tc.want {
			t.Errorf("subscribe %+v: %v", tc, got)
		}
	}
	if none := (&access{users: new(Users)}); none.mayPublish("a", "x", "t") {
		t.Error("without rules everything is allowed to users")
	}
}

func TestRefusedTopicsAreToldAndCounted(t *testing.T) {
	t.Parallel()
	users := usersFile(t, userLine(t, "a", "x"))
	b := start(t, benchOptions{config: MQTTConfig{Users: users, ACL: []ACLRule{{User: "*", Publish: []string{"sensors/%u/telemetry"}}}}})
	c := b.dial()
	c.hello(login(packet.V5, "id", "a", "x"))
	c.send(packet.Publish{Topic: "sensors/b/telemetry", QoS: 1, ID: 1})
	if code := c.puback(1); code != packet.NotAuthorized {
		t.Errorf("%#x", code)
	}
	c.send(telemetry(2, "x"))
	if code := c.puback(2); code != 0 {
		t.Errorf("%#x", code)
	}
	if code := c.subscribe("gateway/#", 1); code != packet.NotAuthorized {
		t.Errorf("subscribe: %#x", code)
	}
	if n := b.gate.Ledger().Sources()[0].Refused["not_allowed"]; n != 1 {
		t.Errorf("counted %d", n)
	}
	old := b.dial()
	old.hello(login(packet.V311, "id2", "a", "x"))
	old.send(packet.Publish{Topic: "sensors/b/telemetry", QoS: 1, ID: 1})
	old.closed(0)
}

func TestAnotherUserCannotTakeAClientIDOver(t *testing.T) {
	t.Parallel()
	users := usersFile(t, userLine(t, "a", "x"), userLine(t, "b", "x"))
	b := start(t, benchOptions{config: MQTTConfig{Users: users, ACL: []ACLRule{{Publish: []string{"#"}}}}})
	first := b.dial()
	first.hello(login(packet.V5, "id", "a", "x"))
	if a := b.dial().hello(login(packet.V5, "id", "b", "x")); a.Code != packet.InvalidClientID {
		t.Errorf("CONNACK %#x", a.Code)
	}
	first.send(telemetry(1, "x"))
	first.puback(1)
}

func TestWhoMayComeInIsDecidedByTheAddress(t *testing.T) {
	gate := NewGate(nil, nil, NewLedger(0, 0), GateLimits{}, zap.NewNop())
	for listen, want := range map[string]string{
		"127.0.0.1:0": "", "[::1]:0": "", "localhost:0": "", "unix:///tmp/x": "",
		":1883": "listen: others", "0.0.0.0:1883": "listen: others", "192.0.2.1:1883": "listen: others",
		"tls://127.0.0.1:0": "tls: cert and key", "http://127.0.0.1:1": "listen: ", "127.0.0.1": "listen: ", "unix://x": "listen: ",
	} {
		_, err := NewMQTT(MQTTConfig{Listen: listen}, gate, NewLocal(LocalConfig{}, nil), zap.NewNop())
		if (err == nil) != (want == "") || (err != nil && !strings.HasPrefix(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", listen, err, want)
		}
		if want == "listen: others" {
			if _, err := NewMQTT(MQTTConfig{Listen: listen, Anonymous: true}, gate, NewLocal(LocalConfig{}, nil), zap.NewNop()); err != nil {
				t.Errorf("%s with anonymous: %v", listen, err)
			}
			if _, err := NewHTTP(HTTPConfig{Listen: listen}, gate, zap.NewNop()); err == nil {
				t.Errorf("HTTP on %s was accepted", listen)
			}
		}
	}
}

// pki writes a server certificate and a CA for clients.
func pki(t testing.TB) (files TLSFiles, client func(cn string) *tls.Config) {
	t.Helper()
	ca, err := certtest.NewCA("site")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	files = TLSFiles{Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem"), ClientCA: filepath.Join(dir, "ca.pem")}
	server, err := ca.Issue(certtest.Leaf{CN: "gateway", DNS: []string{"localhost"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Write(files.Cert, files.Key); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(files.ClientCA, ca.PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	return files, func(cn string) *tls.Config {
		c := &tls.Config{RootCAs: ca.Pool(), ServerName: "localhost"}
		if cn != "" {
			pair, err := ca.Issue(certtest.Leaf{CN: cn})
			if err != nil {
				t.Fatal(err)
			}
			c.Certificates = []tls.Certificate{pair.TLS()}
		}
		return c
	}
}

func (b *bench) dialTLS(cfg *tls.Config) *client {
	b.t.Helper()
	nc, err := tls.Dial("tcp", b.mqtt.Addr().String(), cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { nc.Close() })
	return &client{t: b.t, nc: nc, r: packet.NewReader(nc, 0), v: packet.V5}
}

func TestClientCertificateNamesTheUser(t *testing.T) {
	files, clientTLS := pki(t)
	b := start(t, benchOptions{config: MQTTConfig{Listen: "tls://127.0.0.1:0", TLS: files, ACL: []ACLRule{{Publish: []string{"sensors/%u/telemetry"}}}}})
	c := b.dialTLS(clientTLS("a"))
	c.hello(login(packet.V5, "id", "", ""))
	c.send(telemetry(1, "x"))
	if code := c.puback(1); code != 0 {
		t.Errorf("%#x", code)
	}
	other := b.dialTLS(clientTLS("b"))
	if a := other.hello(login(packet.V5, "id2", "a", "whatever")); a.Code != packet.NotAuthorized {
		t.Errorf("another's user name: %#x", a.Code)
	}
	nobody := b.dialTLS(clientTLS(""))
	nobody.nc.SetDeadline(time.Now().Add(5 * time.Second))
	nobody.nc.Write([]byte{0})
	if _, err := nobody.nc.Read(make([]byte, 1)); err == nil {
		t.Error("a client without a certificate was let in")
	}
	b.stop()
	c.closed(packet.ServerShuttingDown)
}

func TestRenewedServerCertificateNeedsNoRestart(t *testing.T) {
	files, _ := pki(t)
	r, err := newTLSReloader(files, true, false)
	if err != nil {
		t.Fatal(err)
	}
	before := r.current().Certificates[0].Leaf.SerialNumber
	age := func() { r.mu.Lock(); r.checked = time.Time{}; r.mu.Unlock() }
	os.WriteFile(files.Key, []byte("torn"), 0o600)
	age()
	if got := r.current().Certificates[0].Leaf.SerialNumber; got.Cmp(before) != 0 {
		t.Error("a torn file was used")
	}
	ca, _ := certtest.NewCA("other")
	pair, _ := ca.Issue(certtest.Leaf{CN: "gateway", DNS: []string{"localhost"}})
	if err := pair.Write(files.Cert, files.Key); err != nil {
		t.Fatal(err)
	}
	age()
	if got := r.current().Certificates[0].Leaf.SerialNumber; got.Cmp(pair.Leaf.SerialNumber) != 0 {
		t.Error("the new certificate is not served")
	}
}

func TestUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mqtt.sock")
	// What a killed process leaves behind is replaced, a live one is not.
	left, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	left.(*net.UnixListener).SetUnlinkOnClose(false)
	left.Close()
	b := start(t, benchOptions{config: MQTTConfig{Listen: "unix://" + path}})
	c := b.connect(packet.V311, "a")
	c.send(telemetry(1, "x"))
	c.puback(1)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	second, err := NewMQTT(MQTTConfig{Listen: "unix://" + path}, b.gate, b.local, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Listen(); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a socket in use was taken: %v", err)
	}
	b.stop()
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the socket file is left: %v", err)
	}
}
