package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gatewayd/internal/hub/hubtest"
)

func TestStatusTellsHealthByItsExitCode(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{}, "fine", "refused")
	if code, out := s.exitCode("status", "-c", "config.yaml"); code != exitRunning || !strings.Contains(out, "no gateway is running on this state_dir") {
		t.Errorf("without a gateway: %d %s", code, out)
	}
	check(t, s.hub.RefuseIdentity("refused", hubtest.ConnackFive))
	s.edit(fmt.Sprintf("admin: {listen: %q}", s.admin), `admin: {listen: ""}`) // the control socket is enough
	s.run()
	code, out := exitRunning, ""
	eventually(t, 20*time.Second, "fine is connected", func() bool {
		code, out = s.exitCode("status", "-c", "config.yaml")
		return strings.Contains(out, "connected") && strings.Contains(out, "not authorized")
	})
	if code != exitRunning || !strings.Contains(out, "\n    connect: CONNECT answered with code 5") {
		t.Errorf("with a refused identity: %d\n%s", code, out)
	}
	code, out = s.exitCode("status", "-c", "config.yaml", "--json")
	var r report
	if err := json.Unmarshal([]byte(out), &r); err != nil || code != exitRunning || r.Healthy || r.Schema != reportSchema || len(r.Identities) != 2 {
		t.Errorf("--json: %d, %v\n%s", code, err, out)
	}
	s.names = []string{"fine"}
	s.writeConfig("")
	s.edit(fmt.Sprintf("admin: {listen: %q}", s.admin), `admin: {listen: ""}`)
	if code, out := s.exitCode("reload", "-c", "config.yaml"); code != exitOK {
		t.Fatalf("reload: %d %s", code, out)
	}
	if code, out := s.exitCode("status", "-c", "config.yaml"); code != exitOK || strings.Contains(out, "refused ") {
		t.Errorf("without it: %d\n%s", code, out)
	}
	for _, args := range [][]string{{"status", "x"}, {"status", "--none"}, {"status", "-c", "nothing.yaml"}, {"status", "-c", "config.yaml", "-w", "--interval", "1ms"}} {
		if code, out := s.exitCode(args...); code != exitUsage {
			t.Errorf("%v exits with %d: %s", args, code, out)
		}
	}
}

func TestStatusWatches(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{}, "press-7")
	p := s.run()
	eventually(t, 15*time.Second, "connected", func() bool { id, ok := s.identityStatus("press-7"); return ok && id.Connected })
	watch := s.gatewayd("status", "-c", "config.yaml", "--watch", "--interval", "200ms")
	screen := s.onTerminal("status", "-c", "config.yaml", "--watch", "--interval", "200ms")
	blocks := func() int { return strings.Count(watch.log.String(), "IDENTITY") }
	eventually(t, 15*time.Second, "three blocks", func() bool { return blocks() >= 3 })
	eventually(t, 15*time.Second, "three screens", func() bool { return strings.Count(screen.log.String(), "\x1b[H") >= 3 })
	if strings.Contains(watch.log.String(), "\x1b") {
		t.Error("escape sequences are written to what is no terminal")
	}
	check(t, watch.cmd.Process.Signal(syscall.SIGINT))
	if code := watch.wait(10 * time.Second); code != exitOK {
		t.Errorf("Ctrl-C ends the watch over a healthy gateway with %d:\n%s", code, watch.log.String())
	}
	p.stop()
	eventually(t, 15*time.Second, "the end of the gateway is shown", func() bool { return strings.Contains(screen.log.String(), "no gateway is running") })
	check(t, screen.cmd.Process.Signal(syscall.SIGINT))
	if code := screen.wait(10 * time.Second); code != exitRunning {
		t.Errorf("Ctrl-C ends the watch over a stopped gateway with %d", code)
	}
}

// onTerminal starts the program with a terminal of 60 columns as its standard output.
func (s *plant) onTerminal(args ...string) *process {
	s.t.Helper()
	master := must(os.OpenFile("/dev/ptmx", os.O_RDWR, 0))(s.t)
	n := must(unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN))(s.t)
	check(s.t, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
	slave := must(os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0))(s.t)
	check(s.t, unix.IoctlSetWinsize(int(slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 20, Col: 60}))
	p := &process{t: s.t, done: make(chan struct{})}
	p.cmd = exec.Command(os.Args[0], args...)
	p.cmd.Dir, p.cmd.Env = s.dir, append(os.Environ(), asProgram+"=1")
	p.cmd.Stdout, p.cmd.Stderr = slave, slave
	check(s.t, p.cmd.Start())
	slave.Close()
	read := make(chan struct{})
	go func() {
		defer close(read)
		var b [4096]byte
		for {
			n, err := master.Read(b[:])
			_, _ = p.log.Write(b[:n]) // into memory
			if err != nil {
				return // EIO: nobody has the other side any more
			}
		}
	}()
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait() // the exit code is looked at by those who care
		<-read
		master.Close()
	}()
	s.t.Cleanup(p.kill)
	return p
}

func TestWatchCutsWhatTheTerminalCannotShow(t *testing.T) {
	long := strings.Repeat("x", 200)
	lines := strings.Split(strings.TrimSuffix(inPlace(strings.Repeat(long+"\n", 50), &strings.Builder{}), "\x1b[J"), "\n")
	if len(lines) != 24 || !strings.Contains(lines[22], "and 28 more lines") {
		t.Errorf("%d lines, the last %q", len(lines), lines[len(lines)-2])
	}
	if n := len([]rune(strings.TrimSuffix(lines[1], "\x1b[K"))); n != 80 {
		t.Errorf("a line has %d columns", n)
	}
}
