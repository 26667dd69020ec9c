package hubtest

import (
	"crypto/sha1" //nolint:gosec // the registry knows devices by SHA-1 thumbprints too
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"gatewayd/internal/packet"
)

// peer is what a client proved in TLS to hold the key of; the zero value is a client without certificate.
type peer struct {
	leaf         *x509.Certificate
	chain        []*x509.Certificate
	sha1, sha256 string // upper-case hex
	serial       string // hex
}

func newPeer(certs []*x509.Certificate) peer {
	if len(certs) == 0 {
		return peer{}
	}
	leaf := certs[0]
	return peer{
		leaf:   leaf,
		chain:  certs[1:],
		sha1:   fmt.Sprintf("%X", sha1.Sum(leaf.Raw)), //nolint:gosec // see the import
		sha256: fmt.Sprintf("%X", sha256.Sum256(leaf.Raw)),
		serial: leaf.SerialNumber.Text(16),
	}
}

// verdict is a refusal with its reason; nil is an acceptance.
type verdict struct {
	how    Refusal
	row    int // as in Violation.Row
	reason string
}

func refuse(row int, format string, args ...any) *verdict {
	return &verdict{how: ConnackFive, row: row, reason: fmt.Sprintf(format, args...)}
}

// admit judges a CONNECT in the order of IoT Edge's source, the only published one: user name, client id,
// registration, credential. It returns the identity when there is one, even if refused.
func (h *Hub) admit(p packet.Connect, cert peer) (username, *identity, *verdict) {
	if !p.HasUsername {
		return username{}, nil, h.badUsername("no user name")
	}
	u, err := parseUsername(p.Username)
	if err != nil {
		return u, nil, h.badUsername(err.Error())
	}
	id, err := h.identity(u.name())
	switch {
	case p.ClientID == "" || p.ClientID != u.name():
		return u, id, refuse(9, "client id %q is not the identity of the user name", p.ClientID)
	case !h.opt.Edge && !h.opt.AnyHost && u.host != h.opt.HostName:
		return u, id, refuse(11, "host %q of the user name is not this hub", u.host)
	case !h.opt.AnyAPIVersion && !h.opt.Edge && !knownAPIVersion(u.apiVersion):
		return u, id, refuse(12, "unknown api-version %q", u.apiVersion)
	case err != nil:
		return u, nil, refuse(13, "unknown identity %q", u.name())
	}
	id.mu.Lock()
	d, fault := id.device, id.refuse
	id.mu.Unlock()
	if fault == 0 {
		fault = h.refusedFingerprint(cert.sha256)
	}
	if fault != 0 && fault != TLSAlert {
		return u, id, &verdict{how: fault, reason: "refused on request"}
	}
	return u, id, h.authorize(u, d, cert, p.Password)
}

func (h *Hub) badUsername(reason string) *verdict {
	v := refuse(10, "%s", reason)
	if h.opt.Edge {
		v.how = ConnackThree
	}
	return v
}

// authorize judges a credential for a registered identity.
func (h *Hub) authorize(u username, d Device, cert peer, password []byte) *verdict {
	switch {
	case d.Disabled:
		return refuse(13, "identity is disabled")
	case len(d.Key) > 0:
		if len(password) == 0 {
			return refuse(16, "identity needs a token")
		}
		if _, err := checkToken(string(password), d.Key, h.opt.HostName, u, h.now()); err != nil {
			return refuse(23, "token: %v", err)
		}
		return nil
	case cert.leaf == nil && len(password) > 0:
		return refuse(16, "identity needs a certificate, not a token")
	case cert.leaf == nil:
		return refuse(14, "no certificate")
	case len(password) > 0 && !h.opt.AllowPassword:
		return refuse(15, "certificate and password")
	case d.ModuleID != "" && h.opt.Edge:
		return refuse(22, "modules cannot use certificates here")
	}
	if v := h.checkLeaf(u, d, cert); v != nil {
		return v
	}
	if d.ManagedID != "" && cert.leaf.Subject.SerialNumber != d.ManagedID {
		return refuse(21, "certificate carries a revoked identifier")
	}
	return nil
}

