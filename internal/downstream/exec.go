package downstream

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"
)

// Bounds of programs.
const (
	execWaitLeast = time.Second     // before a program is started again
	execWaitMost  = time.Minute     //
	execSteady    = time.Minute     // a run of this length starts the waits over
	execGrace     = 5 * time.Second // between SIGTERM and SIGKILL
	stderrLine    = 512             // bytes of a line of stderr in the log
	stderrRate    = 2               // lines per second, and as many at once
	stderrBurst   = 20
)

// ExecConfig describes a program that the gateway starts.
type ExecConfig struct {
	Name    string // for logs and counters
	Command []string
	Dir     string
	Env     map[string]string
	Limits  LineLimits
}

// Exec runs one program and takes its messages by the line protocol: lines on its
// standard output, answers on its standard input, its standard error in the log.
// A program that ends is started again, sooner first and later less often. It
// never outlives the gateway.
type Exec struct {
	cfg    ExecConfig
	path   string
	gate   *Gate
	log    *zap.Logger
	client *Client
	notes  notes

	mu    sync.Mutex
	stats ExecStats
}

// ExecStats describe a program.
type ExecStats struct {
	Name     string    `json:"name"`
	Running  bool      `json:"running"`
	PID      int       `json:"pid,omitempty"`
	Since    time.Time `json:"since"` // of the state
	Restarts uint64    `json:"restarts"`
	Fault    string    `json:"fault"` // why it ended, while it does not run; "" = nothing wrong
}

// NewExec checks the configuration; nothing is started. A program that is not
// there is an error that names the key under downstream.exec[].
func NewExec(cfg ExecConfig, gate *Gate, log *zap.Logger) (*Exec, error) {
	if len(cfg.Command) == 0 {
		return nil, errors.New("command: is empty")
	}
	path, err := exec.LookPath(cfg.Command[0])
	if err == nil {
		// Relative to where the gateway was started, not to the program's folder.
		path, err = filepath.Abs(path)
	}
	if err != nil {
		return nil, fmt.Errorf("command: %w", err)
	}
	cfg.Limits = cfg.Limits.withDefaults()
	return &Exec{
		cfg: cfg, path: path, gate: gate, log: log, client: gate.Ledger().Source("exec").Client(cfg.Name),
		stats: ExecStats{Name: cfg.Name, Since: time.Now()},
	}, nil
}

// Stats may be called at any time.
func (e *Exec) Stats() ExecStats {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.stats
}

// Run keeps the program running until ctx ends. Then the program gets SIGTERM and
// five seconds, in which what it hands in is still taken and answered.
func (e *Exec) Run(ctx context.Context) error {
	wait, last := execWaitLeast, ""
	for ctx.Err() == nil {
		began := time.Now()
		err := e.once(ctx)
		if ctx.Err() != nil {
			break
		}
		if time.Since(began) >= execSteady {
			wait, last = execWaitLeast, ""
		}
		reason := "it ended by itself"
		if err != nil {
			reason = err.Error()
		}
		e.ended(reason)
		if reason != last {
			e.log.Warn("program ended, it is started again", zap.String("source", e.cfg.Name), zap.String("reason", reason), zap.Duration("wait", wait))
			last = reason
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
		wait = min(2*wait, execWaitMost)
	}
	e.ended("")
	return nil
}

func (e *Exec) ended(fault string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.stats.Running, e.stats.PID, e.stats.Since, e.stats.Fault = false, 0, time.Now(), fault
	if fault != "" {
		e.stats.Restarts++
	}
}

func (e *Exec) running(pid int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.stats.Running, e.stats.PID, e.stats.Since, e.stats.Fault = true, pid, time.Now(), ""
}

// pipes are the gateway's ends of a program's standard streams, and the program's.
type pipes struct {
	in, out, err                *os.File
	theirIn, theirOut, theirErr *os.File
}

func newPipes() (p pipes, err error) {
	for _, pair := range []struct{ r, w **os.File }{{&p.theirIn, &p.in}, {&p.out, &p.theirOut}, {&p.err, &p.theirErr}} {
		if *pair.r, *pair.w, err = os.Pipe(); err != nil {
			p.close()
			return p, err
		}
	}
	return p, nil
}

func (p pipes) close() {
	p.closeTheirs()
	for _, f := range []*os.File{p.in, p.out, p.err} {
		if f != nil {
			f.Close()
		}
	}
}

func (p pipes) closeTheirs() {
	for _, f := range []*os.File{p.theirIn, p.theirOut, p.theirErr} {
		if f != nil {
			f.Close()
		}
	}
}

// once runs the program until it ends.
func (e *Exec) once(ctx context.Context) error {
	p, err := newPipes()
	if err != nil {
		return err
	}
	defer p.close()
	cmd := exec.Command(e.path, e.cfg.Command[1:]...)
	cmd.Args[0] = e.cfg.Command[0]
	cmd.Dir, cmd.Env = e.cfg.Dir, e.environment()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = p.theirIn, p.theirOut, p.theirErr
	cmd.SysProcAttr = ownGroup()

	exited := make(chan struct{})
	var result error
	started := make(chan error, 1)
	var group sync.WaitGroup
	group.Go(func() {
		// The system kills the program when the thread that started it ends, so that
		// thread has to live as long.
		runtime.LockOSThread()
		defer close(exited)
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		result = cmd.Wait()
		// What it has left behind would hold the pipes, and what it works with.
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	})
	if err := <-started; err != nil {
		group.Wait()
		return err
	}
	p.closeTheirs()
	e.running(cmd.Process.Pid)
	group.Go(func() { e.logStderr(p.err) })
	group.Go(func() { e.stop(ctx, cmd.Process.Pid, exited, p) })
	stream := lineStream{gate: e.gate, client: e.client, limits: e.cfg.Limits, log: e.log, notes: &e.notes, in: p.out, out: p.in}
	err = stream.serve(context.WithoutCancel(ctx))
	// Whoever closes its standard output has nothing more to say.
	p.in.Close()
	e.await(exited, cmd.Process.Pid)
	p.err.SetReadDeadline(time.Now().Add(time.Second)) // should something hold it open
	group.Wait()
	if err != nil {
		return err
	}
	return result
}

// stop asks the program to end when the gateway does, and stops reading when it
// does not.
func (e *Exec) stop(ctx context.Context, pid int, exited <-chan struct{}, p pipes) {
	select {
	case <-ctx.Done():
		signalGroup(pid, exited, syscall.SIGTERM)
		limit := time.NewTimer(execGrace)
		defer limit.Stop()
		select {
		case <-exited:
		case <-limit.C:
			signalGroup(pid, exited, syscall.SIGKILL)
			<-exited
		}
	case <-exited:
	}
	// What it wrote before is in the pipe and is read; somebody who holds the pipe
	// open is not waited for.
	p.out.SetReadDeadline(time.Now().Add(execGrace))
}

// await gives a program that is over the time to end.
func (e *Exec) await(exited <-chan struct{}, pid int) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		limit := time.NewTimer(execGrace / 2)
		select {
		case <-exited:
		case <-limit.C:
			signalGroup(pid, exited, sig)
		}
		limit.Stop()
	}
	<-exited
}

