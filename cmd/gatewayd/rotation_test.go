package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/hub/hubtest"
)

// rotationRig is a running gateway with one identity under load whose
// certificate files are replaced in some way.
type rotationRig struct {
	*plant
	name  string
	fleet *fleet
}

// newRotationRig starts 20 sensors that send 500 messages per second together.
func newRotationRig(t *testing.T, opt hubtest.Options) *rotationRig {
	t.Helper()
	opt.MaxInbound = -1
	s := newPlant(t, opt, "press-7")
	s.run()
	r := &rotationRig{plant: s, name: "press-7", fleet: s.fleet(20, 20, 256, 40*time.Millisecond)}
	eventually(t, 10*time.Second, "messages flow", func() bool { return s.hub.Counters("press-7").Messages > 100 })
	return r
}

// serialSeen tells whether the hub accepted a connection with this certificate.
func (s *plant) serialSeen(name string, leaf *x509.Certificate) bool {
	serial := leaf.SerialNumber.Text(16)
	return slices.ContainsFunc(s.hub.ConnectionsOf(name), func(c hubtest.Connection) bool {
		return c.Serial == serial && c.Outcome == hubtest.OutcomeAccepted
	})
}

// identityStatus is the identity's part of /status.
func (s *plant) identityStatus(name string) (identityReport, bool) {
	r, err := s.status()
	if err != nil {
		return identityReport{}, false
	}
	for _, id := range r.Identities {
		if id.Name == name {
			return id, true
		}
	}
	return identityReport{}, false
}

// writeInPlace truncates and writes both files in pieces, as scp does.
func writeInPlace(t *testing.T, pair *certtest.Pair, cert, key string) {
	t.Helper()
	for _, f := range []struct {
		path string
		data []byte
	}{{cert, pair.CertPEM}, {key, pair.KeyPEM}} {
		w := must(os.OpenFile(f.path, os.O_WRONLY|os.O_TRUNC|os.O_CREATE, 0o600))(t)
		for _, part := range [][]byte{f.data[:len(f.data)/2], f.data[len(f.data)/2:]} {
			must(w.Write(part))(t)
			time.Sleep(5 * time.Millisecond)
		}
		check(t, w.Close())
	}
}

// swapData replaces what dir holds as the kubelet does: a new folder, then one
// rename of the symlink ..data that all files point through.
func swapData(t *testing.T, pair *certtest.Pair, dir string, n int) {
	t.Helper()
	version := filepath.Join(dir, fmt.Sprintf("..v%d", n))
	check(t, os.MkdirAll(version, 0o700))
	check(t, os.WriteFile(filepath.Join(version, "tls.crt"), pair.CertPEM, 0o600))
	check(t, os.WriteFile(filepath.Join(version, "tls.key"), pair.KeyPEM, 0o600))
	temp := filepath.Join(dir, "..data_tmp")
	check(t, os.Symlink(filepath.Base(version), temp))
	check(t, os.Rename(temp, filepath.Join(dir, "..data")))
	if old := filepath.Join(dir, fmt.Sprintf("..v%d", n-1)); n > 0 {
		check(t, os.RemoveAll(old))
	}
}

