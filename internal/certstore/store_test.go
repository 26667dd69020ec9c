package certstore

import (
	"crypto"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"gatewayd/internal/certstore/certtest"
)

func TestRenewalsOfThirtyDaysEachBecomeCurrent(t *testing.T) {
	virtual(t, func(t *testing.T, r *rig) {
		r.o.TrialSpacing, r.poll = -1, time.Hour
		first := r.put(certtest.Leaf{NotAfter: time.Now().Add(24 * time.Hour)})
		r.run()
		r.wantCurrent(first)
		r.store.Commit(first, 0)
		for day := range 30 {
			for range 4 {
				next := r.put(certtest.Leaf{NotAfter: time.Now().Add(24 * time.Hour)})
				time.Sleep(time.Hour + time.Second)
				select {
				case <-r.store.Changed():
				default:
					t.Fatalf("day %d: the session was not told", day)
				}
				r.wantCandidate(next)
				r.store.Commit(next, 20*time.Millisecond)
				r.wantCurrent(next)
				r.wantCandidate(nil)
				time.Sleep(5*time.Hour - time.Second)
			}
		}
		st := r.store.Status()
		if st.Committed != 120 || st.Generation != 121 || st.GapMS != 20 || st.CandidateState != None || st.Expiry != "" {
			t.Errorf("status %+v", st)
		}
		if time.Since(st.LastRotation) > 7*time.Hour {
			t.Errorf("last rotation %v", st.LastRotation)
		}
	})
}

func TestMissedCandidateIsRetriedOnTheLadder(t *testing.T) {
	virtual(t, func(t *testing.T, r *rig) {
		good := r.put(certtest.Leaf{})
		r.run()
		r.store.Commit(good, 0)
		bad := r.put(certtest.Leaf{})
		time.Sleep(settled)
		synctest.Wait()
		waits := []time.Duration{1, 2, 5, 10, 20, 30, 60, 60, 60}
		for i, minutes := range waits {
			r.wantCandidate(bad)
			drain(r.store.Changed())
			missed := time.Now()
			r.store.Miss(bad, "CONNACK 5")
			r.wantCandidate(nil)
			r.wantCurrent(good)
			st := r.store.Status()
			want := Missed
			if i >= 2 {
				want = Rejected
			}
			if st.CandidateState != want || st.Misses != i+1 || st.CandidateReason != "CONNACK 5" || !st.NextRetry.Equal(missed.Add(minutes*time.Minute).Round(0)) {
				t.Fatalf("miss %d: status %+v", i+1, st)
			}
			<-r.store.Changed()
			if waited := time.Since(missed); waited != minutes*time.Minute {
				t.Fatalf("miss %d: told after %v, want %d minutes", i+1, waited, minutes)
			}
		}
		if r.said("certificate candidate missed, the current one carries on") != 1 || r.said("certificate candidate rejected, the current one carries on") != 1 {
			t.Errorf("a line per retry: %v", r.logs.All())
		}
		if st := r.store.Status(); st.MissedTrials != 9 || st.RejectedTotal != 1 {
			t.Errorf("counters %+v", st)
		}
		// The thumbprint was entered at last: no restart is needed.
		r.store.Commit(bad, time.Second)
		r.wantCurrent(bad)
	})
}

func drain(c <-chan struct{}) {
	select {
	case <-c:
	default:
	}
}

func TestChangedFilesAreTriedAtOnceAfterAMiss(t *testing.T) {
	virtual(t, func(t *testing.T, r *rig) {
		good := r.put(certtest.Leaf{})
		r.run()
		r.store.Commit(good, 0)
		bad := r.put(certtest.Leaf{})
		time.Sleep(settled)
		for range 4 {
			r.wantCandidate(bad)
			r.store.Miss(bad, "closed")
			time.Sleep(time.Until(r.store.Status().NextRetry) + time.Second)
		}
		r.store.Miss(bad, "closed")
		better := r.put(certtest.Leaf{})
		time.Sleep(settled)
		r.wantCandidate(better)
		if st := r.wantState(Staged); st.Misses != 0 || st.CandidateReason != "" {
			t.Errorf("the miss of another certificate sticks: %+v", st)
		}
		// What is undone is no candidate any more.
		r.store.Miss(better, "closed")
		must(t, os.WriteFile(r.src.Cert, pemOf(good), 0o600))
		must(t, os.WriteFile(r.src.Key, keyOf(t, good), 0o600))
		time.Sleep(settled)
		r.wantState(None)
	})
}

