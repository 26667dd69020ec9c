package certstore

import (
	"fmt"
)

// Load reads the files of src once and returns the credential in them. It waits for nothing: an error is *Incomplete
// when the files may be in the middle of a replacement and *Invalid when they cannot be used as they are. It says
// nothing about validity, names or file modes; see Inspect.
func Load(src Source) (*Credential, error) {
	if err := src.check(); err != nil {
		return nil, err
	}
	return observe(src).credential()
}

// Parse makes a credential from the content of a certificate file, a key file (nil: the key is in the certificate file)
// and a passphrase (nil: none). Errors are those of Load.
func Parse(cert, key, passphrase []byte) (*Credential, error) {
	src := Source{Cert: "certificate", Key: "key", PassphraseFile: "passphrase"}
	s := sight{src: src, files: map[string]file{"certificate": {data: cert}, "passphrase": {data: passphrase}}}
	if key == nil {
		s.src.Key = ""
	} else {
		s.files["key"] = file{data: key}
	}
	if passphrase == nil {
		s.src.PassphraseFile = ""
	}
	return s.credential()
}

// credential parses what was read. A panic of a parsing library becomes *Invalid: with GODEBUG=fips140=only, crypto
// packages panic on the salts, MD5 and SHA-1 of ordinary key files.
func (s sight) credential() (c *Credential, err error) {
	defer func() {
		if p := recover(); p != nil {
			c, err = nil, &Invalid{Reason: fmt.Sprintf("%s cannot be parsed: %v", s.src.keyPath(), p), Hint: "in FIPS-only mode convert the key to unencrypted PKCS#8 or to PBES2 with a salt of 16 bytes and SHA-256"}
		}
	}()
	if s.err != nil {
		return nil, s.err
	}
	if s.src.PKCS12 != "" {
		return s.pkcs12()
	}
	return s.pair()
}
