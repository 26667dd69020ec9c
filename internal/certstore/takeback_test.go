package certstore

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"gatewayd/internal/certstore/certtest"
)

// A hub may accept a certificate and end every connection that carries a message
// with it. What looked good while idle is then taken back, and is no more eager the
// next time because of it.
func TestCommittedCertificateCanBeTakenBack(t *testing.T) {
	virtual(t, func(t *testing.T, r *rig) {
		r.o.TrialSpacing = -1
		good := r.put(certtest.Leaf{})
		r.run()
		r.store.Commit(good, 0)
		bad := r.put(certtest.Leaf{})
		time.Sleep(settled)
		synctest.Wait()
		for i, minutes := range []time.Duration{1, 2, 5} {
			r.wantCandidate(bad)
			r.store.Commit(bad, 0)
			r.wantCandidate(nil)
			r.store.Commit(good, 0)
			r.store.Miss(bad, "ended at the first message")
			r.wantCurrent(good)
			r.wantCandidate(nil)
			if st := r.store.Status(); st.Misses != i+1 || st.CandidateReason != "ended at the first message" {
				t.Fatalf("time %d: status %+v", i+1, st)
			}
			time.Sleep(minutes*time.Minute - time.Second)
			r.wantCandidate(nil)
			time.Sleep(2 * time.Second)
		}
		// Newer files make all of that history.
		newer := r.put(certtest.Leaf{})
		time.Sleep(settled)
		synctest.Wait()
		r.wantCandidate(newer)
		r.store.Commit(newer, 0)
		r.store.Miss(bad, "late")
		r.wantCandidate(nil)
		r.wantCurrent(newer)
	})
}

// Whoever puts the old files back while the new ones are tried wants the old ones.
func TestFilesThatGoBackDuringATrialAreTheNextCandidate(t *testing.T) {
	virtual(t, func(t *testing.T, r *rig) {
		r.o.TrialSpacing = -1
		old := r.put(certtest.Leaf{})
		r.run()
		r.store.Commit(old, 0)
		read := func(path string) []byte {
			b, err := os.ReadFile(path)
			must(t, err)
			return b
		}
		cert, key := read(r.o.Source.Cert), read(r.o.Source.Key)
		next := r.put(certtest.Leaf{})
		time.Sleep(settled)
		synctest.Wait()
		r.wantCandidate(next)
		must(t, os.WriteFile(r.o.Source.Cert, cert, 0o600))
		must(t, os.WriteFile(r.o.Source.Key, key, 0o600))
		time.Sleep(settled)
		synctest.Wait()
		r.wantCandidate(nil)
		r.store.Commit(next, 0)
		r.wantCurrent(next)
		r.wantCandidate(old)
		r.store.Commit(old, 0)
		r.wantCandidate(nil)
		if st := r.store.Status(); st.CandidateState != None || st.Misses != 0 {
			t.Errorf("status %+v", st)
		}
	})
}

func TestStatusAsJSONHasMillisecondsAndNoTimesThatNeverWere(t *testing.T) {
	virtual(t, func(t *testing.T, r *rig) {
		first := r.put(certtest.Leaf{})
		r.run()
		r.store.Commit(first, 0)
		text := func() string {
			b, err := json.Marshal(r.store.Status())
			must(t, err)
			return string(b)
		}
		if got := text(); strings.Contains(got, "0001-01-01") {
			t.Errorf("a time that never was: %s", got)
		}
		next := r.put(certtest.Leaf{})
		time.Sleep(settled)
		synctest.Wait()
		r.wantCandidate(next)
		r.store.Commit(next, 1500*time.Microsecond)
		if got := text(); !strings.Contains(got, `"gap_ms":1.5,`) || !strings.Contains(got, `"last_rotation":"2`) {
			t.Errorf("status %s", got)
		}
	})
}
