package certstore

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatewayd/internal/certstore/certtest"

	"github.com/youmark/pkcs8"
)

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
		// A trial that began while the clock was not believed may end now.
		r.store.Miss(next, "refused in TLS")
		if st := r.wantState(Early); !strings.Contains(st.CandidateReason, "not valid before") || st.Misses != 1 {
			t.Errorf("after a late miss: %+v", st)
		}
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
				late := "" // what was told last before it counts as a problem
				for end := time.Now().Add(tt.life + time.Hour); time.Now().Before(end); time.Sleep(min(tt.life/200, 30*time.Minute)) {
					s.tick(time.Now())
					switch st := s.Status(); {
					case len(st.Problems) == 0 && late != "":
						t.Fatalf("no problem any more at %q", st.Expiry)
					case len(st.Problems) > 0 && late == "":
						late = st.Expiry
					}
				}
				if late != "1/20" {
					t.Errorf("a problem from %q on", late)
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
