package queue

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// filesys is the file seam: the few calls the journal makes, so that tests can fail the n-th and forget what was not synced.
type filesys interface {
	mkdir(dir string) error
	list(dir string) ([]string, error)             // names of regular files
	open(name string, mode openMode) (file, error) //
	remove(name string) error                      //
	syncDir(dir string) error                      //
	lock(name string) (io.Closer, error)           // ErrLocked when taken
	capacity(dir string) (total, free int64)       // 0, 0 = unknown
}

type openMode uint8

const (
	openRead openMode = iota
	openWrite
	createNew
)

// file is one open file. Sync makes data and size durable (fdatasync); the entry in the folder needs syncDir.
type file interface {
	io.ReaderAt
	io.WriterAt
	sync() error
	allocate(size int64) error // reserves space and sets the size
	truncate(size int64) error
	size() (int64, error)
	written() int64 // up to here every block has been written once, as far as the file system tells
	linked() bool   // the folder still has it
	uncache(off, n int64)
	Close() error
}

var errNotAFile = errors.New("not a regular file")

type osFS struct{}

func (osFS) mkdir(dir string) error { return os.MkdirAll(dir, 0o700) }

func (osFS) list(dir string) ([]string, error) {
	es, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range es {
		if !e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

func (osFS) open(name string, mode openMode) (file, error) {
	flags := os.O_RDONLY | unix.O_NONBLOCK // a pipe in the place of a file would block
	switch mode {
	case openWrite:
		flags = os.O_RDWR
	case createNew:
		flags = os.O_RDWR | os.O_CREATE | os.O_EXCL
	}
	f, err := os.OpenFile(name, flags, 0o600)
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, errors.Join(err, f.Close(), &os.PathError{Op: "open", Path: name, Err: errNotAFile})
	}
	return &osFile{f}, nil
}

func (osFS) remove(name string) error { return os.Remove(name) }

func (osFS) syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// lockPatience outlasts a holder that was killed and that the kernel has not done with
// yet, and a command that looks whether somebody holds it.
const lockPatience = 500 * time.Millisecond

func (osFS) lock(name string) (io.Closer, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if errors.Is(err, unix.EROFS) { // what is stored can be drained all the same
		f, err = os.Open(name)
	}
	if err != nil {
		return nil, err
	}
	dir, err := os.Open(filepath.Dir(name)) // holds when somebody removes the file
	if err != nil {
		f.Close()
		return nil, err
	}
	l := &folderLock{f, dir}
	err = l.try()
	for end := time.Now().Add(lockPatience); errors.Is(err, unix.EWOULDBLOCK) && time.Now().Before(end); {
		time.Sleep(lockPatience / 50)
		err = l.try()
	}
	if err != nil {
		l.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrLocked
		}
		return nil, &os.PathError{Op: "flock", Path: name, Err: err}
	}
	return l, nil
}

// folderLock is held on a file and on its folder.
type folderLock struct{ file, dir *os.File }

func (l *folderLock) try() error {
	if err := unix.Flock(int(l.file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return err
	}
	err := unix.Flock(int(l.dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
		return nil // not every file system locks folders
	}
	return err
}

func (l *folderLock) Close() error { return errors.Join(l.file.Close(), l.dir.Close()) }

func (osFS) capacity(dir string) (total, free int64) {
	var st unix.Statfs_t
	dir = filepath.Clean(dir)
	for unix.Statfs(dir, &st) != nil { // it may be yet to be made
		if filepath.Dir(dir) == dir {
			return 0, 0
		}
		dir = filepath.Dir(dir)
	}
	return int64(st.Blocks) * int64(st.Bsize), int64(st.Bavail) * int64(st.Bsize)
}

type osFile struct{ *os.File }

func (f *osFile) sync() error {
	for {
		err := unix.Fdatasync(int(f.Fd()))
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EINTR) {
			return &os.PathError{Op: "fdatasync", Path: f.Name(), Err: err}
		}
	}
}

// allocate reserves the blocks so that writing them later cannot meet a full disk. File systems without fallocate get a sparse file: a full disk then
// shows at the write, which is handled too.
func (f *osFile) allocate(size int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), 0, 0, size)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL):
			return f.File.Truncate(size)
		}
		return &os.PathError{Op: "fallocate", Path: f.Name(), Err: err}
	}
}

// written looks for the first block that was reserved and never written: file systems show it as a hole.
func (f *osFile) written() int64 {
	n, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_HOLE)
	if err != nil {
		return 0
	}
	return n
}

func (f *osFile) linked() bool {
	var st unix.Stat_t
	return unix.Fstat(int(f.Fd()), &st) != nil || st.Nlink > 0
}

// uncache has the next read there come from the device.
func (f *osFile) uncache(off, n int64) {
	_ = unix.Fadvise(int(f.Fd()), off, n, unix.FADV_DONTNEED) // best effort
}

func (f *osFile) truncate(size int64) error { return f.File.Truncate(size) }

func (f *osFile) size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}
