package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/hub"
	"gatewayd/internal/hub/hubtest"
)

// newSharePlant has the files of press-8 on a share, and press-7 beside it. hang silences the share's server.
func newSharePlant(t *testing.T) (s *plant, hang func() (release func())) {
	s = newPlant(t, hubtest.Options{}, "press-7", "press-8")
	check(t, os.Mkdir(s.path("share"), 0o700))
	for _, name := range []string{"press-8.pem", "press-8.key"} {
		check(t, os.Rename(s.path(name), s.path("share/"+name)))
	}
	s.files = map[string][2]string{"press-8": {"share/press-8.pem", "share/press-8.key"}}
	s.writeConfig("")
	return s, func() (release func()) {
		release, err := certtest.Hang(s.path("share"))
		if err != nil {
			t.Skip("no file system can be mounted: ", err)
		}
		t.Cleanup(release)
		return release
	}
}

// TestCommandsTellOfAHungShare: those that read certificates say so, tell of the others, and end.
func TestCommandsTellOfAHungShare(t *testing.T) {
	t.Parallel()
	s, hang := newSharePlant(t)
	hang()
	for _, tt := range []struct {
		command string
		code    int
	}{{"certs", exitRunning}, {"check", exitUsage}, {"doctor", exitRunning}} {
		began := time.Now()
		code, said := s.exitCode(tt.command, "-c", "config.yaml")
		if code != tt.code || !strings.Contains(said, s.path("share/press-8.pem")+" cannot be read: its file system does not answer") || !strings.Contains(said, "press-7") {
			t.Errorf("%s: exit code %d:\n%s", tt.command, code, said)
		}
		if d := time.Since(began); d > 20*time.Second {
			t.Errorf("%s took %s", tt.command, d)
		}
	}
}

// TestHungShareHoldsUpOneIdentity: with the files of one identity on a share whose server is silent the gateway
// starts, serves the others, says what is wrong, reloads, and stops; when the share is there the identity joins.
func TestHungShareHoldsUpOneIdentity(t *testing.T) {
	t.Parallel()
	s, hang := newSharePlant(t)
	release := hang()

	began := time.Now()
	p := s.run()
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("listeners after %s", d)
	}
	var well, lost identityReport
	state := func() bool {
		r, err := s.status()
		if err != nil || len(r.Identities) != 2 {
			return false
		}
		well, lost = r.Identities[0], r.Identities[1]
		return true
	}
	eventually(t, 5*time.Second, "the other identity is connected", func() bool { return state() && well.Connected })
	s.accepted("sensors/press-7/s1", `{"celsius": 21.5}`)
	eventually(t, 5*time.Second, "its reading is delivered", func() bool { return state() && well.Delivered == 1 })
	s.accepted("sensors/press-8/s1", `{"celsius": 21.5}`) // is kept
	eventually(t, 15*time.Second, "status names the file", func() bool {
		return state() && strings.Contains(lost.FirstFault, s.path("share/press-8.pem")+" cannot be read") && lost.State == hub.StateNoCertificate
	})
	code, said := s.exitCode("reload", "-c", "config.yaml")
	if code != 0 {
		t.Errorf("reload: %d %s", code, said)
	}

	release()
	eventually(t, 30*time.Second, "the lost identity joins and delivers", func() bool { return state() && lost.Delivered == 1 && lost.FirstFault == "" })
	if n := strings.Count(p.log.String(), "certificate files do not answer"); n != 1 {
		t.Errorf("said %d times", n)
	}

	hang()
	s.issue("press-7", certtest.Leaf{CN: "press-7"})
	eventually(t, 15*time.Second, "the other one's renewal", func() bool { return state() && well.Rotations == 1 })
	eventually(t, 30*time.Second, "status names the file again, and the connection stays", func() bool {
		return state() && strings.Contains(lost.FirstFault, s.path("share/press-8.")) && lost.Connected
	})
	began = time.Now()
	if code := p.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if d := time.Since(began); d > 15*time.Second {
		t.Errorf("the stop took %s", d)
	}
}

// TestHungFileOfAListener: a start with such a file fails at once and names the key, so that it is tried again; later on
// handshakes go on with what was read, a reload says what is wrong, and a stop does not wait.
func TestHungFileOfAListener(t *testing.T) {
	t.Parallel()
	s, hang := newSharePlant(t)
	pair := must(s.ca.Issue(certtest.Leaf{CN: "gateway", DNS: []string{"127.0.0.1"}}))(t)
	check(t, pair.Write(s.path("share/local.pem"), s.path("share/local.key")))
	over := freeAddress(t)
	s.listen(fmt.Sprintf("{listen: \"tls://%s\", tls: {cert: share/local.pem, key: share/local.key}}", over))
	release := hang()
	began := time.Now()
	code, said := s.exitCode("run", "-c", "config.yaml")
	if code != exitRunning || !strings.Contains(said, "downstream.mqtt[0].tls.cert: cannot be looked at") || time.Since(began) > 10*time.Second {
		t.Errorf("exit code %d after %s:\n%s", code, time.Since(began), said)
	}
	release()
	p := s.run()
	handshake := func() error {
		d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 3 * time.Second}, Config: &tls.Config{RootCAs: s.ca.Pool()}}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		c, err := d.DialContext(ctx, "tcp", over)
		if err == nil {
			c.Close()
		}
		return err
	}
	check(t, handshake())
	hang()
	for end := time.Now().Add(8 * time.Second); time.Now().Before(end); { // longer than two looks at the files are apart
		check(t, handshake())
	}
	code, said = s.exitCode("reload", "-c", "config.yaml")
	if code == 0 || !strings.Contains(said, "downstream.mqtt[0].tls.cert: cannot be looked at") {
		t.Errorf("reload: %d %s", code, said)
	}
	began = time.Now()
	if code := p.stop(); code != 0 || time.Since(began) > 15*time.Second {
		t.Errorf("stopped with %d after %s", code, time.Since(began))
	}
}

// asThreads makes the test binary take many threads at once.
const asThreads = "GATEWAYD_TEST_AS_THREADS"

// beThreads prints whether anything but main has run on the first thread.
func beThreads() {
	keepSignalsComing()
	first, taken := unix.Gettid() == os.Getpid(), atomic.Bool{}
	var here, ended sync.WaitGroup
	for range 100 {
		here.Add(1)
		ended.Go(func() {
			runtime.LockOSThread() // as a system call that hangs
			if unix.Gettid() == os.Getpid() {
				taken.Store(true)
			}
			here.Done()
			here.Wait()
		})
	}
	ended.Wait()
	fmt.Printf("main on it: %t, others: %t\n", first, taken.Load())
}

// TestSignalsFindAThreadThatDoesNotHang: the kernel hands SIGTERM to the first thread, so no look at a file may hang on that.
func TestSignalsFindAThreadThatDoesNotHang(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), asThreads+"=1")
	if out := string(must(cmd.CombinedOutput())(t)); out != "main on it: true, others: false\n" {
		t.Error(out)
	}
}
