package certstore

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"testing"
	"time"

	"gatewayd/internal/certstore/certtest"

	"software.sslmate.com/src/go-pkcs12"
)

// sound checks what every accepted credential promises.
func sound(t *testing.T, c *Credential) {
	t.Helper()
	if !sameKey(c.Leaf(), signerOf(t, c)) {
		t.Error("the key is not the leaf's")
	}
	if !c.Chain()[0].Equal(c.Leaf()) {
		t.Error("what is sent is not the chain")
	}
	for i, cert := range c.Chain()[1:] {
		if selfIssued(cert) {
			t.Error("a root is sent")
		}
		if string(c.Chain()[i].RawIssuer) != string(cert.RawSubject) {
			t.Error("the chain is not in order")
		}
	}
	Inspect(c, press, time.Now())
}

func FuzzPair(f *testing.F) {
	p := pair(f, certtest.Leaf{})
	f.Add(p.CertPEM, p.KeyPEM, []byte(nil))
	f.Add(append(p.CertPEM, p.KeyPEM...), []byte(nil), []byte(nil))
	f.Add(p.Leaf.Raw, p.KeyPEM, []byte("x"))
	for _, name := range []string{"pbes2.pem", "scrypt.pem", "legacy.pem", "pbes1.pem", "sec1.pem", "p224.pem", "bag-attributes.pem"} {
		f.Add(fixture(f, "cert.pem"), fixture(f, name), []byte("correct"))
	}
	f.Fuzz(func(t *testing.T, cert, key, pass []byte) {
		began := time.Now()
		c, err := Parse(cert, key, pass)
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("took %v", took)
		}
		if err == nil {
			sound(t, c)
		}
	})
}

func FuzzPKCS12(f *testing.F) {
	p := pair(f, certtest.Leaf{})
	data, err := pkcs12.Modern2023.WithRand(rand.Reader).Encode(p.Key, p.Leaf, p.Chain[1:], "correct")
	must(f, err)
	f.Add(data, "correct")
	for _, name := range []string{"modern.p12", "legacy.p12", "empty.p12"} {
		f.Add(fixture(f, name), "correct")
		f.Add(fixture(f, name), "")
	}
	f.Fuzz(func(t *testing.T, data []byte, pass string) {
		s := sight{src: Source{PKCS12: "p", PassphraseFile: "w"}, files: map[string]file{"p": {data: data}, "w": {data: []byte(pass)}}}
		began := time.Now()
		c, err := s.credential()
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("took %v", took)
		}
		if err == nil {
			sound(t, c)
		}
	})
}

// FuzzRemembered reads damaged state folders: Open survives every content.
func FuzzRemembered(f *testing.F) {
	p := pair(f, certtest.Leaf{})
	f.Add([]byte(`{"version":1,"identity":"press-7","generation":3,"fingerprint":"aa","rotated":"2026-01-01T00:00:00Z","gap_ms":12}`), append(p.CertPEM, p.KeyPEM...), []byte("2026-01-01T00:00:00Z"))
	f.Add([]byte(`{"version":9}`), p.CertPEM, []byte("x"))
	f.Fuzz(func(t *testing.T, note, copied, clock []byte) {
		dir := t.TempDir()
		must(t, os.MkdirAll(filepath.Join(dir, "certificates"), 0o700))
		for name, data := range map[string][]byte{"certificates/press-7.json": note, "certificates/press-7.pem": copied, "clock": clock} {
			must(t, os.WriteFile(filepath.Join(dir, name), data, 0o600))
		}
		s, err := Open(Options{Identity: press, Source: Source{Cert: filepath.Join(dir, "none")}, StateDir: dir, KeepLastGood: true, Clock: OpenClock(ClockOptions{StateDir: dir})})
		must(t, err)
		if c := s.Current(); c != nil {
			sound(t, c)
		}
		s.Status()
	})
}
