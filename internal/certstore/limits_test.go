package certstore

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"gatewayd/internal/certstore/certtest"

	"github.com/youmark/pkcs8"
	"software.sslmate.com/src/go-pkcs12"
)

func TestDerivationCostIsBounded(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	cheap, err := pkcs8.MarshalPrivateKey(key, []byte("p"), &pkcs8.Opts{Cipher: pkcs8.AES256CBC, KDFOpts: pkcs8.PBKDF2Opts{SaltSize: 8, IterationCount: 0x010203, HMACHash: 5}})
	must(t, err)
	dear := bytes.Replace(cheap, []byte{2, 3, 1, 2, 3}, []byte{2, 3, 0x7f, 2, 3}, 1)
	scrypt, err := pkcs8.MarshalPrivateKey(key, []byte("p"), &pkcs8.Opts{Cipher: pkcs8.AES256CBC, KDFOpts: pkcs8.ScryptOpts{SaltSize: 16, CostParameter: 1 << 8, BlockSize: 8, ParallelizationParameter: 1}})
	must(t, err)
	hungry := bytes.Replace(scrypt, []byte{2, 2, 1, 0, 2, 1, 8}, []byte{2, 2, 0x40, 0, 2, 1, 127}, 1)
	p12 := func(old, with []byte) []byte {
		data := fixture(t, "modern.p12")
		out := bytes.Replace(data, old, with, -1)
		if bytes.Equal(data, out) {
			t.Fatal("no iteration count to change")
		}
		return out
	}
	dir := t.TempDir()
	tests := []struct {
		name string
		src  Source
		data []byte
	}{
		{"PBKDF2", Source{Cert: "testdata/openssl/cert.pem"}, block("ENCRYPTED PRIVATE KEY", dear)},
		{"scrypt", Source{Cert: "testdata/openssl/cert.pem"}, block("ENCRYPTED PRIVATE KEY", hungry)},
		{"PKCS#12", Source{}, p12([]byte{2, 2, 8, 0}, []byte{2, 2, 0x7f, 0xff})}, // many small ones add up; see below
		{"PKCS#12, each count huge", Source{}, huge(t)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(dir, strings.ReplaceAll(tt.name, " ", "-"))
			must(t, os.WriteFile(path, tt.data, 0o600))
			pass := path + ".pass"
			must(t, os.WriteFile(pass, []byte("p"), 0o600))
			src := tt.src
			src.PassphraseFile = pass
			if src.Cert == "" {
				src.PKCS12 = path
			} else {
				src.Key = path
			}
			began := time.Now()
			_, err := Load(src)
			if took := time.Since(began); took > 3*time.Second {
				t.Errorf("took %v", took)
			}
			var inv *Invalid
			if !errors.As(err, &inv) {
				t.Fatalf("%v, want Invalid", err)
			}
			if tt.name != "PKCS#12" && !strings.Contains(inv.Reason, "work") {
				t.Errorf("%q does not name the work", inv.Reason)
			}
		})
	}
}

// huge is a PKCS#12 file that asks for 8 million iterations in each of its parts.
func huge(t testing.TB) []byte {
	t.Helper()
	p := pair(t, certtest.Leaf{})
	data, err := pkcs12.Modern2023.WithIterations(0x010203).Encode(p.Key, p.Leaf, nil, "p")
	if err != nil {
		t.Fatal(err)
	}
	return bytes.ReplaceAll(data, []byte{2, 3, 1, 2, 3}, []byte{2, 3, 0x7f, 2, 3})
}

func TestPipesFoldersAndGiantsAreRefused(t *testing.T) {
	p := pair(t, certtest.Leaf{})
	dir := t.TempDir()
	key := filepath.Join(dir, "key")
	must(t, os.WriteFile(key, p.KeyPEM, 0o600))
	fifo := filepath.Join(dir, "fifo")
	must(t, syscall.Mkfifo(fifo, 0o600))
	giant := filepath.Join(dir, "giant")
	must(t, os.WriteFile(giant, make([]byte, maxFileBytes+1), 0o600))
	tests := []struct{ name, path, want string }{
		{"pipe", fifo, "not a regular file"},
		{"device", "/dev/zero", "not a regular file"},
		{"folder", dir, "is a folder"},
		{"giant", giant, "larger than 1024 KiB"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			done := make(chan error, 1)
			go func() {
				_, err := Load(Source{Cert: tt.path, Key: key})
				done <- err
			}()
			select {
			case err := <-done:
				var inv *Invalid
				if !errors.As(err, &inv) || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("%v, want Invalid with %q", err, tt.want)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("hangs")
			}
		})
	}
}

func TestCredentialPrintsNoKey(t *testing.T) {
	p := pair(t, certtest.Leaf{})
	c, err := Parse(p.CertPEM, p.KeyPEM, nil)
	must(t, err)
	raw, err := p.Key.(*ecdsa.PrivateKey).Bytes()
	must(t, err)
	d := new(big.Int).SetBytes(raw)
	b, _ := pem.Decode(p.KeyPEM)
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%d", "%x"} {
		for _, v := range []any{c, *c, Options{Identity: press}, Source{Key: "k"}} {
			out := fmt.Sprintf(format, v)
			for _, secret := range []string{d.String(), d.Text(16), base64.StdEncoding.EncodeToString(b.Bytes)[60:80]} {
				if strings.Contains(out, secret) {
					t.Errorf("%s of %T gives the key away", format, v)
				}
			}
		}
	}
}

// TestPanicInKeyParsingIsAnInvalidFile needs a process of its own: GODEBUG=fips140=only is read at the start.
func TestPanicInKeyParsingIsAnInvalidFile(t *testing.T) {
	if os.Getenv("CERTSTORE_FIPS_CHILD") == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), "GODEBUG=fips140=only", "CERTSTORE_FIPS_CHILD=1")
		out, err := cmd.CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte("--- PASS")) {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	for _, name := range []string{"legacy.pem", "pbes2.pem", "pbes2-sha1-des3.pem"} {
		_, err := Parse(fixture(t, "cert.pem"), fixture(t, name), []byte("correct"))
		var inv *Invalid
		if !errors.As(err, &inv) {
			t.Errorf("%s: %v, want Invalid", name, err)
		}
	}
	c, err := Parse(fixture(t, "cert.pem"), fixture(t, "pkcs8.pem"), nil)
	must(t, err)
	if len(c.SHA1()) != 40 {
		t.Errorf("thumbprint %q", c.SHA1())
	}
}
