package queue

import (
	"bufio"
	"context"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const childEnv = "GATEWAYD_QUEUE_CHILD" // the folder: this process is a child of a test

const taskEnv = "GATEWAYD_QUEUE_TASK" // what the child does; "" = load

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		run := child
		switch os.Getenv(taskEnv) {
		case "descriptors":
			run = exhaust
		case "serve":
			run = serve
		}
		if err := run(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child appends and delivers as fast as it can until it is killed. It says on its standard output "A queue seq crc" for what is acknowledged to a
// sensor and "D queue seq id crc" before it acknowledges a delivery.
func child(dir string) error {
	j, err := Open(Options{Dir: dir, SegmentBytes: 1 << 20})
	if err != nil {
		return err
	}
	var mu sync.Mutex
	say := func(format string, a ...any) {
		line := fmt.Appendf(nil, format+"\n", a...)
		mu.Lock()
		defer mu.Unlock()
		os.Stdout.Write(line)
	}
	for i := range 3 {
		name := fmt.Sprint("device-", i)
		q, err := j.Queue(name, Limits{})
		if err != nil {
			return err
		}
		go produce(q, name, say)
		if i > 0 { // the first is never drained
			go deliver(q, name, say)
		}
	}
	return j.Run(context.Background())
}

func produce(q *Queue, name string, say func(string, ...any)) {
	slots := make(chan struct{}, 40)
	rnd := rand.New(rand.NewPCG(uint64(os.Getpid()), 0))
	for i := 0; ; i++ {
		p := make([]byte, 40+rnd.IntN(800))
		for k := range p {
			p[k] = byte(rnd.Uint32())
		}
		sum := crc32.ChecksumIEEE(p)
		slots <- struct{}{}
		err := q.Append(context.Background(), Message{Source: "s", Topic: fmt.Sprint("t/", i%7), Payload: p}, func(seq uint64, err error) {
			if err == nil {
				say("A %s %d %08x", name, seq, sum)
			}
			<-slots
		})
		if err != nil {
			<-slots
			time.Sleep(time.Millisecond)
		}
		if i%50 == 0 {
			time.Sleep(time.Millisecond)
		}
	}
}

func deliver(q *Queue, name string, say func(string, ...any)) {
	r := q.Reader()
	for {
		m, ok, err := r.Next()
		if err != nil || !ok {
			select {
			case <-q.Ready():
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		say("D %s %d %s %08x", name, m.Seq, m.ID, crc32.ChecksumIEEE(m.Payload))
		q.Ack(m.Seq)
	}
}

// ledger is what the children said.
type ledger struct {
	t       *testing.T
	acked   map[string]string // "queue seq" → crc
	ids     map[string]string
	got     map[string]bool
	newest  map[string]uint64
	resends int
}

func newLedger(t *testing.T) *ledger {
	return &ledger{t: t, acked: map[string]string{}, ids: map[string]string{}, got: map[string]bool{}, newest: map[string]uint64{}}
}

func (l *ledger) line(s string) {
	f := strings.Fields(s)
	switch {
	case len(f) == 4 && f[0] == "A":
		k := f[1] + " " + f[2]
		if l.acked[k] != "" {
			l.t.Fatalf("%s was acknowledged twice", k)
		}
		l.acked[k] = f[3]
	case len(f) == 5 && f[0] == "D":
		var seq uint64
		fmt.Sscan(f[2], &seq)
		l.delivered(f[1], seq, f[3], f[4])
	}
}

func (l *ledger) delivered(queue string, seq uint64, id, crc string) {
	k := fmt.Sprint(queue, " ", seq)
	if old := l.ids[k]; old != "" && old != id+crc {
		l.t.Fatalf("%s was sent as %s and now as %s", k, old, id+crc)
	}
	l.ids[k] = id + crc
	if l.got[k] {
		l.resends++
		return
	}
	l.got[k] = true
	if seq < l.newest[queue] {
		l.t.Fatalf("%s: first delivery of %d after %d", queue, seq, l.newest[queue])
	}
	l.newest[queue] = seq
}

// life runs a child for d and kills it.
func (l *ledger) life(dir string, d time.Duration, wrap ...string) {
	l.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		l.t.Fatal(err)
	}
	args := append(wrap, exe)
	c := exec.Command(args[0], args[1:]...)
	c.Env = append(os.Environ(), childEnv+"="+dir)
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var stderr strings.Builder
	c.Stderr = &stderr
	out, err := c.StdoutPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		l.t.Fatal(err)
	}
	time.AfterFunc(d, func() { syscall.Kill(-c.Process.Pid, syscall.SIGKILL) })
	s := bufio.NewReader(out)
	for {
		line, err := s.ReadString('\n')
		if err != nil {
			break // what is cut was never said
		}
		l.line(line)
	}
	c.Wait()
	if stderr.Len() > 0 && len(wrap) == 0 {
		l.t.Fatalf("child: %s", stderr.String())
	}
}

// settle reads what is left and checks that nothing acknowledged is missing.
func (l *ledger) settle(dir string) {
	l.t.Helper()
	j, err := Open(Options{Dir: dir})
	if err != nil {
		l.t.Fatal(err)
	}
	defer j.Close()
	for _, name := range j.Identities() {
		for _, m := range drain(l.t, mustQueue(l.t, j, name, Limits{})) {
			l.delivered(name, m.Seq, m.ID, fmt.Sprintf("%08x", crc32.ChecksumIEEE(m.Payload)))
		}
	}
	for k, crc := range l.acked {
		if !strings.HasSuffix(l.ids[k], crc) {
			l.t.Errorf("%s was acknowledged and is lost (have %q)", k, l.ids[k])
		}
	}
	if len(l.acked) == 0 {
		l.t.Error("nothing was acknowledged")
	}
	if n := j.Stats().Damaged; n != 0 {
		l.t.Errorf("%d records damaged", n)
	}
	l.t.Logf("%d acknowledged, %d delivered, %d resends", len(l.acked), len(l.got), l.resends)
}

// TestKillNineUnderLoadLosesNothing kills a process under load again and again, 100 times, 1,000 with GATEWAYD_LONG.
func TestKillNineUnderLoadLosesNothing(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "q")
	l := newLedger(t)
	lives := 100
	if long() {
		lives = 1000
	}
	for range lives {
		l.life(dir, 30*time.Millisecond+rand.N(90*time.Millisecond))
	}
	l.settle(dir)
}

// TestSyncErrorsOfTheKernelLoseNothing lets strace fail every seventh fdatasync of a process under load, and kills it.
func TestSyncErrorsOfTheKernelLoseNothing(t *testing.T) {
	t.Parallel()
	strace, err := exec.LookPath("strace")
	if err != nil && os.Getenv("CI") != "" {
		t.Fatal("strace is not installed")
	}
	if err != nil {
		t.Skip("strace is not installed")
	}
	if out, err := exec.Command(strace, "-qq", "-o", "/dev/null", "true").CombinedOutput(); err != nil {
		t.Skipf("strace may not trace here: %s", out)
	}
	dir := filepath.Join(t.TempDir(), "q")
	l := newLedger(t)
	for _, inject := range []string{"fdatasync:error=EIO:when=5+7", "fdatasync:error=EIO:when=9+1", "pwrite64:error=ENOSPC:when=20+9", "pwrite64:error=EIO:when=6+1", "fdatasync:delay_enter=100000:when=3+2"} {
		l.life(dir, 900*time.Millisecond, strace, "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync,pwrite64", "-e", "inject="+inject)
	}
	l.settle(dir)
}
