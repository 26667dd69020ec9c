package certstore

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"

	"github.com/youmark/pkcs8"
)

// parseKey turns one block into a signer. Nothing of the block gets into an error.
func parseKey(path string, b *pem.Block, passphrase []byte) (crypto.Signer, error) {
	switch b.Type {
	case "OPENSSH PRIVATE KEY":
		return nil, &Invalid{Reason: path + " is an OpenSSH key", Hint: "convert it: ssh-keygen -p -m PKCS8 -f FILE"}
	case "TSS2 PRIVATE KEY":
		return nil, &Invalid{Reason: path + " is a TPM key", Hint: "keys in a TPM are not supported; use a key file"}
	case "ENCRYPTED PRIVATE KEY":
		return decryptPKCS8(path, b.Bytes, passphrase)
	}
	der := b.Bytes
	//lint:ignore SA1019 old tools still write this form and field devices still hold it
	if x509.IsEncryptedPEMBlock(b) {
		if len(passphrase) == 0 {
			return nil, noPassphrase(path)
		}
		var err error
		//lint:ignore SA1019 see above
		if der, err = x509.DecryptPEMBlock(b, passphrase); err != nil {
			return nil, wrongPassphrase(path)
		}
	}
	if key := plainKey(der); key != nil {
		return usable(path, key)
	}
	switch {
	case len(der) != len(b.Bytes) || b.Headers["DEK-Info"] != "":
		// The padding of this form has no checksum: one wrong passphrase in 256 gets as far as here.
		return nil, wrongPassphrase(path)
	case looksEncrypted(der):
		return decryptPKCS8(path, der, passphrase)
	}
	return nil, &Invalid{Reason: path + " holds no private key that can be parsed", Hint: "PKCS#8, SEC1 and PKCS#1 with RSA, P-256, P-384 or P-521 are understood"}
}

// plainKey tries the three unencrypted encodings whatever the PEM label says, as openssl does; nil when none fits.
func plainKey(der []byte) any {
	if key, err := x509.ParsePKCS8PrivateKey(der); err == nil {
		return key
	}
	if key, err := x509.ParseECPrivateKey(der); err == nil {
		return key
	}
	if key, err := x509.ParsePKCS1PrivateKey(der); err == nil {
		return key
	}
	return nil
}

// usable refuses the keys that crypto/tls would refuse to sign with.
func usable(path string, key any) (crypto.Signer, error) {
	switch k := key.(type) {
	case *rsa.PrivateKey:
		if k.N.BitLen() < 1024 {
			return nil, &Invalid{Reason: fmt.Sprintf("%s is an RSA key of %d bits", path, k.N.BitLen()), Hint: "use P-256, or RSA with 2048 bits"}
		}
		return k, nil
	case *ecdsa.PrivateKey:
		if k.Curve == elliptic.P224() {
			return nil, &Invalid{Reason: path + " is a P-224 key, which TLS does not allow", Hint: "use P-256 or P-384"}
		}
		return k, nil
	case ed25519.PrivateKey:
		return k, nil
	}
	return nil, &Invalid{Reason: fmt.Sprintf("%s is a key that cannot sign (%T)", path, key), Hint: "use P-256 or P-384"}
}

func keyName(pub crypto.PublicKey) string {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA %d", k.N.BitLen())
	case *ecdsa.PublicKey:
		return "ECDSA " + k.Curve.Params().Name
	case ed25519.PublicKey:
		return "Ed25519"
	}
	return fmt.Sprintf("%T", pub)
}

type encryptedKey struct {
	Algorithm pkix.AlgorithmIdentifier
	Data      []byte
}

func looksEncrypted(der []byte) bool {
	var k encryptedKey
	rest, err := asn1.Unmarshal(der, &k)
	return err == nil && len(rest) == 0
}

func decryptPKCS8(path string, der, passphrase []byte) (crypto.Signer, error) {
	if len(passphrase) == 0 {
		return nil, noPassphrase(path)
	}
	if err := affordable(path, der); err != nil {
		return nil, err
	}
	key, err := pkcs8.ParsePKCS8PrivateKey(der, passphrase)
	if err != nil {
		return nil, wrongPassphrase(path)
	}
	return usable(path, key)
}

