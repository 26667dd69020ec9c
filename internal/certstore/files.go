package certstore

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// maxFileBytes bounds every file that is read. A chain with its key is a few KiB; a bundle of all public roots is 250 KiB.
const maxFileBytes = 1 << 20

// stagedSuffix marks a renewal that its writer wants tried before it takes the place of the files in use.
const stagedSuffix = ".new"

func (src Source) check() error {
	switch {
	case src.PKCS12 != "" && (src.Cert != "" || src.Key != ""):
		return errors.New("certstore: pkcs12 and cert/key exclude each other")
	case src.PKCS12 == "" && src.Cert == "":
		return errors.New("certstore: no certificate file")
	}
	return nil
}

// keyPath is the file that holds the private key.
func (src Source) keyPath() string {
	switch {
	case src.PKCS12 != "":
		return src.PKCS12
	case src.Key == "":
		return src.Cert
	}
	return src.Key
}

// files lists the paths of src, the one of the certificate first.
func (src Source) files() []string {
	if src.PKCS12 != "" {
		return appendPath([]string{src.PKCS12}, src.PassphraseFile)
	}
	paths := []string{src.Cert}
	if src.Key != src.Cert {
		paths = appendPath(paths, src.Key)
	}
	return appendPath(paths, src.PassphraseFile)
}

func appendPath(paths []string, path string) []string {
	if path == "" {
		return paths
	}
	return append(paths, path)
}

// stagedSource is src with each file replaced by its ".new" one where that exists. ok says whether there is a staged
// certificate: a ".new" key alone is a renewer half way.
func (src Source) stagedSource() (staged Source, ok bool) {
	if src.PKCS12 != "" {
		staged = Source{PKCS12: src.PKCS12 + stagedSuffix, PassphraseFile: src.PassphraseFile}
		return staged, exists(staged.PKCS12)
	}
	staged = Source{Cert: src.Cert + stagedSuffix, Key: src.Key, PassphraseFile: src.PassphraseFile}
	if !exists(staged.Cert) {
		return staged, false
	}
	if src.Key != "" && src.Key != src.Cert && exists(src.Key+stagedSuffix) {
		staged.Key = src.Key + stagedSuffix
	} else if src.Key == src.Cert {
		staged.Key = staged.Cert
	}
	return staged, true
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// file is one file as it was read.
type file struct {
	path string // as configured
	real string // where it was found
	data []byte
	info fs.FileInfo
}

// sight is what the files of a Source looked like at one moment: their bytes, or why they could not be read.
type sight struct {
	src   Source
	files map[string]file
	err   error // *Incomplete or *Invalid
	// hash covers all that a judgement depends on, content only the bytes: a file that moved or changed its mode is looked
	// at again, but nothing that was decided about its content is forgotten.
	hash, content [sha256.Size]byte
}

// observe reads the files of src twice and believes only two equal results from the same place. The folder is resolved
// once per reading and compared afterwards, because a folder that is a link may be swapped between the two reads.
func observe(src Source) sight {
	one := glance(src)
	two := glance(src)
	if one.hash != two.hash {
		two.err = &Incomplete{Torn, fmt.Sprintf("%s changed while it was read", src.files()[0])}
		two.hash = sha256.Sum256(append(two.hash[:], "changed"...))
	}
	return two
}

// glance reads the files of src once.
func glance(src Source) sight {
	s := sight{src: src, files: make(map[string]file, 3)}
	h, content := sha256.New(), sha256.New()
	for _, path := range src.files() {
		f, err := readFile(path)
		if err != nil {
			s.err = err
			fmt.Fprintf(h, "%q %v\n", path, err)
			break
		}
		s.files[path] = f
		fmt.Fprintf(h, "%q %q %v\n", path, f.real, f.info.Mode())
		fmt.Fprintf(content, "%d\n", len(f.data))
		content.Write(f.data)
	}
	for path, f := range s.files {
		if real, err := filepath.EvalSymlinks(path); err != nil || real != f.real {
			s.err = &Incomplete{Torn, path + " moved while it was read"}
		}
	}
	if s.err != nil {
		fmt.Fprintf(h, "%v\n", s.err)
	}
	content.Sum(s.content[:0])
	h.Write(s.content[:])
	h.Sum(s.hash[:0])
	return s
}

// readFile reads a regular file of at most maxFileBytes. It never waits: a pipe or a device is refused before it is
// opened, and once more after, in case it took the file's place in between.
func readFile(path string) (file, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return file{}, readProblem(path, err)
	}
	info, err := os.Stat(real)
	if err != nil {
		return file{}, readProblem(path, err)
	}
	if err := plain(path, info); err != nil {
		return file{}, err
	}
	f, err := os.OpenFile(real, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return file{}, readProblem(path, err)
	}
	defer f.Close()
	if info, err = f.Stat(); err != nil {
		return file{}, readProblem(path, err)
	}
	if err := plain(path, info); err != nil {
		return file{}, err
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return file{}, readProblem(path, err)
	}
	if len(data) > maxFileBytes {
		return file{}, tooLarge(path)
	}
	return file{path: path, real: real, data: data, info: info}, nil
}

func plain(path string, info fs.FileInfo) error {
	switch {
	case info.IsDir():
		return &Invalid{Reason: path + " is a folder", Hint: "name the file in it"}
	case !info.Mode().IsRegular():
		return &Invalid{Reason: fmt.Sprintf("%s is not a regular file (%s)", path, info.Mode().Type()), Hint: "certificates are not read from pipes, sockets or devices"}
	case info.Size() > maxFileBytes:
		return tooLarge(path)
	}
	return nil
}

func tooLarge(path string) error {
	return &Invalid{Reason: fmt.Sprintf("%s is larger than %d KiB", path, maxFileBytes>>10), Hint: "a certificate chain or key is a few KiB; is this the right file?"}
}

func readProblem(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ESTALE), errors.Is(err, syscall.ENOTDIR):
		return &Incomplete{Missing, path + " does not exist"}
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		// Says nothing about the file; it is read again.
		return &Incomplete{Missing, path + " cannot be read now: too many open files"}
	case errors.Is(err, fs.ErrPermission):
		return &Invalid{Reason: path + " may not be read" + ownership(path), Hint: fmt.Sprintf("the daemon runs as uid %d gid %d; give it the file by owner or group", os.Getuid(), os.Getgid())}
	}
	return &Invalid{Reason: fmt.Sprintf("%s cannot be read: %v", path, rootCause(err))}
}

// ownership describes who may read path, or nothing when even that is hidden.
func ownership(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return " (a folder above it is closed)"
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return fmt.Sprintf(" (mode %04o, owner uid %d gid %d)", info.Mode().Perm(), st.Uid, st.Gid)
	}
	return fmt.Sprintf(" (mode %04o)", info.Mode().Perm())
}

func rootCause(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// passphrase returns the content of the passphrase file without one line ending.
func (s sight) passphrase() []byte {
	p := bytes.TrimPrefix(s.files[s.src.PassphraseFile].data, []byte(utf8BOM))
	p = bytes.TrimSuffix(p, []byte("\n"))
	return bytes.TrimSuffix(p, []byte("\r"))
}
