package certstore

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// disk is the part of the file system that changes things. Each field is one step that can fail; tests make the n-th one
// fail.
type disk struct {
	mkdir   func(path string) error
	create  func(folder, pattern string) (*os.File, error)
	write   func(f *os.File, data []byte) error
	sync    func(f *os.File) error
	rename  func(from, to string) error
	remove  func(path string) error
	syncDir func(path string) error
}

func osDisk() disk {
	return disk{
		mkdir:   func(path string) error { return os.MkdirAll(path, 0o700) },
		create:  os.CreateTemp, // mode 0600
		write:   func(f *os.File, data []byte) error { _, err := f.Write(data); return err },
		sync:    (*os.File).Sync,
		rename:  os.Rename,
		remove:  os.Remove,
		syncDir: syncDir,
	}
}

// replace puts data into the file at path, mode 0600, so that a crash at any moment leaves the old content or the new.
func (d disk) replace(path string, data []byte) error {
	folder := filepath.Dir(path)
	if err := d.mkdir(folder); err != nil {
		return err
	}
	f, err := d.create(folder, ".tmp-*")
	if err != nil {
		return err
	}
	err = d.fill(f, data)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = d.rename(f.Name(), path)
	}
	if err != nil {
		_ = d.remove(f.Name()) // the error that matters is the first
		return err
	}
	return d.syncDir(folder)
}

func (d disk) fill(f *os.File, data []byte) error {
	if err := d.write(f, data); err != nil {
		return err
	}
	return d.sync(f)
}

// move renames and makes the new name durable.
func (d disk) move(from, to string) error {
	if err := d.rename(from, to); err != nil {
		return err
	}
	return d.syncDir(filepath.Dir(to))
}

// erase removes a file that may not exist.
func (d disk) erase(path string) error {
	err := d.remove(path)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return d.syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return &fs.PathError{Op: "sync", Path: path, Err: fmt.Errorf("folder: %w", rootCause(err))}
	}
	return nil
}
