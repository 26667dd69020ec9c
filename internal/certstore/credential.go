package certstore

import (
	"crypto"
	"crypto/fips140"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"strings"
)

// Source names the files of one identity's credential: either Cert and Key, or PKCS12. Cert holds the leaf and the
// intermediates as PEM in any order (or DER); Key holds PKCS#8, SEC1 or PKCS#1 as PEM or DER, and may be empty or equal
// to Cert when the key is in the certificate file. PassphraseFile is read again with every candidate; one line ending at
// its end is not part of the passphrase.
type Source struct {
	Cert, Key, PKCS12, PassphraseFile string
}

// Credential is a certificate chain with its private key. It is immutable and safe for concurrent use; two of them are
// the same when their fingerprints are equal.
type Credential struct {
	leaf        *x509.Certificate
	chain       []*x509.Certificate
	signer      crypto.Signer
	fingerprint string
	tls         *tls.Certificate
	notes       []string // what was put right or looks odd, for Inspect
	doubts      []string // what makes a half-written file likely: the store looks once more before it believes it
}

// Leaf returns the identity's own certificate. The caller must not change it.
func (c *Credential) Leaf() *x509.Certificate { return c.leaf }

// Chain returns what is sent to the hub: the leaf, then its intermediates in order, without a self-signed root. The
// caller must not change it.
func (c *Credential) Chain() []*x509.Certificate { return c.chain }

// Signer returns the private key. Nothing in this package prints or returns its bytes.
func (c *Credential) Signer() crypto.Signer { return c.signer }

// Fingerprint returns 64 hex digits over what makes two credentials the same: the chain that is sent and the public key.
func (c *Credential) Fingerprint() string { return c.fingerprint }

// SHA1 returns the leaf's SHA-1 thumbprint as 40 upper-case hex digits, as the hub's identity registry takes it.
// It names a certificate and protects nothing, which is why FIPS-only mode does not forbid it here.
func (c *Credential) SHA1() string {
	var sum [sha1.Size]byte
	fips140.WithoutEnforcement(func() { sum = sha1.Sum(c.leaf.Raw) })
	return strings.ToUpper(hex.EncodeToString(sum[:]))
}

// SHA256 returns the leaf's SHA-256 thumbprint as 64 upper-case hex digits, as the hub's identity registry takes it.
func (c *Credential) SHA256() string {
	sum := sha256.Sum256(c.leaf.Raw)
	return strings.ToUpper(hex.EncodeToString(sum[:]))
}

// TLSCertificate returns the credential for tls.Config.GetClientCertificate. Use that callback and not
// tls.Config.Certificates: when the server's list of acceptable issuers does not name ours, crypto/tls would send no
// certificate at all and no error. The caller must not change it.
func (c *Credential) TLSCertificate() *tls.Certificate { return c.tls }

// String names the credential without its key, so that printing one by accident gives nothing away.
func (c *Credential) String() string {
	return fmt.Sprintf("certificate %q serial %s until %s", c.leaf.Subject.CommonName, c.leaf.SerialNumber.Text(16), c.leaf.NotAfter.UTC().Format("2006-01-02T15:04:05Z"))
}

// GoString is String: %#v must not walk into the key.
func (c *Credential) GoString() string { return c.String() }

func newCredential(chain []*x509.Certificate, signer crypto.Signer, spki []byte) *Credential {
	h := sha256.New()
	t := &tls.Certificate{PrivateKey: signer, Leaf: chain[0]}
	for _, cert := range chain {
		h.Write(cert.Raw)
		t.Certificate = append(t.Certificate, cert.Raw)
	}
	h.Write(spki)
	return &Credential{leaf: chain[0], chain: chain, signer: signer, fingerprint: hex.EncodeToString(h.Sum(nil)), tls: t}
}
