package queue

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// lived makes a small journal of everything that a folder may hold: sealed segments with and without an index, one that compaction wrote, one in use.
// It returns the files and what must be delivered.
func lived(t *testing.T) (*world, map[string]*modelMessage) {
	w := newWorld(t, rand.New(rand.NewPCG(1, 1)).IntN)
	w.again = map[string]*modelMessage{}
	for life := range 6 {
		w.mustOpen()
		for range 3 {
			w.append("press-7", 0, 2, 60)
			w.append("press-8", uint8(life%2)*5, 1, 150)
		}
		if life == 1 {
			w.setAside("press-8")
		}
		w.ack("press-7", 3, true)
		if life == 4 {
			w.j.o.SegmentBytes = minSegment / 8 // what compaction must gain
			w.chores()
			w.j.o.SegmentBytes = minSegment
		}
		w.close()
		for name, m := range w.qs {
			for seq, mm := range m.may {
				w.again[fmt.Sprint(name, seq)] = mm
			}
		}
		w.settleMay()
	}
	all := map[string]*modelMessage{}
	for name, m := range w.qs {
		for seq, mm := range m.must {
			all[fmt.Sprint(name, seq)] = mm
		}
	}
	return w, all
}

// on puts a journal in front of other files.
func (w *world) on(files map[string]*memFile, name string, data []byte) {
	w.fs = newMemFS()
	for n, f := range files {
		w.fs.files[n] = &memFile{fs: w.fs, data: f.data, durable: f.data}
	}
	w.fs.files[name] = &memFile{fs: w.fs, data: data, durable: data}
}

// TestEveryByteMayFlip flips one bit of every byte that was ever written, in every kind of file, and expects every message whose bytes were not touched.
func TestEveryByteMayFlip(t *testing.T) {
	w, all := lived(t)
	files := maps.Clone(w.fs.files)
	cold := 0
	step := 1
	if underRace {
		step = 37
	}
	flips, lost, worst := 0, 0, 0
	for _, name := range slices.Sorted(maps.Keys(files)) {
		data := files[name].data
		if h, ok := parseSegBlock(data); ok && h.cold {
			cold++
		}
		for off := 0; off < len(data); off += step {
			if near := data[max(off-16, 0):min(off+16, len(data))]; off%64 > 0 && bytes.Count(near, []byte{0}) == len(near) {
				continue // most of a file is padding and what was never used
			}
			d := slices.Clone(data)
			d[off] ^= 1 << (off % 8)
			w.on(files, name, d)
			w.last = fmt.Sprintf("flip at %d of %s", off, name)
			events := 0
			w.o.Report = func(e Event) {
				if e.Kind != EventTorn {
					events++
				}
			}
			missing := len(all) - len(w.read(t, all))
			flips++
			lost += missing
			worst = max(worst, missing)
			// What fewer messages of a frame share is written once: who they are from, and when.
			if missing >= shareLeast {
				t.Fatalf("%s: %d of %d messages are gone", w.last, missing, len(all))
			}
			if missing > 0 && events == 0 && w.j.Stats().Damaged == 0 && w.j.Stats().Torn == 0 {
				t.Fatalf("%s: %d messages are gone and nobody says so", w.last, missing)
			}
			w.j.Close()
		}
	}
	if cold == 0 {
		t.Error("no file of compaction among them")
	}
	t.Logf("%d flips in %d files, %d messages; %d lost in all, %d at most", flips, len(files), len(all), lost, worst)
}

// TestNoByteIsWorthMoreThanItsMessage flips every byte of a group that shares what it says about its messages: no more than the one message that was hit is lost.
func TestNoByteIsWorthMoreThanItsMessage(t *testing.T) {
	w := newWorld(t, rand.New(rand.NewPCG(1, 1)).IntN)
	w.mustOpen()
	w.append("press-7", 0, 30, 20) // three topics
	for range 2 {
		w.chores()
		w.close()
		w.mustOpen()
		w.append("press-8", 0, 1, 20)
	}
	w.close()
	all := map[string]*modelMessage{}
	for name, m := range w.qs {
		for seq, mm := range m.must {
			all[fmt.Sprint(name, seq)] = mm
		}
	}
	files := maps.Clone(w.fs.files)
	step := 1
	if underRace {
		step = 7
	}
	flips := 0
	for name, f := range files {
		if h, ok := parseSegBlock(f.data); !ok || h.id != 1 {
			continue
		}
		used := len(bytes.TrimRight(f.data, "\x00"))
		for off := 0; off < used; off += step {
			d := slices.Clone(f.data)
			d[off] ^= 1 << (off % 8)
			for _, index := range []bool{true, false} { // read through the index, and scanned
				if i := bytes.Index(d, []byte("GWIX")); i >= 0 && !index {
					copy(d[i:], "----")
				}
				w.on(files, name, d)
				w.last = fmt.Sprintf("flip at %d (index %v)", off, index)
				if got := w.read(t, all); len(all)-len(got) > 1 {
					t.Fatalf("%s: %d of %d messages are gone", w.last, len(all)-len(got), len(all))
				}
				w.j.Close()
				flips++
			}
		}
	}
	if flips == 0 {
		t.Error("the segment is not there")
	}
	t.Logf("%d flips", flips)
}

