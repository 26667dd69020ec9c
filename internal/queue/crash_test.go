package queue

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// script does everything once that changes the disk: append, acknowledge, roll, prune, set aside, put back, compact, delete.
func (w *world) script() {
	w.append("press-7", 0, 3, 100)
	w.append("stalled", 0, 2, 2000)
	w.append("press-7", 9, 2, 300)
	w.ack("press-7", 2, false)
	w.flush()
	w.setAside("press-7")
	for range 6 {
		w.append("press-7", 0, 4, 5000)
		w.append("stalled", 0, 1, 500)
		w.ack("press-7", 100, true)
	}
	w.flush()
	w.chores()
	w.requeue("press-7")
	for range 9 {
		w.append("press-7", 0, 4, 5000)
		w.append("oven", 4, 1, 10)
		w.ack("press-7", 100, false)
	}
	w.flush()
	w.chores()
	w.flush()
	w.chores()
	w.append("oven", 0, 2, 100)
	w.ack("oven", 1, false)
	w.flush()
}

// TestEveryCallMayFail fails the n-th call of the script for every n, once and from then on, cuts the power at it, and checks after reopening that nothing
// acknowledged is lost.
func TestEveryCallMayFail(t *testing.T) {
	for _, mode := range []string{"once", "sticky", "power cut, nothing unsynced survives", "power cut, everything survives", "power cut, some sectors survive"} {
		t.Run(mode, func(t *testing.T) {
			n, hit, moved := 0, true, uint64(0)
			step := 1
			if underRace {
				step = 9
			}
			for ; hit; n += step {
				hit = false
				r := rand.New(rand.NewPCG(uint64(n), 3))
				w := newWorld(t, r.IntN)
				w.fs.fault = func(c int, call, name string) error {
					if c < n || (mode == "once" && c > n) {
						return nil
					}
					hit = true
					if mode == "once" || mode == "sticky" {
						return fmt.Errorf("injected into %s of %s", call, name)
					}
					return errPowerCut
				}
				w.last = fmt.Sprintf("failure of call %d (%s)", n, mode)
				if err := w.open(); err == nil {
					w.script()
					moved = max(moved, w.j.Stats().Compacted)
					w.j.Close()
				}
				switch mode {
				case "once", "sticky":
					w.fs.fault = nil
					w.fs.locked = false
					w.fs.crash(func() bool { return n%2 == 0 })
				case "power cut, nothing unsynced survives":
					w.fs.crash(func() bool { return false })
				case "power cut, everything survives":
					w.fs.crash(func() bool { return true })
				default:
					w.fs.crash(func() bool { return r.IntN(2) == 0 })
				}
				w.mustOpen()
				w.check()
				w.append("press-7", 0, 2, 100)
				w.check()
				w.close()
			}
			if moved == 0 {
				t.Error("the script compacts nothing")
			}
			t.Logf("%d calls", n-step)
		})
	}
}

// sealed makes a journal of two sealed segments and one in use, closed, and returns what must be in it.
func sealed(t *testing.T) (*world, map[string]*modelMessage) {
	w := newWorld(t, rand.New(rand.NewPCG(1, 1)).IntN)
	w.mustOpen()
	for range 9 {
		w.append("press-7", 0, 3, 3000)
		w.append("press-8", 0, 2, 200)
	}
	w.chores()
	w.close()
	all := map[string]*modelMessage{}
	for name, m := range w.qs {
		for seq, mm := range m.must {
			all[fmt.Sprint(name, seq)] = mm
		}
	}
	return w, all
}

// read returns what a journal on fs delivers.
func (w *world) read(t *testing.T, all map[string]*modelMessage) map[string]bool {
	t.Helper()
	w.damaged = true
	w.mustOpen()
	got := map[string]bool{}
	for name := range w.qs {
		q, _ := w.j.Queue(name, Limits{})
		r := q.Reader()
		var last uint64
		class := uint8(MaxPriority)
		for {
			m, ok, err := r.Next()
			if err != nil && w.hurry {
				q.failing.since = q.failing.since.Add(-2 * giveUpAfter)
				continue
			}
			if err != nil {
				t.Fatalf("%s: %v", w.last, err)
			}
			if !ok {
				break
			}
			if m.Priority < class {
				class, last = m.Priority, 0
			}
			k := fmt.Sprint(name, m.Seq)
			known := all[k]
			if known == nil {
				known = w.again[k]
			}
			if known == nil || !bytes.Equal(known.payload, m.Payload) || m.Seq <= last {
				t.Fatalf("%s: %s came back wrong", w.last, k)
			}
			last = m.Seq
			if all[k] != nil {
				got[k] = true
			}
		}
		if s := q.Stats(); s.Messages != int64(len(got)) && len(w.qs) == 1 {
			t.Fatalf("%s: stats say %d, read %d", w.last, s.Messages, len(got))
		}
	}
	return got
}

