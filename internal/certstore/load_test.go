package certstore

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gatewayd/internal/certstore/certtest"

	"github.com/youmark/pkcs8"
	"software.sslmate.com/src/go-pkcs12"
)

func pair(t testing.TB, l certtest.Leaf) *certtest.Pair {
	t.Helper()
	ca, err := certtest.NewCA("root")
	must(t, err)
	inter, err := ca.Intermediate("site")
	must(t, err)
	if l.CN == "" {
		l.CN = press
	}
	p, err := inter.Issue(l)
	must(t, err)
	return p
}

func block(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func fixture(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", "openssl", name))
	must(t, err)
	return data
}

func TestEveryUsualFormatLoads(t *testing.T) {
	p := pair(t, certtest.Leaf{})
	r := pair(t, certtest.Leaf{RSA: true})
	sec1, err := x509.MarshalECPrivateKey(p.Key.(*ecdsa.PrivateKey))
	must(t, err)
	pkcs1 := x509.MarshalPKCS1PrivateKey(r.Key.(*rsa.PrivateKey))
	scryptKey, err := pkcs8.MarshalPrivateKey(p.Key, []byte("correct"), &pkcs8.Opts{Cipher: pkcs8.AES256CBC, KDFOpts: pkcs8.ScryptOpts{SaltSize: 16, CostParameter: 1 << 14, BlockSize: 8, ParallelizationParameter: 1}})
	must(t, err)
	//lint:ignore SA1019 the form that is tested
	legacy, err := x509.EncryptPEMBlock(rand.Reader, "RSA PRIVATE KEY", pkcs1, []byte("correct"), x509.PEMCipher3DES)
	must(t, err)
	var chainDER []byte
	for _, c := range p.Chain {
		chainDER = append(chainDER, c.Raw...)
	}
	crlf := func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("\n"), []byte("\r\n")) }
	preamble := []byte("subject=CN = press-7\nissuer=CN = site\n")
	openssl := fixture(t, "cert.pem")
	tests := []struct {
		name            string
		cert, key, pass []byte
		chain           int
	}{
		{"PKCS#8", p.CertPEM, p.KeyPEM, nil, 2},
		{"SEC1", p.CertPEM, block("EC PRIVATE KEY", sec1), nil, 2},
		{"PKCS#1", r.CertPEM, block("RSA PRIVATE KEY", pkcs1), nil, 2},
		{"PKCS#1 under the PKCS#8 label", r.CertPEM, block("PRIVATE KEY", pkcs1), nil, 2},
		{"EC parameters before the key", p.CertPEM, append(block("EC PARAMETERS", []byte{6, 0}), block("EC PRIVATE KEY", sec1)...), nil, 2},
		{"DER key", p.CertPEM, sec1, nil, 2},
		{"DER chain", chainDER, p.KeyPEM, nil, 2},
		{"encrypted DER key", p.CertPEM, scryptKey, []byte("correct"), 2},
		{"scrypt", p.CertPEM, block("ENCRYPTED PRIVATE KEY", scryptKey), []byte("correct"), 2},
		{"legacy encryption", r.CertPEM, pem.EncodeToMemory(legacy), []byte("correct"), 2},
		{"CRLF", crlf(p.CertPEM), crlf(p.KeyPEM), nil, 2},
		{"BOM", append([]byte(utf8BOM), p.CertPEM...), append([]byte(utf8BOM), p.KeyPEM...), nil, 2},
		{"text before the blocks", append(preamble, p.CertPEM...), append(preamble, p.KeyPEM...), nil, 2},
		{"combined, key last", append(bytes.Clone(p.CertPEM), p.KeyPEM...), nil, nil, 2},
		{"combined, key first", append(bytes.Clone(p.KeyPEM), p.CertPEM...), nil, nil, 2},
		{"no newline at the end", bytes.TrimSpace(p.CertPEM), bytes.TrimSpace(p.KeyPEM), nil, 2},
		{"passphrase for a plain key", p.CertPEM, p.KeyPEM, []byte("unneeded"), 2},
		{"passphrase with a line ending", openssl, fixture(t, "pbes2.pem"), []byte("correct\r\n"), 1},
		{"openssl PKCS#8", openssl, fixture(t, "pkcs8.pem"), nil, 1},
		{"openssl SEC1", openssl, fixture(t, "sec1.pem"), nil, 1},
		{"openssl PBES2", openssl, fixture(t, "pbes2.pem"), []byte("correct"), 1},
		{"openssl PBES2 with SHA-1 and 3DES", openssl, fixture(t, "pbes2-sha1-des3.pem"), []byte("correct"), 1},
		{"openssl scrypt", openssl, fixture(t, "scrypt.pem"), []byte("correct"), 1},
		{"openssl legacy", openssl, fixture(t, "legacy.pem"), []byte("correct"), 1},
		{"openssl bag attributes, combined", fixture(t, "bag-attributes.pem"), nil, nil, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := Parse(tt.cert, tt.key, tt.pass)
			must(t, err)
			if len(c.Chain()) != tt.chain {
				t.Errorf("chain of %d, want %d", len(c.Chain()), tt.chain)
			}
			if c.Leaf().Subject.CommonName != press || !sameKey(c.Leaf(), signerOf(t, c)) {
				t.Errorf("leaf %q does not go with the key", c.Leaf().Subject)
			}
		})
	}
}

