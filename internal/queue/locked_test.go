package queue

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// A process that was killed holds its lock a moment longer than its supervisor waits.
func TestAHolderThatIsGoingIsWaitedFor(t *testing.T) {
	dir := t.TempDir()
	l, err := osFS{}.lock(filepath.Join(dir, lockName))
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(lockPatience/10, func() { l.Close() })
	j, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Error(err)
	}
}

func TestLockedTellsWhetherSomebodyHasTheFolder(t *testing.T) {
	dir := t.TempDir()
	locked := func() bool {
		t.Helper()
		l, err := Locked(dir)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	if locked() {
		t.Error("a folder without a journal is locked")
	}
	j, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if !locked() {
		t.Error("an open journal is not locked")
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if locked() {
		t.Error("a closed journal is locked")
	}
}

// Somebody tidies the folder up while it is in use.
func TestTheFolderStaysLockedWithoutTheFile(t *testing.T) {
	dir := t.TempDir()
	j, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	if err := os.Remove(filepath.Join(dir, lockName)); err != nil {
		t.Fatal(err)
	}
	if second, err := Open(Options{Dir: dir}); !errors.Is(err, ErrLocked) {
		t.Errorf("%v, %v", second, err)
	}
}
