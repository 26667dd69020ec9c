package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/hub/hubtest"
)

func TestReloadTouchesOnlyTheDifference(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{MaxInbound: -1}, "steady", "comes", "goes")
	all := s.names
	s.names = []string{"steady", "goes"}
	s.writeConfig("")
	p := s.run()
	eventually(t, 15*time.Second, "connected", func() bool { return s.hub.Connected("steady") && s.hub.Connected("goes") })
	s.names = all[:1]
	f := s.fleet(4, 10, 128, 5*time.Millisecond)
	reloads := 20
	if os.Getenv("GATEWAYD_LONG") != "" {
		reloads = 200
	}
	second := freeAddress(t)
	for n := range reloads {
		s.names = [][]string{{"steady", "comes"}, {"steady", "goes"}}[n%2]
		s.writeConfig("")
		if n%2 == 0 {
			config := string(must(os.ReadFile(s.path("config.yaml")))(t))
			config = strings.Replace(config, "mqtt: [", fmt.Sprintf("mqtt: [{listen: %q}, ", second), 1)
			config = strings.Replace(config, "routes:\n", "routes:\n  - {match: other/#, to: comes}\n", 1)
			s.write("config.yaml", config)
		}
		if n == 0 {
			check(t, p.cmd.Process.Signal(syscall.SIGHUP))
			eventually(t, 15*time.Second, "SIGHUP is served", func() bool { return strings.Contains(p.log.String(), `"reloaded"`) })
			continue
		}
		if code, out := s.exitCode("reload", "-c", "config.yaml"); code != exitOK || !strings.Contains(out, "identities added") {
			t.Fatalf("reload %d exits with %d: %s", n, code, out)
		}
	}
	f.end()
	s.drained(20 * time.Second)
	f.account(t, s.hub.Messages())
	if n := len(s.hub.ConnectionsOf("steady")); n != 1 {
		t.Errorf("the identity that no reload touched connected %d times", n)
	}
	if n := len(s.hub.ConnectionsOf("comes")); n < reloads/2 {
		t.Errorf("the identity that comes and goes connected %d times in %d reloads", n, reloads)
	}
}

func TestBadReloadChangesNothing(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{}, "press-7")
	p := s.run()
	eventually(t, 15*time.Second, "connected", func() bool { return s.hub.Connected("press-7") })
	good := string(must(os.ReadFile(s.path("config.yaml")))(t))
	for name, bad := range map[string]string{
		"nonsense":         strings.Replace(good, "window: 64", "window: none", 1),
		"state_dir":        strings.Replace(good, "state_dir: state", "state_dir: elsewhere", 1),
		"an unknown route": strings.Replace(good, `to: "{1}"`, "to: press-8", 1),
	} {
		s.write("config.yaml", bad)
		before := strings.Count(p.log.String(), "not reloaded")
		check(t, p.cmd.Process.Signal(syscall.SIGHUP))
		eventually(t, 15*time.Second, name+" is refused", func() bool { return strings.Count(p.log.String(), "not reloaded") > before })
	}
	s.write("config.yaml", good)
	if code, out := s.exitCode("reload", "-c", "config.yaml"); code != exitOK || !strings.Contains(out, "nothing changed") {
		t.Errorf("the good file reloads with %d: %s", code, out)
	}
	if n := len(s.hub.ConnectionsOf("press-7")); n != 1 {
		t.Errorf("%d connections, want the first one only", n)
	}
}

func TestReloadFollowsOtherFilesWithoutReconnecting(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{}, "press-7")
	s.run()
	eventually(t, 15*time.Second, "connected", func() bool { return s.hub.Connected("press-7") })
	pair := must(s.ca.Issue(certtest.Leaf{CN: "press-7"}))(t)
	check(t, pair.Write(s.path("new.pem"), s.path("new.key")))
	s.files = map[string][2]string{"press-7": {"new.pem", "new.key"}}
	s.writeConfig("")
	if code, out := s.exitCode("reload", "-c", "config.yaml"); code != exitOK || !strings.Contains(out, "identities changed: press-7") {
		t.Fatalf("reload exits with %d: %s", code, out)
	}
	eventually(t, 15*time.Second, "the other files are in use", func() bool { return s.serialSeen("press-7", pair.Leaf) })
	eventually(t, 15*time.Second, "it was a cut-over on the running session", func() bool {
		id, ok := s.identityStatus("press-7")
		return ok && id.Rotations == 1
	})
}

func TestQueueCommands(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{}, "press-7", "old")
	s.hub.StopListening()
	p := s.run()
	f := s.fleet(2, 5, 100, 0)
	eventually(t, 15*time.Second, "messages wait", func() bool { return f.acked() > 50 })
	f.end()
	waiting := f.acked()
	for _, running := range []bool{true, false} {
		if !running {
			p.stop()
		}
		for _, tt := range []struct {
			args []string
			want string
		}{
			{[]string{"ls"}, "press-7"}, {[]string{"inspect", "press-7"}, "sensors/press-7/s0"}, {[]string{"inspect", "press-7", "1"}, `"payload":"s0 0`},
			{[]string{"verify"}, fmt.Sprintf("%d messages stored", waiting)}, {[]string{"requeue", "press-7"}, "0 messages put back"},
		} {
			args := append(append([]string{"queue"}, tt.args...), "-c", "config.yaml")
			if code, out := s.exitCode(args...); code != exitOK || !strings.Contains(out, tt.want) {
				t.Errorf("running %v: %v exits with %d, want %q in\n%s", running, tt.args, code, tt.want, tail(out, 8))
			}
		}
		if code, out := s.exitCode("queue", "export", "-c", "config.yaml"); code != exitOK || strings.Count(out, "\n") != waiting {
			t.Errorf("running %v: export exits with %d and %d lines, want %d", running, code, strings.Count(out, "\n"), waiting)
		}
		if code, out := s.exitCode("queue", "inspect", "press-7", "999999", "-c", "config.yaml"); code != exitRunning || !strings.Contains(out, "not found") {
			t.Errorf("running %v: a message that is not there: %d %s", running, code, out)
		}
		if code, out := s.exitCode("queue", "drop", "old", "-c", "config.yaml"); code != exitUsage || !strings.Contains(out, "--yes") {
			t.Errorf("running %v: drop without --yes: %d %s", running, code, out)
		}
	}
	if code, out := s.exitCode("queue", "drop", "old", "--yes", "-c", "config.yaml"); code != exitOK {
		t.Errorf("drop: %d %s", code, out)
	}
	if code, out := s.exitCode("queue", "export", "old", "-c", "config.yaml"); code != exitRunning || !strings.Contains(out, "not found") {
		t.Errorf("after drop: %d %s", code, out)
	}
	check(t, s.hub.Resume())
	s.run()
	s.drained(20 * time.Second)
}