func TestRotationsLoseNothing(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{MaxInbound: -1}, "press-7", "oven-2")
	dir := s.path("k8s")
	check(t, os.MkdirAll(dir, 0o700))
	swapData(t, must(s.ca.Issue(certtest.Leaf{CN: "oven-2"}))(t), dir, 0)
	for _, f := range []string{"tls.crt", "tls.key"} {
		check(t, os.Symlink(filepath.Join("..data", f), filepath.Join(dir, f)))
	}
	s.files = map[string][2]string{"oven-2": {"k8s/tls.crt", "k8s/tls.key"}}
	s.writeConfig("")
	p := s.run()
	f := s.fleet(20, 20, 256, 40*time.Millisecond)
	eventually(t, 10*time.Second, "both identities deliver", func() bool {
		return s.hub.Counters("press-7").Messages > 50 && s.hub.Counters("oven-2").Messages > 50
	})

	var gaps []float64
	rotate := func(name string, put func(*certtest.Pair)) {
		before, _ := s.identityStatus(name)
		pair := must(s.ca.Issue(certtest.Leaf{CN: name}))(t)
		put(pair)
		eventually(t, 20*time.Second, name+" is on the new certificate", func() bool { return s.serialSeen(name, pair.Leaf) })
		eventually(t, 20*time.Second, name+" reports the rotation", func() bool {
			now, ok := s.identityStatus(name)
			if !ok || now.Rotations <= before.Rotations {
				return false
			}
			gaps = append(gaps, now.Rotation.GapMS)
			return true
		})
	}
	cert, key := s.path("press-7.pem"), s.path("press-7.key")
	for range 30 {
		rotate("press-7", func(pair *certtest.Pair) { check(t, pair.Write(cert, key)) })
	}
	for range 10 {
		rotate("press-7", func(pair *certtest.Pair) { writeInPlace(t, pair, cert, key) })
	}
	for n := range 10 {
		rotate("oven-2", func(pair *certtest.Pair) { swapData(t, pair, dir, n+1) })
	}
	f.end()
	s.drained(30 * time.Second)
	resent := f.account(t, s.hub.Messages())
	if limit := len(gaps) * 64; resent > limit {
		t.Errorf("%d messages arrived twice over %d rotations, more than the windows of %d", resent, len(gaps), limit)
	}
	for _, c := range s.hub.Connections() {
		if c.Resumed {
			t.Errorf("connection %d resumed the TLS session of an earlier one", c.Number)
		}
		if c.CommonName != "" && c.CommonName != c.Identity {
			t.Errorf("%s connected with the certificate of %s", c.Identity, c.CommonName)
		}
	}
	slices.Sort(gaps)
	t.Logf("%d rotations, %d messages, %d resent; gap median %.1f ms, p99 %.1f ms", len(gaps), f.acked(), resent,
		gaps[len(gaps)/2], gaps[len(gaps)*99/100])
	if code := p.stop(); code != 0 {
		t.Errorf("exit code %d after SIGTERM", code)
	}
}

// badCandidate is one way for a renewal to go wrong.
type badCandidate struct {
	name  string
	quiet bool // refused before CONNECT: the hub must not see a disconnect
	dials bool // the hub sees an attempt
	make  func(t *testing.T, r *rotationRig) *certtest.Pair
}

func badCandidates() []badCandidate {
	leaf := func(l certtest.Leaf) func(*testing.T, *rotationRig) *certtest.Pair {
		return func(t *testing.T, r *rotationRig) *certtest.Pair {
			if l.CN == "" {
				l.CN = r.name
			}
			return must(r.ca.Issue(l))(t)
		}
	}
	refused := func(how hubtest.Refusal) func(*testing.T, *rotationRig) *certtest.Pair {
		return func(t *testing.T, r *rotationRig) *certtest.Pair {
			pair := must(r.ca.Issue(certtest.Leaf{CN: r.name}))(t)
			r.hub.RefuseFingerprint(fmt.Sprintf("%X", fingerprint(pair.Leaf)), how)
			return pair
		}
	}
	return []badCandidate{
		{"expired", true, false, leaf(certtest.Leaf{NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(-time.Hour)})},
		{"not yet valid", true, false, leaf(certtest.Leaf{NotBefore: time.Now().Add(24 * time.Hour), NotAfter: time.Now().Add(48 * time.Hour)})},
		{"another common name", true, false, leaf(certtest.Leaf{CN: "somebody-else"})},
		{"key of another certificate", true, false, func(t *testing.T, r *rotationRig) *certtest.Pair {
			pair := must(r.ca.Issue(certtest.Leaf{CN: r.name}))(t)
			key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
			other := must(r.ca.Issue(certtest.Leaf{CN: r.name, Key: key}))(t)
			pair.KeyPEM = other.KeyPEM
			return pair
		}},
		{"torn chain", true, false, func(t *testing.T, r *rotationRig) *certtest.Pair {
			mid := must(r.ca.Intermediate("Line CA"))(t)
			pair := must(mid.Issue(certtest.Leaf{CN: r.name}))(t)
			pair.CertPEM = pair.CertPEM[:len(pair.CertPEM)-60]
			return pair
		}},
		{"garbage", true, false, func(t *testing.T, r *rotationRig) *certtest.Pair {
			return &certtest.Pair{CertPEM: bytes.Repeat([]byte("x"), 2000), KeyPEM: []byte("y")}
		}},
		{"refused in TLS", true, true, refused(hubtest.TLSAlert)},
		{"refused with CONNACK 5", false, true, refused(hubtest.ConnackFive)},
		{"closed in silence", false, true, refused(hubtest.CloseSilently)},
		{"accepted, then dropped", false, true, refused(hubtest.AcceptThenDrop)},
	}
}

