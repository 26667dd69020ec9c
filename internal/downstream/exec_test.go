package downstream

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

type execBench struct {
	sink   *fakeSink
	exec   *Exec
	logged *observer.ObservedLogs
	stop   func()
}

// startExec runs a shell script as a program.
func startExec(t *testing.T, script string, change func(*ExecConfig)) *execBench {
	t.Helper()
	b := &execBench{sink: newFakeSink(t, time.Millisecond)}
	router, err := NewRouter([]Route{{Match: "sensors/#", To: "press-7"}}, []string{"press-7"})
	if err != nil {
		t.Fatal(err)
	}
	core, logged := observer.New(zap.InfoLevel)
	b.logged = logged
	cfg := ExecConfig{Name: "plc", Command: []string{"sh", "-c", script}, Dir: t.TempDir()}
	if change != nil {
		change(&cfg)
	}
	b.exec, err = NewExec(cfg, NewGate(router, b.sink, NewLedger(0, 0), GateLimits{}, zap.NewNop()), zap.New(core))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := b.exec.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	b.stop = func() { cancel(); running.Wait() }
	t.Cleanup(b.stop)
	return b
}

func (b *execBench) stored() (all []string) {
	for _, m := range b.sink.messages() {
		all = append(all, string(m.Payload))
	}
	return all
}

func TestAProgramIsAnsweredAndItsWordsAreLogged(t *testing.T) {
	t.Parallel()
	b := startExec(t, `echo '{"id":1,"topic":"sensors/a","payload":1}'; read a; echo "got $a" >&2
		echo '{"id":2,"topic":"nowhere","payload":1}'; read a; echo "got $a" >&2; cat`, nil)
	eventually(t, "both answers are in the log", func() bool { return b.logged.FilterMessage("program says").Len() == 2 })
	for i, want := range []string{`got {"ack":1}`, `got {"nack":2,"error":"no route for this topic"}`} {
		if got := b.logged.FilterMessage("program says").All()[i].ContextMap()["text"]; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	s := b.exec.Stats()
	if !s.Running || s.PID == 0 || s.Fault != "" || s.Restarts != 0 {
		t.Errorf("%+v", s)
	}
	b.stop()
	if s := b.exec.Stats(); s.Running || s.Fault != "" {
		t.Errorf("after the stop: %+v", s)
	}
}

func TestAProgramThatEndsIsStartedAgain(t *testing.T) {
	t.Parallel()
	b := startExec(t, `echo '{"topic":"sensors/a","payload":"'$(cat n 2>/dev/null)'"}'; echo -n x >> n; exit 3`, nil)
	eventually(t, "it ran twice", func() bool { return len(b.stored()) == 2 })
	if got := b.stored(); got[0] != "" || got[1] != "x" {
		t.Errorf("%q", got)
	}
	eventually(t, "the status says why it ended", func() bool { return b.exec.Stats().Fault == "exit status 3" })
	b.stop()
	if n := b.logged.FilterMessage("program ended, it is started again").Len(); n != 1 {
		t.Errorf("%d lines about the same end", n)
	}
}

func TestOutputOfAProgramThatHasEndedCounts(t *testing.T) {
	t.Parallel()
	b := startExec(t, `for i in $(seq 2000); do echo '{"topic":"sensors/a","payload":'$i'}'; done; sleep 100 & exit`, nil)
	eventually(t, "all is stored", func() bool { return len(b.stored()) == 2000 })
}

// The program has an answer in hand when it is asked to end.
func TestAStoppedProgramMayFinish(t *testing.T) {
	t.Parallel()
	b := startExec(t, `trap 'echo "{\"id\":2,\"topic\":\"sensors/a\",\"payload\":\"last\"}"; read a; echo "got $a" >&2; exit' TERM
		echo '{"id":1,"topic":"sensors/a","payload":"first"}'; read a; while :; do sleep 0.05; done`, nil)
	eventually(t, "it runs", func() bool { return len(b.stored()) == 1 })
	time.Sleep(50 * time.Millisecond)
	b.stop()
	if got := b.stored(); len(got) != 2 || got[1] != "last" {
		t.Errorf("%q", got)
	}
	if n := b.logged.FilterField(zap.String("text", `got {"ack":2}`)).Len(); n != 1 {
		t.Errorf("the answer did not arrive: %v", b.logged.All())
	}
}

func TestAProgramThatWillNotEndIsKilled(t *testing.T) {
	t.Parallel()
	b := startExec(t, `trap '' TERM; echo '{"topic":"sensors/a","payload":'$$'}'; while :; do sleep 1; done`, nil)
	eventually(t, "it runs", func() bool { return len(b.stored()) == 1 })
	pid, _ := strconv.Atoi(b.stored()[0])
	began := time.Now()
	b.stop()
	if d := time.Since(began); d < execGrace || d > 3*execGrace {
		t.Errorf("took %v", d)
	}
	if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
		t.Errorf("process %d: %v", pid, err)
	}
}

