package main

import (
	"crypto/x509"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"gatewayd/internal/certstore"
	"gatewayd/internal/config"
)

// filePatience is how long a command waits for the files of one folder. On a share whose server is silent nothing ends
// the wait, so what reads them is left behind.
const filePatience = 3 * time.Second

// patientReader reads the files of identities and roots for commands. It does not wait twice for the same folder.
type patientReader struct {
	silent map[string]bool // folders
	roots  map[string]rootsRead
}

type rootsRead struct {
	pool *x509.CertPool
	err  error
}

func newPatientReader() *patientReader {
	return &patientReader{silent: map[string]bool{}, roots: map[string]rootsRead{}}
}

// silentError is what becomes of files that do not come.
type silentError string

func (e silentError) Error() string {
	return string(e) + " cannot be read: its file system does not answer"
}

func isSilent(err error) bool {
	var silent silentError
	return errors.As(err, &silent)
}

// inTime is what read returns, or an error when it hangs. paths are what it reads, the first one to be named.
func inTime[T any](r *patientReader, read func() (T, error), paths ...string) (T, error) {
	var none T
	for _, path := range paths {
		if r.silent[filepath.Dir(path)] {
			return none, silentError(path)
		}
	}
	type result struct {
		v   T
		err error
	}
	done := make(chan result, 1)
	go func() {
		v, err := read()
		done <- result{v, err}
	}()
	late := time.NewTimer(filePatience)
	defer late.Stop()
	select {
	case got := <-done:
		return got.v, got.err
	case <-late.C:
		r.silent[filepath.Dir(paths[0])] = true
		return none, silentError(paths[0])
	}
}

// filesOf lists the files of a certificate, one at least.
func filesOf(c config.Certificate) []string {
	return nonEmpty(c.Cert, c.PKCS12, c.Key, c.PassphraseFile)
}

// trust reads the roots of h, each different set once.
func (r *patientReader) trust(h config.Hub) (*x509.CertPool, error) {
	key := fmt.Sprint(h.Trust, h.SystemRoots)
	got, known := r.roots[key]
	if !known {
		load := func() (*x509.CertPool, error) { return certstore.LoadRoots(h.Trust, h.SystemRoots) }
		if len(h.Trust) == 0 {
			got.pool, got.err = load()
		} else {
			got.pool, got.err = inTime(r, load, h.Trust...)
		}
		r.roots[key] = got
	}
	return got.pool, got.err
}
