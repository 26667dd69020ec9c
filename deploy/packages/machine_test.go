package packages

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// machine is this machine's files with a real systemd as first process: an overlay
// in a mount namespace, so that whatever is installed in it is gone afterwards, in
// processes, mounts, host name and network of its own.
type machine struct {
	t    *testing.T
	init int // process id of its systemd
}

// start makes the overlay and enters it. A file system of its own for the state
// lets a test freeze it.
const startMachine = `set -e
mount -t tmpfs none "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
rm -f "$1/root/etc/machine-id"
: >"$1/root/etc/machine-id"
rm -rf "$1/root/var/log/journal"
if truncate -s 64M "$1/disk" && mkfs.ext4 -q "$1/disk" && mkdir -p "$1/root/var/lib/gatewayd" && mount -o loop "$1/disk" "$1/root/var/lib/gatewayd"; then
	rmdir "$1/root/var/lib/gatewayd/lost+found"
	touch "$1/root/freezable"
fi
exec systemd-nspawn --quiet --directory "$1/root" --boot --private-network --register=no --keep-unit --link-journal=no \
	--console=pipe --machine gatewayd-test systemd.unit=basic.target`

// newMachine boots one, or skips the test with what is missing.
func newMachine(t *testing.T) *machine {
	t.Helper()
	if _, err := exec.LookPath("systemd-nspawn"); err != nil {
		t.Skip("systemd is not booted: there is no systemd-nspawn")
	}
	if out, err := exec.Command("unshare", "--mount", "--", "mount", "-t", "tmpfs", "none", t.TempDir()).CombinedOutput(); err != nil {
		t.Skipf("systemd is not booted: nothing can be mounted here: %s", out)
	}
	var log buffer
	nspawn := exec.Command("unshare", "--mount", "--", "sh", "-c", startMachine, "sh", t.TempDir())
	nspawn.Stdout, nspawn.Stderr = &log, &log
	check(t, nspawn.Start())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = nspawn.Wait() }()
	m := &machine{t: t}
	t.Cleanup(func() {
		if m.init != 0 {
			_ = syscall.Kill(m.init, syscall.SIGKILL) // everything in it dies with it
		}
		_ = nspawn.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			_ = nspawn.Process.Kill()
			<-ended
		}
	})
	for end := time.Now().Add(40 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		m.find(nspawn.Process.Pid)
		if m.init != 0 {
			if state, _ := m.run("systemctl", "is-system-running"); state == "running" || state == "degraded" {
				return m
			}
		}
		select {
		case <-ended:
			t.Fatalf("systemd does not boot:\n%s", log.String())
		default:
		}
		if time.Now().After(end) {
			t.Fatalf("systemd does not come up:\n%s", log.String())
		}
	}
}

// find looks for the child of nspawn that is the first process inside.
func (m *machine) find(nspawn int) {
	pid := strconv.Itoa(nspawn)
	children, err := os.ReadFile("/proc/" + pid + "/task/" + pid + "/children")
	if err != nil {
		return
	}
	for _, child := range strings.Fields(string(children)) {
		status, err := os.ReadFile("/proc/" + child + "/status")
		if err == nil && strings.HasPrefix(string(status), "Name:\tsystemd\n") {
			m.init, _ = strconv.Atoi(child)
		}
	}
}

// run runs a command inside and returns what it printed, without the end of line.
func (m *machine) run(args ...string) (string, error) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"-t", strconv.Itoa(m.init), "-m", "-u", "-i", "-n", "-p", "--"}, args...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C", "SYSTEMD_PAGER=", "HOME=/root"}
	err := cmd.Run()
	return strings.TrimSpace(out.String()), err
}

func (m *machine) must(args ...string) string {
	m.t.Helper()
	out, err := m.run(args...)
	if err != nil {
		journal, _ := m.run("journalctl", "-n", "30", "--no-pager", "-u", "gatewayd")
		m.t.Fatalf("%s: %v\n%s\n%s", strings.Join(args, " "), err, out, journal)
	}
	return out
}

// show is a property of the unit.
func (m *machine) show(property string) string {
	m.t.Helper()
	return m.must("systemctl", "show", "gatewayd", "--property", property, "--value")
}

func (m *machine) write(name, text string) {
	m.t.Helper()
	path := m.path(name)
	check(m.t, os.MkdirAll(filepath.Dir(path), 0o755))
	check(m.t, os.WriteFile(path, []byte(text), 0o644))
}

// path is where a file of the machine is seen from outside.
func (m *machine) path(name string) string {
	return filepath.Join("/proc", strconv.Itoa(m.init), "root", name)
}
