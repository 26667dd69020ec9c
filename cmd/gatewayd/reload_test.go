package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/hub/hubtest"
)

// reloading is a plant whose configuration changes under load: identities, routes
// and listeners come and go around an identity that no change touches.
type reloading struct {
	*plant
	p      *process
	second string // the listener that comes and goes
	served int    // reloads so far
}

// round reloads once: by signal and by command in turn, always into something else.
func (r *reloading) round(t *testing.T, n int) {
	t.Helper()
	r.names = [][]string{{"steady", "comes"}, {"steady", "goes"}, {"steady", "goes", "comes"}, {"steady"}}[n%4]
	r.writeConfig("")
	if n%2 == 0 {
		r.edit("  mqtt: [", fmt.Sprintf("  mqtt: [{listen: %q}, ", r.second))
	}
	if n%3 == 0 {
		r.edit("routes:\n", "routes:\n  - {match: other/#, to: steady}\n")
	}
	r.served++
	if n%2 == 0 {
		check(t, r.p.cmd.Process.Signal(syscall.SIGHUP))
		eventually(t, 15*time.Second, "SIGHUP is served", func() bool { return strings.Count(r.p.log.String(), `"msg":"reloaded"`) == r.served })
		return
	}
	var out, errs strings.Builder
	code := run(t.Context(), []string{"reload", "-c", r.path("config.yaml")}, strings.NewReader(""), &out, &errs)
	if code != exitOK || !strings.Contains(out.String(), "identities") {
		t.Fatalf("reload %d exits with %d: %s%s", n, code, &out, &errs)
	}
}

func TestReloadTouchesOnlyTheDifference(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{MaxInbound: -1}, "steady", "comes", "goes")
	all := s.names
	s.names = []string{"steady"}
	s.writeConfig("")
	r := &reloading{plant: s, p: s.run(), second: freeAddress(t)}
	eventually(t, 15*time.Second, "connected", func() bool { return s.hub.Connected("steady") })

	ctx, stop := context.WithCancel(context.Background())
	t.Cleanup(stop)
	f := &fleet{stop: stop}
	start := func(name, topic, address string, send func(*sensor)) {
		one := &sensor{name: name, topic: topic, address: address, window: 10, size: 128, pace: 5 * time.Millisecond, tries: make(map[int]int)}
		f.sensors = append(f.sensors, one)
		f.running.Go(func() { send(one) })
	}
	overMQTT := func(one *sensor) { one.run(ctx) }
	overHTTP := func(one *sensor) { one.postAll(ctx, s) }
	for i := range 3 {
		start(fmt.Sprintf("steady%d", i), fmt.Sprintf("sensors/steady/m%d", i), s.mqtt, overMQTT)
	}
	start("second", "sensors/steady/second", r.second, overMQTT)
	for _, name := range all {
		start("post-"+name, "sensors/"+name+"/h", "", overHTTP)
	}

	reloads := 200
	if n, err := strconv.Atoi(os.Getenv("GATEWAYD_RELOADS")); err == nil {
		reloads = n
	}
	for n := range reloads {
		r.round(t, n)
		if n%12 == 2 { // all three are there; else most sessions end before they connect
			eventually(t, 15*time.Second, "connected", func() bool { return s.hub.Connected("comes") && s.hub.Connected("goes") })
		}
	}
	s.names = all
	s.writeConfig("")
	s.edit("  mqtt: [", fmt.Sprintf("  mqtt: [{listen: %q}, ", r.second))
	if code, out := s.exitCode("reload", "-c", "config.yaml"); code != exitOK {
		t.Fatalf("the last reload exits with %d: %s", code, out)
	}
	f.end()
	s.drained(30 * time.Second)
	f.account(t, s.hub.Messages())
	if n := len(s.hub.ConnectionsOf("steady")); n != 1 {
		t.Errorf("the identity that no reload touched connected %d times", n)
	}
	if n := len(s.hub.ConnectionsOf("comes")); n < reloads/8 {
		t.Errorf("the identity that comes and goes connected %d times in %d reloads", n, reloads)
	}
	for _, one := range f.sensors {
		if one.acked == 0 {
			t.Errorf("no message of %s was ever acknowledged", one.name)
		}
	}
	t.Logf("%d reloads, %d messages acknowledged", reloads, f.acked())
}

func TestQueueOfARemovedIdentityIsKeptAndNamed(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{}, "stays", "goes")
	s.hub.StopListening()
	p := s.run()
	for n := range 3 {
		s.accepted("sensors/goes/x", fmt.Sprint("reading ", n))
	}
	if code, out := s.exitCode("queue", "drop", "goes", "--yes", "-c", "config.yaml"); code != exitRunning || !strings.Contains(out, `"goes" is configured`) {
		t.Errorf("the queue of a configured identity: %d %s", code, out)
	}
	s.names = []string{"stays"}
	s.writeConfig("")
	if code, out := s.exitCode("reload", "-c", "config.yaml"); code != exitOK || !strings.Contains(out, "identities removed, their messages are kept: goes") {
		t.Errorf("reload: %d %s", code, out)
	}
	if code := s.post("sensors/goes/x", "one more", ""); code != http.StatusNotFound {
		t.Errorf("a reading for an identity that is gone is answered with %d", code)
	}
	named := func(when string) {
		t.Helper()
		if r := must(s.status())(t); !slices.Contains(r.Unconfigured, "goes") {
			t.Errorf("%s: /status names %q", when, r.Unconfigured)
		}
		if _, out := s.exitCode("status", "-c", "config.yaml"); !strings.Contains(out, "goes") || !strings.Contains(out, "gatewayd queue drop") {
			t.Errorf("%s: status does not name it:\n%s", when, out)
		}
		if _, out := s.exitCode("queue", "export", "goes", "-c", "config.yaml"); strings.Count(out, "\n") != 3 {
			t.Errorf("%s: export gives\n%s", when, out)
		}
	}
	named("after the reload")
	p.stop()
	p = s.run()
	eventually(t, 15*time.Second, "the start names it", func() bool { return strings.Contains(p.log.String(), "kept until gatewayd queue drop") })
	named("after a restart")
	if code, out := s.exitCode("queue", "drop", "goes", "--yes", "-c", "config.yaml"); code != exitOK || !strings.Contains(out, "dropped") {
		t.Errorf("drop: %d %s", code, out)
	}
	if r := must(s.status())(t); len(r.Unconfigured) != 0 {
		t.Errorf("after drop /status names %q", r.Unconfigured)
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
	if code, out := s.exitCode("queue", "ls", "-c", "config.yaml"); code != exitRunning || !strings.Contains(out, "no queue") {
		t.Errorf("without a queue: %d %s", code, out)
	}
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
	if code, out := s.exitCode("queue", "export", "old", "-c", "config.yaml"); code != exitOK || out != "" {
		t.Errorf("after drop: %d %s", code, out)
	}
	check(t, s.hub.Resume())
	s.run()
	s.drained(20 * time.Second)
}