// TestEveryLengthOfEveryFile cuts every file at every byte: what lies before the cut is delivered, and what lies in other files.
func TestEveryLengthOfEveryFile(t *testing.T) {
	w, all := lived(t)
	files := maps.Clone(w.fs.files)
	step := 1
	if underRace {
		step = 37
	}
	cuts := 0
	for _, name := range slices.Sorted(maps.Keys(files)) {
		data := files[name].data
		used := len(bytes.TrimRight(data, "\x00"))
		before := -1
		for cut := 0; cut <= used; cut += step {
			w.on(files, name, slices.Clone(data[:cut]))
			w.last = fmt.Sprintf("%s cut at %d", name, cut)
			w.o.Report = nil
			n := len(w.read(t, all))
			w.j.Close()
			cuts++
			if cut > segDataStart && n < before {
				t.Fatalf("%s: %d messages, and %d when it was shorter", w.last, n, before)
			}
			before = n
		}
	}
	t.Logf("%d cuts in %d files", cuts, len(files))
}

// TestEveryBlockMayBeLost zeroes every sector and every block of every file: what lies elsewhere is delivered, but for what fewer than eight messages share
// with one that is gone.
func TestEveryBlockMayBeLost(t *testing.T) {
	w, all := lived(t)
	files := maps.Clone(w.fs.files)
	newest := w.j.segments[len(w.j.segments)-1].slot.name
	lost, holes := 0, 0
	for _, name := range slices.Sorted(maps.Keys(files)) {
		data := files[name].data
		used := len(bytes.TrimRight(data, "\x00"))
		for _, size := range []int{512, blockBytes} {
			for off := 0; off < used; off += size {
				d := slices.Clone(data)
				clear(d[off:min(off+size, len(d))])
				w.on(files, name, d)
				w.last = fmt.Sprintf("%d bytes lost at %d of %s", size, off, name)
				events := 0
				w.o.Report = func(Event) { events++ }
				missing := len(all) - len(w.read(t, all))
				touched := 0
				for _, m := range all {
					if at := bytes.Index(data, m.payload); at >= 0 && at+len(m.payload)+64 > off && at-64 < off+size {
						touched++
					}
				}
				if missing > touched+shareLeast-1 {
					t.Fatalf("%s: %d messages are gone, %d were hit", w.last, missing, touched)
				}
				// The end of the newest segment cannot be told from one that was never acknowledged.
				if missing > 0 && events == 0 && w.j.Stats().Damaged == 0 && name != newest {
					t.Fatalf("%s: %d messages are gone and nobody says so", w.last, missing)
				}
				w.j.Close()
				lost += missing
				holes++
			}
		}
	}
	t.Logf("%d holes, %d of %d messages lost at a time on average", holes, lost/max(holes, 1), len(all))
}

// TestEveryBlockMayBeUnreadable has the device fail for every block of every file in turn: the journal opens, says so, and delivers what lies elsewhere. A file
// whose beginning cannot be read is left for a start that can.
func TestEveryBlockMayBeUnreadable(t *testing.T) {
	w, all := lived(t)
	files := maps.Clone(w.fs.files)
	waited := 0
	for _, name := range slices.Sorted(maps.Keys(files)) {
		data := files[name].data
		used := len(bytes.TrimRight(data, "\x00"))
		for off := 0; off < used; off += blockBytes {
			w.on(files, name, slices.Clone(data))
			w.fs.bad = memRange{name, int64(off), int64(off + blockBytes)}
			w.last = fmt.Sprintf("block %d of %s cannot be read", off, name)
			events, unreadable := 0, false
			w.o.Report = func(e Event) { events++; unreadable = unreadable || e.Kind == EventUnreadable }
			w.hurry = true
			missing := len(all) - len(w.read(t, all))
			w.hurry = false
			touched := 0
			for _, m := range all {
				if at := bytes.Index(data, m.payload); at >= 0 && (unreadable || at+len(m.payload)+64 > off && at-64 < off+blockBytes) {
					touched++
				}
			}
			if missing > touched+shareLeast-1 {
				t.Fatalf("%s: %d messages are gone, %d were hit", w.last, missing, touched)
			}
			w.j.commit(true)
			w.j.Close()
			if !unreadable {
				continue
			}
			waited++
			w.fs.bad, w.fs.locked = memRange{}, false
			if n := len(w.read(t, all)); n < len(all) {
				t.Fatalf("%s: %d of %d messages when it can be read again", w.last, n, len(all))
			}
			w.j.Close()
		}
	}
	if waited == 0 {
		t.Error("no file was left for later")
	}
}
