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

const (
	// tlsRecheck is how often changed files are looked for, at most.
	tlsRecheck = 5 * time.Second
	// tlsPatience is how long a handshake waits for that.
	tlsPatience = time.Second
)

// tlsReloader serves the newest readable version of its files, so that renewed
// server certificates need no restart.
type tlsReloader struct {
	files    TLSFiles
	optional bool // client certificates

	mu       sync.Mutex
	checked  time.Time
	checking chan struct{} // closed when a look at the files has ended; nil: none is under way
	stamps   [3]stamp
	config   *tls.Config
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
// instance because a renewal is half way through, leave the old one in place, and so
// do those that hang: one look hangs, and handshakes do not.
func (r *tlsReloader) current() *tls.Config {
	r.mu.Lock()
	if r.checking == nil && time.Since(r.checked) >= tlsRecheck {
		ended := make(chan struct{})
		r.checking = ended
		go r.check(ended, r.stamps) // nobody can wait for one that hangs
		r.mu.Unlock()
		late := time.NewTimer(tlsPatience)
		defer late.Stop()
		select {
		case <-ended:
		case <-late.C:
		}
		r.mu.Lock()
	}
	defer r.mu.Unlock()
	return r.config
}

// check looks at the files and takes what is new.
func (r *tlsReloader) check(ended chan<- struct{}, stamps [3]stamp) {
	now := r.stat()
	var fresh *tls.Config
	if now != stamps {
		fresh, _ = r.load() // the old one stays in place
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if fresh != nil {
		r.config, r.stamps = fresh, now
	}
	r.checked, r.checking = time.Now(), nil
	close(ended)
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
