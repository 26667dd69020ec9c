package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"gatewayd/internal/config"
	"gatewayd/internal/queue"
)

// stateFolder is what can be told of the state folder of a gateway that does not
// answer.
type stateFolder struct {
	fault  *finding // concerns every identity
	locked bool
	queues map[string]queue.Summary
	notes  []string
}

// verifyUpTo bounds what the doctor reads; gatewayd queue verify has no bound.
const verifyUpTo = 256 << 20

// socketPathMax is what the kernel takes for a unix socket (unix(7)).
const socketPathMax = 107

func lookAtState(ctx context.Context, cfg *config.Config, user *serviceUser) stateFolder {
	s := stateFolder{queues: map[string]queue.Summary{}}
	s.fault = s.look(ctx, cfg, user)
	return s
}

func (s *stateFolder) look(ctx context.Context, cfg *config.Config, user *serviceUser) *finding {
	fault := func(next, format string, args ...any) *finding {
		return &finding{stepQueue, "state_dir: " + fmt.Sprintf(format, args...), next}
	}
	dir := cfg.StateDir
	if n := len(filepath.Join(dir, controlSocket)); n > socketPathMax {
		return fault("Choose a shorter path for state_dir.", "the path of its control socket has %d characters, %d are possible", n, socketPathMax)
	}
	if path, err := writable(dir, user); err != nil {
		return fault("Let the user that runs the gateway write there, or name another folder.", "%s: %v", path, err)
	}
	var err error
	if s.locked, err = queue.Locked(queueDir(cfg)); err != nil {
		return fault("Let the user that runs the gateway read and write there.", "%v", err)
	}
	if s.locked {
		return fault("See what holds it (fuser, lsof): a gateway that is starting, stopping or hung. A second one needs its own state_dir.",
			"%s is in use by a process that does not answer at its control socket", dir)
	}
	if f := s.space(cfg); f != nil {
		return f
	}
	if _, err := os.Stat(queueDir(cfg)); errors.Is(err, os.ErrNotExist) {
		return nil // nothing was ever stored
	}
	return s.journal(ctx, cfg)
}

// journal opens what is stored without changing it.
func (s *stateFolder) journal(ctx context.Context, cfg *config.Config) *finding {
	j, err := queue.OpenForReading(queueDir(cfg))
	if err != nil {
		var newer *queue.VersionError
		next := "Move the folder away to start with an empty queue; what it holds can be looked at with gatewayd queue."
		if errors.As(err, &newer) {
			next = "Install the newer gatewayd again, or drain the queue with it first."
		}
		return &finding{stepQueue, "the queue cannot be opened: " + err.Error(), next}
	}
	defer j.Close() // opened for reading: nothing is lost by an error
	for _, one := range j.List() {
		s.queues[one.Identity] = one
	}
	st := j.Stats()
	if f := journalFault(st.Trouble, st.Damaged, st.Unreadable); f != nil {
		return f
	}
	if st.DiskBytes > verifyUpTo {
		s.notes = append(s.notes, fmt.Sprintf("the queue has %d MiB and was not read whole; gatewayd queue verify does that", st.DiskBytes>>20))
		return nil
	}
	if r, err := j.Verify(ctx); err != nil {
		return &finding{stepQueue, "the queue cannot be read: " + err.Error(), "Look at the disk: dmesg, smartctl, the file system's check."}
	} else if len(r.Faults) > 0 {
		return &finding{stepQueue, fmt.Sprintf("the queue is damaged at %d places, first: %s", len(r.Faults), r.Faults[0]), damageNext}
	}
	return nil
}

const damageNext = "What is intact around it is delivered. Look at the disk (dmesg, the card's age); gatewayd queue verify lists the places."

func journalFault(trouble string, damaged uint64, unreadable int) *finding {
	switch {
	case trouble != "":
		return &finding{stepQueue, "disk: " + trouble, "Make room or repair the disk: sensors are refused until a write succeeds."}
	case unreadable > 0:
		return &finding{stepQueue, fmt.Sprintf("%d files of the queue cannot be read", unreadable), "Give the gateway's user the files of state_dir/queue, or look at the disk; their messages come back at the next start."}
	case damaged > 0:
		return &finding{stepQueue, fmt.Sprintf("the queue is damaged: %d records were lost", damaged), damageNext}
	}
	return nil
}

