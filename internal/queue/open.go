package queue

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
)

// Open opens or creates a journal and recovers what a crash left. It starts nothing: appends complete while Run runs. It returns ErrLocked when another
// process has the folder, *VersionError when a newer program wrote it (nothing is touched then), or what the file system said.
func Open(o Options) (*Journal, error) { return open(o, osFS{}) }

func open(o Options, fsys filesys) (*Journal, error) {
	j := newJournal(o, fsys)
	if !o.ReadOnly {
		if err := fsys.mkdir(o.Dir); err != nil {
			return nil, err
		}
		l, err := fsys.lock(j.path(lockName))
		if err != nil {
			return nil, err
		}
		j.lockFile = l
	}
	if err := j.recover(); err != nil {
		j.Close()
		return nil, err
	}
	if kept, err := fsys.list(j.path(damagedDir)); err == nil {
		j.damagedN = len(kept)
	}
	j.learnBoot()
	return j, nil
}

// Locked says whether a process has the journal in dir. It changes nothing; a folder
// without a journal is not locked.
func Locked(dir string) (bool, error) {
	if _, err := os.Stat(filepath.Join(dir, lockName)); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return false, nil
		}
		return false, err
	}
	l, err := osFS{}.lock(filepath.Join(dir, lockName))
	if errors.Is(err, ErrLocked) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	return false, l.Close()
}

func newJournal(o Options, fsys filesys) *Journal {
	if o.PendingBytes <= 0 {
		o.PendingBytes = defaultPending
	}
	if o.SegmentBytes <= 0 {
		o.SegmentBytes = defaultSegment
	}
	if total, _ := fsys.capacity(o.Dir); total > 0 {
		o.SegmentBytes = min(o.SegmentBytes, max(align(total/8, blockBytes)-blockBytes, minSegment))
	}
	if o.MaxBytes > 0 {
		o.SegmentBytes = min(o.SegmentBytes, o.MaxBytes/16)
	}
	o.SegmentBytes = min(align(max(o.SegmentBytes, minSegment), blockBytes), 1<<30)
	j := &Journal{o: o, fs: fsys, clock: o.Clock, boot: readBootClock(), cache: newFrameCache(cacheBudget), names: newInterner(), files: &fileCache{fs: fsys, open: map[*slot]*readFile{}},
		wake: make(chan struct{}, 1), chore: make(chan struct{}, 1),
		queues: map[string]*Queue{}, byID: map[uint32]*Queue{}, nextQID: 1, boots: map[[16]byte]int64{}}
	if j.clock == nil {
		j.clock = wallClock{}
	}
	j.pend = pending{arena: &arena{}, spareA: &arena{}, room: make(chan struct{})}
	j.w.b = newBuilder()
	var r [24]byte
	rand.Read(r[:])
	copy(j.instance[:], r[:16])
	j.origin = binary.LittleEndian.Uint64(r[16:])
	if id, err := os.ReadFile("/etc/machine-id"); err == nil {
		sum := sha256.Sum256(append([]byte("gatewayd "), id...))
		copy(j.machine[:], sum[:])
	}
	return j
}

// Close releases the folder. Call it after Run has returned.
func (j *Journal) Close() error {
	j.pend.mu.Lock()
	j.pend.closed = true
	j.pend.mu.Unlock()
	j.files.close()
	if j.lockFile == nil {
		return nil
	}
	l := j.lockFile
	j.lockFile = nil
	return l.Close()
}
