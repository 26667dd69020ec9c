package queue

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// backlog is a world of two queues over some segments. It delivers a little of the first and says which segment the rest of that lies in.
func backlog(t *testing.T) (*world, *segment) {
	w := newWorld(t, rand.New(rand.NewPCG(1, 1)).IntN)
	w.mustOpen()
	w.damaged = true
	for range 60 {
		w.append("press-7", 0, 5, 400)
		w.append("press-8", 0, 5, 400)
		w.chores()
	}
	w.ack("press-7", 20, false)
	q, _ := w.j.Queue("press-7", Limits{})
	e, _, err := q.head(0)
	if err != nil || !e.seg.sealed.Load() || len(w.j.segments) < 5 {
		t.Fatalf("%v, %+v", err, w.j.Stats())
	}
	w.j.files.shed()
	w.j.cache.trim()
	w.j.cache.trim()
	return w, e.seg
}

// forget takes what lies in a segment out of what has to be there and says how much that was.
func (w *world) forget(name string, g *segment) (n int) {
	q, _ := w.j.Queue(name, Limits{})
	m := w.queue(name)
	for _, e := range q.lanes[0].ext {
		for seq := e.first; e.seg == g && seq <= e.last(); seq++ {
			if m.must[seq] != nil {
				m.may[seq] = m.must[seq]
				delete(m.must, seq)
				n++
			}
		}
	}
	return n
}

// TestRemovedFileTakesItsMessagesOnly: somebody removes a file under a running journal, half delivered.
func TestRemovedFileTakesItsMessagesOnly(t *testing.T) {
	w, g := backlog(t)
	missing := 0
	w.j.o.Report = func(e Event) {
		if e.Kind == EventMissing && e.File == g.slot.name {
			missing++
		}
	}
	if err := w.fs.remove(g.slot.name); err != nil {
		t.Fatal(err)
	}
	w.last = "removing a file"
	lost := map[string]int{"press-7": w.forget("press-7", g), "press-8": w.forget("press-8", g)}
	w.check()
	for name, n := range lost {
		q, _ := w.j.Queue(name, Limits{})
		if d := q.Stats().Dropped[DropDamage]; n == 0 || d != uint64(n) {
			t.Errorf("%s: %d counted as damaged, want %d", name, d, n)
		}
	}
	w.flush()
	w.chores()
	w.chores()
	if missing != 1 || w.j.Stats().Trouble != "" || g.live.Load() != 0 {
		t.Errorf("named %d times, %d said to wait there, %+v", missing, g.live.Load(), w.j.Stats())
	}
	for _, s := range w.j.free { // nor may a file that is kept for later stop anything
		w.fs.remove(s.name)
	}
	for range 20 {
		w.append("press-7", 0, 5, 4000)
		w.chores()
	}
	if err := w.j.stopped(); err != nil {
		t.Fatal(err)
	}
	w.check()
	w.close()
	w.settleMay()
	w.mustOpen()
	w.check()
}

// TestMissingFolderLosesNothing: a file system that is not there at the moment is not a file that was removed.
func TestMissingFolderLosesNothing(t *testing.T) {
	w, _ := backlog(t)
	files := w.fs.files
	w.fs.files = map[string]*memFile{}
	q, _ := w.j.Queue("press-7", Limits{})
	if _, ok, err := q.Reader().Next(); ok || err == nil {
		t.Fatalf("read %v, %v", ok, err)
	}
	w.fs.files = files
	w.damaged = false
	w.check()
	if n := w.j.Stats().Damaged; n != 0 {
		t.Errorf("%d damaged", n)
	}
}

// TestFileInUseThatIsRemovedTakesNoMoreMessages: what is acknowledged from then on is in a file that is there.
func TestFileInUseThatIsRemovedTakesNoMoreMessages(t *testing.T) {
	w, _ := backlog(t)
	g := w.j.w.seg
	w.forget("press-7", g)
	w.forget("press-8", g)
	w.fs.remove(g.slot.name)
	w.append("press-7", 0, 5, 100)
	if n := len(w.qs["press-7"].must); n < 5 || w.j.w.seg == g {
		t.Fatalf("%d messages, still in use: %v", n, w.j.w.seg == g)
	}
	w.fs.crash(func() bool { return false })
	w.last = "removing the file in use, and a power cut"
	w.mustOpen()
	w.check()
}

