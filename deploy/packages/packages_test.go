// Package packages tests the .deb as an operator uses it: install, upgrade with a
// full queue, downgrade, remove, purge. "make shipped" builds what it needs.
package packages

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/hub/hubtest"
)

// packagesIn is the folder with two versions of the package, 1.0.0 and 1.1.0.
const packagesIn = "GATEWAYD_PACKAGES"

// An upgrade, a downgrade and a removal of the package keep configuration and queue,
// and what was acknowledged under one version is delivered by the other.
func TestQueueOutlivesThePackage(t *testing.T) {
	t.Parallel()
	old, now := built(t, "gatewayd_%s_*.deb")
	r := newRoot(t)

	r.dpkg("--install", old)
	r.wantVersion("v1.0.0")
	r.wantMode("/etc/gatewayd", 0o750)
	r.wantMode("/etc/gatewayd/certs", 0o750)
	r.wantMode("/etc/gatewayd/config.yaml", 0o640)
	out, err := r.run(asGatewayd, "gatewayd", "check", "-c", "/etc/gatewayd/config.yaml")
	if err == nil || !strings.Contains(out, "identities[0].certificate.cert: ") ||
		strings.Count(out, "config.yaml:") != strings.Count(out, ": identities[0].certificate.") {
		t.Errorf("the configuration as installed lacks more than its certificate: %v\n%s", err, out)
	}

	s := newSite(t, r)
	s.hub.StopListening()
	running := s.start()
	acked := s.fill()
	running.stop()
	t.Logf("%d messages fill the queue", len(acked))
	configured := r.read("/etc/gatewayd/config.yaml")

	r.dpkg("--install", now)
	r.wantVersion("v1.1.0")
	if r.read("/etc/gatewayd/config.yaml") != configured {
		t.Error("the upgrade has changed config.yaml")
	}
	s.wantQueued(len(acked))
	running = s.start()
	if code := s.post(strings.Repeat("one too many", 100)); code != http.StatusServiceUnavailable {
		t.Errorf("after the upgrade the full queue answers %d", code)
	}
	running.stop()

	r.dpkg("--install", old)
	r.wantVersion("v1.0.0")
	s.wantQueued(len(acked))
	check(t, s.hub.Resume())
	running = s.start()
	s.wantDelivered(acked)
	s.hub.StopListening()
	s.hub.DropConnections("")
	if code := s.post("last"); code != http.StatusAccepted {
		t.Errorf("a reading before the removal: %d", code)
	}
	running.stop()

	r.dpkg("--remove", "gatewayd")
	r.wantGone("/usr/bin/gatewayd", "/usr/lib/systemd/system/gatewayd.service")
	if r.read("/etc/gatewayd/config.yaml") != configured {
		t.Error("the removal has changed config.yaml")
	}
	r.dpkg("--install", now)
	check(t, s.hub.Resume())
	running = s.start()
	s.wantDelivered(append(acked, "last"))
	running.stop()

	r.dpkg("--purge", "gatewayd")
	r.wantGone("/usr/bin/gatewayd", "/etc/gatewayd/config.yaml", "/var/lib/gatewayd", "/usr/share/doc/gatewayd")
	if r.read("/etc/gatewayd/certs/press-7.key") == "" {
		t.Error("the purge has taken the operator's key")
	}
}

