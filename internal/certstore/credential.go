package certstore

import (
	"bytes"
	"crypto"
	"crypto/fips140"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
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
//
// It keeps encoded forms and what is asked often. Parsed ones take five times the memory, and a gateway holds many
// credentials that it needs once for each connection.
type Credential struct {
	chain       [][]byte // DER; the leaf, then its intermediates
	key         *secret
	about       about
	fingerprint string
	notes       []string // what was put right or looks odd, for Inspect
	doubts      []string // what makes a half-written file likely: the store looks once more before it believes it
}

// secret is a private key. It is pointed to, because fmt prints a pointer in a structure as an address.
type secret struct{ pkcs8 []byte }

// about is what a leaf says.
type about struct {
	commonName, subject, issuer string
	serial                      string // lower-case hex
	key                         string // for example "ECDSA P-256"
	notBefore, notAfter         time.Time
}

// Leaf returns the identity's own certificate, parsed anew.
func (c *Credential) Leaf() *x509.Certificate { return parsed(c.chain[0]) }

// Chain returns what is sent to the hub, parsed anew: the leaf, then its intermediates in order, without a self-signed
// root.
func (c *Credential) Chain() []*x509.Certificate {
	certs := make([]*x509.Certificate, len(c.chain))
	for i, der := range c.chain {
		certs[i] = parsed(der)
	}
	return certs
}

// parsed cannot fail: the credential was made of the same bytes, parsed.
func parsed(der []byte) *x509.Certificate {
	cert, _ := x509.ParseCertificate(der)
	return cert
}

// Fingerprint returns 64 hex digits over what makes two credentials the same: the chain that is sent and the public key.
func (c *Credential) Fingerprint() string { return c.fingerprint }

// SHA1 returns the leaf's SHA-1 thumbprint as 40 upper-case hex digits, as the hub's identity registry takes it.
// It names a certificate and protects nothing, which is why FIPS-only mode does not forbid it here.
func (c *Credential) SHA1() string {
	var sum [sha1.Size]byte
	fips140.WithoutEnforcement(func() { sum = sha1.Sum(c.chain[0]) })
	return strings.ToUpper(hex.EncodeToString(sum[:]))
}

// SHA256 returns the leaf's SHA-256 thumbprint as 64 upper-case hex digits, as the hub's identity registry takes it.
func (c *Credential) SHA256() string {
	sum := sha256.Sum256(c.chain[0])
	return strings.ToUpper(hex.EncodeToString(sum[:]))
}

// TLSCertificate returns the credential for tls.Config.GetClientCertificate, made anew. Use that callback and not
// tls.Config.Certificates: when the server's list of acceptable issuers does not name ours, crypto/tls would send no
// certificate at all and no error. Nothing else in this package prints or returns the key.
func (c *Credential) TLSCertificate() (*tls.Certificate, error) {
	key, err := x509.ParsePKCS8PrivateKey(c.key.pkcs8)
	if err != nil {
		return nil, errors.New("the private key cannot be parsed")
	}
	return &tls.Certificate{Certificate: c.chain, PrivateKey: key}, nil
}

// String names the credential without its key, so that printing one by accident gives nothing away.
func (c *Credential) String() string {
	return fmt.Sprintf("certificate %q serial %s until %s", c.about.commonName, c.about.serial, c.about.notAfter.UTC().Format("2006-01-02T15:04:05Z"))
}

// GoString is String: %#v must not walk into the key.
func (c *Credential) GoString() string { return c.String() }

func newCredential(chain []*x509.Certificate, signer crypto.Signer, spki []byte) (*Credential, error) {
	key, err := x509.MarshalPKCS8PrivateKey(signer)
	if err == nil {
		_, err = x509.ParsePKCS8PrivateKey(key) // now, not at the dial
	}
	if err != nil {
		return nil, err
	}
	leaf := chain[0]
	c := &Credential{key: &secret{key}, about: about{
		commonName: leaf.Subject.CommonName, subject: leaf.Subject.String(), issuer: leaf.Issuer.String(),
		serial: leaf.SerialNumber.Text(16), key: keyName(leaf.PublicKey), notBefore: leaf.NotBefore, notAfter: leaf.NotAfter,
	}}
	h := sha256.New()
	for _, cert := range chain {
		h.Write(cert.Raw)
		c.chain = append(c.chain, bytes.Clone(cert.Raw)) // alone, and not the file that it is a part of
	}
	h.Write(spki)
	c.fingerprint = hex.EncodeToString(h.Sum(nil))
	return c, nil
}
