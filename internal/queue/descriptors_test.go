package queue

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// task runs this program as a child that does something else than the tests.
func task(t *testing.T, exe, name, dir string, as *syscall.Credential) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, exe)
	c.Dir = "/"
	c.Env = append(os.Environ(), childEnv+"="+dir, taskEnv+"="+name)
	c.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return string(out)
}

// exhaust leaves itself three descriptors more than it has, uses the journal over many segments, and gets them back.
func exhaust(dir string) error {
	j, err := Open(Options{Dir: dir, SegmentBytes: minSegment})
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	ran := make(chan error, 1)
	go func() { ran <- j.Run(ctx) }()
	q, err := j.Queue("press-7", Limits{})
	if err != nil {
		return err
	}
	if _, err := q.AppendWait(ctx, Message{Payload: []byte("first")}); err != nil {
		return err
	}
	var full syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &full); err != nil {
		return err
	}
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	limit := func(n uint64) error {
		return syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: n, Max: full.Max})
	}
	baseline := uint64(len(open) - 1) // without the one that listed them
	if err := limit(baseline + 3); err != nil {
		return err
	}
	appended := 1
	fill := func(n int) (refused int, err error) {
		for range n {
			_, err := q.AppendWait(ctx, Message{Payload: make([]byte, 8000)})
			switch {
			case err == nil:
				appended++
			case errors.Is(err, ErrDisk):
				refused++
				time.Sleep(time.Millisecond)
			default:
				return refused, err
			}
		}
		return refused, nil
	}
	squeezed, err := fill(200)
	if err != nil {
		return err
	}
	// Now others take the three too.
	var taken []*os.File
	for {
		f, err := os.Open("/dev/null")
		if err != nil {
			break
		}
		taken = append(taken, f)
	}
	refused, err := fill(100)
	if err != nil {
		return err
	}
	_, _, readErr := q.Reader().Next()
	trouble := j.Stats().Trouble
	for _, f := range taken {
		f.Close()
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		if _, err = q.AppendWait(ctx, Message{}); err == nil {
			appended++
			break
		} else if time.Now().After(deadline) {
			return fmt.Errorf("does not recover with baseline + 3: %w", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	got := 0
	for r := q.Reader(); ; got++ {
		m, ok, err := r.Next()
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		q.Ack(m.Seq)
	}
	if s := j.Stats(); s.Trouble != "" || s.Damaged != 0 {
		return fmt.Errorf("afterwards: %+v", s)
	}
	fmt.Printf("squeezed %d refused %d trouble %q read %v appended %d got %d\n", squeezed, refused, trouble, readErr, appended, got)
	if got != appended {
		return fmt.Errorf("%d appended, %d read", appended, got)
	}
	if refused == 0 || !strings.Contains(trouble, "too many open files") {
		return fmt.Errorf("%d refused, trouble %q: the descriptors did not run out", refused, trouble)
	}
	stop()
	return errors.Join(<-ran, j.Close())
}

// TestRunningOutOfDescriptorsRefusesAndRecovers: with three more than a quiet journal has it works over many segments; with none it refuses, says why, and works
// again when there are some.
func TestRunningOutOfDescriptorsRefusesAndRecovers(t *testing.T) {
	t.Parallel()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Log(task(t, exe, "descriptors", filepath.Join(t.TempDir(), "q"), nil))
}

// serve delivers what is there and appends one message more.
func serve(dir string) error {
	var mu sync.Mutex
	j, err := Open(Options{Dir: dir, SegmentBytes: minSegment, Report: func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Println("event", e.Kind, filepath.Base(e.File))
	}})
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	ran := make(chan error, 1)
	go func() { ran <- j.Run(ctx) }()
	q, err := j.Queue("press-7", Limits{})
	if err != nil {
		return err
	}
	if _, err := q.AppendWait(ctx, Message{Payload: fmt.Append(nil, "new ", os.Getpid())}); err != nil {
		return err
	}
	for r := q.Reader(); ; {
		m, ok, err := r.Next()
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		fmt.Printf("got %d %s %.8s\n", m.Seq, m.ID, m.Payload)
		q.Ack(m.Seq)
	}
	fmt.Println("damaged", j.Stats().Damaged, "unreadable", j.Stats().Unreadable)
	stop()
	return errors.Join(<-ran, j.Close())
}

// TestFileOfAnotherOwnerIsNamedAndComesBack gives one segment to another user, mode 0600, and later back. Root may read everything, so then the journal runs as nobody.
func TestFileOfAnotherOwnerIsNamedAndComesBack(t *testing.T) {
	t.Parallel()
	base, err := os.MkdirTemp("", "gatewayd-owner")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	dir := filepath.Join(base, "q")
	j, stop := start(t, Options{Dir: dir, SegmentBytes: minSegment})
	q := mustQueue(t, j, "press-7", Limits{})
	for i := range 60 {
		mustAppend(t, q, Message{Payload: fmt.Appendf(nil, "%-8d%6000d", i, i)})
	}
	stop()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	give := func(name string, away bool) error {
		if away {
			return os.Chmod(name, 0)
		}
		return os.Chmod(name, 0o600)
	}
	var as *syscall.Credential
	if os.Getuid() == 0 {
		const nobody = 65534
		as = &syscall.Credential{Uid: nobody, Gid: nobody}
		b, err := os.ReadFile(exe)
		if err != nil {
			t.Fatal(err)
		}
		exe = filepath.Join(base, "child")
		if err := errors.Join(os.Chmod(base, 0o755), os.WriteFile(exe, b, 0o755)); err != nil {
			t.Fatal(err)
		}
		give = func(name string, away bool) error {
			if away {
				return os.Chown(name, 0, 0)
			}
			return os.Chown(name, nobody, nobody)
		}
		if err := filepath.Walk(dir, func(p string, _ os.FileInfo, err error) error { return errors.Join(err, os.Chown(p, nobody, nobody)) }); err != nil {
			t.Fatal(err)
		}
	}
	victim := filepath.Join(dir, "00000002"+slotSuffix)
	before, err := os.ReadFile(victim)
	if err != nil {
		t.Fatal(err)
	}
	if err := give(victim, true); err != nil {
		t.Fatal(err)
	}
	one, two := task(t, exe, "serve", dir, as), task(t, exe, "serve", dir, as)
	for _, out := range []string{one, two} {
		if !strings.Contains(out, "event file cannot be read 00000002.jnl") || !strings.Contains(out, "damaged 0 unreadable 1") {
			t.Errorf("says:\n%s", out)
		}
	}
	if err := give(victim, false); err != nil {
		t.Fatal(err)
	}
	if after, err := os.ReadFile(victim); err != nil || !bytes.Equal(before, after) {
		t.Error("the file was touched")
	}
	three := task(t, exe, "serve", dir, as)
	var late []string
	for i := range 60 {
		mark := fmt.Sprintf(" %-8d\n", i)
		n := strings.Count(one+two+three, mark)
		if n != 1 {
			t.Errorf("message %d came %d times", i, n)
		}
		if strings.Contains(three, mark) {
			late = append(late, fmt.Sprint(i))
		}
	}
	if len(late) == 0 || len(late) > 30 || !strings.Contains(three, "damaged 0 unreadable 0") {
		t.Errorf("late: %v\n%s", late, three)
	}
	t.Logf("late: %v", late)
}
