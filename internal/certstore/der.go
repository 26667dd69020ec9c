package certstore

import (
	"encoding/asn1"

	"golang.org/x/crypto/cryptobyte"
	cryptobyte_asn1 "golang.org/x/crypto/cryptobyte/asn1"
)

const (
	// maxIterations bounds the PBKDF2 rounds that a file may ask for, over all its parts: about a second on a small ARM
	// core. openssl writes 2,048, careful people 600,000.
	maxIterations = 2_000_000
	// maxScryptMemory bounds the memory that a file may ask for; maxScryptWork the block mixes, N·r·p.
	maxScryptMemory = 64 << 20
	maxScryptWork   = 1 << 21

	maxDepth = 32

	oidData       = "1.2.840.113549.1.7.1"
	oidSignedData = "1.2.840.113549.1.7.2"
)

// wholeDER says whether data is exactly one ASN.1 element.
func wholeDER(data []byte) bool {
	var v asn1.RawValue
	rest, err := asn1.Unmarshal(data, &v)
	return err == nil && len(rest) == 0
}

// derKind returns the content type of a PKCS#7 or, one level down, of a PKCS#12 file, else "".
func derKind(data []byte) string {
	in := cryptobyte.String(data)
	var seq cryptobyte.String
	if !in.ReadASN1(&seq, cryptobyte_asn1.SEQUENCE) {
		return ""
	}
	var oid asn1.ObjectIdentifier
	if seq.PeekASN1Tag(cryptobyte_asn1.INTEGER) {
		var version int
		var content cryptobyte.String
		if seq.ReadASN1Integer(&version) && version == 3 && seq.ReadASN1(&content, cryptobyte_asn1.SEQUENCE) && content.ReadASN1ObjectIdentifier(&oid) && oid.String() == oidData {
			return oidData
		}
		return ""
	}
	if seq.PeekASN1Tag(cryptobyte_asn1.OBJECT_IDENTIFIER) && seq.ReadASN1ObjectIdentifier(&oid) {
		return oid.String()
	}
	return ""
}

// iterations adds up every iteration count that can be seen in data without a passphrase: an INTEGER right after an
// OCTET STRING in a SEQUENCE, which is how PBKDF2-params (RFC 8018 A.2), pbeParams and the MacData of PKCS#12 (RFC 7292
// section 4) write salt and count. It looks into octet strings that hold ASN.1 themselves. The sum saturates above
// maxIterations. What is hidden in encrypted parts was written by somebody who knew the passphrase.
func iterations(data []byte, depth int) int64 {
	if depth > maxDepth {
		return maxIterations + 1
	}
	var sum int64
	in := cryptobyte.String(data)
	salt := false
	for !in.Empty() {
		var v cryptobyte.String
		var tag cryptobyte_asn1.Tag
		if !in.ReadAnyASN1(&v, &tag) {
			return sum
		}
		switch {
		case salt && tag == cryptobyte_asn1.INTEGER:
			sum += count(v)
		case tag == cryptobyte_asn1.OCTET_STRING || tag&0x20 != 0:
			sum += iterations(v, depth+1)
		}
		if sum > maxIterations {
			return sum
		}
		salt = tag == cryptobyte_asn1.OCTET_STRING
	}
	return sum
}

// count reads an INTEGER's content, saturating: numbers of more than four bytes are beyond every bound here.
func count(v cryptobyte.String) int64 {
	if len(v) > 4 {
		return maxIterations + 1
	}
	var n int64
	for _, b := range v {
		n = n<<8 | int64(b)
	}
	return n
}