func TestAFloodOfWordsDoesNotFloodTheLog(t *testing.T) {
	t.Parallel()
	b := startExec(t, `for i in $(seq 3000); do echo "word $i" >&2; done; head -c 5000 /dev/zero | tr '\0' y >&2; echo >&2
		echo '{"topic":"sensors/a","payload":1}'; cat`, nil)
	eventually(t, "the program is through", func() bool { return len(b.stored()) == 1 })
	b.stop()
	if n := b.logged.FilterMessage("program says").Len(); n < stderrBurst || n > stderrBurst+30 {
		t.Errorf("%d lines", n)
	}
	left := int64(0)
	for _, e := range b.logged.FilterMessage("program said more than is logged").All() {
		left += e.ContextMap()["lines"].(int64)
	}
	if all := int(left) + b.logged.FilterMessage("program says").Len(); all != 3001 {
		t.Errorf("%d lines are accounted for", all)
	}
	for _, e := range b.logged.All() {
		if text, _ := e.ContextMap()["text"].(string); len(text) > stderrLine {
			t.Errorf("%d bytes in a line", len(text))
		}
	}
}

func TestAProgramKnowsOnlyWhatIsMeantForIt(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "/run/systemd/notify")
	t.Setenv("HTTPS_PROXY", "http://u:hunter2@proxy")
	b := startExec(t, `echo '{"topic":"sensors/a","payload":"'$(env | cut -d= -f1 | sort | tr '\n' ' ')$A' '$(pwd)'"}'; cat`, func(c *ExecConfig) { c.Env = map[string]string{"A": "b c"} })
	eventually(t, "it runs", func() bool { return len(b.stored()) == 1 })
	got := b.stored()[0]
	if strings.Contains(got, "NOTIFY") || strings.Contains(got, "PROXY") || !strings.Contains(got, "PATH ") || !strings.Contains(got, "b c ") || !strings.HasSuffix(got, b.exec.cfg.Dir) {
		t.Errorf("%s", got)
	}
}

func TestAProgramThatIsNotThereIsNamed(t *testing.T) {
	for _, command := range [][]string{nil, {"no-such-program-here"}, {filepath.Join(t.TempDir(), "none")}, {t.TempDir()}} {
		if _, err := NewExec(ExecConfig{Name: "x", Command: command}, NewGate(nil, nil, NewLedger(0, 0), GateLimits{}, zap.NewNop()), zap.NewNop()); err == nil || !strings.HasPrefix(err.Error(), "command: ") {
			t.Errorf("%q: %v", command, err)
		}
	}
}

// The example of the documentation, word for word.
func TestTheDocumentedProgramWorks(t *testing.T) {
	t.Parallel()
	python := tool(t, "python3")
	page, err := os.ReadFile("../../docs/sources.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(page), "```python\n")
	program, _, found := strings.Cut(rest, "```")
	if lines := strings.Count(program, "\n"); !found || lines > 15 {
		t.Fatalf("the example has %d lines", lines)
	}
	file := filepath.Join(t.TempDir(), "boiler.py")
	if err := os.WriteFile(file, []byte(program), 0o600); err != nil {
		t.Fatal(err)
	}
	b := startExec(t, "", func(c *ExecConfig) { c.Command = []string{python, file} })
	eventually(t, "two readings are stored", func() bool { return len(b.stored()) >= 2 })
	for i, got := range b.stored()[:2] {
		if want := fmt.Sprintf(`{"n": %d, "celsius": 21.5}`, i+1); got != want || b.sink.messages()[i].Topic != "sensors/boiler/telemetry" {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