// The .rpm goes the same way with its own words: it never overwrites the
// configuration, and leaves it and the queue behind.
func TestQueueOutlivesTheRPM(t *testing.T) {
	t.Parallel()
	old, now := built(t, "gatewayd-%s-1.*.rpm")
	if _, err := exec.LookPath("rpm"); err != nil {
		t.Skip("there is no rpm")
	}
	r := newRoot(t)
	rpm := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("rpm", append([]string{"--root", r.dir, "--noplugins"}, args...)...).CombinedOutput(); err != nil || strings.Contains(string(out), "scriptlet failed") {
			t.Fatalf("rpm %v: %v\n%s", args, err, out)
		}
	}
	rpm("--install", old)
	r.wantVersion("v1.0.0")
	r.wantMode("/etc/gatewayd/config.yaml", 0o640)
	s := newSite(t, r)
	s.hub.StopListening()
	running := s.start()
	acked := s.fill()
	running.stop()
	configured := r.read("/etc/gatewayd/config.yaml")
	rpm("--upgrade", now)
	r.wantVersion("v1.1.0")
	s.wantQueued(len(acked))
	rpm("--upgrade", "--oldpackage", old)
	r.wantVersion("v1.0.0")
	if r.read("/etc/gatewayd/config.yaml") != configured {
		t.Error("config.yaml has changed")
	}
	rpm("--erase", "gatewayd")
	r.wantGone("/usr/bin/gatewayd")
	if r.read("/etc/gatewayd/config.yaml.rpmsave") != configured {
		t.Error("the removal has changed config.yaml")
	}
	rpm("--install", now)
	r.write("/etc/gatewayd/config.yaml", configured)
	check(t, s.hub.Resume())
	running = s.start()
	s.wantDelivered(acked)
	running.stop()
}

// built are the two versions of a package for this machine.
func built(t *testing.T, name string) (old, now string) {
	t.Helper()
	dir := os.Getenv(packagesIn)
	if dir == "" {
		t.Skip("make shipped runs this test: it needs two versions of the package, and root")
	}
	if os.Getuid() != 0 {
		t.Fatal("a root of its own needs root")
	}
	found := func(version string) string {
		files, err := filepath.Glob(filepath.Join(dir, fmt.Sprintf(name, version)))
		check(t, err)
		if len(files) != 1 {
			t.Fatalf("%s holds %d packages of version %s", dir, len(files), version)
		}
		return files[0]
	}
	return found("1.0.0"), found("1.1.0")
}

// site is a configured gateway in a root, with a stand-in hub outside.
type site struct {
	t      *testing.T
	r      *root
	hub    *hubtest.Hub
	listen string
}

func newSite(t *testing.T, r *root) *site {
	t.Helper()
	ca := must(certtest.NewCA("site CA"))(t)
	hub := must(hubtest.New(hubtest.Options{}))(t)
	hub.AddCA(ca.Cert)
	check(t, hub.AddDevice(hubtest.Device{DeviceID: "press-7"}))
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = hub.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })

	pair := must(ca.Issue(certtest.Leaf{CN: "press-7"}))(t)
	certs := r.path("/etc/gatewayd/certs")
	check(t, pair.Write(filepath.Join(certs, "press-7.pem"), filepath.Join(certs, "press-7.key")))
	check(t, os.WriteFile(filepath.Join(certs, "hub-ca.pem"), hub.ServerCAPEM(), 0o640))
	_, group := r.user("gatewayd")
	for _, name := range []string{"press-7.pem", "press-7.key", "hub-ca.pem"} {
		check(t, os.Chown(filepath.Join(certs, name), 0, group))
		check(t, os.Chmod(filepath.Join(certs, name), 0o640))
	}
	s := &site{t: t, r: r, hub: hub, listen: freeAddress(t)}
	r.write("/etc/gatewayd/config.yaml", fmt.Sprintf(`state_dir: /var/lib/gatewayd
hub: {trust: [certs/hub-ca.pem], system_roots: false}
identities:
  - connection_string: HostName=%s;DeviceId=press-7;x509=true
    address: %s
    certificate: {cert: certs/press-7.pem, key: certs/press-7.key}
    queue: {max_bytes: 128KiB}
downstream: {http: [{listen: %q}]}
routes: [{match: "#", to: press-7}]
admin: {listen: ""}
`, hub.HostName(), hub.Addr(), s.listen))
	return s
}