// space asks whether the queue can grow by another file.
func (s *stateFolder) space(cfg *config.Config) *finding {
	dir := existing(cfg.StateDir)
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return &finding{stepQueue, fmt.Sprintf("state_dir: %v", err), "Look at the disk."}
	}
	free, needed := int64(st.Bavail)*int64(st.Bsize), int64(1<<20)
	if st.Blocks > 0 && free < needed {
		return &finding{stepQueue, fmt.Sprintf("the disk of state_dir is full: %d KiB are free", free>>10),
			"Make room: sensors are refused when the queue cannot grow. queue.max_bytes bounds what it takes."}
	}
	return nil
}

// existing is the nearest folder above path that is there.
func existing(path string) string {
	for {
		if _, err := os.Stat(path); err == nil || path == filepath.Dir(path) {
			return path
		}
		path = filepath.Dir(path)
	}
}

// writable tries to make something in the folder, or the folder itself, and takes it
// away again. What is asked of the kernel without trying is not the whole truth.
func writable(dir string, user *serviceUser) (string, error) {
	at := existing(dir)
	info, err := os.Stat(at)
	if err == nil && !info.IsDir() {
		return at, errors.New("is not a folder")
	}
	try := func() error {
		if at == dir {
			f, err := os.CreateTemp(dir, ".doctor-*")
			if err != nil {
				return err
			}
			return errors.Join(f.Close(), os.Remove(f.Name()))
		}
		first := filepath.Join(at, firstBelow(at, dir))
		if err := os.Mkdir(first, 0o700); err != nil {
			return err
		}
		return os.Remove(first)
	}
	if user != nil {
		err = user.do(try)
	} else {
		err = try()
	}
	var path *os.PathError
	if errors.As(err, &path) {
		err = path.Err
	}
	return at, err
}

// firstBelow is the first folder on the way from one to another below it.
func firstBelow(at, dir string) string {
	rest, err := filepath.Rel(at, dir)
	if err != nil {
		return filepath.Base(dir)
	}
	first, _, _ := strings.Cut(rest, string(filepath.Separator))
	return first
}

// stored is the last step: what waits, and whether it can wait.
func (d *doctor) stored(_ context.Context, p *patient) bool {
	q, ok := d.queueOf(p)
	if !ok {
		return false
	}
	limit := p.cfg.Queue.MaxBytes
	for reason, n := range q.Dropped {
		if reason != queue.DropAside && n > 0 {
			p.note("%d messages were dropped (%s)", n, reason)
		}
	}
	if fault, hint := q.fault(p.cfg); fault != "" {
		return p.fault(stepQueue, fault, sentence(hint))
	}
	if limit > 0 && q.Bytes >= limit/2 {
		p.note("the queue is at %d %% of queue.max_bytes", q.Bytes*100/limit)
	}
	if q.Messages == 0 {
		p.ok(stepQueue, "empty")
	} else {
		p.ok(stepQueue, "%d messages wait, the oldest for %s", q.Messages, time.Duration(q.OldestSeconds)*time.Second)
	}
	return true
}

func (d *doctor) queueOf(p *patient) (queueReport, bool) {
	if d.report != nil {
		r := d.report.Disk
		if p.Fault = journalFault(r.Trouble, r.Damaged, r.Unreadable); p.Fault != nil || p.status == nil {
			return queueReport{}, false
		}
		return p.status.Queue, true
	}
	if d.stranger != "" {
		p.note("state_dir belongs to %s: the queue is looked at only when root or that user asks", d.stranger)
		return queueReport{}, false
	}
	if d.state.fault != nil {
		p.Fault = d.state.fault
		return queueReport{}, false
	}
	p.Notes = append(p.Notes, d.state.notes...)
	s := d.state.queues[p.Name]
	return queueReport{Messages: s.Messages, Bytes: s.Bytes, OldestSeconds: s.OldestAge.Seconds(), Aside: s.Aside, Dropped: s.Dropped}, true
}
