package certstore

import (
	"crypto/x509"
	"errors"
	"fmt"
	"strings"

	"software.sslmate.com/src/go-pkcs12"
)

// pkcs12 parses a PKCS#12 file. The certificate of the key is the leaf whatever the order of the bags.
func (s sight) pkcs12() (*Credential, error) {
	path := s.src.PKCS12
	data := s.files[path].data
	switch {
	case len(data) == 0:
		return nil, &Incomplete{Torn, path + " is empty"}
	case data[0] != 0x30:
		if strings.Contains(string(data), pemBegin) {
			return nil, &Invalid{Reason: path + " is PEM, not PKCS#12", Hint: "name it as cert and key"}
		}
		return nil, notPKCS12(path, data)
	case !wholeDER(data):
		return nil, &Incomplete{Torn, path + " is cut off or damaged: its ASN.1 length does not match the file"}
	case iterations(data, 0) > maxIterations:
		return nil, tooCostly(path)
	}
	key, leaf, cas, err := pkcs12.DecodeChain(data, string(s.passphrase()))
	if err != nil {
		return nil, s.pkcs12Problem(err)
	}
	signer, err := usable(path, key)
	if err != nil {
		return nil, aboutKey(err)
	}
	if n := len(cas) + 1; n > maxCerts {
		return nil, &Invalid{Reason: fmt.Sprintf("%s holds %d certificates", path, n), Hint: "it should hold the leaf and its intermediates"}
	}
	c, err := assemble(path, append([]*x509.Certificate{leaf}, cas...), signer)
	var inc *Incomplete
	if errors.As(err, &inc) {
		// One file cannot be between two renewals: nothing will complete it.
		return nil, &Invalid{Reason: path + " holds a key that is not its certificate's", Hint: "export both together", Key: true}
	}
	return c, err
}

func notPKCS12(path string, data []byte) error {
	var inv *Invalid
	if err := notPEM(path, data); errors.As(err, &inv) && !strings.Contains(inv.Reason, "neither") {
		return err
	}
	return &Invalid{Reason: path + " is not PKCS#12", Hint: "is this the right file?"}
}

func (s sight) pkcs12Problem(err error) error {
	var missing pkcs12.NotImplementedError
	switch {
	case errors.Is(err, pkcs12.ErrIncorrectPassword):
		if s.src.PassphraseFile == "" {
			return aboutKey(noPassphrase(s.src.PKCS12))
		}
		return aboutKey(wrongPassphrase(s.src.PKCS12))
	case errors.As(err, &missing):
		return &Invalid{Reason: fmt.Sprintf("%s uses something that is not supported: %s", s.src.PKCS12, strings.TrimPrefix(missing.Error(), "pkcs12: ")), Hint: "export it again with openssl pkcs12 -export"}
	}
	return &Invalid{Reason: fmt.Sprintf("%s cannot be parsed as PKCS#12: %s", s.src.PKCS12, strings.TrimPrefix(err.Error(), "pkcs12: ")), Hint: "is the file damaged? openssl pkcs12 -info -in FILE shows what is in it"}
}