// signalGroup reaches the program and what it has started. Once the program has
// been waited for, its number may belong to somebody else.
func signalGroup(pid int, exited <-chan struct{}, sig syscall.Signal) {
	select {
	case <-exited:
	default:
		_ = syscall.Kill(-pid, sig) // it may be gone just now
	}
}

// ownGroup puts a program into a process group of its own, and has the system end
// it when the gateway dies: a program left behind would hold the serial port that
// its successor needs.
func ownGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// environment is what a program may know of the gateway's own, and what is
// configured. The gateway's may hold what is not meant for programs: the socket
// of its supervisor, proxies with passwords.
func (e *Exec) environment() []string {
	var env []string
	for _, key := range []string{"PATH", "HOME", "LANG", "TZ", "TMPDIR", "USER"} {
		if v, ok := os.LookupEnv(key); ok {
			env = append(env, key+"="+v)
		}
	}
	for key, value := range e.cfg.Env {
		env = append(env, key+"="+value)
	}
	slices.Sort(env)
	return env
}

// logStderr brings what the program says into the log.
func (e *Exec) logStderr(from io.Reader) {
	r := bufio.NewReaderSize(from, 4<<10)
	tail := stderrTail{log: e.log, name: e.cfg.Name, left: stderrBurst, at: time.Now()}
	var buf []byte
	for {
		line, err := readLine(r, buf[:0], stderrLine)
		buf = line
		text := strings.TrimSpace(strings.ToValidUTF8(string(line), "\uFFFD"))
		if errors.Is(err, errLongLine) {
			text = fmt.Sprintf("(a line of more than %d bytes)", stderrLine)
			err = nil
		}
		if text != "" {
			tail.say(text)
		}
		if err != nil {
			tail.end()
			return
		}
	}
}

// stderrTail lets so many lines into the log as that can take.
type stderrTail struct {
	log     *zap.Logger
	name    string
	left    float64
	at      time.Time
	skipped int
}

func (t *stderrTail) say(text string) {
	now := time.Now()
	t.left = min(stderrBurst, t.left+now.Sub(t.at).Seconds()*stderrRate)
	t.at = now
	if t.left < 1 {
		t.skipped++
		return
	}
	t.left--
	t.end()
	t.log.Info("program says", zap.String("source", t.name), zap.String("text", text))
}

// end tells how much was left out.
func (t *stderrTail) end() {
	if t.skipped > 0 {
		t.log.Info("program said more than is logged", zap.String("source", t.name), zap.Int("lines", t.skipped))
		t.skipped = 0
	}
}
