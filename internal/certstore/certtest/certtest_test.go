package certtest

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func mustCA(t *testing.T, name string) *CA {
	t.Helper()
	ca, err := NewCA(name)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func mustIssue(t *testing.T, ca *CA, l Leaf) *Pair {
	t.Helper()
	p, err := ca.Issue(l)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func verify(ca *CA, p *Pair, usage x509.ExtKeyUsage) error {
	inter := x509.NewCertPool()
	for _, c := range p.Chain[1:] {
		inter.AddCert(c)
	}
	_, err := p.Leaf.Verify(x509.VerifyOptions{
		Roots: ca.Pool(), Intermediates: inter, KeyUsages: []x509.ExtKeyUsage{usage},
	})
	return err
}

func TestIssuedLeafVerifiesAgainstItsRoot(t *testing.T) {
	root := mustCA(t, "root")
	mid, err := root.Intermediate("mid")
	if err != nil {
		t.Fatal(err)
	}
	low, err := mid.Intermediate("low")
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		ca    *CA
		leaf  Leaf
		usage x509.ExtKeyUsage
		chain int
	}{
		{"root, P-256", root, Leaf{CN: "press-7"}, x509.ExtKeyUsageClientAuth, 1},
		{"root, RSA", root, Leaf{CN: "press-7", RSA: true}, x509.ExtKeyUsageClientAuth, 1},
		{"intermediate", mid, Leaf{CN: "press-7"}, x509.ExtKeyUsageClientAuth, 2},
		{"two intermediates", low, Leaf{CN: "press-7/agent"}, x509.ExtKeyUsageClientAuth, 3},
		{"server", root, Leaf{CN: "hub", DNS: []string{"hub.example", "127.0.0.1"}}, x509.ExtKeyUsageServerAuth, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := mustIssue(t, tt.ca, tt.leaf)
			if err := verify(tt.ca, p, tt.usage); err != nil {
				t.Errorf("verify: %v", err)
			}
			if got := len(p.Chain); got != tt.chain {
				t.Errorf("chain has %d certificates, want %d", got, tt.chain)
			}
			if got := p.Leaf.Subject.CommonName; got != tt.leaf.CN {
				t.Errorf("CN %q, want %q", got, tt.leaf.CN)
			}
			if _, err := tls.X509KeyPair(p.CertPEM, p.KeyPEM); err != nil {
				t.Errorf("PEM forms do not make a pair: %v", err)
			}
		})
	}
}

func TestFaultsAskedForAreThere(t *testing.T) {
	ca := mustCA(t, "root")
	expired := mustIssue(t, ca, Leaf{CN: "d", NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)})
	var invalid x509.CertificateInvalidError
	if err := verify(ca, expired, x509.ExtKeyUsageClientAuth); !errors.As(err, &invalid) || invalid.Reason != x509.Expired {
		t.Errorf("expired leaf: %v, want an expiry error", err)
	}
	server := mustIssue(t, ca, Leaf{CN: "d", NoClientAuth: true})
	if err := verify(ca, server, x509.ExtKeyUsageClientAuth); !errors.As(err, &invalid) || invalid.Reason != x509.IncompatibleUsage {
		t.Errorf("leaf without clientAuth: %v, want a usage error", err)
	}
	if !mustIssue(t, ca, Leaf{CN: "d", IsCA: true}).Leaf.IsCA {
		t.Error("IsCA was not honoured")
	}
	if err := verify(mustCA(t, "other"), mustIssue(t, ca, Leaf{CN: "d"}), x509.ExtKeyUsageClientAuth); err == nil {
		t.Error("a foreign root verified the leaf")
	}
	if got := mustIssue(t, ca, Leaf{CN: "d", Serial: big.NewInt(77)}).Leaf.SerialNumber.Int64(); got != 77 {
		t.Errorf("serial %d, want 77", got)
	}
	old, err := NewCAValid("old", Validity{NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	if err := verify(old, mustIssue(t, old, Leaf{CN: "d"}), x509.ExtKeyUsageClientAuth); err == nil {
		t.Error("a leaf of an expired CA verified")
	}
}

func TestSameKeyMayBeCertifiedAgain(t *testing.T) {
	ca := mustCA(t, "root")
	first := mustIssue(t, ca, Leaf{CN: "d"})
	second := mustIssue(t, ca, Leaf{CN: "d", Key: first.Key})
	if string(first.KeyPEM) != string(second.KeyPEM) || first.SHA256() == second.SHA256() {
		t.Error("want the same key under a new certificate")
	}
}

func TestWriteReplacesWholeFilesAndHidesTheKey(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "d.pem"), filepath.Join(dir, "d.key")
	ca := mustCA(t, "root")
	for range 2 {
		if err := mustIssue(t, ca, Leaf{CN: "d"}).Write(cert, key); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(key)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o600 {
		t.Errorf("key mode %v, want 0600", got)
	}
	if _, err := tls.LoadX509KeyPair(cert, key); err != nil {
		t.Errorf("written files do not make a pair: %v", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 2 {
		t.Errorf("%d files left, want 2", len(entries))
	}
	if err := mustIssue(t, ca, Leaf{CN: "d"}).Write(filepath.Join(dir, "no", "d.pem"), key); err == nil {
		t.Error("a missing folder gave no error")
	}
}
