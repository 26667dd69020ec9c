package config

import (
	"os"
	"path/filepath"
	"sync"
	"time"
)

const (
	// lookLimit bounds the wait for the files that are named: on a share whose server is silent a look never ends, and what
	// reads the file has its own way to deal with that. lookers is how many folders are looked into at the same time; one
	// that hangs holds a thread.
	lookLimit = 2 * time.Second
	lookers   = 32
)

// named is a file that must be there when the whole configuration has been read.
type named struct {
	path, name string
	missing    func(path, format string, args ...any)
}

// exists has it looked whether a regular file (or a link to one) is there; missing names the severity when nothing is.
// Nothing is opened: the reader of the file has its own words for what is inside.
func (d *decoder) exists(path, name string, missing func(path, format string, args ...any)) {
	if name != "" {
		d.files = append(d.files, named{path, name, missing})
	}
}

// Looker looks whether the files are there that a configuration names. The zero value is ready, and its methods are safe for
// concurrent use. Who loads a file again and again keeps one.
type Looker struct {
	mu   sync.Mutex
	busy map[string]bool // folders; guarded by mu
}

// enter says that nobody looks into folder now.
func (l *Looker) enter(folder string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.busy[folder] {
		return false
	}
	if l.busy == nil {
		l.busy = map[string]bool{}
	}
	l.busy[folder] = true
	return true
}

func (l *Looker) leave(folder string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.busy, folder)
}

// answer is what a look at one of some files found.
type answer struct {
	i   int
	fi  os.FileInfo
	err error
}

// look reports the files that are not there. One that cannot be looked at in time is a warning.
func (l *Looker) look(d *decoder) {
	all := l.answers(d.files)
	for i, f := range d.files {
		switch a := all[i]; {
		case a == nil:
			d.warn(f.path, "cannot be looked at, its file system does not answer: %s", f.name)
			d.warnings[len(d.warnings)-1].Silent = true
		case os.IsNotExist(a.err):
			f.missing(f.path, "no such file: %s", f.name)
		case a.err != nil:
			f.missing(f.path, "%v", a.err)
		case a.fi.IsDir():
			d.report(f.path, "is a folder where a file is needed: %s", f.name)
		}
	}
}

// answers are nil for files that cannot be looked at in time.
func (l *Looker) answers(files []named) []*answer {
	folders := map[string][]int{}
	for i, f := range files {
		folder := filepath.Dir(f.name)
		folders[folder] = append(folders[folder], i)
	}
	work := make(chan string, len(folders))
	for folder := range folders {
		work <- folder
	}
	close(work)
	found := make(chan answer, len(files)) // who hangs goes in the end, whoever is there
	var hands sync.WaitGroup
	for range min(lookers, len(folders)) {
		hands.Go(func() {
			for folder := range work {
				if !l.enter(folder) {
					continue
				}
				for _, i := range folders[folder] {
					fi, err := os.Stat(files[i].name)
					found <- answer{i, fi, err}
				}
				l.leave(folder)
			}
		})
	}
	ended := make(chan struct{})
	go func() { hands.Wait(); close(ended) }()
	late := time.NewTimer(lookLimit)
	defer late.Stop()
	select {
	case <-ended:
	case <-late.C:
		for range work { // is not begun any more
		}
	}
	all := make([]*answer, len(files))
	for {
		select {
		case a := <-found:
			all[a.i] = &a
		default:
			return all
		}
	}
}
