package queue

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"
)

const (
	maxDamagedFiles = 64
	maxDamagedBytes = 1 << 20 // of one file
)

func (j *Journal) countDamage(n uint64) {
	j.mu.Lock()
	j.stats.Damaged += n
	j.mu.Unlock()
}

// damaged reports a region that does not check and keeps a copy.
func (j *Journal) damaged(g *segment, off, end int64) {
	j.report(Event{Kind: EventDamage, File: g.slot.name, Offset: off})
	j.keepDamaged(g, off, int(min(end-off, maxDamagedBytes)))
}

// keepDamaged copies bytes that did not check to a file of their own. Best effort: the journal goes on without.
func (j *Journal) keepDamaged(g *segment, off int64, n int) {
	if j.o.ReadOnly || g.gone.Load() {
		return
	}
	j.mu.Lock()
	j.damagedN++
	over := j.damagedN > maxDamagedFiles
	j.mu.Unlock()
	if over {
		return
	}
	if err := j.copyDamaged(g, off, min(n, maxDamagedBytes)); err != nil {
		j.report(Event{Kind: EventDamage, File: g.slot.name, Offset: off, Err: err, Reason: "no copy could be kept"})
	}
}

func (j *Journal) copyDamaged(g *segment, off int64, n int) error {
	dir := j.path(damagedDir)
	if err := j.fs.mkdir(dir); err != nil {
		return err
	}
	name := filepath.Join(dir, fmt.Sprintf("%016x-%08x.bin", g.id, off))
	in, release, err := j.files.get(g.slot)
	if err != nil {
		return err
	}
	defer release()
	b := make([]byte, n)
	got, err := in.ReadAt(b, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	out, err := j.files.openFile(name, createNew)
	if err != nil {
		return nil // kept by an earlier start already, or no room: either way there is nothing better to do
	}
	_, err = out.WriteAt(b[:got], 0)
	return errors.Join(err, out.Close())
}

// readFailed notes that reading does not work at the moment; it is reported when it begins.
func (j *Journal) readFailed(err error) error {
	j.mu.Lock()
	began := j.readBroken == ""
	j.readBroken = "reading fails: " + err.Error()
	j.mu.Unlock()
	if began {
		j.report(Event{Kind: EventReadError, Err: err})
	}
	return err
}

func (j *Journal) readWorks() {
	j.mu.Lock()
	j.readBroken = ""
	j.readAt = time.Now()
	j.mu.Unlock()
}

func (j *Journal) lastRead() time.Time {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.readAt
}
