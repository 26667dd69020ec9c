package certstore

// Incomplete says that the files do not hold a usable pair yet and that waiting may help: a file is missing or empty,
// PEM text stops in the middle, or certificate and key belong to different renewals. The caller keeps what it has and
// looks again when the files change.
type Incomplete struct {
	Kind   IncompleteKind
	Reason string // one clause, lower case; names paths and public key hashes, never key material
}

// IncompleteKind says which part is still to come; it decides how long the wait is normal.
type IncompleteKind uint8

const (
	// Missing means that a file does not exist (yet, or for the moment of a replacement).
	Missing IncompleteKind = iota + 1
	// Torn means that a file is empty, ends inside a PEM block, or changed while it was read.
	Torn
	// Mismatch means that both files are whole and the key is not the certificate's.
	Mismatch
)

// Error returns the reason.
func (e *Incomplete) Error() string { return e.Reason }

// Invalid says that the files are whole and cannot be used as they are. The caller keeps what it has and reports it
// once per fingerprint.
type Invalid struct {
	Reason      string // one clause, lower case; never key material
	Hint        string // what to do about it; may be empty
	Fingerprint string // of the credential, when it could be parsed that far
	Key         bool   // the files can be read, and the private key in them cannot be used
}

// Error returns the reason and, after a semicolon, the hint.
func (e *Invalid) Error() string {
	if e.Hint == "" {
		return e.Reason
	}
	return e.Reason + "; " + e.Hint
}

// aboutKey marks an *Invalid as one of the private key.
func aboutKey(err error) error {
	if inv, ok := err.(*Invalid); ok {
		inv.Key = true
	}
	return err
}
