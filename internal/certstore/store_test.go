package certstore

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"gatewayd/internal/certstore/certtest"

	"github.com/youmark/pkcs8"
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
		if st.Committed != 120 || st.Generation != 121 || st.Gap != 20*time.Millisecond || st.CandidateState != None || st.Expiry != "" {
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

func keyOf(t testing.TB, c *Credential) []byte {
	t.Helper()
	data, err := export(c)
	must(t, err)
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

func TestFutureCertificateWaitsForItsTime(t *testing.T) {
	virtual(t, func(t *testing.T, r *rig) {
		good := r.put(certtest.Leaf{})
		r.run()
		r.store.Commit(good, 0)
		begins := time.Now().Add(3 * time.Hour)
		next := r.put(certtest.Leaf{NotBefore: begins, NotAfter: begins.Add(30 * 24 * time.Hour)})
		time.Sleep(settled)
		st := r.wantState(Early)
		if !strings.Contains(st.CandidateReason, "not valid before") || st.NextRetry.Before(begins) {
			t.Errorf("status %+v", st)
		}
		r.wantCandidate(nil)
		time.Sleep(time.Until(begins) + hubSkew + settled)
		r.wantCandidate(next)
		select {
		case <-r.store.Changed():
		default:
			t.Error("the session was not told")
		}
	})
}

func TestExpiredCurrentLeavesNothingToLose(t *testing.T) {
	virtual(t, func(t *testing.T, r *rig) {
		good := r.put(certtest.Leaf{NotAfter: time.Now().Add(time.Hour)})
		r.run()
		r.store.Commit(good, 0)
		expired := r.put(certtest.Leaf{NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(-time.Minute)})
		time.Sleep(settled)
		r.wantCandidate(nil)
		time.Sleep(time.Hour)
		r.wantCurrent(good) // still offered to the session: the hub's clock decides
		r.wantCandidate(expired)
		if st := r.store.Status(); st.Expiry != "expired" || st.Current.DaysLeft >= 0 {
			t.Errorf("status %+v", st)
		}
		if r.said("certificate expired") != 1 {
			t.Errorf("not said once: %v", r.logs.All())
		}
	})
}

func TestExpiryIsToldInTime(t *testing.T) {
	tests := []struct {
		name string
		life time.Duration
		want string
	}{
		{"a year", 365 * 24 * time.Hour, "1/3 1/10 1/20 7d 1d 1h expired"},
		{"thirty days", 30 * 24 * time.Hour, "1/3 7d 1/10 1/20 1d 1h expired"},
		{"a day", 24 * time.Hour, "1/3 1/10 1/20 1h expired"},
		{"an hour", time.Hour, "1/3 1/10 1/20 expired"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			virtual(t, func(t *testing.T, r *rig) {
				r.o.StateDir = ""
				c := r.put(certtest.Leaf{NotBefore: time.Now(), NotAfter: time.Now().Add(tt.life)})
				s := r.open()
				s.Commit(c, 0)
				for end := time.Now().Add(tt.life + time.Hour); time.Now().Before(end); time.Sleep(min(tt.life/200, 30*time.Minute)) {
					s.tick(time.Now())
				}
				var got []string
				for _, e := range r.logs.All() {
					if left, ok := e.ContextMap()["left"]; ok {
						got = append(got, fmt.Sprint(left))
					}
				}
				if strings.Join(got, " ") != tt.want {
					t.Errorf("told %v, want %v", got, tt.want)
				}
			})
		})
	}
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

func TestOlderCertificateIsTakenAndMarked(t *testing.T) {
	virtual(t, func(t *testing.T, r *rig) {
		good := r.put(certtest.Leaf{NotBefore: time.Now().Add(-time.Minute)})
		r.run()
		r.store.Commit(good, 0)
		older := r.put(certtest.Leaf{NotBefore: time.Now().Add(-24 * time.Hour)})
		time.Sleep(settled)
		r.wantCandidate(older)
		r.store.Miss(older, "CONNACK 5")
		r.wantCurrent(good)
		time.Sleep(2 * time.Minute)
		r.store.Commit(older, 0)
		if st := r.store.Status(); !st.Backwards {
			t.Errorf("not marked: %+v", st)
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

func TestShorterChainHasToLast(t *testing.T) {
	virtual(t, func(t *testing.T, r *rig) {
		inter, err := r.ca.Intermediate("line 3")
		must(t, err)
		r.ca = inter
		p := r.issue(certtest.Leaf{})
		must(t, p.Write(r.src.Cert, r.src.Key))
		r.run()
		r.store.Commit(r.cred(p), 0)
		n := r.issue(certtest.Leaf{Key: p.Key})
		leaf := block("CERTIFICATE", n.Leaf.Raw)
		r.write(r.src.Cert, leaf) // a slow writer got exactly as far as the leaf
		r.watcher.Rescan()
		time.Sleep(5 * time.Second)
		r.wantCandidate(nil)
		r.wantState(Settling)
		r.write(r.src.Cert, n.CertPEM)
		time.Sleep(settled + doubtWait)
		r.wantCandidate(r.cred(n))
		r.store.Commit(r.cred(n), 0)
		// A chain that is meant to be shorter is taken a little later.
		m := r.issue(certtest.Leaf{Key: p.Key})
		r.write(r.src.Cert, block("CERTIFICATE", m.Leaf.Raw))
		time.Sleep(settled + doubtWait + time.Second)
		if c := r.store.Candidate(); c == nil || len(c.Chain()) != 1 {
			t.Errorf("candidate %v, want the leaf alone", c)
		}
	})
}

func TestKeyModePolicy(t *testing.T) {
	tests := []struct {
		mode  os.FileMode
		loose bool
	}{{0o600, false}, {0o400, false}, {0o440, false}, {0o640, false}, {0o644, true}, {0o604, true}, {0o660, true}, {0o777, true}}
	for _, tt := range tests {
		t.Run(fmt.Sprintf("%04o", tt.mode), func(t *testing.T) {
			virtual(t, func(t *testing.T, r *rig) {
				c := r.put(certtest.Leaf{})
				must(t, os.Chmod(r.src.Key, tt.mode))
				stop := r.run()
				if !tt.loose {
					r.wantCurrent(c)
					return
				}
				if st := r.wantState(Refused); r.store.Current() != nil || !strings.Contains(st.CandidateHint, "chmod 600") {
					t.Fatalf("status %+v", st)
				}
				if problems, _ := InspectFiles(r.src); len(problems) != 1 {
					t.Errorf("check says %v", problems)
				}
				must(t, os.Chmod(r.src.Key, 0o600))
				time.Sleep(settled)
				r.wantCurrent(c)
				r.store.Commit(c, 0)
				time.Sleep(settled)
				// A box that works is not locked out, neither while it runs nor at its next start.
				must(t, os.Chmod(r.src.Key, tt.mode))
				for range 2 {
					time.Sleep(settled)
					r.wantCurrent(c)
					if st := r.store.Status(); len(st.Problems) != 1 {
						t.Errorf("problems %v", st.Problems)
					}
					stop = r.restart(stop)
				}
				r.wantCurrent(c)
			})
		})
	}
}

func TestRotatedPassphraseIsReadAgain(t *testing.T) {
	virtual(t, func(t *testing.T, r *rig) {
		r.src.PassphraseFile = filepath.Join(r.dir, "pass")
		r.o.Source = r.src
		good := r.put(certtest.Leaf{})
		r.write(r.src.PassphraseFile, []byte("old\n"))
		r.run()
		r.store.Commit(good, 0)
		n := r.issue(certtest.Leaf{})
		der, err := pkcs8.MarshalPrivateKey(n.Key, []byte("correct"), nil)
		must(t, err)
		r.write(r.src.Cert, n.CertPEM)
		r.write(r.src.Key, block("ENCRYPTED PRIVATE KEY", der))
		time.Sleep(settled)
		if st := r.wantState(Refused); !strings.Contains(st.CandidateReason, "passphrase") || strings.Contains(st.CandidateReason, "old") {
			t.Errorf("reason %q", st.CandidateReason)
		}
		r.wantCurrent(good)
		r.write(r.src.PassphraseFile, []byte("correct\n"))
		time.Sleep(settled)
		r.wantCandidate(r.cred(n))
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

func TestKeyTypeMayChange(t *testing.T) {
	virtual(t, func(t *testing.T, r *rig) {
		good := r.put(certtest.Leaf{RSA: true})
		r.run()
		r.store.Commit(good, 0)
		next := r.put(certtest.Leaf{})
		time.Sleep(settled)
		r.wantCandidate(next)
		r.store.Commit(next, 0)
		if st := r.store.Status(); st.Current.Key != "ECDSA P-256" {
			t.Errorf("key %q", st.Current.Key)
		}
	})
}

func TestOpenNeedsItsArguments(t *testing.T) {
	for _, o := range []Options{{}, {Identity: "a"}, {Identity: "a", Source: Source{Key: "k"}}, {Identity: "a", Source: Source{Cert: "c", PKCS12: "p"}}} {
		if _, err := Open(o); err == nil {
			t.Errorf("%+v accepted", o)
		}
	}
}
