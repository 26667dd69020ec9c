package cloud

import (
	"crypto/sha256"
	"encoding/hex"
	"net/url"
	"os"
	"path/filepath"
)

// files is the folder of the twins.
type files struct{ dir string }

// maxFile bounds what is read; a twin's documents have 32 KB each.
const maxFile = 1 << 20

// path is the file of an identity. Names may hold anything but / + #, and may be
// longer than a file name.
func (f files) path(identity, what string) string {
	name := url.PathEscape(identity)
	if len(name) > 180 || name[0] == '.' {
		sum := sha256.Sum256([]byte(identity))
		name = hex.EncodeToString(sum[:])
	}
	return filepath.Join(f.dir, name+"."+what+".json")
}

// read returns nil for a file that is absent, unreadable or absurd: the hub has the
// truth.
func (f files) read(identity, what string) []byte {
	path := f.path(identity, what)
	if st, err := os.Stat(path); err != nil || st.Size() > maxFile {
		return nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	return b
}

// write replaces a file, mode 0600, so that a crash at any moment leaves the old
// content or the new; it is synced when write returns nil.
func (f files) write(identity, what string, data []byte) error {
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(f.dir, ".tmp-*")
	if err != nil {
		return err
	}
	_, err = tmp.Write(data)
	if err == nil {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), f.path(identity, what))
	}
	if err != nil {
		_ = os.Remove(tmp.Name()) // the error that matters is the first
		return err
	}
	return f.syncDir()
}

func (f files) syncDir() error {
	d, err := os.Open(f.dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