type kdfParams struct {
	KDF    pkix.AlgorithmIdentifier
	Cipher pkix.AlgorithmIdentifier
}

type scryptParams struct {
	Salt    []byte
	N, R, P int64
	KeyLen  int64 `asn1:"optional"`
}

// affordable looks at an encrypted key's parameters before any work is done for them: it names an algorithm that is not
// supported, which would look like a wrong passphrase, and refuses costs that would stop a small gateway.
func affordable(path string, der []byte) error {
	var k encryptedKey
	if _, err := asn1.Unmarshal(der, &k); err != nil {
		return &Invalid{Reason: path + " is an encrypted key that cannot be parsed"}
	}
	if oid := k.Algorithm.Algorithm.String(); oid != "1.2.840.113549.1.5.13" {
		return unsupported(path, "scheme "+oid+" (PBES2 is)")
	}
	var p kdfParams
	if _, err := asn1.Unmarshal(k.Algorithm.Parameters.FullBytes, &p); err != nil {
		return &Invalid{Reason: path + " is an encrypted key with parameters that cannot be parsed"}
	}
	switch oid := p.KDF.Algorithm.String(); oid {
	case "1.2.840.113549.1.5.12": // PBKDF2
		if prf := pbkdf2Hash(p.KDF.Parameters.FullBytes); prf != "" {
			return unsupported(path, prf)
		}
		if iterations(p.KDF.Parameters.FullBytes, 0) > maxIterations {
			return tooCostly(path)
		}
	case "1.3.6.1.4.1.11591.4.11": // scrypt
		var c scryptParams
		if _, err := asn1.Unmarshal(p.KDF.Parameters.FullBytes, &c); err != nil {
			return &Invalid{Reason: path + " is an encrypted key with scrypt parameters that cannot be parsed"}
		}
		if !affordableScrypt(c) {
			return tooCostly(path)
		}
	default:
		return unsupported(path, "key derivation "+oid)
	}
	return nil
}

func affordableScrypt(c scryptParams) bool {
	const most = 1 << 24 // keeps the products below within 64 bits
	if c.N < 2 || c.R < 1 || c.P < 1 || c.N > most || c.R > 1<<10 || c.P > 1<<10 {
		return false
	}
	return 128*c.N*c.R <= maxScryptMemory && c.N*c.R*c.P <= maxScryptWork
}

// pbkdf2Hash returns the name of a pseudo-random function that the decoder lacks, or "".
func pbkdf2Hash(params []byte) string {
	var p struct {
		Salt       asn1.RawValue
		Iterations asn1.RawValue
		KeyLength  int                      `asn1:"optional"`
		PRF        pkix.AlgorithmIdentifier `asn1:"optional"`
	}
	if _, err := asn1.Unmarshal(params, &p); err != nil {
		return ""
	}
	switch oid := p.PRF.Algorithm.String(); oid {
	case "", "1.2.840.113549.2.7", "1.2.840.113549.2.9":
		return ""
	case "1.2.840.113549.2.8":
		return "HMAC-SHA-224"
	case "1.2.840.113549.2.10":
		return "HMAC-SHA-384"
	case "1.2.840.113549.2.11":
		return "HMAC-SHA-512"
	default:
		return "pseudo-random function " + oid
	}
}

func unsupported(path, what string) error {
	return &Invalid{Reason: path + " is encrypted with " + what + ", which is not supported", Hint: "convert it: openssl pkcs8 -topk8 -v2 aes-256-cbc -v2prf hmacWithSHA256"}
}

func tooCostly(path string) error {
	return &Invalid{Reason: fmt.Sprintf("%s asks for more key derivation work than is allowed (%d iterations, or scrypt with %d MiB)", path, maxIterations, maxScryptMemory>>20), Hint: "encrypt it again with fewer"}
}

func noPassphrase(path string) error {
	return &Invalid{Reason: path + " is encrypted and there is no passphrase", Hint: "set passphrase_file"}
}

func wrongPassphrase(path string) error {
	return &Invalid{Reason: path + " cannot be decrypted with the passphrase", Hint: "is passphrase_file the one for this key?"}
}

// sameKey says whether the certificate's public key is the signer's.
func sameKey(cert *x509.Certificate, signer crypto.Signer) bool {
	pub, ok := signer.Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && pub.Equal(cert.PublicKey)
}