// TestBadBlocksHoldNobodyUp: everything in one file fails with an I/O error, and it is where the messages of all queues go on. They are given up after a
// minute, all at once, when the disk reads elsewhere.
func TestBadBlocksHoldNobodyUp(t *testing.T) {
	w, g := backlog(t)
	bad := filepath.Base(g.slot.name)
	w.fs.fault = func(_ int, call, name string) error {
		if call == "read" && name == bad {
			return &fs.PathError{Op: "read", Path: name, Err: syscall.EIO}
		}
		return nil
	}
	for _, name := range []string{"press-7", "press-8"} {
		q, _ := w.j.Queue(name, Limits{})
		r := q.Reader()
		for {
			_, ok, err := r.Next()
			if err == nil && ok {
				continue // of other files, or in memory
			}
			if err == nil || w.j.Stats().Trouble == "" || q.Stats().Dropped[DropDamage] > 0 {
				t.Fatalf("%s: %v, %v, %+v", name, ok, err, w.j.Stats())
			}
			break
		}
		q.failing.since = q.failing.since.Add(-2 * giveUpAfter)
		w.j.readAt = time.Time{} // nobody else reads
		w.forget(name, g)
	}
	w.last = "giving up what cannot be read"
	for name, m := range w.qs { // what is in memory all the same comes
		m.may = map[uint64]*modelMessage{}
		q, _ := w.j.Queue(name, Limits{})
		for r := q.Reader(); ; {
			x, ok, err := r.Next()
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if !ok {
				break
			}
			delete(m.must, x.Seq)
		}
		if len(m.must) > 0 || q.Stats().Dropped[DropDamage] == 0 {
			t.Errorf("%s: %d are not delivered, %+v", name, len(m.must), q.Stats())
		}
	}
}

// TestUnreadableSegmentDoesNotStopCompaction of the others.
func TestUnreadableSegmentDoesNotStopCompaction(t *testing.T) {
	w, g := backlog(t)
	w.ack("press-8", 1000, false) // half of everything is of no use any more
	w.j.files.shed()
	w.j.cache.trim()
	w.j.cache.trim()
	bad := filepath.Base(g.slot.name)
	w.fs.fault = func(_ int, call, name string) error {
		if call == "read" && name == bad {
			return syscall.EIO
		}
		return nil
	}
	for range 10 {
		w.flush()
		w.chores()
	}
	if s := w.j.Stats(); s.Compacted < 100 {
		t.Errorf("%+v", s)
	}
}