func TestPKCS12Loads(t *testing.T) {
	p := pair(t, certtest.Leaf{})
	encode := func(e *pkcs12.Encoder, pass string) []byte {
		data, err := e.Encode(p.Key, p.Leaf, p.Chain[1:], pass)
		must(t, err)
		return data
	}
	tests := []struct {
		name  string
		data  []byte
		pass  string
		chain int
	}{
		{"modern", encode(pkcs12.Modern2023, "correct"), "correct", 2},
		{"triple DES", encode(pkcs12.LegacyDES, "correct"), "correct", 2},
		{"RC2", encode(pkcs12.LegacyRC2, "correct"), "correct", 2},
		{"passwordless", encode(pkcs12.Passwordless, ""), "", 2},
		{"openssl 3", fixture(t, "modern.p12"), "correct", 1},
		{"openssl -legacy", fixture(t, "legacy.p12"), "correct", 1},
		{"openssl, empty passphrase", fixture(t, "empty.p12"), "", 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			src := Source{PKCS12: filepath.Join(dir, "a.p12")}
			must(t, os.WriteFile(src.PKCS12, tt.data, 0o600))
			if tt.pass != "" {
				src.PassphraseFile = filepath.Join(dir, "pass")
				must(t, os.WriteFile(src.PassphraseFile, []byte(tt.pass+"\n"), 0o600))
			}
			c, err := Load(src)
			must(t, err)
			if len(c.Chain()) != tt.chain {
				t.Errorf("chain of %d, want %d", len(c.Chain()), tt.chain)
			}
			must(t, os.WriteFile(src.PKCS12, tt.data[:len(tt.data)/2], 0o600))
			var inc *Incomplete
			if _, err := Load(src); !errors.As(err, &inc) {
				t.Errorf("half a file: %v, want Incomplete", err)
			}
		})
	}
}

