package certstore

import (
	"crypto/x509"
	"time"

	"go.uber.org/zap"
)

// RootsOptions name the certificate authorities that the hub's certificate may come from.
type RootsOptions struct {
	Files  []string // PEM bundles
	System bool     // the machine's roots too
	Log    *zap.Logger
}

// Roots holds the trust anchors for dialling the hub and follows their files when a Watcher runs it.
type Roots struct{ o RootsOptions }

// OpenRoots reads the files once. A file that cannot be used is a Problem in Status; the others count.
func OpenRoots(o RootsOptions) *Roots { return &Roots{o: o} }

// Pool returns the newest good pool; take it anew for every dial. The caller must not change it.
func (r *Roots) Pool() *x509.CertPool { return nil }

// RootsStatus says what the pool was made of.
type RootsStatus struct {
	Certificates int       `json:"certificates"` // from files
	System       bool      `json:"system"`
	Watch        string    `json:"watch"`
	Problems     []string  `json:"problems,omitempty"` // one per file that cannot be used now
	Loaded       time.Time `json:"loaded"`             // when the pool last changed
}

// Status returns a copy.
func (r *Roots) Status() RootsStatus { return RootsStatus{} }

// LoadRoots reads the files once and returns the pool, or what is wrong with the first bad file.
func LoadRoots(files []string, system bool) (*x509.CertPool, error) { return nil, nil }