// TestDamageIsLimitedToTheTouchedRecords flips one bit in every part of every file, zeroes blocks, and expects everything else to be delivered, before
// and after.
func TestDamageIsLimitedToTheTouchedRecords(t *testing.T) {
	w, all := sealed(t)
	files := maps.Clone(w.fs.files)
	lost, flips := 0, 0
	step := 61
	if underRace {
		step = 997
	}
	if long() {
		step = 1
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		data := files[name].data
		for off := 0; off < len(data); off += step {
			d := slices.Clone(data)
			d[off] ^= 1 << (off % 8)
			w.fs = newMemFS()
			for n, f := range files {
				w.fs.files[n] = &memFile{fs: w.fs, data: f.data, durable: f.data}
			}
			w.fs.files[name] = &memFile{fs: w.fs, data: d, durable: d}
			w.last = fmt.Sprintf("flip at %d of %s", off, name)
			var events int
			w.o.Report = func(Event) { events++ }
			got := w.read(t, all)
			flips++
			missing := len(all) - len(got)
			lost += missing
			// A flip in what records of a frame share (who they are from, when) touches all of these; the last group of the newest segment cannot be told
			// from one that was never acknowledged.
			if missing > 5 {
				t.Fatalf("%s: %d of %d messages are gone", w.last, missing, len(all))
			}
			if missing > 0 && events == 0 && w.j.Stats().Damaged == 0 {
				t.Fatalf("%s: %d messages are gone and nobody says so", w.last, missing)
			}
			w.j.Close()
		}
	}
	t.Logf("%d flips, %d messages lost in all", flips, lost)
}

// TestTornTailIsAllOrNothing cuts the file in use at every byte of its last group.
func TestTornTailIsAllOrNothing(t *testing.T) {
	w := newWorld(t, rand.New(rand.NewPCG(1, 1)).IntN)
	w.mustOpen()
	w.append("press-7", 0, 3, 100)
	from := w.j.w.off
	w.append("press-7", 0, 4, 100)
	to := w.j.w.off
	name := w.j.w.seg.slot.name
	w.j.Close()
	data := w.fs.files[name].data
	all := map[string]*modelMessage{}
	for seq, mm := range w.qs["press-7"].must {
		all[fmt.Sprint("press-7", seq)] = mm
	}
	for cut := from; cut <= to; cut++ {
		for _, zero := range []bool{true, false} {
			d := slices.Clone(data)
			if zero {
				clear(d[cut:])
			} else {
				d = d[:cut]
			}
			w.fs.files[name] = &memFile{fs: w.fs, data: d, durable: d}
			w.fs.locked = false
			w.last = fmt.Sprintf("cut at %d (%v)", cut, zero)
			got := w.read(t, all)
			w.j.Close()
			if len(got) != 3 && len(got) != 7 || (len(got) == 7) != (bytes.Equal(bytes.TrimRight(d[from:min(to, int64(len(d)))], "\x00"), bytes.TrimRight(data[from:to], "\x00")) && int64(len(d)) >= to) {
				t.Fatalf("%s: %d messages", w.last, len(got))
			}
		}
	}
}

