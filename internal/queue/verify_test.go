package queue

import (
	"os"
	"path/filepath"
	"testing"
)

// Verify names a file that was cut, wherever it ends.
func TestVerifyNamesAFileThatWasCut(t *testing.T) {
	dir := t.TempDir()
	err := Offline(t.Context(), Options{Dir: dir, SegmentBytes: minSegment}, func(j *Journal) error {
		q, err := j.Queue("press-7", Limits{})
		if err != nil {
			return err
		}
		for range 8 {
			stored := make(chan error, 1)
			m := Message{Topic: "t", Payload: make([]byte, minSegment/4)}
			if err := q.Append(t.Context(), m, func(_ uint64, err error) { stored <- err }); err != nil {
				return err
			}
			if err := <-stored; err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"+slotSuffix))
	if err != nil || len(files) < 3 {
		t.Fatal(files, err)
	}
	contents, newest := map[string][]byte{}, uint64(0)
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if h, ok := parseSegBlock(b); ok { // else it is not in use
			contents[name], newest = b, max(newest, h.id)
		}
	}
	for name, whole := range contents {
		h, _ := parseSegBlock(whole)
		for _, cut := range []int{0, 1, segHeaderLen - 1, segHeaderLen, 1000, segHeaderCopy, segHeaderCopy + segHeaderLen, segDataStart, segDataStart + 5000, 3 * blockBytes} {
			if err := os.WriteFile(name, whole[:cut], 0o600); err != nil {
				t.Fatal(err)
			}
			j, err := OpenForReading(dir)
			if err != nil {
				t.Fatalf("%s cut at %d: %v", filepath.Base(name), cut, err)
			}
			r, err := j.Verify(t.Context())
			// The end of the newest cannot be told from one that was never acknowledged.
			if err != nil || len(r.Faults) == 0 && h.id != newest {
				t.Errorf("%s cut at %d: %d faults, %v; damaged %d", filepath.Base(name), cut, len(r.Faults), err, j.Stats().Damaged)
			}
			if err := j.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(name, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