// TestPipesAndTheLikeInThePlaceOfFiles are named, and block nobody.
func TestPipesAndTheLikeInThePlaceOfFiles(t *testing.T) {
	dir := t.TempDir()
	j, stop := start(t, Options{Dir: dir, SegmentBytes: minSegment})
	mustAppend(t, mustQueue(t, j, "press-7", Limits{}), Message{Payload: []byte("1")})
	stop()
	if err := unix.Mkfifo(filepath.Join(dir, "000000aa.jnl"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/zero", filepath.Join(dir, "000000ab.jnl")); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	j, _ = start(t, Options{Dir: dir, SegmentBytes: minSegment, Report: func(e Event) { b.WriteString(string(e.Kind) + " " + filepath.Base(e.File) + "\n") }})
	if got := drain(t, mustQueue(t, j, "press-7", Limits{})); len(got) != 1 {
		t.Errorf("%d messages", len(got))
	}
	if s := b.String(); !strings.Contains(s, "foreign file 000000aa.jnl") || !strings.Contains(s, "foreign file 000000ab.jnl") {
		t.Errorf("reported: %s", s)
	}
	if _, err := os.Lstat(filepath.Join(dir, "000000ab.jnl")); err != nil {
		t.Error(err)
	}
}

// bereft is a world from which files are removed.
type bereft struct {
	*world
	lost map[string]map[uint64]*modelMessage // by queue: what was in them; it need not be there any more, but may as long as it is in memory
}

// remove takes a sealed file away.
func (b *bereft) remove() {
	var some []*segment
	for _, g := range b.j.segments {
		if g.sealed.Load() && g.live.Load() > 0 {
			some = append(some, g)
		}
	}
	if len(some) == 0 || b.j.w.seg == nil {
		return
	}
	g := some[b.rnd(len(some))]
	b.j.files.shed()
	b.fs.remove(g.slot.name)
	b.last += " and removing " + g.slot.name
	for name, q := range b.j.queues {
		if b.lost[name] == nil {
			b.lost[name] = map[uint64]*modelMessage{}
		}
		for _, l := range q.lanes {
			for i := 0; l != nil && i < len(l.ext); i++ {
				for e, seq := &l.ext[i], l.ext[i].first; e.seg == g && seq <= e.last(); seq++ {
					if m := b.queue(name).must[seq]; m != nil && m.class == l.class {
						b.lost[name][seq] = m
					}
				}
			}
		}
	}
	b.mourn()
}

func (b *bereft) mourn() {
	for name, lost := range b.lost {
		m := b.queue(name)
		for seq, mm := range lost {
			delete(m.must, seq)
			m.may[seq] = mm
		}
	}
}

// TestHistoriesWithRemovedFiles: everything else is delivered, and in the end the books are balanced.
func TestHistoriesWithRemovedFiles(t *testing.T) {
	for seed := range uint64(histories() / 20) {
		r := rand.New(rand.NewPCG(seed, 99))
		b := &bereft{newWorld(t, r.IntN), map[string]map[uint64]*modelMessage{}}
		b.damaged, b.roughly = true, true
		b.mustOpen()
		for range 3 + r.IntN(10) {
			b.step([]int{0, 1, 3, 4, 5, 9, 12, 12, 12}[r.IntN(9)])
			b.append("oven", 0, 1, 10)
			b.mourn()
			if r.IntN(2) == 0 {
				b.remove() // what compaction has in memory it may put to the disk again
				if r.IntN(3) == 0 {
					b.chores()
				}
			}
			b.check()
			b.mourn()
		}
		b.last += fmt.Sprintf(" (seed %d)", seed)
		for name := range b.qs {
			b.ack(name, 100_000, false)
		}
		for range 6 {
			b.turn()
		}
		for name, q := range b.j.queues {
			if s := q.Stats(); s.Messages != 0 || s.Bytes != 0 {
				t.Fatalf("after %s: %s is empty and says %+v", b.last, name, s)
			}
		}
		if s := b.j.Stats(); s.Segments > 3 || b.j.liveBytes.Load() != 0 {
			t.Fatalf("after %s: nothing waits: %+v, %d", b.last, s, b.j.liveBytes.Load())
		}
		b.close()
		b.settleMay()
		b.mourn()
		b.mustOpen()
		b.check()
		b.close()
	}
}

// TestKeptDamageIsBounded over any number of starts.
func TestKeptDamageIsBounded(t *testing.T) {
	w := newWorld(t, rand.New(rand.NewPCG(1, 1)).IntN)
	for i := range maxDamagedFiles {
		name := fmt.Sprintf("/q/damaged/%d.bin", i)
		w.fs.files[name] = &memFile{fs: w.fs}
	}
	w.mustOpen()
	w.append("press-7", 0, 1, 10)
	w.j.keepDamaged(w.j.w.seg, segDataStart, 100)
	if n := len(w.fs.files); n > maxDamagedFiles+5 {
		t.Errorf("%d files", n)
	}
	names, _ := w.fs.list("/q/damaged")
	if len(names) != maxDamagedFiles {
		t.Errorf("%d files are kept", len(names))
	}
}