func pemOf(c *Credential) []byte {
	var out []byte
	for _, cert := range c.Chain() {
		out = append(out, block("CERTIFICATE", cert.Raw)...)
	}
	return out
}

func signerOf(t testing.TB, c *Credential) crypto.Signer {
	t.Helper()
	cert, err := c.TLSCertificate()
	must(t, err)
	return cert.PrivateKey.(crypto.Signer)
}

func keyOf(t testing.TB, c *Credential) []byte {
	t.Helper()
	data := export(c)
	return data[strings.Index(string(data), "-----BEGIN PRIVATE"):]
}

func TestNoVerdictHoldsNothingAgainstACandidate(t *testing.T) {
	virtual(t, func(t *testing.T, r *rig) {
		good := r.put(certtest.Leaf{})
		r.run()
		r.store.Commit(good, 0)
		next := r.put(certtest.Leaf{})
		time.Sleep(settled)
		for range 100 {
			r.wantCandidate(next)
			r.store.NoVerdict(next, "network is unreachable")
			time.Sleep(time.Second)
		}
		if st := r.wantState(Staged); st.NoVerdicts != 100 || st.Misses != 0 || st.CandidateReason != "network is unreachable" {
			t.Errorf("status %+v", st)
		}
		r.wantCurrent(good)
	})
}

func TestOnlyTheNewestCandidateMatters(t *testing.T) {
	virtual(t, func(t *testing.T, r *rig) {
		good := r.put(certtest.Leaf{})
		r.run()
		r.store.Commit(good, 0)
		old := r.put(certtest.Leaf{})
		time.Sleep(settled)
		newest := r.put(certtest.Leaf{})
		time.Sleep(settled)
		r.wantCandidate(newest)
		r.store.Miss(old, "late news") // of a trial that was under way
		r.wantCandidate(newest)
		if st := r.store.Status(); st.Misses != 0 {
			t.Errorf("the miss of %v counts against %v", old, newest)
		}
		r.store.Commit(old, 0) // it did work
		r.wantCurrent(old)
		r.wantCandidate(newest)
	})
}

func TestFirstCertificateIsUsedWhenItAppears(t *testing.T) {
	virtual(t, func(t *testing.T, r *rig) {
		r.src = Source{Cert: filepath.Join(r.dir, "not", "yet", "cert.pem"), Key: filepath.Join(r.dir, "not", "yet", "key.pem")}
		r.o.Source = r.src
		r.run()
		if r.store.Current() != nil {
			t.Fatal("a certificate out of nothing")
		}
		time.Sleep(time.Hour)
		if r.said("no certificate yet, waiting for the files") != 1 {
			t.Errorf("not said once: %v", r.logs.All())
		}
		if st := r.wantState(Waits); !strings.Contains(st.CandidateReason, "does not exist") {
			t.Errorf("reason %q", st.CandidateReason)
		}
		must(t, os.MkdirAll(filepath.Dir(r.src.Cert), 0o700))
		first := r.put(certtest.Leaf{})
		<-r.store.Changed()
		r.wantCurrent(first)
		synctest.Wait() // the session is told a moment before the look has ended
		if st := r.wantState(None); st.Proved || st.Generation != 0 {
			t.Errorf("proved without a hub: %+v", st)
		}
		r.store.Commit(first, 0)
		if st := r.store.Status(); !st.Proved || st.Generation != 1 || st.Committed != 0 {
			t.Errorf("the first proof is no rotation: %+v", st)
		}
	})
}

