package queue

import "testing"

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
