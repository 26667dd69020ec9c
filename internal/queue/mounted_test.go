package queue

import (
	"context"
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// mounted mounts a file system of its own for the test.
func mounted(t *testing.T, args ...string) string {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("mount", append(args, dir)...).CombinedOutput(); err != nil {
		t.Skipf("may not mount here: %s", out)
	}
	t.Cleanup(func() { exec.Command("umount", "-l", dir).Run() })
	return dir
}

// TestFullFileSystemIsDrainedAndFilledAgain fills a tmpfs of 4 MiB, drains it, and fills it again, without a restart.
func TestFullFileSystemIsDrainedAndFilledAgain(t *testing.T) {
	t.Parallel()
	dir := mounted(t, "-t", "tmpfs", "-o", "size=4m", "tmpfs")
	var mu sync.Mutex
	var kinds []EventKind
	j, stop := start(t, Options{Dir: filepath.Join(dir, "q"), Report: func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		kinds = append(kinds, e.Kind)
	}})
	q := mustQueue(t, j, "press-7", Limits{})
	fill := func() (n int) {
		deadline := time.Now().Add(10 * time.Second)
		for time.Now().Before(deadline) {
			_, err := q.AppendWait(t.Context(), Message{Payload: make([]byte, 4000)})
			if errors.Is(err, ErrDisk) {
				return n
			}
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
		t.Fatal("a file system of 4 MiB does not fill")
		return 0
	}
	first := fill()
	if first < 300 {
		t.Errorf("only %d messages of 4,000 bytes fit 4 MiB", first)
	}
	for round := range 2 {
		got := drain(t, q)
		for _, m := range got {
			q.Ack(m.Seq)
		}
		deadline := time.Now().Add(15 * time.Second)
		for {
			_, err := q.AppendWait(t.Context(), Message{Payload: make([]byte, 4000)})
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("round %d: %d messages drained, still %v; %+v", round, len(got), err, j.Stats())
			}
			time.Sleep(20 * time.Millisecond)
		}
		if n := fill(); n < first/2 {
			t.Errorf("round %d: only %d messages fit, %d at first", round, n, first)
		}
	}
	want := q.Stats().Messages
	stop()
	mu.Lock()
	if len(kinds) < 2 || kinds[0] != EventTrouble || kinds[1] != EventRecovered || len(kinds) > 12 {
		t.Errorf("events: %v", kinds)
	}
	mu.Unlock()
	j, _ = start(t, Options{Dir: filepath.Join(dir, "q")})
	if got := drain(t, mustQueue(t, j, "press-7", Limits{})); int64(len(got)) != want {
		t.Errorf("%d messages after a restart on the full disk, want %d", len(got), want)
	}
}

// TestFullFileSystemPrefersTheNewest: with drop-oldest a disk that is full takes the newest messages again, and counts what it dropped for them.
func TestFullFileSystemPrefersTheNewest(t *testing.T) {
	t.Parallel()
	dir := mounted(t, "-t", "tmpfs", "-o", "size=4m", "tmpfs")
	j, _ := start(t, Options{Dir: filepath.Join(dir, "q")})
	q := mustQueue(t, j, "press-7", Limits{WhenFull: DropOldest})
	deadline := time.Now().Add(time.Minute)
	newest := uint64(0)
	for n := 0; n < 1500; {
		seq, err := q.AppendWait(t.Context(), Message{Payload: make([]byte, 4000)})
		switch {
		case err == nil:
			newest = seq
			n++
		case !errors.Is(err, ErrDisk):
			t.Fatal(err)
		case time.Now().After(deadline):
			t.Fatalf("%d messages of 4,000 bytes went through 4 MiB: %v; %+v", n, err, q.Stats())
		default:
			time.Sleep(time.Millisecond)
		}
	}
	got := drain(t, q)
	s := q.Stats()
	if n := len(got); n < 100 || got[n-1].Seq != newest || int64(n) != s.Messages || s.Dropped[DropSize]+uint64(n) != s.Appended {
		t.Errorf("%d messages, the newest is %d; %+v", n, newest, s)
	}
}

