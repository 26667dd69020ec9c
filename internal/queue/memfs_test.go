package queue

import (
	"errors"
	"io"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
)

var errPowerCut = errors.New("power cut")

// memFS is a file system that remembers what was synced. Its calls are counted; fault decides what becomes of the n-th.
type memFS struct {
	mu     sync.Mutex
	files  map[string]*memFile // as a program sees them
	names  map[string]*memFile // as the disk has them
	calls  int
	fault  func(n int, call, name string) error // nil = all is well
	locked bool
	limit  int64    // bytes for all files; 0 = no limit
	dead   bool     // the power is off: every call fails
	bad    memRange // cannot be read
}

type memRange struct {
	name     string
	from, to int64
}

type memFile struct {
	fs      *memFS
	data    []byte     // as a program sees it
	durable []byte     // as the disk has it
	pending []memWrite // since the last good sync
	shared  bool       // data and durable are the same bytes
}

type memWrite struct {
	off  int64
	b    []byte
	size int64 // >= 0: a change of size
}

func newMemFS() *memFS { return &memFS{files: map[string]*memFile{}, names: map[string]*memFile{}} }

// call counts one call and asks what becomes of it. The caller holds mu.
func (m *memFS) call(call, name string) error {
	if m.dead {
		return errPowerCut
	}
	n := m.calls
	m.calls++
	if m.fault == nil {
		return nil
	}
	err := m.fault(n, call, filepath.Base(name))
	if errors.Is(err, errPowerCut) {
		m.dead = true
	}
	return err
}

// crash forgets what was not synced and turns the power on again. keep decides for every block of every unsynced write, and every name, whether it
// reached the disk all the same.
func (m *memFS) crash(keep func() bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := maps.Clone(m.names)
	for n, f := range m.files {
		if m.names[n] == nil && keep() {
			all[n] = f
		}
	}
	for n := range m.names {
		if m.files[n] == nil && keep() {
			delete(all, n) // the removal reached the disk
		}
	}
	files := map[string]*memFile{}
	for _, n := range slices.Sorted(maps.Keys(all)) {
		f := all[n]
		d := f.durable
		if len(f.pending) > 0 {
			d = slices.Clone(d)
		}
		for _, w := range f.pending {
			d = w.applyTo(d, keep)
		}
		files[n] = &memFile{fs: m, data: d, durable: d[:len(d):len(d)]}
		files[n].shared = true
	}
	m.files, m.names = files, maps.Clone(files)
	m.dead, m.fault, m.locked = false, nil, false
}

// applyTo applies a write in pieces of a sector.
func (w *memWrite) applyTo(d []byte, keep func() bool) []byte {
	if w.size >= 0 {
		if keep() {
			return resize(d, w.size)
		}
		return d
	}
	for i := 0; i < len(w.b); {
		n := min(len(w.b)-i, 512-int((w.off+int64(i))%512))
		if keep() {
			if end := w.off + int64(i+n); end > int64(len(d)) {
				d = resize(d, end)
			}
			copy(d[w.off+int64(i):], w.b[i:i+n])
		}
		i += n
	}
	return d
}

func (f *memFile) unshare() {
	if f.shared {
		f.data, f.shared = slices.Clone(f.data), false
	}
}

func resize(d []byte, size int64) []byte {
	if size <= int64(len(d)) {
		return d[:size]
	}
	return append(d, make([]byte, size-int64(len(d)))...)
}

func (m *memFS) mkdir(string) error { return nil }

func (m *memFS) list(dir string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.call("list", dir); err != nil {
		return nil, err
	}
	var names []string
	for n := range m.files {
		if rest, ok := strings.CutPrefix(n, dir+"/"); ok && !strings.Contains(rest, "/") {
			names = append(names, rest)
		}
	}
	slices.Sort(names)
	return names, nil
}

func (m *memFS) open(name string, mode openMode) (file, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.call("open", name); err != nil {
		return nil, err
	}
	f := m.files[name]
	if mode == createNew {
		if f != nil {
			return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrExist}
		}
		f = &memFile{fs: m}
		m.files[name] = f
	}
	if f == nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return &memHandle{f, name}, nil
}

func (m *memFS) remove(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.call("remove", name); err != nil {
		return err
	}
	delete(m.files, name)
	return nil
}

func (m *memFS) syncDir(dir string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.call("syncdir", dir); err != nil {
		return err
	}
	m.names = maps.Clone(m.files)
	return nil
}

func (m *memFS) lock(string) (io.Closer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.locked {
		return nil, ErrLocked
	}
	m.locked = true
	return memLock{m}, nil
}

type memLock struct{ m *memFS }

func (l memLock) Close() error {
	l.m.mu.Lock()
	defer l.m.mu.Unlock()
	l.m.locked = false
	return nil
}

func (m *memFS) capacity(string) (int64, int64) { return 0, 0 }

func (m *memFS) usedLocked() (n int64) {
	for _, f := range m.files {
		n += int64(len(f.data))
	}
	return n
}

type memHandle struct {
	f    *memFile
	name string
}

func (h *memHandle) ReadAt(b []byte, off int64) (int, error) {
	m := h.f.fs
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.call("read", h.name); err != nil {
		return 0, err
	}
	if off >= int64(len(h.f.data)) {
		return 0, io.EOF
	}
	if m.bad.name == h.name && off < m.bad.to && off+int64(len(b)) > m.bad.from {
		return 0, &fs.PathError{Op: "read", Path: h.name, Err: syscall.EIO}
	}
	n := copy(b, h.f.data[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (h *memHandle) WriteAt(b []byte, off int64) (int, error) {
	m := h.f.fs
	m.mu.Lock()
	defer m.mu.Unlock()
	err := m.call("write", h.name)
	n := len(b)
	if err != nil {
		n /= 2 // a part may have gone before it failed
	}
	h.f.unshare()
	w := memWrite{off: off, b: slices.Clone(b[:n]), size: -1}
	h.f.pending = append(h.f.pending, w)
	h.f.data = w.applyTo(h.f.data, func() bool { return true })
	return n, err
}

// sync makes the writes so far durable. When it fails they are forgotten: a later sync says nothing about them, as on Linux.
func (h *memHandle) sync() error {
	m := h.f.fs
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.call("sync", h.name); err != nil {
		if !m.dead {
			h.f.pending = nil
		}
		return err
	}
	for _, w := range h.f.pending {
		h.f.durable = w.applyTo(h.f.durable, func() bool { return true })
	}
	h.f.pending = nil
	return nil
}

func (h *memHandle) setSize(call string, size int64) error {
	m := h.f.fs
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.call(call, h.name); err != nil {
		return err
	}
	if m.limit > 0 && m.usedLocked()-int64(len(h.f.data))+size > m.limit {
		return syscall.ENOSPC
	}
	h.f.unshare()
	h.f.pending = append(h.f.pending, memWrite{size: size})
	h.f.data = resize(h.f.data, size)
	return nil
}

func (h *memHandle) allocate(size int64) error { return h.setSize("allocate", size) }
func (h *memHandle) truncate(size int64) error { return h.setSize("truncate", size) }

func (h *memHandle) size() (int64, error) {
	m := h.f.fs
	m.mu.Lock()
	defer m.mu.Unlock()
	return int64(len(h.f.data)), nil
}

func (h *memHandle) written() int64 { return 0 }

func (h *memHandle) uncache(int64, int64) {}

func (h *memHandle) linked() bool {
	m := h.f.fs
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.files[h.name] == h.f
}

func (h *memHandle) Close() error { return nil }
