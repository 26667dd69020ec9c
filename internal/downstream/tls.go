package downstream

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// TLSFiles name the PEM files of a TLS listener. ClientCA makes client
// certificates required; with a users file beside it they are optional.
type TLSFiles struct{ Cert, Key, ClientCA string }

// tlsRecheck is how often changed files are looked for, at most.
const tlsRecheck = 5 * time.Second

// tlsReloader serves the newest readable version of its files, so that renewed
// server certificates need no restart.
type tlsReloader struct {
	files    TLSFiles
	optional bool // client certificates

	mu      sync.Mutex
	checked time.Time
	stamps  [3]stamp
	config  *tls.Config
}

type stamp struct {
	modified time.Time
	size     int64
}

// newTLSReloader loads the files once; nil without TLS. Errors name the key.
func newTLSReloader(files TLSFiles, wanted, passwords bool) (*tlsReloader, error) {
	if !wanted {
		if files != (TLSFiles{}) {
			return nil, errors.New("tls: set, but listen has no TLS scheme (tls://, wss:// or https://)")
		}
		return nil, nil
	}
	if files.Cert == "" || files.Key == "" {
		return nil, errors.New("tls: cert and key are required for a TLS listener")
	}
	r := &tlsReloader{files: files, optional: passwords, checked: time.Now()}
	r.stamps = r.stat()
	var err error
	r.config, err = r.load()
	return r, err
}

func (r *tlsReloader) load() (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(r.files.Cert, r.files.Key)
	if err != nil {
		return nil, fmt.Errorf("tls.cert: %w", err)
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}}
	if r.files.ClientCA == "" {
		return c, nil
	}
	pem, err := os.ReadFile(r.files.ClientCA)
	if err != nil {
		return nil, fmt.Errorf("tls.client_ca: %w", err)
	}
	c.ClientCAs = x509.NewCertPool()
	if !c.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("tls.client_ca: no certificate in %s", r.files.ClientCA)
	}
	c.ClientAuth = tls.RequireAndVerifyClientCert
	if r.optional {
		c.ClientAuth = tls.VerifyClientCertIfGiven
	}
	return c, nil
}

func (r *tlsReloader) stat() (s [3]stamp) {
	for i, name := range []string{r.files.Cert, r.files.Key, r.files.ClientCA} {
		if info, err := os.Stat(name); err == nil {
			s[i] = stamp{info.ModTime(), info.Size()}
		}
	}
	return s
}

// current is the newest configuration that loaded. Files that do not load, for
// instance because a renewal is half way through, leave the old one in place.
func (r *tlsReloader) current() *tls.Config {
	r.mu.Lock()
	due := time.Since(r.checked) >= tlsRecheck
	if due {
		r.checked = time.Now()
	}
	config, stamps := r.config, r.stamps
	r.mu.Unlock()
	if !due {
		return config
	}
	now := r.stat()
	if now == stamps {
		return config
	}
	fresh, err := r.load()
	if err != nil {
		return config
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.config, r.stamps = fresh, now
	return fresh
}

// serverConfig is for listeners that keep one configuration for good.
func (r *tlsReloader) serverConfig(protocols ...string) *tls.Config {
	c := r.current().Clone()
	c.NextProtos = protocols
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		fresh := r.current().Clone()
		fresh.NextProtos = protocols
		return fresh, nil
	}
	return c
}