// TestStartOnAReadOnlyFileSystem: a disk that came up read-only is drained.
func TestStartOnAReadOnlyFileSystem(t *testing.T) {
	t.Parallel()
	dir := mounted(t, "-t", "tmpfs", "-o", "size=64m", "tmpfs")
	o := Options{Dir: filepath.Join(dir, "q")}
	j, stop := start(t, o)
	mustAppend(t, mustQueue(t, j, "press-7", Limits{}), Message{Payload: []byte("reading")})
	stop()
	if out, err := exec.Command("mount", "-o", "remount,ro", dir).CombinedOutput(); err != nil {
		t.Fatalf("remount: %s", out)
	}
	j, stop = start(t, o)
	defer stop()
	q := mustQueue(t, j, "press-7", Limits{})
	if got := drain(t, q); len(got) != 1 {
		t.Errorf("%d messages", len(got))
	}
	if _, err := q.AppendWait(t.Context(), Message{}); !errors.Is(err, ErrDisk) {
		t.Errorf("append: %v", err)
	}
	if _, err := Open(o); !errors.Is(err, ErrLocked) {
		t.Errorf("a second instance: %v", err)
	}
	if s := j.Stats().Trouble; !strings.Contains(s, "read-only") {
		t.Errorf("trouble: %q", s)
	}
	if out, err := exec.Command("mount", "-o", "remount,rw", dir).CombinedOutput(); err != nil {
		t.Fatalf("remount: %s", out)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := q.AppendWait(t.Context(), Message{Payload: []byte("new")}); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// TestReadOnlyRemountIsReadAndRecovers: what is stored is read, appends are refused, and accepted again after the remount.
func TestReadOnlyRemountIsReadAndRecovers(t *testing.T) {
	t.Parallel()
	dir := mounted(t, "-t", "tmpfs", "-o", "size=64m", "tmpfs")
	remount := func(mode string) {
		t.Helper()
		if out, err := exec.Command("mount", "-o", "remount,"+mode, dir).CombinedOutput(); err != nil {
			t.Fatalf("remount: %s", out)
		}
	}
	o := Options{Dir: filepath.Join(dir, "q")}
	j, stop := start(t, o)
	for i := range 3 {
		mustAppend(t, mustQueue(t, j, "press-7", Limits{}), Message{Payload: []byte{byte(i)}})
	}
	stop()
	// Nothing may be open for writing at a remount, so it comes before the first append of the second life; the lock is opened by the first.
	j, err := open(o, lockFreeFS{})
	if err != nil {
		t.Fatal(err)
	}
	remount("ro")
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- j.Run(ctx) }()
	q := mustQueue(t, j, "press-7", Limits{})
	if _, err := q.AppendWait(t.Context(), Message{}); !errors.Is(err, ErrDisk) {
		t.Errorf("append: %v", err)
	}
	if s := j.Stats().Trouble; !strings.Contains(s, "read-only") {
		t.Errorf("trouble: %q", s)
	}
	if got := drain(t, q); len(got) != 3 {
		t.Errorf("%d messages", len(got))
	}
	q.Ack(1)
	remount("rw")
	deadline := time.Now().Add(20 * time.Second)
	for {
		if _, err := q.AppendWait(t.Context(), Message{Payload: []byte("new")}); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	cancel()
	if err := errors.Join(<-ran, j.Close()); err != nil {
		t.Fatal(err)
	}
	j, _ = start(t, o)
	if got := drain(t, mustQueue(t, j, "press-7", Limits{})); len(got) != 3 || got[0].Seq != 2 {
		t.Errorf("got %+v", got)
	}
}

// lockFreeFS keeps no file open for writing.
type lockFreeFS struct{ osFS }

func (lockFreeFS) lock(string) (io.Closer, error) { return io.NopCloser(nil), nil }
