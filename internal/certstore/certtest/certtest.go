package certtest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

const (
	// backdate keeps a fresh certificate valid for a peer whose clock is a little behind.
	backdate     = time.Hour
	caLifetime   = 20 * 365 * 24 * time.Hour
	leafLifetime = 30 * 24 * time.Hour
	rsaBits      = 2048
)

// CA is a root or an intermediate that can issue. Its methods are safe for concurrent use.
type CA struct {
	Cert *x509.Certificate
	Key  crypto.Signer

	// chain is what a leaf of this CA must present besides itself: the intermediates, nearest first, without
	// the root.
	chain []*x509.Certificate
	root  *x509.Certificate
}

// Validity is a period; a zero field takes the default, one hour ago and twenty years ahead for a CA.
type Validity struct{ NotBefore, NotAfter time.Time }

// Leaf describes a certificate to issue; the zero value of each field is a sensible device certificate.
type Leaf struct {
	CN string
	// DNS names; one that reads as an IP address becomes an IP name. Any name makes the certificate fit for a
	// server too.
	DNS []string

	NotBefore, NotAfter time.Time // default: an hour ago, 30 days ahead

	Key          crypto.Signer // nil: a new key
	RSA          bool          // the new key is RSA with 2048 bits instead of P-256
	NoClientAuth bool          // extended key usage present but without clientAuth
	IsCA         bool          // basic constraints say CA, which a hub refuses for a device
	Serial       *big.Int      // nil: random, 63 bits
	ManagedID    string        // the subject's serialNumber attribute, for certificates that a hub manages
}

// Pair is an issued certificate with its key.
type Pair struct {
	CertPEM []byte // the leaf, then the intermediates, without the root
	KeyPEM  []byte // PKCS#8
	Leaf    *x509.Certificate
	Chain   []*x509.Certificate // what CertPEM holds
	Key     crypto.Signer
}

// NewCA makes a root that is valid for twenty years.
func NewCA(name string) (*CA, error) { return NewCAValid(name, Validity{}) }

// NewCAValid makes a root with a validity of the caller's choice, such as one that is over.
func NewCAValid(name string, v Validity) (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate key of CA %q: %w", name, err)
	}
	tmpl, err := caTemplate(name, v)
	if err != nil {
		return nil, err
	}
	cert, err := sign(tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign CA %q: %w", name, err)
	}
	return &CA{Cert: cert, Key: key, root: cert}, nil
}

// Intermediate makes a CA under this one. Leaves that it issues carry it in their chain.
func (ca *CA) Intermediate(name string) (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate key of CA %q: %w", name, err)
	}
	tmpl, err := caTemplate(name, Validity{})
	if err != nil {
		return nil, err
	}
	cert, err := sign(tmpl, ca.Cert, key.Public(), ca.Key)
	if err != nil {
		return nil, fmt.Errorf("sign CA %q: %w", name, err)
	}
	chain := append([]*x509.Certificate{cert}, ca.chain...)
	return &CA{Cert: cert, Key: key, chain: chain, root: ca.root}, nil
}

// Issue makes a certificate with its key.
func (ca *CA) Issue(l Leaf) (*Pair, error) {
	key := l.Key
	if key == nil {
		var err error
		if key, err = newKey(l.RSA); err != nil {
			return nil, fmt.Errorf("generate key of %q: %w", l.CN, err)
		}
	}
	tmpl, err := leafTemplate(l)
	if err != nil {
		return nil, err
	}
	cert, err := sign(tmpl, ca.Cert, key.Public(), ca.Key)
	if err != nil {
		return nil, fmt.Errorf("sign %q: %w", l.CN, err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key of %q: %w", l.CN, err)
	}
	chain := append([]*x509.Certificate{cert}, ca.chain...)
	return &Pair{
		CertPEM: encode(chain...),
		KeyPEM:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
		Leaf:    cert,
		Chain:   chain,
		Key:     key,
	}, nil
}

// PEM is the certificate of this CA alone.
func (ca *CA) PEM() []byte { return encode(ca.Cert) }

// Root is the self-signed end of the chain of this CA; it is the CA itself for one from [NewCA].
func (ca *CA) Root() *x509.Certificate { return ca.root }

// Pool trusts the root of this CA.
func (ca *CA) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(ca.root)
	return pool
}

// TLS is the pair as crypto/tls wants it, chain included.
func (p *Pair) TLS() tls.Certificate {
	c := tls.Certificate{PrivateKey: p.Key, Leaf: p.Leaf}
	for _, cert := range p.Chain {
		c.Certificate = append(c.Certificate, cert.Raw)
	}
	return c
}

// SHA256 is the thumbprint of the leaf as the hub's registry shows it: upper-case hex.
func (p *Pair) SHA256() string { return Thumbprint(p.Leaf) }

// Thumbprint is the upper-case hex SHA-256 over the certificate's DER form.
func Thumbprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return fmt.Sprintf("%X", sum[:])
}

// Write puts certificate and key into files, each by an atomic rename, the key first and with mode 0600. The
// two files together are not atomic: a reader may see the new key beside the old certificate.
func (p *Pair) Write(certPath, keyPath string) error {
	if err := replace(keyPath, p.KeyPEM, 0o600); err != nil {
		return fmt.Errorf("write key: %w", err)
	}
	if err := replace(certPath, p.CertPEM, 0o644); err != nil {
		return fmt.Errorf("write certificate: %w", err)
	}
	return nil
}

func replace(path string, data []byte, mode os.FileMode) error {
	var suffix [8]byte
	_, _ = rand.Read(suffix[:]) // never fails, by its contract
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+"."+hex.EncodeToString(suffix[:]))
	if err := os.WriteFile(tmp, data, mode); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		_ = os.Remove(tmp)
		return err
	}
	return nil
}

func newKey(useRSA bool) (crypto.Signer, error) {
	if useRSA {
		return rsa.GenerateKey(rand.Reader, rsaBits)
	}
	return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
}

func caTemplate(name string, v Validity) (*x509.Certificate, error) {
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	return &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             orTime(v.NotBefore, now.Add(-backdate)),
		NotAfter:              orTime(v.NotAfter, now.Add(caLifetime)),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}, nil
}

func leafTemplate(l Leaf) (*x509.Certificate, error) {
	serial := l.Serial
	if serial == nil {
		var err error
		if serial, err = newSerial(); err != nil {
			return nil, err
		}
	}
	now := time.Now()
	tmpl := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: l.CN, SerialNumber: l.ManagedID},
		NotBefore:             orTime(l.NotBefore, now.Add(-backdate)),
		NotAfter:              orTime(l.NotAfter, now.Add(leafLifetime)),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  l.IsCA,
	}
	if l.IsCA {
		tmpl.KeyUsage |= x509.KeyUsageCertSign
	}
	if !l.NoClientAuth {
		tmpl.ExtKeyUsage = append(tmpl.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	if len(l.DNS) > 0 || l.NoClientAuth {
		tmpl.ExtKeyUsage = append(tmpl.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	for _, name := range l.DNS {
		if ip := net.ParseIP(name); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, name)
		}
	}
	return tmpl, nil
}

func sign(tmpl, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).SetBit(new(big.Int), 63, 1))
	if err != nil {
		return nil, fmt.Errorf("draw serial: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}

func orTime(t, def time.Time) time.Time {
	if t.IsZero() {
		return def
	}
	return t
}

func encode(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}