func TestBadCertificatesNeverStopTheFlow(t *testing.T) {
	t.Parallel()
	r := newRotationRig(t, hubtest.Options{})
	cert, key := r.path(r.name+".pem"), r.path(r.name+".key")
	kinds := badCandidates()
	for round := range 5 {
		for _, kind := range kinds {
			pair := kind.make(t, r)
			accepted := r.acceptedConnections()
			since := time.Now()
			check(t, pair.Write(cert, key))
			if kind.dials {
				serial := pair.Leaf.SerialNumber.Text(16)
				eventually(t, 20*time.Second, kind.name+": the candidate is tried", func() bool {
					return slices.ContainsFunc(r.hub.Connections(), func(c hubtest.Connection) bool { return c.Serial == serial })
				})
			}
			time.Sleep(700 * time.Millisecond)
			eventually(t, 10*time.Second, kind.name+": the working certificate carries on", func() bool {
				id, ok := r.identityStatus(r.name)
				return ok && id.Connected
			})
			if kind.quiet && r.acceptedConnections() != accepted {
				t.Errorf("round %d, %s: the working connection was replaced", round, kind.name)
			}
			if gap := longestGap(r.hub.MessagesOf(r.name), since); gap > time.Second {
				t.Errorf("round %d, %s: no message for %v", round, kind.name, gap)
			}
		}
	}
	pair := must(r.ca.Issue(certtest.Leaf{CN: r.name}))(t)
	check(t, pair.Write(cert, key))
	eventually(t, 20*time.Second, "a good certificate is still adopted", func() bool { return r.serialSeen(r.name, pair.Leaf) })
	r.fleet.end()
	r.drained(30 * time.Second)
	r.fleet.account(t, r.hub.Messages())
	t.Logf("%d bad candidates, longest silence %v", 5*len(kinds), longestGap(r.hub.MessagesOf(r.name), time.Time{}))
}

func (r *rotationRig) acceptedConnections() int {
	n := 0
	for _, c := range r.hub.ConnectionsOf(r.name) {
		if c.Outcome == hubtest.OutcomeAccepted {
			n++
		}
	}
	return n
}

// longestGap is the longest time without a message from since on.
func longestGap(messages []hubtest.Message, since time.Time) time.Duration {
	var longest time.Duration
	var last time.Time
	for _, m := range messages {
		if m.Time.Before(since) {
			continue
		}
		if !last.IsZero() {
			longest = max(longest, m.Time.Sub(last))
		}
		last = m.Time
	}
	return longest
}

// What the hub's documentation recommends for fleets: the validity of the
// certificate in use is a reported property of its own.
func TestTwinTellsTheCertificate(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{}, "press-7")
	s.run()
	pair := s.issue("press-7", certtest.Leaf{CN: "press-7", NotAfter: time.Now().Add(7 * 24 * time.Hour)})
	eventually(t, 30*time.Second, "the twin tells the validity of the renewed certificate", func() bool {
		var doc struct {
			Certificate struct{ ValidFrom, ValidUntil time.Time }
		}
		return json.Unmarshal(s.hub.Twin("press-7").Reported, &doc) == nil && doc.Certificate.ValidUntil.Equal(pair.Leaf.NotAfter) &&
			doc.Certificate.ValidFrom.Equal(pair.Leaf.NotBefore)
	})
}
