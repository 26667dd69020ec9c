package certstore

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gatewayd/internal/certstore/certtest"
)

// generations are whole pairs that a writer may write, known by their fingerprints.
type generations struct {
	pairs []*certtest.Pair
	known map[string]bool
}

func newGenerations(t testing.TB, r *rig, n int) generations {
	t.Helper()
	inter, err := r.ca.Intermediate("line")
	must(t, err)
	r.ca = inter
	g := generations{known: map[string]bool{}}
	for i := range n {
		l := certtest.Leaf{}
		if i%4 == 3 {
			l.Key = g.pairs[i-1].Key // a renewal with the same key
		}
		p := r.issue(l)
		g.pairs = append(g.pairs, p)
		g.known[r.cred(p).Fingerprint()] = true
	}
	return g
}

// rotations returns ways to replace the pair without a pause, in place and by every order of renames.
func rotations(r *rig) map[string]func(p *certtest.Pair, n int) {
	write := func(path string, data []byte) { must(r.t, os.WriteFile(path, data, 0o600)) }
	over := func(path string, data []byte) {
		write(path+".t", data)
		must(r.t, os.Rename(path+".t", path))
	}
	return map[string]func(p *certtest.Pair, n int){
		"in place":             func(p *certtest.Pair, _ int) { write(r.src.Cert, p.CertPEM); write(r.src.Key, p.KeyPEM) },
		"renames, cert first":  func(p *certtest.Pair, _ int) { over(r.src.Cert, p.CertPEM); over(r.src.Key, p.KeyPEM) },
		"renames, key first":   func(p *certtest.Pair, _ int) { over(r.src.Key, p.KeyPEM); over(r.src.Cert, p.CertPEM) },
		"..data swap":          func(p *certtest.Pair, n int) { dataSwap(r, p, n) },
		"in place, two writes": func(p *certtest.Pair, _ int) { halves(r.t, r.src.Cert, p.CertPEM); halves(r.t, r.src.Key, p.KeyPEM) },
	}
}

func halves(t testing.TB, path string, data []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	must(t, err)
	_, err = f.Write(data[:len(data)/3])
	must(t, err)
	_, err = f.Write(data[len(data)/3:])
	must(t, err)
	must(t, f.Close())
}

func layOut(t testing.TB, r *rig, style string, first *certtest.Pair) {
	t.Helper()
	dir := filepath.Join(r.dir, "certs")
	must(t, os.MkdirAll(dir, 0o700))
	r.src = Source{Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key")}
	r.o.Source = r.src
	if style == "..data swap" {
		dataSwap(r, first, 0)
		must(t, os.Symlink("..data/tls.crt", r.src.Cert))
		must(t, os.Symlink("..data/tls.key", r.src.Key))
		return
	}
	must(t, first.Write(r.src.Cert, r.src.Key))
}

// TestReaderNeverAcceptsAMixedPair reads without any settling while a writer rotates as fast as it can: the hardest case
// for a reader. What is accepted must be one of the pairs that the writer wrote.
func TestReaderNeverAcceptsAMixedPair(t *testing.T) {
	total := 500
	if os.Getenv("GATEWAYD_LONG") != "" {
		total = 50000
	}
	var accepted, refused, rotated atomic.Int64
	t.Cleanup(func() {
		t.Logf("%d rotations, %d pairs accepted, %d readings refused", rotated.Load(), accepted.Load(), refused.Load())
	})
	for _, style := range []string{"in place", "in place, two writes", "renames, cert first", "renames, key first", "..data swap"} {
		t.Run(style, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			g := newGenerations(t, r, 32)
			layOut(t, r, style, g.pairs[0])
			rotate := rotations(r)[style]
			stop := make(chan struct{})
			var wg sync.WaitGroup
			wg.Go(func() {
				defer close(stop)
				for n := 1; n <= total; n++ {
					rotate(g.pairs[n%len(g.pairs)], n)
					rotated.Add(1)
					if n%8 == 0 {
						time.Sleep(time.Millisecond)
					}
				}
			})
			var last [sha256.Size]byte
			for done := false; !done; {
				select {
				case <-stop:
					done = true
				default:
				}
				seen := observe(r.src)
				if seen.hash == last {
					continue
				}
				last = seen.hash
				c, err := seen.credential()
				var inc *Incomplete
				switch {
				case err == nil && !g.known[c.Fingerprint()]:
					t.Errorf("accepted a pair that nobody wrote: %v, chain of %d", c, len(c.Chain()))
					done = true
				case err == nil:
					accepted.Add(1)
				case errors.As(err, &inc):
					refused.Add(1)
				default:
					t.Errorf("a replacement under way looks like a bad file: %v", err)
					done = true
				}
			}
			wg.Wait()
			c, err := observe(r.src).credential()
			must(t, err)
			if want := r.cred(g.pairs[total%len(g.pairs)]); c.Fingerprint() != want.Fingerprint() {
				t.Errorf("the last pair is not what is read")
			}
		})
	}
}

