package certstore

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestMarksTellWhetherFilesChanged(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "a.pem")
	must(t, os.WriteFile(path, []byte("one"), 0o600))
	here := place{dir, "a.pem"}
	if _, ok := markOf(here); ok {
		t.Error("a file that changed a moment ago is believed to be still")
	}
	if m, ok := markOf(place{dir, "a.pem.new"}); !ok || m != (mark{}) {
		t.Errorf("a file that does not exist has the mark %+v, %v", m, ok)
	}
	time.Sleep(markRest)
	before, ok := markOf(here)
	if again, _ := markOf(here); !ok || again != before {
		t.Errorf("a file at rest is not still: %v, %+v then %+v", ok, before, again)
	}
	old := time.Now().Add(-time.Hour)
	must(t, os.WriteFile(path, []byte("two"), 0o600))
	must(t, os.Chtimes(path, old, old))
	if after, ok := markOf(here); ok || after == before {
		t.Errorf("a change of the same size under the old time is not seen: %+v", after)
	}
}
