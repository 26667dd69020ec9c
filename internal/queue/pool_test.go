package queue

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestFilesAreUsedAgain: once as many files as are needed at a time are there, no other is made or removed, whatever the rhythm in which they are emptied.
func TestFilesAreUsedAgain(t *testing.T) {
	w := newWorld(t, rand.New(rand.NewPCG(1, 1)).IntN)
	w.mustOpen()
	made, removed := 0, 0
	w.fs.fault = func(_ int, call, _ string) error {
		switch call {
		case "allocate":
			made++
		case "remove":
			removed++
		}
		return nil
	}
	for round := range 60 {
		if round == 20 {
			made, removed = 0, 0
		}
		for range 1 + round%3 { // one to three segments come and go at once
			w.append("press-7", 0, 12, 4_000)
		}
		w.chores()
		w.ack("press-7", 1000, false)
		w.flush()
		w.chores()
		w.j.trim()
	}
	if made+removed > 0 {
		t.Errorf("%d files made, %d removed", made, removed)
	}
	w.last = "sixty rounds"
	w.check()
}

// TestSpareFilesAreRemovedInTime: what a backlog left behind does not stay for ever.
func TestSpareFilesAreRemovedInTime(t *testing.T) {
	w := newWorld(t, rand.New(rand.NewPCG(1, 1)).IntN)
	w.mustOpen()
	for range 20 {
		w.append("press-7", 0, 12, 4_000)
	}
	w.chores()
	w.ack("press-7", 1000, false)
	w.flush()
	w.chores()
	if n := len(w.j.free); n < 10 {
		t.Fatalf("%d files are free after a backlog of 20", n)
	}
	for range 2 {
		w.j.trimmed = time.Now().Add(-trimAfter)
		w.j.trim()
	}
	if n := len(w.j.free); n != spareSlots {
		t.Errorf("%d files are free, want %d", n, spareSlots)
	}
	w.append("press-7", 0, 12, 4_000)
	w.last = "trimming"
	w.check()
	w.close()
	w.mustOpen()
	w.check()
}

// TestUsedFilesAreKnownAfterARestart: zeros are not written again where an earlier process wrote.
func TestUsedFilesAreKnownAfterARestart(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	f, err := osFS{}.open(name, createNew)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.allocate(1 << 20); err != nil {
		t.Fatal(err)
	}
	if n := f.written(); n != 0 {
		t.Skipf("this file system does not tell what was never written: %d", n)
	}
	if _, err := f.WriteAt(make([]byte, 40<<10), 0); err != nil {
		t.Fatal(err)
	}
	if err := f.sync(); err != nil {
		t.Fatal(err)
	}
	g, err := osFS{}.open(name, openWrite)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if n := g.written(); n < 40<<10 || n > 64<<10 {
		t.Errorf("written up to %d, want 40 KiB", n)
	}
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
}
