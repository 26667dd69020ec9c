package certstore

import (
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"
)

// Report is what "check" and "certs" tell about a credential. Problems would keep it from being used; Warnings would not.
type Report struct {
	Summary
	CommonNameMatches bool     `json:"common_name_matches"` // true when no name is wanted
	ChainWhole        bool     `json:"chain_whole"`         // every certificate in the file belongs, in the order and with the signatures of a chain
	ChainTop          string   `json:"chain_top"`           // the issuer that the hub must know, or "self-signed": the thumbprint must be entered
	Problems          []string `json:"problems,omitempty"`
	Warnings          []string `json:"warnings,omitempty"`
}

// Inspect examines a credential without any dial. wantCN is what its common name must be, "" for any. now decides over
// validity; it should come from a Clock.
func Inspect(c *Credential, wantCN string, now time.Time) Report {
	r := Report{Summary: Summarize(c, now), CommonNameMatches: true, ChainWhole: len(c.notes) == 0}
	chain := c.Chain()
	leaf, top := chain[0], chain[len(chain)-1]
	r.ChainTop = top.Issuer.String()
	if selfIssued(top) {
		r.ChainTop = "self-signed"
	}
	if err := nameProblem(c, wantCN); err != nil {
		r.CommonNameMatches = false
		r.Problems = append(r.Problems, err.Error())
	}
	switch {
	case now.After(leaf.NotAfter):
		r.Problems = append(r.Problems, "expired on "+stamp(leaf.NotAfter)+"; renew it")
	case now.Before(leaf.NotBefore):
		r.Problems = append(r.Problems, "not valid before "+stamp(leaf.NotBefore)+"; is a clock wrong?")
	default:
		if stage, step := expiryOf(c, now); stage > 0 {
			r.Warnings = append(r.Warnings, fmt.Sprintf("%s left of its validity (%.1f days)", step.name, r.DaysLeft))
		}
	}
	for _, i := range chain[1:] {
		if now.After(i.NotAfter) {
			r.Warnings = append(r.Warnings, fmt.Sprintf("the intermediate %q expired on %s", i.Subject, stamp(i.NotAfter)))
		}
	}
	r.Warnings = append(r.Warnings, c.notes...)
	r.Warnings = append(r.Warnings, leafWarnings(leaf)...)
	return r
}

// leafWarnings names what a TLS stack or a hub may refuse. None of it is certain, so none of it forbids a trial.
func leafWarnings(leaf *x509.Certificate) []string {
	var w []string
	if n := len(leaf.ExtKeyUsage) + len(leaf.UnknownExtKeyUsage); n > 0 && !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth) && !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny) {
		w = append(w, "the extended key usage lacks clientAuth: servers may refuse it; issue it with extendedKeyUsage=clientAuth")
	}
	if leaf.KeyUsage != 0 && leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		w = append(w, "the key usage lacks digitalSignature, which TLS 1.3 needs; issue it with keyUsage=digitalSignature")
	}
	if leaf.IsCA {
		w = append(w, "it is a CA certificate: hubs refuse those for devices with CA authentication")
	}
	switch leaf.SignatureAlgorithm {
	case x509.SHA1WithRSA, x509.ECDSAWithSHA1, x509.DSAWithSHA1, x509.MD5WithRSA, x509.MD2WithRSA:
		w = append(w, fmt.Sprintf("it is signed with %s, which servers refuse; issue it with SHA-256", leaf.SignatureAlgorithm))
	}
	if k, ok := leaf.PublicKey.(*rsa.PublicKey); ok && k.N.BitLen() < 2048 {
		w = append(w, fmt.Sprintf("the RSA key has %d bits; use 2048 or P-256", k.N.BitLen()))
	}
	if leaf.PublicKeyAlgorithm == x509.Ed25519 {
		w = append(w, "the key is Ed25519, which IoT Hub does not document; use P-256")
	}
	if len(leaf.UnhandledCriticalExtensions) > 0 {
		w = append(w, fmt.Sprintf("it has a critical extension that is not understood (%s)", leaf.UnhandledCriticalExtensions[0]))
	}
	return w
}

// InspectFiles names what is wrong with the files themselves: a key that others may read, a place that hides renewals.
// The first would be refused for an identity that never connected.
func InspectFiles(src Source) (problems, warnings []string) {
	if info, err := os.Stat(src.keyPath()); err == nil {
		if mode := looseMode(info); mode != 0 {
			problems = append(problems, looseText(src.keyPath(), mode))
		}
	}
	points := readMountPoints()
	for _, path := range src.files() {
		if text := pinned(path, points); text != "" {
			warnings = append(warnings, text)
		}
	}
	return problems, append(warnings, snapshots(src.files(), os.Getenv("CREDENTIALS_DIRECTORY"))...)
}

// Shared groups identities that were given the same certificate: each name is mapped to the first other one that holds
// it. The hub keeps one connection per device, so at most one of them can be right.
func Shared(creds map[string]*Credential) map[string]string {
	names := make([]string, 0, len(creds))
	for name := range creds {
		names = append(names, name)
	}
	slices.Sort(names)
	first, shared := map[string]string{}, map[string]string{}
	for _, name := range names {
		if creds[name] == nil {
			continue
		}
		key := string(creds[name].chain[0])
		if other, ok := first[key]; ok {
			shared[name] = other
		} else {
			first[key] = name
		}
	}
	return shared
}

// nameProblem refuses a certificate of another identity: the hub would, at the price of the working connection. The hub
// compares case-sensitively.
func nameProblem(c *Credential, want string) error {
	got := c.about.commonName
	if want == "" || got == want {
		return nil
	}
	hint := "is this the certificate of another identity?"
	switch {
	case got == "":
		hint = "have it issued with the device id as common name"
	case strings.EqualFold(got, want):
		hint = "the hub compares upper and lower case"
	}
	return &Invalid{Reason: fmt.Sprintf("the certificate's common name is %q, not %q", got, want), Hint: hint, Fingerprint: c.fingerprint}
}

func looseText(path string, mode fs.FileMode) string {
	return fmt.Sprintf("the private key file %s may be read or written by others (mode %04o); chmod 600, or 640 with the daemon's group", path, mode)
}

// looseMode returns the mode of a key file that others may read or its group may write, else 0. Reading by the group is
// how a daemon under its own user gets at a key that root owns, and how Kubernetes (fsGroup) and systemd hand out theirs.
func looseMode(info fs.FileInfo) fs.FileMode {
	if info == nil || info.Mode().Perm()&0o027 == 0 {
		return 0
	}
	return info.Mode().Perm()
}

// snapshots names the files that systemd copied to dir at the start of the service: a renewal of the original does not
// reach them (LoadCredential= in systemd.exec(5)).
func snapshots(paths []string, dir string) []string {
	var found []string
	for _, path := range paths {
		if dir != "" && strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/") {
			found = append(found, path+" is a systemd credential: a renewal is seen only after a restart; name the original file instead")
		}
	}
	return found
}