// TestNewerFormatIsRefusedUntouched: an older program must not touch what a newer one wrote.
func TestNewerFormatIsRefusedUntouched(t *testing.T) {
	dir := t.TempDir()
	h := segHeader{version: formatVersion + 1, id: 7, salt: 1}
	name := filepath.Join(dir, "00000000.jnl")
	if err := os.WriteFile(name, h.block(), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(Options{Dir: dir})
	var v *VersionError
	if !errors.As(err, &v) || v.Version != formatVersion+1 {
		t.Fatalf("got %v", err)
	}
	if b, err := os.ReadFile(name); err != nil || !bytes.Equal(b, h.block()) {
		t.Fatal("the file was touched")
	}
}

// TestMissingAndForeignFilesAreNamed: a start never fails over them and never deletes what it does not know.
func TestMissingAndForeignFilesAreNamed(t *testing.T) {
	w, all := sealed(t)
	names := slices.Sorted(maps.Keys(w.fs.files))
	victim := ""
	for _, n := range names {
		if h, ok := parseSegBlock(w.fs.files[n].data); ok && h.id == 1 {
			victim = n
		}
	}
	delete(w.fs.files, victim)
	w.fs.files["/q/README"] = &memFile{fs: w.fs, data: []byte("hello")}
	kinds := map[EventKind]string{}
	w.o.Report = func(e Event) { kinds[e.Kind] = e.File }
	got := w.read(t, all)
	if kinds[EventMissing] != victim || kinds[EventForeign] != "/q/README" {
		t.Errorf("events: %v, want %s missing", kinds, victim)
	}
	if len(got) == 0 || len(got) == len(all) {
		t.Errorf("%d of %d messages", len(got), len(all))
	}
	w.chores()
	if w.fs.files["/q/README"] == nil {
		t.Error("the foreign file was deleted")
	}
}

// TestSyncErrorNeverAcknowledges: what was written before a failed sync counts only after it is written and synced again elsewhere.
func TestSyncErrorNeverAcknowledges(t *testing.T) {
	w := newWorld(t, rand.New(rand.NewPCG(1, 1)).IntN)
	w.mustOpen()
	w.append("press-7", 0, 1, 10)
	var rewritten bool
	w.j.o.Report = func(e Event) { rewritten = rewritten || e.Kind == EventRewritten }
	failed := false
	w.fs.fault = func(_ int, call, _ string) error {
		if call == "sync" && !failed {
			failed = true
			return errors.New("input/output error")
		}
		return nil
	}
	w.append("press-7", 0, 5, 10)
	if m := w.qs["press-7"]; len(m.must) != 6 || !rewritten {
		t.Fatalf("%d acknowledged, rewritten %v", len(m.must), rewritten)
	}
	w.j.Close()
	w.fs.crash(func() bool { return false })
	w.last = "a sync that failed once and a power cut"
	w.mustOpen()
	w.check()
}

// TestFullDiskIsDrainedAndRecovers: appends are refused, acknowledging goes on, frees space, and appends work again without a restart.
func TestFullDiskIsDrainedAndRecovers(t *testing.T) {
	w := newWorld(t, rand.New(rand.NewPCG(1, 1)).IntN)
	w.fs.limit = 7 * minSegment
	w.mustOpen()
	for range 40 {
		w.append("press-7", 0, 1, 8000)
		w.chores()
	}
	m := w.qs["press-7"]
	if w.j.stopped() == nil || len(m.must) < 10 || len(m.must) > 40 {
		t.Fatalf("%d stored, stopped: %v", len(m.must), w.j.stopped())
	}
	q, _ := w.j.Queue("press-7", Limits{})
	if err := q.Append(context.Background(), Message{}, nil); !errors.Is(err, ErrDisk) {
		t.Fatalf("append on a full disk: %v", err)
	}
	if s := w.j.Stats(); s.Trouble == "" {
		t.Error("the trouble is not told")
	}
	w.check()
	for i := 0; w.j.stopped() != nil; i++ {
		if i > 30 {
			t.Fatal("draining does not free the disk")
		}
		w.ack("press-7", 2, false)
		w.flush()
		w.chores()
		w.j.commit(false)
	}
	w.append("press-7", 0, 1, 100)
	if err := w.j.stopped(); err != nil {
		t.Fatal(err)
	}
	w.last = "draining a full disk"
	w.check()
	w.close()
	w.settleMay()
	w.mustOpen()
	w.check()
}

func long() bool { return os.Getenv("GATEWAYD_LONG") != "" }

// TestReadOnlyFileSystemIsDrained: nothing can be written, everything can be read, and it works again when it can.
func TestReadOnlyFileSystemIsDrained(t *testing.T) {
	w := newWorld(t, rand.New(rand.NewPCG(1, 1)).IntN)
	w.mustOpen()
	w.append("press-7", 0, 4, 100)
	w.fs.fault = func(_ int, call, _ string) error {
		if call == "read" || call == "open" || call == "list" {
			return nil
		}
		return errors.New("read-only file system")
	}
	w.append("press-7", 0, 1, 100)
	w.last = "remount"
	w.check()
	w.ack("press-7", 2, false)
	w.flush()
	w.fs.fault = nil
	w.j.w.retryAt = time.Time{}
	w.flush()
	w.append("press-7", 0, 1, 100)
	w.close()
	w.settleMay()
	w.mustOpen()
	w.check()
}
