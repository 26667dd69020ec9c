package certstore

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// maxCerts bounds the certificates in one chain file; more is a bundle of roots that ended up in the wrong place.
const maxCerts = 16

// pair parses a certificate file and its key.
func (s sight) pair() (*Credential, error) {
	certs, err := readContents(s.src.Cert, s.files[s.src.Cert].data)
	if err != nil {
		return nil, err
	}
	keys := certs
	separate := s.src.Key != "" && s.src.Key != s.src.Cert
	if separate {
		if keys, err = readContents(s.src.Key, s.files[s.src.Key].data); err != nil {
			return nil, err
		}
	}
	if err := s.mistakes(certs, keys, separate); err != nil {
		return nil, err
	}
	signer, err := parseKey(s.src.keyPath(), keys.keys[0], s.passphrase())
	if err != nil {
		return nil, aboutKey(err)
	}
	c, err := assemble(s.src.Cert, certs.certs, signer)
	if err != nil {
		return nil, err
	}
	if separate && len(certs.keys) > 0 {
		c.notes = append(c.notes, fmt.Sprintf("%s holds a private key too, which is not used", s.src.Cert))
	}
	return c, nil
}

// mistakes names the ways in which the two files get mixed up.
func (s sight) mistakes(certs, keys contents, separate bool) error {
	cert, key := s.src.Cert, s.src.keyPath()
	switch {
	case separate && len(certs.certs) == 0 && len(certs.keys) > 0 && len(keys.certs) > 0 && len(keys.keys) == 0:
		return &Invalid{Reason: "certificate and key are swapped", Hint: fmt.Sprintf("%s holds the key and %s the certificate", cert, key)}
	case len(certs.certs) == 0:
		return &Invalid{Reason: cert + " holds no certificate" + instead(certs), Hint: "is this the right file?"}
	case len(certs.certs) > maxCerts:
		return &Invalid{Reason: fmt.Sprintf("%s holds %d certificates", cert, len(certs.certs)), Hint: "it should hold the leaf and its intermediates; roots belong into hub.trust"}
	case len(keys.keys) == 0 && separate:
		return &Invalid{Reason: key + " holds no private key" + instead(keys), Hint: "is this the right file?", Key: true}
	case len(keys.keys) == 0:
		return &Invalid{Reason: key + " holds no private key and no key file is named", Hint: "set key", Key: true}
	case len(keys.keys) > 1:
		return &Invalid{Reason: fmt.Sprintf("%s holds %d private keys", key, len(keys.keys)), Hint: "leave the one of the certificate", Key: true}
	}
	return nil
}

func instead(c contents) string {
	switch {
	case len(c.keys) > 0:
		return " but a private key"
	case len(c.certs) > 0:
		return " but a certificate"
	case len(c.other) > 0:
		return " but a " + strings.ToLower(c.other[0])
	}
	return ""
}

// assemble makes the credential of the certificate that belongs to the key, wherever it is in the file, and puts the
// others in order behind it.
func assemble(path string, certs []*x509.Certificate, signer crypto.Signer) (*Credential, error) {
	leaf, others := pickLeaf(certs, signer)
	spki, err := x509.MarshalPKIXPublicKey(signer.Public())
	if err != nil {
		return nil, &Invalid{Reason: fmt.Sprintf("the public key of %s cannot be encoded: %v", path, err)}
	}
	if leaf == nil {
		return nil, &Incomplete{Mismatch, fmt.Sprintf("the key is not the one of the certificate in %s (public key hashes %s and %s)", path, shortHash(spki), shortHash(certs[0].RawSubjectPublicKeyInfo))}
	}
	o := order(leaf, others)
	c, err := newCredential(o.chain, signer, spki)
	if err != nil {
		return nil, &Invalid{Reason: fmt.Sprintf("the private key for %s cannot be encoded", path)}
	}
	c.notes, c.doubts = o.notes, o.doubts
	if certs[0] != leaf {
		c.notes = append(c.notes, "the certificate of the key is not the first in the file")
	}
	return c, nil
}

// pickLeaf finds the certificate of the key; of several, as after a renewal that appended, the youngest.
func pickLeaf(certs []*x509.Certificate, signer crypto.Signer) (leaf *x509.Certificate, others []*x509.Certificate) {
	for _, c := range certs {
		if sameKey(c, signer) && (leaf == nil || c.NotBefore.After(leaf.NotBefore)) {
			leaf = c
		}
	}
	for _, c := range certs {
		if c != leaf {
			others = append(others, c)
		}
	}
	return leaf, others
}

func shortHash(spki []byte) string {
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:8])
}

type ordered struct {
	chain         []*x509.Certificate
	notes, doubts []string
}

// order walks from the leaf to its issuers. A self-signed root is left out of what is sent, because the hub has its own;
// so is what does not belong.
func order(leaf *x509.Certificate, others []*x509.Certificate) ordered {
	o := ordered{chain: []*x509.Certificate{leaf}}
	used := map[*x509.Certificate]bool{}
	at := leaf
	for !selfIssued(at) {
		next, verified := issuerOf(at, others, used)
		if next == nil {
			break
		}
		if !verified {
			text := fmt.Sprintf("the certificate %q in the file has the issuer's name but did not sign %q", next.Subject, at.Subject)
			o.notes, o.doubts = append(o.notes, text), append(o.doubts, text)
			break
		}
		used[next] = true
		if selfIssued(next) {
			break
		}
		o.chain = append(o.chain, next)
		at = next
	}
	for i, c := range others {
		switch {
		case used[c]:
			if i < len(o.chain)-1 && o.chain[i+1] != c {
				o.notes = append(o.notes, "the intermediates are not in order; they are sent in order")
			}
		case selfIssued(c):
			o.notes = append(o.notes, fmt.Sprintf("the root %q in the file does not belong to the chain", c.Subject))
		default:
			o.notes = append(o.notes, fmt.Sprintf("the certificate %q in the file does not belong to the chain and is not sent", c.Subject))
		}
	}
	return o
}

func issuerOf(c *x509.Certificate, from []*x509.Certificate, used map[*x509.Certificate]bool) (found *x509.Certificate, verified bool) {
	for _, p := range from {
		if used[p] || !bytes.Equal(p.RawSubject, c.RawIssuer) {
			continue
		}
		err := p.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature)
		var old x509.InsecureAlgorithmError
		if err == nil || errors.As(err, &old) { // SHA-1 cannot be checked here; Inspect warns of it
			return p, true
		}
		found = p
	}
	return found, false
}

func selfIssued(c *x509.Certificate) bool { return bytes.Equal(c.RawSubject, c.RawIssuer) }
