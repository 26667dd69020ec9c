package queue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
)

// Fault is something that does not check.
type Fault struct {
	File   string
	Offset int64
	What   string
}

func (f Fault) String() string { return fmt.Sprintf("%s at %d: %s", f.File, f.Offset, f.What) }

// Report is the outcome of Verify.
type Report struct {
	Segments int
	Records  uint64 // message records that check, delivered ones that were not pruned yet included
	Messages int64  // of which wait or are kept aside
	Bytes    int64  // checked
	Torn     bool   // the newest segment ends in bytes that were never acknowledged; no fault
	Faults   []Fault
}

// Verify reads every byte of every segment and checks every checksum. It changes nothing.
func (j *Journal) Verify(ctx context.Context) (Report, error) {
	j.mu.Lock()
	segs := slices.Clone(j.segments)
	torn := j.stats.Torn > 0
	j.mu.Unlock()
	r := Report{Segments: len(segs), Torn: torn}
	for _, g := range segs {
		if err := ctx.Err(); err != nil {
			return r, err
		}
		if err := j.verifySegment(g, &r); err != nil {
			return r, err
		}
	}
	for _, s := range j.List() {
		r.Messages += s.Messages + s.Aside
	}
	return r, nil
}

func (j *Journal) verifySegment(g *segment, r *Report) error {
	if g.absent {
		r.Faults = append(r.Faults, Fault{g.slot.name, 0, "may not be read"})
		return nil
	}
	f, release, err := j.files.get(g.slot)
	if err != nil {
		if j.pruned(err) {
			return nil
		}
		return err
	}
	defer release()
	before := len(r.Faults)
	defer func() {
		if j.o.ReadOnly && usedAgain(f, g) {
			r.Faults = r.Faults[:before] // the daemon writes there meanwhile
		}
	}()
	fault := func(off int64, what string) { r.Faults = append(r.Faults, Fault{g.slot.name, off, what}) }
	b := make([]byte, blockBytes)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	switch h, ok := parseSegBlock(b[:n]); {
	case !ok:
		fault(0, "segment header")
	case h.id != g.id:
		return nil // the daemon has used the file again since
	default:
		for _, off := range [...]int{0, segHeaderCopy} {
			if c, ok := parseSegHeader(b[min(off, n):n]); !ok || c.version != h.version {
				fault(int64(off), "one copy of the segment header")
			}
		}
	}
	s := scanner{f: f, salt: g.salt, size: g.slot.size, end: g.end.Load()}
	s.damage = func(off, end int64) { fault(off, fmt.Sprintf("%d bytes of records", end-off)) }
	s.visit = func(it *scanned) {
		if it.kind == itemMessage {
			r.Records++
		}
	}
	end, err := s.run()
	if err != nil {
		return err
	}
	r.Bytes += end
	if place := g.footer.Load(); place != 0 {
		return j.verifyIndex(g, f, place, fault)
	}
	return nil
}

// usedAgain says whether a file holds another segment by now.
func usedAgain(f file, g *segment) bool {
	b := make([]byte, blockBytes)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return false
	}
	h, ok := parseSegBlock(b[:n])
	return ok && h.id != g.id
}

func (j *Journal) verifyIndex(g *segment, f file, place int64, fault func(int64, string)) error {
	b := make([]byte, g.slot.size-place)
	n, err := f.ReadAt(b, place)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	b = b[:n]
	dir, total, ok := footerSize(b, g.end.Load())
	if !ok || total > len(b) {
		fault(place, "index")
		return nil
	}
	if !parseFooter(b[:dir], g.salt, total, func(r footerRun) {
		if _, ok := parseList(b[r.list:r.list+r.listLen], g.salt, int(r.count)); !ok {
			fault(place+int64(r.list), "list of the index")
		}
	}) {
		fault(place, "index")
	}
	return nil
}
