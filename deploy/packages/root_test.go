package packages

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// root is a folder with just enough of a Debian system for dpkg and the scripts of
// a package, entered by chroot: it needs no mount, no network and no systemd, and
// nothing outside it is changed.
type root struct {
	t   *testing.T
	dir string
}

// tools are what dpkg and the scripts call. systemd-sysusers and systemd-tmpfiles
// want /proc and are left out: the scripts do without here.
var tools = []string{"sh", "dpkg", "dpkg-deb", "dpkg-split", "dpkg-query", "tar", "rm", "rmdir", "mkdir", "chgrp", "chmod", "cat",
	"diff", "ldconfig", "start-stop-daemon", "getent", "groupadd", "useradd"}

func newRoot(t *testing.T) *root {
	t.Helper()
	r := &root{t: t, dir: t.TempDir()}
	for _, d := range []string{"/etc", "/tmp", "/dev", "/var/lib/dpkg/info", "/var/lib/dpkg/updates", "/var/lib/dpkg/triggers", "/var/log", "/run", "/usr/sbin", "/bin"} {
		check(t, os.MkdirAll(r.path(d), 0o755))
	}
	// t.TempDir is for its owner only, and the user gatewayd has to get through.
	for d := r.dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		check(t, os.Chmod(d, 0o755))
	}
	r.write("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
	r.write("/etc/group", "root:x:0:\n")
	r.write("/etc/shadow", "root:*:19000:0:99999:7:::\n")
	r.write("/etc/gshadow", "root:*::\n")
	r.write("/var/lib/dpkg/status", "")
	r.write("/dev/null", "")
	for _, tool := range tools {
		path, err := exec.LookPath(tool)
		if err != nil {
			path, err = exec.LookPath("/usr/sbin/" + tool)
		}
		check(t, err)
		r.copy(path)
	}
	check(t, os.Symlink("/usr/bin/sh", r.path("/bin/sh.link")))
	if _, err := os.Stat(r.path("/bin/sh")); err != nil {
		check(t, os.Rename(r.path("/bin/sh.link"), r.path("/bin/sh")))
	}
	return r
}

var library = regexp.MustCompile(`(/\S+) \(0x`)

// copy copies a program and what it is linked with to the same places.
func (r *root) copy(path string) {
	r.t.Helper()
	// Linked with nothing is an error for ldd.
	linked, _ := exec.Command("ldd", path).Output()
	files := []string{path}
	for _, m := range library.FindAllStringSubmatch(string(linked), -1) {
		files = append(files, m[1])
	}
	for _, file := range files {
		if _, err := os.Stat(r.path(file)); err == nil {
			continue
		}
		check(r.t, os.MkdirAll(filepath.Dir(r.path(file)), 0o755))
		in := must(os.Open(file))(r.t)
		out := must(os.OpenFile(r.path(file), os.O_CREATE|os.O_WRONLY, 0o755))(r.t)
		_, err := io.Copy(out, in)
		in.Close()
		check(r.t, err)
		check(r.t, out.Close())
	}
}

func (r *root) path(name string) string { return filepath.Join(r.dir, name) }

func (r *root) read(name string) string {
	r.t.Helper()
	return string(must(os.ReadFile(r.path(name)))(r.t))
}

// write keeps owner and mode of a file that exists.
func (r *root) write(name, text string) {
	r.t.Helper()
	check(r.t, os.WriteFile(r.path(name), []byte(text), 0o644))
}

// user looks into the root's own passwd.
func (r *root) user(name string) (uid, gid int) {
	r.t.Helper()
	for line := range strings.Lines(r.read("/etc/passwd")) {
		if f := strings.Split(line, ":"); f[0] == name {
			return must(strconv.Atoi(f[2]))(r.t), must(strconv.Atoi(f[3]))(r.t)
		}
	}
	r.t.Fatalf("no user %s", name)
	return 0, 0
}

// who runs a command in a root.
type who string

const (
	asRoot     who = ""
	asGatewayd who = "gatewayd"
)

func (r *root) command(as who, name string, args ...string) *exec.Cmd {
	r.t.Helper()
	path := ""
	for _, dir := range []string{"/usr/bin", "/usr/sbin", "/bin", "/sbin"} {
		if _, err := os.Stat(r.path(dir + "/" + name)); err == nil {
			path = dir + "/" + name
		}
	}
	cmd := &exec.Cmd{Path: path, Args: append([]string{name}, args...), Dir: "/", Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C"}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: r.dir}
	if as != asRoot {
		uid, gid := r.user(string(as))
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	return cmd
}

func (r *root) run(as who, name string, args ...string) (string, error) {
	r.t.Helper()
	out, err := r.command(as, name, args...).CombinedOutput()
	return string(out), err
}

// dpkg installs or removes, without a person to ask.
func (r *root) dpkg(action, what string) {
	r.t.Helper()
	if action == "--install" {
		inside := "/tmp/" + filepath.Base(what)
		check(r.t, os.WriteFile(r.path(inside), must(os.ReadFile(what))(r.t), 0o644))
		what = inside
	}
	if out, err := r.run(asRoot, "dpkg", action, what); err != nil {
		r.t.Fatalf("dpkg %s %s: %v\n%s", action, what, err, out)
	}
}

// running is a gatewayd in a root.
type running struct {
	t   *testing.T
	cmd *exec.Cmd
	log buffer
}

// stop asks politely, as systemd does.
func (p *running) stop() {
	p.t.Helper()
	check(p.t, p.cmd.Process.Signal(syscall.SIGTERM))
	late := time.AfterFunc(40*time.Second, func() { _ = p.cmd.Process.Kill() })
	defer late.Stop()
	if err := p.cmd.Wait(); err != nil {
		p.t.Fatalf("gatewayd: %v\n%s", err, p.log.String())
	}
}

type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
