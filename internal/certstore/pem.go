package certstore

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strings"
)

const (
	utf8BOM  = "\xef\xbb\xbf"
	pemBegin = "-----BEGIN "
)

// wholePEM decodes every block of a PEM text. Text between blocks is allowed, as openssl writes it; anything but white
// space after the last block, or a BEGIN without its block, means that the file is not written to its end: crypto/tls
// would take such a chain without a word and the server would miss the intermediate.
func wholePEM(path string, data []byte) ([]*pem.Block, error) {
	data = bytes.TrimPrefix(data, []byte(utf8BOM))
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, &Incomplete{Torn, path + " is empty"}
	}
	var blocks []*pem.Block
	rest := data
	for {
		block, after := pem.Decode(rest)
		if block == nil {
			break
		}
		blocks = append(blocks, block)
		rest = after
	}
	begins := 0
	for _, l := range bytes.Split(data, []byte("\n")) {
		if bytes.HasPrefix(l, []byte(pemBegin)) {
			begins++
		}
	}
	switch {
	case begins == 0:
		return nil, notPEM(path, data)
	case begins != len(blocks):
		return nil, &Incomplete{Torn, fmt.Sprintf("%s is cut off or damaged: %d PEM blocks begin, %d are whole", path, begins, len(blocks))}
	case len(bytes.TrimSpace(rest)) != 0:
		return nil, &Incomplete{Torn, fmt.Sprintf("%s is cut off or damaged: %d bytes follow its last PEM block", path, len(bytes.TrimSpace(rest)))}
	}
	return blocks, nil
}

// notPEM names the formats that are met in place of PEM.
func notPEM(path string, data []byte) error {
	switch {
	case bytes.HasPrefix(data, []byte{0xfe, 0xed, 0xfe, 0xed}):
		return &Invalid{Reason: path + " is a Java keystore (JKS)", Hint: "convert it: keytool -importkeystore -srckeystore FILE -destkeystore FILE.p12 -deststoretype PKCS12"}
	case bytes.HasPrefix(data, []byte{0xff, 0xfe}), bytes.HasPrefix(data, []byte{0xfe, 0xff}):
		return &Invalid{Reason: path + " is UTF-16 text", Hint: "save it as ASCII or UTF-8"}
	case bytes.HasPrefix(data, []byte("PuTTY-User-Key-File")):
		return &Invalid{Reason: path + " is a PuTTY key", Hint: "export it as PKCS#8 PEM"}
	case bytes.HasPrefix([]byte(pemBegin), bytes.TrimSpace(data)):
		return &Incomplete{Torn, path + " is cut off"}
	}
	return &Invalid{Reason: path + " is neither PEM nor DER", Hint: "is this the right file?"}
}

// contents is what a file of certificates or keys holds.
type contents struct {
	certs []*x509.Certificate
	keys  []*pem.Block
	other []string // types of blocks that are neither
}

func readPEM(path string, data []byte) (contents, error) {
	var c contents
	blocks, err := wholePEM(path, data)
	if err != nil {
		return c, err
	}
	for _, b := range blocks {
		switch {
		case b.Type == "CERTIFICATE" || b.Type == "X509 CERTIFICATE":
			cert, err := x509.ParseCertificate(b.Bytes)
			if err != nil {
				return c, certProblem(path, err)
			}
			c.certs = append(c.certs, cert)
		case strings.HasSuffix(b.Type, "PRIVATE KEY"):
			c.keys = append(c.keys, b)
		case b.Type == "EC PARAMETERS" || b.Type == "DH PARAMETERS":
		default:
			c.other = append(c.other, b.Type)
		}
	}
	return c, nil
}

// readDER takes what is no PEM and begins like ASN.1: certificates one after the other, or one private key.
func readDER(path string, data []byte) (contents, error) {
	if certs, err := x509.ParseCertificates(data); err == nil && len(certs) > 0 {
		return contents{certs: certs}, nil
	}
	if !wholeDER(data) {
		return contents{}, &Incomplete{Torn, path + " is cut off or damaged: its ASN.1 length does not match the file"}
	}
	switch derKind(data) {
	case oidData:
		return contents{}, &Invalid{Reason: path + " is PKCS#12", Hint: "name it as pkcs12 instead of cert and key"}
	case oidSignedData:
		return contents{}, &Invalid{Reason: path + " is PKCS#7", Hint: "convert it: openssl pkcs7 -inform DER -print_certs -in FILE"}
	}
	return contents{keys: []*pem.Block{{Type: "PRIVATE KEY", Bytes: data}}}, nil
}

func readContents(path string, data []byte) (contents, error) {
	if len(data) > 0 && data[0] == 0x30 && !bytes.Contains(data, []byte(pemBegin)) {
		return readDER(path, data)
	}
	return readPEM(path, data)
}

// certProblem turns a parse error of crypto/x509 into what an operator can act on.
func certProblem(path string, err error) error {
	text := strings.TrimPrefix(err.Error(), "x509: ")
	hint := "is the file damaged? openssl x509 -in FILE -text shows what is in it"
	switch {
	case strings.Contains(text, "negative serial"):
		hint = "have it issued again with a positive serial number"
	case strings.Contains(text, "unsupported elliptic curve"):
		hint = "use P-256 or P-384"
	}
	return &Invalid{Reason: fmt.Sprintf("%s holds a certificate that cannot be parsed: %s", path, text), Hint: hint}
}