// TestStoreFollowsBurstsOfRotations runs the whole store: what it offers is always a whole pair, and after each burst the
// newest. It proves every candidate, as a session would.
func TestStoreFollowsBurstsOfRotations(t *testing.T) {
	for _, style := range []string{"in place", "in place, two writes", "renames, cert first", "renames, key first", "..data swap"} {
		t.Run(style, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.o.TrialSpacing, r.rest = -1, 50*time.Millisecond
			g := newGenerations(t, r, 32)
			layOut(t, r, style, g.pairs[0])
			rotate := rotations(r)[style]
			r.run()
			r.wantCurrent(r.cred(g.pairs[0]))
			n := 0
			for burst := range 3 {
				for range 100 {
					n++
					rotate(g.pairs[n%len(g.pairs)], n)
				}
				want := r.cred(g.pairs[n%len(g.pairs)]).Fingerprint()
				eventually(t, fmt.Sprintf("the newest pair after burst %d", burst), func() bool {
					if c := r.store.Candidate(); c != nil {
						if !g.known[c.Fingerprint()] {
							t.Fatalf("a pair that nobody wrote: %v", c)
						}
						r.store.Commit(c, 0)
					}
					return r.store.Current().Fingerprint() == want
				})
			}
			if r.said("certificate refused, the current one carries on") != 0 {
				t.Errorf("replacements under way were called bad files: %v", r.logs.All())
			}
		})
	}
}

// TestManyRenewedAtOnce writes 500 identities' files within a second.
func TestManyRenewedAtOnce(t *testing.T) {
	const many = 500
	r := newRig(t)
	dir := t.TempDir()
	w := NewWatcher(WatcherOptions{})
	stores := make([]*Store, many)
	pairs := make([]*certtest.Pair, 20)
	for i := range pairs {
		pairs[i] = r.issue(certtest.Leaf{})
	}
	src := func(i int) Source {
		return Source{Cert: filepath.Join(dir, fmt.Sprintf("%d.pem", i)), Key: filepath.Join(dir, fmt.Sprintf("%d.key", i))}
	}
	for i := range stores {
		must(t, pairs[i%10].Write(src(i).Cert, src(i).Key))
		s, err := Open(Options{Identity: fmt.Sprint(i), Source: src(i), CommonName: press})
		must(t, err)
		w.Add(s)
		stores[i] = s
	}
	r.watcher = w
	r.runWatcher()
	eventually(t, "all watched", func() bool {
		for _, s := range stores {
			if s.Status().Watch != "events" {
				return false
			}
		}
		return true
	})
	began := time.Now()
	for i := range stores {
		must(t, pairs[10+i%10].Write(src(i).Cert, src(i).Key))
	}
	wrote := time.Since(began)
	eventually(t, "500 candidates", func() bool {
		for i, s := range stores {
			c := s.Candidate()
			if c == nil || c.Leaf().SerialNumber.Cmp(pairs[10+i%10].Leaf.SerialNumber) != 0 {
				return false
			}
		}
		return true
	})
	t.Logf("500 identities written in %v, all staged %v after the first write", wrote.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
}
