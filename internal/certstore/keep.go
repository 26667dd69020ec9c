package certstore

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"time"

	"go.uber.org/zap"
)

// memory is the content of NAME.json.
type memory struct {
	Version     int       `json:"version"`
	Identity    string    `json:"identity"`
	Generation  uint64    `json:"generation"`
	Fingerprint string    `json:"fingerprint"` // of the last proved credential
	Rotated     time.Time `json:"rotated"`
	GapMillis   int64     `json:"gap_ms"`
}

const memoryVersion = 1

// place is the path of an identity's file in the state folder. Names may hold anything but / + #.
func (s *Store) place(ext string) string {
	name := url.PathEscape(s.o.Identity)
	if len(name) > 200 {
		sum := sha256.Sum256([]byte(s.o.Identity))
		name = "sha256-" + hex.EncodeToString(sum[:])
	}
	return filepath.Join(s.o.StateDir, "certificates", name+ext)
}

// recall reads what earlier runs left. Damaged files are said and then treated as absent: they only ever help.
func (s *Store) recall() {
	if s.o.StateDir == "" {
		return
	}
	f, err := readFile(s.place(".json"))
	var m memory
	if err == nil {
		if err := json.Unmarshal(f.data, &m); err != nil || m.Version > memoryVersion {
			s.log().Warn("remembered certificate state is not readable and is started anew", zap.NamedError("err", err))
			m = memory{}
		}
		s.known = m.Generation > 0
	}
	s.generation, s.lastRotation, s.gap = m.Generation, m.Rotated, time.Duration(m.GapMillis)*time.Millisecond
	s.remembered = m.Fingerprint
	if !s.o.KeepLastGood {
		if err := s.disk.erase(s.place(".pem")); err != nil {
			s.log().Warn("copy of the last good certificate cannot be removed", zap.Error(err))
		}
		return
	}
	f, err = readFile(s.place(".pem"))
	var inc *Incomplete
	if errors.As(err, &inc) && inc.Kind == Missing {
		return
	}
	var c *Credential
	if err == nil {
		c, err = Parse(f.data, nil, nil)
	}
	if err != nil {
		s.log().Warn("copy of the last good certificate cannot be used", zap.Error(err))
		return
	}
	s.current, s.fromLastGood, s.known, s.copied = c, true, true, c.fingerprint
}

// persist writes what the last proofs changed; what fails stays due and is tried again at the next look.
func (s *Store) persist() {
	s.mu.Lock()
	unsaved, promote, c, src := s.unsaved, s.promote, s.current, s.source
	m := memory{Version: memoryVersion, Identity: s.o.Identity, Generation: s.generation, Rotated: s.lastRotation, GapMillis: s.gap.Milliseconds()}
	s.mu.Unlock()
	if !unsaved && promote == "" {
		return
	}
	var saveErr, promoteErr error
	if unsaved {
		m.Fingerprint = c.fingerprint
		saveErr = s.save(c, m)
	}
	if promote != "" {
		promoteErr = s.promoteStaged(src, promote)
	}
	s.update(func() {
		if unsaved && saveErr == nil {
			s.remembered, s.copied = m.Fingerprint, m.Fingerprint
			s.unsaved = s.generation != m.Generation
		}
		if promoteErr == nil && s.promote == promote {
			s.promote = ""
		}
		s.persistedLocked(errors.Join(saveErr, promoteErr))
	})
}

func (s *Store) persistedLocked(err error) {
	switch {
	case err != nil:
		if s.notPersisted == "" {
			s.say(zap.WarnLevel, "certificate proof not persisted, trying again", zap.Error(err))
		}
		s.notPersisted = err.Error()
	case s.notPersisted != "":
		s.say(zap.InfoLevel, "certificate proof persisted")
		s.notPersisted = ""
	}
}

// save writes the copy before the note that counts it: a crash between the two only makes the next proof count again.
func (s *Store) save(c *Credential, m memory) error {
	if s.o.StateDir == "" {
		return nil
	}
	if s.o.KeepLastGood {
		if err := s.disk.replace(s.place(".pem"), export(c)); err != nil {
			return fmt.Errorf("keep last good certificate: %w", err)
		}
	}
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := s.disk.replace(s.place(".json"), append(data, '\n')); err != nil {
		return fmt.Errorf("keep certificate state: %w", err)
	}
	return nil
}

func export(c *Credential) []byte {
	var out []byte
	for _, der := range c.chain {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return append(out, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: c.key.pkcs8})...)
}

// promoteStaged lets the proved ".new" files take the place of the files in use. The key goes first: a crash between the
// two renames leaves the new certificate staged beside the key that belongs to it, which is a whole pair again.
func (s *Store) promoteStaged(src Source, fingerprint string) error {
	staged, ok := src.stagedSource()
	if !ok {
		return nil
	}
	c, err := observe(staged).credential()
	if err != nil || c.fingerprint != fingerprint {
		return nil // newer files; they are judged by themselves
	}
	if staged.PKCS12 != "" {
		return s.rename(staged.PKCS12, src.PKCS12)
	}
	if staged.Key != src.Key && staged.Key != staged.Cert {
		if err := s.rename(staged.Key, src.Key); err != nil {
			return err
		}
	}
	return s.rename(staged.Cert, src.Cert)
}

func (s *Store) rename(from, to string) error {
	if err := s.disk.move(from, to); err != nil {
		return fmt.Errorf("put %s in place: %w", filepath.Base(from), rootCause(err))
	}
	return nil
}
