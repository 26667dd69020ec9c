package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gatewayd/internal/hub/hubtest"
)

// manager is the part of systemd that a service talks to: a datagram socket.
type manager struct {
	socket *net.UnixConn
	mu     sync.Mutex
	heard  []string
}

func newManager(t *testing.T) *manager {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	m := &manager{socket: must(net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"}))(t)}
	t.Cleanup(func() { m.socket.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := m.socket.Read(b)
			if err != nil {
				return
			}
			m.mu.Lock()
			m.heard = append(m.heard, strings.Split(string(b[:n]), "\n")...)
			m.mu.Unlock()
		}
	}()
	return m
}

// count tells how often a line that begins with text has come.
func (m *manager) count(text string) (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, line := range m.heard {
		if strings.HasPrefix(line, text) {
			n++
		}
	}
	return n
}

func (m *manager) await(t *testing.T, text string, n int) {
	t.Helper()
	eventually(t, 20*time.Second, text, func() bool { return m.count(text) >= n })
}

// What systemd hears: ready once the listeners are bound although there is no hub,
// the watchdog, a reload, a stop.
func TestManagerHearsTheTruth(t *testing.T) {
	m := newManager(t)
	t.Setenv("WATCHDOG_USEC", "600000")
	t.Setenv("WATCHDOG_PID", "")
	os.Unsetenv("WATCHDOG_PID") // it would be that of this process
	s := newPlant(t, hubtest.Options{}, "press-7")
	s.hub.StopListening()
	p := s.gatewayd("run", "-c", "config.yaml")
	m.await(t, "READY=1", 1)
	for _, address := range []string{s.mqtt, s.http} {
		must(net.Dial("tcp", address))(t).Close()
	}
	m.await(t, "WATCHDOG=1", 3)
	m.await(t, "STATUS=0 of 1 identities", 1)
	check(t, p.cmd.Process.Signal(syscall.SIGHUP))
	m.await(t, "RELOADING=1", 1)
	m.await(t, "MONOTONIC_USEC=", 1)
	m.await(t, "READY=1", 2)
	if code := p.stop(); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	m.await(t, "STOPPING=1", 1)
}

// The watchdog's SIGABRT must not look like a configuration that cannot be used, for
// which systemd does not start again.
func TestWatchdogsSignalIsNoExitCode(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{}, "press-7")
	p := s.run()
	check(t, p.cmd.Process.Signal(syscall.SIGABRT))
	p.wait(20 * time.Second)
	status := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !status.Signaled() || status.Signal() != syscall.SIGABRT || status.CoreDump() {
		t.Errorf("it ends with %v, core %v", p.cmd.ProcessState, status.CoreDump())
	}
	if !strings.Contains(p.log.String(), "SIGABRT: abort") {
		t.Error("the stacks are not printed")
	}
}