func TestUnusableFilesKeepTheCurrentCertificate(t *testing.T) {
	type files struct{ cert, key []byte }
	tests := []struct {
		name   string
		make   func(t *testing.T, r *rig, current *certtest.Pair) files
		state  CandidateState
		reason string
		warnAt time.Duration // 0: at once
		alarm  bool          // after ten minutes
	}{
		{"certificate of another renewal", func(t *testing.T, r *rig, p *certtest.Pair) files {
			return files{r.issue(certtest.Leaf{}).CertPEM, p.KeyPEM}
		}, Waits, "public key hashes", 30 * time.Second, true},
		{"key without its certificate", func(t *testing.T, r *rig, p *certtest.Pair) files {
			return files{p.CertPEM, r.issue(certtest.Leaf{}).KeyPEM}
		}, Waits, "public key hashes", 30 * time.Second, true},
		{"half a certificate", func(t *testing.T, r *rig, p *certtest.Pair) files {
			n := r.issue(certtest.Leaf{})
			return files{n.CertPEM[:len(n.CertPEM)/2], n.KeyPEM}
		}, Waits, "cut off", 10 * time.Second, true},
		{"deleted certificate", func(t *testing.T, r *rig, p *certtest.Pair) files {
			return files{nil, p.KeyPEM}
		}, Waits, "does not exist", 30 * time.Second, true},
		{"another identity's", func(t *testing.T, r *rig, p *certtest.Pair) files {
			n := r.issue(certtest.Leaf{CN: "press-8"})
			return files{n.CertPEM, n.KeyPEM}
		}, Refused, `"press-8", not "press-7"`, 0, false},
		{"another spelling", func(t *testing.T, r *rig, p *certtest.Pair) files {
			n := r.issue(certtest.Leaf{CN: "PRESS-7"})
			return files{n.CertPEM, n.KeyPEM}
		}, Refused, `"PRESS-7"`, 0, false},
		{"expired", func(t *testing.T, r *rig, p *certtest.Pair) files {
			n := r.issue(certtest.Leaf{NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(-24 * time.Hour)})
			return files{n.CertPEM, n.KeyPEM}
		}, Refused, "expired on", 0, false},
		{"garbage", func(t *testing.T, r *rig, p *certtest.Pair) files {
			return files{[]byte("<html>not found</html>"), p.KeyPEM}
		}, Refused, "neither PEM nor DER", 0, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			virtual(t, func(t *testing.T, r *rig) {
				p := r.issue(certtest.Leaf{})
				must(t, p.Write(r.src.Cert, r.src.Key))
				good := r.cred(p)
				r.run()
				r.store.Commit(good, 0)
				f := tt.make(t, r, p)
				began := time.Now()
				if f.cert == nil {
					must(t, os.Remove(r.src.Cert))
				} else {
					r.write(r.src.Cert, f.cert)
				}
				r.write(r.src.Key, f.key)
				time.Sleep(settled)
				if st := r.wantState(tt.state); !strings.Contains(st.CandidateReason, tt.reason) {
					t.Errorf("reason %q, want %q", st.CandidateReason, tt.reason)
				}
				r.wantCandidate(nil)
				trouble := "certificate files are not usable, the current certificate carries on"
				if tt.warnAt > 0 {
					if r.said(trouble) != 0 && time.Since(began) < tt.warnAt {
						t.Errorf("warned at once of what a replacement looks like")
					}
					time.Sleep(time.Minute)
					if r.said(trouble) != 1 {
						t.Errorf("not warned: %v", r.logs.All())
					}
				}
				time.Sleep(time.Hour)
				if want := 1; tt.alarm && r.said(trouble) != 2 || !tt.alarm && r.said("certificate refused, the current one carries on") != want {
					t.Errorf("lines: %v", r.logs.All())
				}
				r.wantCurrent(good)
				next := r.put(certtest.Leaf{})
				time.Sleep(settled)
				r.wantCandidate(next)
			})
		})
	}
}

func TestRenewalWithTheSameKeyNeedsNoKeyFile(t *testing.T) {
	virtual(t, func(t *testing.T, r *rig) {
		p := r.issue(certtest.Leaf{})
		must(t, p.Write(r.src.Cert, r.src.Key))
		r.run()
		r.store.Commit(r.cred(p), 0)
		n := r.issue(certtest.Leaf{Key: p.Key})
		r.write(r.src.Cert, n.CertPEM)
		time.Sleep(settled)
		r.wantCandidate(r.cred(n))
	})
}

func TestSameContentIsNoChange(t *testing.T) {
	virtual(t, func(t *testing.T, r *rig) {
		p := r.issue(certtest.Leaf{})
		must(t, p.Write(r.src.Cert, r.src.Key))
		r.run()
		r.store.Commit(r.cred(p), 0)
		drain(r.store.Changed())
		change := []func(){
			func() { must(t, p.Write(r.src.Cert, r.src.Key)) },
			func() { must(t, os.Chtimes(r.src.Cert, time.Now(), time.Now())) },
			func() { must(t, os.Chmod(r.src.Cert, 0o640)) },
			func() { r.write(r.src.Cert, append([]byte("renewed by nobody\n"), p.CertPEM...)) },
		}
		for _, f := range change {
			f()
			time.Sleep(settled)
			r.wantState(None)
		}
		select {
		case <-r.store.Changed():
			t.Error("the session was told of nothing")
		default:
		}
	})
}

