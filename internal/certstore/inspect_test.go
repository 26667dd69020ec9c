package certstore

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"strings"
	"testing"
	"time"

	"gatewayd/internal/certstore/certtest"
)

func TestInspectNamesTheRule(t *testing.T) {
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	must(t, err)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	now := time.Now()
	tests := []struct {
		name    string
		key     any
		change  func(c *x509.Certificate)
		problem bool
		want    string
	}{
		{"nothing wrong", ec, func(*x509.Certificate) {}, false, ""},
		{"another name", ec, func(c *x509.Certificate) { c.Subject.CommonName = "press-8" }, true, `"press-8", not "press-7"`},
		{"no name", ec, func(c *x509.Certificate) { c.Subject = pkix.Name{} }, true, "with the device id as common name"},
		{"upper case", ec, func(c *x509.Certificate) { c.Subject.CommonName = "Press-7" }, true, "upper and lower case"},
		{"expired", ec, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Hour) }, true, "expired on"},
		{"not yet valid", ec, func(c *x509.Certificate) { c.NotBefore = now.Add(time.Hour) }, true, "not valid before"},
		{"about to expire", ec, func(c *x509.Certificate) { c.NotAfter = now.Add(time.Minute) }, false, "1/20 left"},
		{"no clientAuth", ec, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }, false, "clientAuth"},
		{"any usage", ec, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }, false, ""},
		{"no digitalSignature", ec, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }, false, "digitalSignature"},
		{"a CA", ec, func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }, false, "CA certificate"},
		{"RSA with 1024 bits", weak, func(*x509.Certificate) {}, false, "1024 bits"},
		{"Ed25519", ed, func(*x509.Certificate) {}, false, "Ed25519"},
		{"critical extension", ec, func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: []int{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}}}
		}, false, "1.2.3.4"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tmpl := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: press}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(1000 * time.Hour),
				KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
			tt.change(tmpl)
			der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, publicOf(tt.key), tt.key)
			must(t, err)
			keyDER, err := x509.MarshalPKCS8PrivateKey(tt.key)
			must(t, err)
			c, err := Parse(block("CERTIFICATE", der), block("PRIVATE KEY", keyDER), nil)
			must(t, err)
			r := Inspect(c, press, now)
			problems, warnings := strings.Join(r.Problems, "\n"), strings.Join(r.Warnings, "\n")
			if tt.problem != (problems != "") || tt.problem && !strings.Contains(problems, tt.want) {
				t.Errorf("problems %q, want %q", problems, tt.want)
			}
			if !tt.problem && ((tt.want == "") != (warnings == "") || !strings.Contains(warnings, tt.want)) {
				t.Errorf("warnings %q, want %q", warnings, tt.want)
			}
			if r.ChainTop != "self-signed" || !r.ChainWhole || r.Serial != "7" {
				t.Errorf("report %+v", r)
			}
		})
	}
}

func publicOf(key any) any {
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		return k.Public()
	case *rsa.PrivateKey:
		return k.Public()
	case ed25519.PrivateKey:
		return k.Public()
	}
	return nil
}

func TestInspectTellsWhatTheHubMustKnow(t *testing.T) {
	p := pair(t, certtest.Leaf{})
	c, err := Parse(p.CertPEM, p.KeyPEM, nil)
	must(t, err)
	r := Inspect(c, "", time.Now())
	if r.ChainTop != "CN=root" || r.Chain != 2 || !r.ChainWhole || !r.CommonNameMatches || r.DaysLeft < 29 || r.DaysLeft > 31 {
		t.Errorf("report %+v", r)
	}
	if r.SHA256 != p.SHA256() {
		t.Errorf("thumbprint %s, want %s", r.SHA256, p.SHA256())
	}
}

func TestSharedCertificatesAreFound(t *testing.T) {
	a, b := pair(t, certtest.Leaf{}), pair(t, certtest.Leaf{})
	load := func(p *certtest.Pair) *Credential {
		c, err := Parse(p.CertPEM, p.KeyPEM, nil)
		must(t, err)
		return c
	}
	got := Shared(map[string]*Credential{"x": load(a), "y": load(b), "z": load(a), "none": nil, "none either": nil})
	if len(got) != 1 || got["z"] != "x" {
		t.Errorf("shared %v", got)
	}
}