func TestMistakesAreNamed(t *testing.T) {
	p, other := pair(t, certtest.Leaf{}), pair(t, certtest.Leaf{})
	openssl := fixture(t, "cert.pem")
	negative := p.Leaf.Raw
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	must(t, err)
	tests := []struct {
		name            string
		cert, key, pass []byte
		want            string // in the message
		incomplete      bool
	}{
		{"swapped", p.KeyPEM, p.CertPEM, nil, "swapped", false},
		{"key where the certificate belongs", p.KeyPEM, p.KeyPEM, nil, "holds no certificate but a private key", false},
		{"certificate where the key belongs", p.CertPEM, p.CertPEM, nil, "holds no private key but a certificate", false},
		{"no key anywhere", p.CertPEM, nil, nil, "no key file is named", false},
		{"request", fixture(t, "request.pem"), p.KeyPEM, nil, "but a certificate request", false},
		{"public key", openssl, fixture(t, "public.pem"), nil, "but a public key", false},
		{"two keys", p.CertPEM, append(bytes.Clone(p.KeyPEM), other.KeyPEM...), nil, "holds 2 private keys", false},
		{"key of another certificate", p.CertPEM, other.KeyPEM, nil, "is not the one of the certificate", true},
		{"empty certificate", nil, p.KeyPEM, nil, "is empty", true},
		{"blank key", p.CertPEM, []byte(" \n"), nil, "is empty", true},
		{"text", []byte("hello"), p.KeyPEM, nil, "neither PEM nor DER", false},
		{"Java keystore", []byte{0xfe, 0xed, 0xfe, 0xed, 0, 0}, p.KeyPEM, nil, "keytool", false},
		{"UTF-16", []byte{0xff, 0xfe, '-', 0, '-', 0}, p.KeyPEM, nil, "UTF-16", false},
		{"PKCS#12 as certificate", fixture(t, "modern.p12"), p.KeyPEM, nil, "is PKCS#12", false},
		{"OpenSSH key", p.CertPEM, block("OPENSSH PRIVATE KEY", []byte("x")), nil, "OpenSSH", false},
		{"TPM key", p.CertPEM, block("TSS2 PRIVATE KEY", []byte("x")), nil, "TPM", false},
		{"no passphrase", openssl, fixture(t, "pbes2.pem"), nil, "passphrase_file", false},
		{"wrong passphrase", openssl, fixture(t, "pbes2.pem"), []byte("wrong"), "with the passphrase", false},
		{"wrong passphrase, scrypt", openssl, fixture(t, "scrypt.pem"), []byte("wrong"), "with the passphrase", false},
		{"wrong passphrase, legacy", openssl, fixture(t, "legacy.pem"), []byte("wrong"), "with the passphrase", false},
		{"no passphrase, legacy", openssl, fixture(t, "legacy.pem"), nil, "passphrase_file", false},
		{"SHA-512 derivation", openssl, fixture(t, "pbes2-sha512.pem"), []byte("correct"), "HMAC-SHA-512", false},
		{"PBES1", openssl, fixture(t, "pbes1.pem"), []byte("correct"), "PBES2", false},
		{"P-224", openssl, fixture(t, "p224.pem"), nil, "P-224", false},
		{"negative serial", block("CERTIFICATE", negate(t, negative)), p.KeyPEM, nil, "serial", false},
		{"RSA of 1024 bits", p.CertPEM, block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(small)), nil, "is not the one", true},
		{"bundle of roots", bytes.Repeat(p.CertPEM, 10), p.KeyPEM, nil, "hub.trust", false},
		{"text behind the last block", append(bytes.Clone(p.CertPEM), "-----BEG"...), p.KeyPEM, nil, "cut off", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse(tt.cert, tt.key, tt.pass)
			var inc *Incomplete
			var inv *Invalid
			switch {
			case err == nil:
				t.Fatal("accepted")
			case tt.incomplete != errors.As(err, &inc), tt.incomplete == errors.As(err, &inv):
				t.Fatalf("%T %v, want incomplete %v", err, err, tt.incomplete)
			case !strings.Contains(err.Error(), tt.want):
				t.Fatalf("%q does not say %q", err, tt.want)
			}
			for _, l := range strings.Split(string(tt.key), "\n") {
				if len(l) > 20 && !strings.HasPrefix(l, "-----") && strings.Contains(err.Error(), l) {
					t.Fatalf("%q gives key material away", err)
				}
			}
		})
	}
}