func TestChangedContentWithOldTimesIsSeen(t *testing.T) {
	virtual(t, func(t *testing.T, r *rig) {
		good := r.put(certtest.Leaf{})
		info, err := os.Stat(r.src.Cert)
		must(t, err)
		r.run()
		r.store.Commit(good, 0)
		next := r.put(certtest.Leaf{})
		must(t, os.Chtimes(r.src.Cert, info.ModTime(), info.ModTime()))
		must(t, os.Chtimes(r.src.Key, info.ModTime(), info.ModTime()))
		time.Sleep(settled)
		r.wantCandidate(next)
	})
}

func TestRenewerGoneWildIsHeldBack(t *testing.T) {
	virtual(t, func(t *testing.T, r *rig) {
		good := r.put(certtest.Leaf{})
		r.run()
		r.store.Commit(good, 0)
		trials := 0
		var last *Credential
		for range 60 { // ten minutes, a renewal every ten seconds
			last = r.put(certtest.Leaf{})
			time.Sleep(pollEvery)
			if c := r.store.Candidate(); c != nil {
				trials++
				r.store.Commit(c, 0)
			}
		}
		if trials < 10 || trials > 13 {
			t.Errorf("%d cut-overs in ten minutes, want one per minute after a burst of %d", trials, trialBurst)
		}
		if r.said("certificates change faster than cut-overs are allowed, the newest waits") == 0 {
			t.Error("not said")
		}
		time.Sleep(2 * time.Minute)
		if c := r.store.Candidate(); c == nil {
			r.wantCurrent(last)
		} else if c.Fingerprint() != last.Fingerprint() {
			t.Errorf("candidate %v is not the newest", c)
		}
	})
}

func TestMissNamesANewIssuer(t *testing.T) {
	virtual(t, func(t *testing.T, r *rig) {
		good := r.put(certtest.Leaf{})
		r.run()
		r.store.Commit(good, 0)
		ca, err := certtest.NewCA("new CA")
		must(t, err)
		r.ca = ca
		next := r.put(certtest.Leaf{})
		time.Sleep(settled)
		r.store.Miss(next, "CONNACK 5")
		st := r.store.Status()
		if !strings.Contains(st.CandidateHint, `from "CN=site CA" to "CN=new CA"`) {
			t.Errorf("hint %q", st.CandidateHint)
		}
		if st.Candidate == nil || len(st.Candidate.SHA1) != 40 || len(st.Candidate.SHA256) != 64 {
			t.Errorf("no thumbprints to paste: %+v", st.Candidate)
		}
		e := r.logs.FilterMessage("certificate candidate missed, the current one carries on").All()
		if len(e) != 1 || e[0].ContextMap()["sha1"] != next.SHA1() || e[0].ContextMap()["sha256"] != next.SHA256() {
			t.Errorf("no thumbprints in the log: %v", e)
		}
	})
}

func TestNewPathsLeaveTheRunningCertificateAlone(t *testing.T) {
	virtual(t, func(t *testing.T, r *rig) {
		good := r.put(certtest.Leaf{})
		r.run()
		r.store.Commit(good, 0)
		if err := r.store.SetSource(Source{}); err == nil {
			t.Error("no source at all accepted")
		}
		dir := t.TempDir()
		r.src = Source{Cert: filepath.Join(dir, "c.pem"), Key: filepath.Join(dir, "k.pem")}
		must(t, r.store.SetSource(r.src))
		time.Sleep(settled)
		r.wantCurrent(good)
		r.wantState(Waits)
		next := r.put(certtest.Leaf{})
		time.Sleep(settled)
		r.wantCandidate(next)
	})
}

func TestOpenNeedsItsArguments(t *testing.T) {
	for _, o := range []Options{{}, {Identity: "a"}, {Identity: "a", Source: Source{Key: "k"}}, {Identity: "a", Source: Source{Cert: "c", PKCS12: "p"}}} {
		if _, err := Open(o); err == nil {
			t.Errorf("%+v accepted", o)
		}
	}
}
