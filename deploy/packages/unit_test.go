package packages

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"gatewayd/internal/certstore/certtest"
)

// The unit in a real systemd, installed by the package: READY, hardening, reload,
// watchdog, upgrade, stop, removal.
func TestUnitUnderSystemd(t *testing.T) {
	t.Parallel()
	old, now := built(t, "gatewayd_%s_*.deb")
	m := newMachine(t)
	t.Log(strings.SplitN(m.must("systemctl", "--version"), "\n", 2)[0])
	install := func(deb string) {
		t.Helper()
		inside := "/root/" + filepath.Base(deb)
		m.write(inside, string(must(os.ReadFile(deb))(t)))
		m.must("dpkg", "--install", inside)
	}

	install(old)
	if state, _ := m.run("systemctl", "is-enabled", "gatewayd"); state != "disabled" || m.show("ActiveState") != "inactive" {
		t.Errorf("after the installation it is %s and %s, before anybody has configured it", state, m.show("ActiveState"))
	}
	m.configure()
	m.must("systemctl", "enable", "--now", "--no-block", "gatewayd")
	eventually(t, "READY", func() bool { return m.show("ActiveState") == "active" })
	m.wantStatusLine("0 of 1 identities")
	m.wantHardened()

	// Acknowledged, so on the disk, whatever happens to the process from here on.
	m.post("before")
	for _, test := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"reload", m.reload}, {"priorities", m.priorities}, {"watchdog", m.watchdog}, {"stall", m.stall},
	} {
		inner := *m
		if !t.Run(test.name, func(t *testing.T) { m.t = t; test.run(t) }) {
			m.t = t
			t.Log(m.must("journalctl", "-u", "gatewayd", "--no-pager", "-n", "30"))
			t.Log(m.must("systemctl", "show", "gatewayd", "-p", "ActiveState,SubState,MainPID,NRestarts,WatchdogUSec,WatchdogTimestampMonotonic,Result"))
			t.FailNow()
		}
		*m = inner
	}

	queued := func() string { return m.must("gatewayd", "queue", "ls", "-c", "/etc/gatewayd/config.yaml") }
	pid, before := m.show("MainPID"), waiting.FindString(queued())
	install(now)
	eventually(t, "the new version runs", func() bool { return m.show("ActiveState") == "active" && m.show("MainPID") != pid })
	if out := queued(); before == "" || waiting.FindString(out) != before {
		t.Errorf("%s were queued, and now:\n%s", before, out)
	}

	m.must("systemctl", "stop", "gatewayd")
	if result, code := m.show("Result"), m.show("ExecMainStatus"); result != "success" || code != "0" {
		t.Errorf("stopped with %s, exit code %s", result, code)
	}
	m.must("systemctl", "start", "gatewayd")
	m.must("dpkg", "--remove", "gatewayd")
	if state, _ := m.run("systemctl", "is-active", "gatewayd"); state == "active" {
		t.Error("it runs on after the removal")
	}
	if _, err := os.Stat(m.path("/var/lib/gatewayd/queue")); err != nil {
		t.Errorf("the queue after the removal: %v", err)
	}
}

// waiting is how much is queued in what queue ls prints.
var waiting = regexp.MustCompile(`press-7 +[1-9][0-9]* `)

// configure writes a configuration whose hub cannot be reached: nothing that is
// tested here waits for it.
func (m *machine) configure() {
	m.t.Helper()
	m.write("/etc/gatewayd/config.yaml", `state_dir: /var/lib/gatewayd
identities:
  - connection_string: HostName=hub.invalid;DeviceId=press-7;x509=true
    certificate: {cert: certs/press-7.pem, key: certs/press-7.key}
downstream: {http: [{listen: "127.0.0.1:8080"}], mqtt: [{listen: "127.0.0.1:1883"}, {listen: "unix:///run/gatewayd/mqtt.sock"}]}
routes: [{match: "#", to: press-7}]
`)
	ca := must(certtest.NewCA("site CA"))(m.t)
	pair := must(ca.Issue(certtest.Leaf{CN: "press-7"}))(m.t)
	dir := m.path("/etc/gatewayd/certs")
	check(m.t, pair.Write(filepath.Join(dir, "press-7.pem"), filepath.Join(dir, "press-7.key")))
	m.must("chown", "root:gatewayd", "/etc/gatewayd/certs/press-7.key", "/etc/gatewayd/certs/press-7.pem")
	m.must("chmod", "640", "/etc/gatewayd/certs/press-7.key")
	m.must("runuser", "-u", "gatewayd", "--", "gatewayd", "check", "-c", "/etc/gatewayd/config.yaml")
}

func (m *machine) post(body string) {
	m.t.Helper()
	script := `exec 3<>/dev/tcp/127.0.0.1/8080; printf 'POST /v1/messages/a HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s' ${#1} "$1" >&3; head -n 1 <&3`
	if out := m.must("bash", "-c", script, "bash", body); !strings.Contains(out, " 202 ") {
		m.t.Fatalf("posting: %s", out)
	}
}

func (m *machine) wantStatusLine(text string) {
	m.t.Helper()
	if got := m.show("StatusText"); !strings.Contains(got, text) {
		m.t.Errorf("the status line is %q", got)
	}
}

