package main

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/hub/hubtest"
	"gatewayd/internal/queue"
)

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
		{name: "running: throttled", running: func(s *plant, _ *process) {
			s.accepted("sensors/press-7/s", "quick")
			eventually(s.t, 15*time.Second, "acknowledged", func() bool { id, ok := s.identityStatus("press-7"); return ok && id.Delivered == 1 })
			s.hub.DelayPuback(3200 * time.Millisecond)
			s.accepted("sensors/press-7/s", "late")
			eventually(s.t, 15*time.Second, "throttling is noticed", func() bool { id, ok := s.identityStatus("press-7"); return ok && id.Throttled })
		}, step: stepThrottle, text: "of 64 messages may be in flight", next: "send_rate"},
		{name: "running: nothing is acknowledged", before: func(s *plant) {
			s.hub.WithholdPuback(-1)
		}, running: func(s *plant, _ *process) {
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