// start runs the installed program as its user, on the folder that the unit would
// have made.
func (s *site) start() *running {
	s.t.Helper()
	uid, gid := s.r.user("gatewayd")
	check(s.t, os.MkdirAll(s.r.path("/var/lib/gatewayd"), 0o700))
	check(s.t, os.Chown(s.r.path("/var/lib/gatewayd"), uid, gid))
	p := &running{t: s.t, cmd: s.r.command(asGatewayd, "gatewayd", "run", "-c", "/etc/gatewayd/config.yaml")}
	p.cmd.Stdout, p.cmd.Stderr = &p.log, &p.log
	check(s.t, p.cmd.Start())
	s.t.Cleanup(func() { _ = p.cmd.Process.Kill() })
	eventually(s.t, "gatewayd listens", func() bool {
		c, err := net.Dial("tcp", s.listen)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return p
}

func (s *site) post(body string) int {
	s.t.Helper()
	resp, err := http.Post("http://"+s.listen+"/v1/messages/sensors/a", "text/plain", strings.NewReader(body))
	check(s.t, err)
	_, _ = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	return resp.StatusCode
}

// fill posts until the queue is full and returns what was acknowledged.
func (s *site) fill() (acked []string) {
	s.t.Helper()
	for n := range 1000 {
		body := fmt.Sprintf("reading %d %s", n, strings.Repeat(".", 1024))
		switch code := s.post(body); code {
		case http.StatusAccepted:
			acked = append(acked, body)
		case http.StatusServiceUnavailable:
			if len(acked) < 50 {
				s.t.Fatalf("full after %d messages", len(acked))
			}
			return acked
		default:
			s.t.Fatalf("posting: %d", code)
		}
	}
	s.t.Fatal("the queue is never full")
	return nil
}

// wantDelivered waits for these messages, in this order, not counting what is
// sent again.
func (s *site) wantDelivered(want []string) {
	s.t.Helper()
	var got []string
	first := func() bool {
		got = got[:0]
		seen := make(map[string]bool)
		for _, m := range s.hub.Messages() {
			if body := string(m.Body); !seen[body] {
				seen[body] = true
				got = append(got, body)
			}
		}
		return len(got) >= len(want)
	}
	eventually(s.t, "everything arrives", first)
	if !slices.Equal(got, want) {
		s.t.Errorf("%d messages arrived, %d were acknowledged, or in another order", len(got), len(want))
	}
}

// wantQueued compares with what the installed program finds on disk.
func (s *site) wantQueued(n int) {
	s.t.Helper()
	out, err := s.r.run(asGatewayd, "gatewayd", "queue", "ls", "-c", "/etc/gatewayd/config.yaml")
	check(s.t, err)
	if !regexp.MustCompile(fmt.Sprintf(`(?m)^press-7\s+%d\s`, n)).MatchString(out) {
		s.t.Errorf("not %d messages queued:\n%s", n, out)
	}
}

func (r *root) wantVersion(want string) {
	r.t.Helper()
	out, err := r.run(asRoot, "gatewayd", "version", "--json")
	check(r.t, err)
	var got struct{ Version, Commit string }
	check(r.t, json.Unmarshal([]byte(out), &got))
	if got.Version != want || got.Commit == "" {
		r.t.Errorf("installed is %+v, not %s", got, want)
	}
}

// wantMode wants the file to be of root and the group gatewayd.
func (r *root) wantMode(path string, mode os.FileMode) {
	r.t.Helper()
	info, err := os.Stat(r.path(path))
	check(r.t, err)
	owner := info.Sys().(*syscall.Stat_t)
	_, group := r.user("gatewayd")
	if info.Mode().Perm() != mode || owner.Uid != 0 || int(owner.Gid) != group {
		r.t.Errorf("%s: mode %o, owner %d:%d", path, info.Mode().Perm(), owner.Uid, owner.Gid)
	}
}

func (r *root) wantGone(paths ...string) {
	r.t.Helper()
	for _, path := range paths {
		if _, err := os.Lstat(r.path(path)); !errors.Is(err, os.ErrNotExist) {
			r.t.Errorf("%s is still there: %v", path, err)
		}
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer l.Close()
	return l.Addr().String()
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		check(t, err)
		return v
	}
}