// negate makes the serial number of a certificate negative; the signature does not matter to the parser.
func negate(t testing.TB, der []byte) []byte {
	t.Helper()
	at := bytes.Index(der, []byte{0xa0, 3, 2, 1, 2, 2})
	if at < 0 {
		t.Fatal("no version before the serial number")
	}
	out := bytes.Clone(der)
	out[at+7] |= 0x80
	return out
}

func TestTornChainIsNeverAccepted(t *testing.T) {
	p := pair(t, certtest.Leaf{})
	whole, err := Parse(p.CertPEM, p.KeyPEM, nil)
	must(t, err)
	boundary := bytes.Index(p.CertPEM, []byte("-----END CERTIFICATE-----")) + len("-----END CERTIFICATE-----")
	for n := range p.CertPEM {
		c, err := Parse(p.CertPEM[:n], p.KeyPEM, nil)
		var inc *Incomplete
		switch {
		case err == nil && c.Fingerprint() == whole.Fingerprint():
			if n < len(p.CertPEM)-1 {
				t.Fatalf("cut at %d: the whole chain came out", n)
			}
		case err == nil && (n == boundary || n == boundary+1):
			// A whole file that holds the leaf: Store waits, see TestShorterChainHasToLast.
		case err == nil:
			t.Fatalf("cut at %d: a chain of %d accepted", n, len(c.Chain()))
		case !errors.As(err, &inc):
			t.Fatalf("cut at %d: %T %v, want Incomplete", n, err, err)
		}
	}
	for n := range p.KeyPEM[:len(p.KeyPEM)-1] {
		var inc *Incomplete
		if _, err := Parse(p.CertPEM, p.KeyPEM[:n], nil); !errors.As(err, &inc) {
			t.Fatalf("key cut at %d: %v, want Incomplete", n, err)
		}
	}
}

func TestChainIsPutInOrder(t *testing.T) {
	root, err := certtest.NewCA("root")
	must(t, err)
	a, err := root.Intermediate("a")
	must(t, err)
	b, err := a.Intermediate("b")
	must(t, err)
	stranger, err := certtest.NewCA("stranger")
	must(t, err)
	p, err := b.Issue(certtest.Leaf{CN: press})
	must(t, err)
	impostorRoot, err := certtest.NewCA("root2")
	must(t, err)
	impostor, err := impostorRoot.Intermediate("b")
	must(t, err)
	leaf := block("CERTIFICATE", p.Leaf.Raw)
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	tests := []struct {
		name  string
		file  []byte
		chain []string
		note  string
	}{
		{"in order", p.CertPEM, []string{press, "b", "a"}, ""},
		{"reversed", join(a.PEM(), b.PEM(), leaf), []string{press, "b", "a"}, "not the first"},
		{"intermediates swapped", join(leaf, a.PEM(), b.PEM()), []string{press, "b", "a"}, "not in order"},
		{"with root", join(p.CertPEM, root.PEM()), []string{press, "b", "a"}, ""},
		{"stranger among them", join(leaf, stranger.PEM(), b.PEM(), a.PEM()), []string{press, "b", "a"}, "does not belong"},
		{"twice the same", join(leaf, leaf, b.PEM(), a.PEM()), []string{press, "b", "a"}, "does not belong"},
		{"issuer of the same name and another key", join(leaf, impostor.PEM()), []string{press}, "did not sign"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := Parse(tt.file, p.KeyPEM, nil)
			must(t, err)
			var got []string
			for _, cert := range c.Chain() {
				got = append(got, cert.Subject.CommonName)
			}
			if fmt.Sprint(got) != fmt.Sprint(tt.chain) {
				t.Errorf("chain %v, want %v", got, tt.chain)
			}
			notes := strings.Join(c.notes, "; ")
			if (tt.note == "") != (notes == "") || !strings.Contains(notes, tt.note) {
				t.Errorf("notes %q, want %q", notes, tt.note)
			}
			if len(c.chain) != len(tt.chain) {
				t.Errorf("%d certificates sent", len(c.chain))
			}
		})
	}
}