func (h *Hub) checkLeaf(u username, d Device, cert peer) *verdict {
	selfSigned := len(d.Thumbprints) > 0
	if !selfSigned || h.opt.CheckCNWithThumbprint {
		if cn := cert.leaf.Subject.CommonName; cn != u.name() {
			row := 17
			if d.ModuleID != "" {
				row = 22
			}
			return refuse(row, "CN %q is not the identity", cn)
		}
	}
	if selfSigned {
		if err := checkDates(cert.leaf, h.now()); err != nil {
			return h.certFailure(err)
		}
		if !matches(d.Thumbprints, cert) {
			return refuse(20, "thumbprint %s is registered in neither slot", cert.sha256)
		}
		return nil
	}
	if cert.leaf.IsCA && !h.opt.AllowCALeaf {
		return refuse(18, "certificate is a CA")
	}
	if !h.opt.IgnoreEKU && !forClients(cert.leaf) {
		return refuse(19, "extended key usage lacks clientAuth")
	}
	if err := h.checkChain(cert); err != nil {
		return h.certFailure(err)
	}
	return nil
}

func (h *Hub) certFailure(err error) *verdict {
	return &verdict{how: h.opt.CertFailure, row: 5, reason: err.Error()}
}

// verifyTLS runs inside the handshake; an error becomes an alert.
func (h *Hub) verifyTLS(cs tls.ConnectionState) error {
	if h.opt.DeviceEndpoint && cs.ServerName == "" {
		return errors.New("no server name")
	}
	cert := newPeer(cs.PeerCertificates)
	if cert.leaf == nil {
		return nil
	}
	if h.refusedFingerprint(cert.sha256) == TLSAlert {
		return errors.New("certificate refused on request")
	}
	if h.opt.CertFailure != TLSAlert {
		return nil
	}
	if err := checkDates(cert.leaf, h.now()); err != nil {
		return err
	}
	if h.thumbprintKnown(cert) {
		return nil
	}
	return h.checkChain(cert)
}

func (h *Hub) thumbprintKnown(cert peer) bool {
	h.mu.Lock()
	ids := make([]*identity, 0, len(h.devices))
	for _, id := range h.devices {
		ids = append(ids, id)
	}
	h.mu.Unlock()
	return slices.ContainsFunc(ids, func(id *identity) bool {
		id.mu.Lock()
		defer id.mu.Unlock()
		return matches(id.device.Thumbprints, cert)
	})
}

// checkChain wants a path of valid certificates to a registered CA, whose own expiry counts too (row 18).
func (h *Hub) checkChain(cert peer) error {
	roots, inter := x509.NewCertPool(), x509.NewCertPool()
	for _, ca := range h.roots() {
		roots.AddCert(ca)
	}
	for _, c := range cert.chain {
		inter.AddCert(c)
	}
	_, err := cert.leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: inter, CurrentTime: h.now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	return err
}

func checkDates(c *x509.Certificate, now time.Time) error {
	if now.Before(c.NotBefore) {
		return fmt.Errorf("certificate is not valid before %s", c.NotBefore.UTC().Format(time.RFC3339))
	}
	if now.After(c.NotAfter) {
		return fmt.Errorf("certificate expired at %s", c.NotAfter.UTC().Format(time.RFC3339))
	}
	return nil
}

func matches(thumbprints []string, cert peer) bool {
	return slices.ContainsFunc(thumbprints, func(t string) bool {
		return strings.EqualFold(t, cert.sha1) || strings.EqualFold(t, cert.sha256)
	})
}

func forClients(c *x509.Certificate) bool {
	if len(c.ExtKeyUsage) == 0 && len(c.UnknownExtKeyUsage) == 0 {
		return true
	}
	return slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth) || slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny)
}