// wantHardened looks at what the process really has.
func (m *machine) wantHardened() {
	m.t.Helper()
	status := m.must("cat", "/proc/"+m.show("MainPID")+"/status")
	for _, want := range []string{"NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000"} {
		if !strings.Contains(status, want) {
			m.t.Errorf("no %q in\n%s", want, status)
		}
	}
	if got := m.must("stat", "-c", "%a %U", "/var/lib/gatewayd"); got != "700 gatewayd" {
		m.t.Errorf("the state folder is %s", got)
	}
	if got := m.must("stat", "-c", "%a %U:%G", "/etc/gatewayd"); got != "750 root:gatewayd" {
		m.t.Errorf("the configuration folder is %s", got)
	}
}

// reload applies a change without a new process; a broken file changes nothing.
func (m *machine) reload(t *testing.T) {
	pid, good := m.show("MainPID"), string(must(os.ReadFile(m.path("/etc/gatewayd/config.yaml")))(t))
	m.write("/etc/gatewayd/config.yaml", good+"log: {level: debug}\n")
	m.must("systemctl", "reload", "gatewayd")
	m.awaitLog(t, `"msg":"reloaded"`)
	m.write("/etc/gatewayd/config.yaml", good+"nonsense: true\n")
	m.must("systemctl", "reload", "gatewayd")
	m.awaitLog(t, "nonsense: unknown key")
	m.write("/etc/gatewayd/config.yaml", good)
	if m.show("MainPID") != pid || m.show("ActiveState") != "active" {
		t.Errorf("after the reloads it is %s, process %s instead of %s", m.show("ActiveState"), m.show("MainPID"), pid)
	}
}

// awaitLog waits for a line of the unit's journal.
func (m *machine) awaitLog(t *testing.T, text string) {
	t.Helper()
	var journal string
	eventually(t, "journal", func() bool {
		journal = m.must("journalctl", "-u", "gatewayd", "--no-pager", "-o", "cat")
		return strings.Contains(journal, text)
	})
}

// priorities: the journal knows what is a warning.
func (m *machine) priorities(t *testing.T) {
	all := m.must("journalctl", "-u", "gatewayd", "_COMM=gatewayd", "--no-pager", "-o", "cat")
	bad := m.must("journalctl", "-u", "gatewayd", "_COMM=gatewayd", "--no-pager", "-o", "cat", "-p", "warning")
	if !strings.Contains(all, `"level":"info"`) || !strings.Contains(bad, `"level":"warn"`) || strings.Contains(bad, `"level":"info"`) {
		t.Errorf("warnings and worse are\n%s\nof\n%s", bad, all)
	}
}

// watchdog: a process that does nothing any more is replaced.
func (m *machine) watchdog(t *testing.T) {
	m.write("/etc/systemd/system/gatewayd.service.d/test.conf", "[Service]\nWatchdogSec=3s\nTimeoutAbortSec=2s\nRestartSec=100ms\n")
	m.must("systemctl", "daemon-reload")
	m.must("systemctl", "restart", "gatewayd")
	pid := m.show("MainPID")
	time.Sleep(4 * time.Second) // longer than the watchdog waits
	if m.show("MainPID") != pid {
		t.Fatalf("the watchdog is not fed:\n%s", m.must("journalctl", "-u", "gatewayd", "--no-pager", "-n", "20"))
	}
	m.must("kill", "-STOP", pid)
	eventually(t, "restarted", func() bool { return m.show("MainPID") != pid && m.show("ActiveState") == "active" })
	m.awaitLog(t, "Watchdog timeout")
}

// stall: so is one whose queue cannot write, although everything else goes on.
func (m *machine) stall(t *testing.T) {
	if _, err := os.Stat(m.path("/freezable")); err != nil {
		t.Skip("no loop device: the file system cannot be frozen here")
	}
	pid, restarts := m.show("MainPID"), m.show("NRestarts")
	freeze := func(how string) {
		t.Helper()
		if out, err := exec.Command("nsenter", "-t", strconv.Itoa(m.init), "-m", "fsfreeze", how, "/var/lib/gatewayd").CombinedOutput(); err != nil {
			t.Fatalf("fsfreeze %s: %v %s", how, err, out)
		}
	}
	freeze("--freeze")
	frozen := true
	defer func() {
		if frozen {
			freeze("--unfreeze")
		}
	}()
	// One message, which is not acknowledged: the writer hangs over it.
	_, _ = m.run("timeout", "1", "bash", "-c", `exec 3<>/dev/tcp/127.0.0.1/8080; printf 'POST /v1/messages/a HTTP/1.0\r\nContent-Length: 1\r\n\r\nx' >&3; cat <&3`)
	found := func() bool {
		return strings.Contains(m.must("journalctl", "-u", "gatewayd", "--no-pager", "-o", "cat"), "queue has stood still")
	}
	for end := time.Now().Add(40 * time.Second); !found(); time.Sleep(500 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the stall is not found")
		}
	}
	eventually(t, "the watchdog strikes", func() bool { return m.show("Result") == "watchdog" || m.show("ActiveState") != "active" })
	freeze("--unfreeze")
	frozen = false
	eventually(t, "restarted", func() bool {
		return m.show("MainPID") != pid && m.show("NRestarts") != restarts && m.show("ActiveState") == "active"
	})
	m.post("after")
}
