package certstore

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"sync/atomic"
	"syscall"
)

// print stands for what is at some paths: equal prints mean the same bytes in the same files with the same owners and
// modes, or the same reasons for which there are none.
type print [sha256.Size]byte

// printer takes prints. It is the poll's short cut and leaves next to no garbage: with many identities, what full
// readings leave behind would be a good part of the memory of a process that has nothing to do.
type printer struct {
	h    hash.Hash
	st   syscall.Stat_t
	head []byte
	buf  [4 << 10]byte
}

func newPrinter() *printer { return &printer{h: sha256.New()} }

// take looks at paths; at is told at which.
func (p *printer) take(paths []string, at *atomic.Pointer[string]) print {
	p.h.Reset()
	for i, path := range paths {
		at.Store(&paths[i])
		n, err := p.content(path)
		p.note(uint64(n), err)
	}
	p.head = p.h.Sum(p.head[:0])
	return print(p.head)
}

// content adds the bytes of a regular file, up to the limit of readFile, and counts them.
func (p *printer) content(path string) (n int, err error) {
	p.st = syscall.Stat_t{}
	if err := syscall.Stat(path, &p.st); err != nil || p.st.Mode&syscall.S_IFMT != syscall.S_IFREG {
		return 0, err // as there, nothing else is opened
	}
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer syscall.Close(fd) // nothing was written
	if err := syscall.Fstat(fd, &p.st); err != nil || p.st.Mode&syscall.S_IFMT != syscall.S_IFREG {
		return 0, err
	}
	for n <= maxFileBytes {
		m, err := syscall.Read(fd, p.buf[:])
		if m <= 0 {
			return n, err
		}
		p.h.Write(p.buf[:m])
		n += m
	}
	return n, nil
}

// note adds what else belongs to the file that was looked at last.
func (p *printer) note(n uint64, err error) {
	errno, _ := err.(syscall.Errno) // nothing else comes from system calls
	p.head = p.head[:0]
	for _, v := range [...]uint64{n, uint64(errno), uint64(p.st.Dev), uint64(p.st.Ino), uint64(p.st.Mode), uint64(p.st.Uid), uint64(p.st.Gid)} {
		p.head = binary.LittleEndian.AppendUint64(p.head, v)
	}
	p.h.Write(p.head)
}
