package hub

import (
	"gatewayd/internal/certstore"
)

// judge decides about candidates by a control experiment: a trial that fails counts
// against the candidate only if the current credential gets through right after.
// What the failure looked like does not matter, only that the hub had seen the
// candidate when it happened.
type judge struct {
	suspect      *certstore.Credential // its trial failed; the current one is the control
	reason       string
	currentsTurn bool
}

// failed notes a trial whose failure may be the candidate's own.
func (j *judge) failed(candidate *certstore.Credential, f *Fault) {
	j.suspect, j.reason, j.currentsTurn = candidate, f.Error(), true
}

// proved notes that cred got through, and gives the verdict on a suspect.
func (j *judge) proved(store Credentials, cred *certstore.Credential) {
	if j.suspect != nil && !same(j.suspect, cred) {
		store.Miss(j.suspect, j.reason)
	}
	*j = judge{}
}

// weigh looks at a connection that ended. again means: dial the current credential
// at once, as the control and because the working connection was given up for the
// trial.
func (j *judge) weigh(store Credentials, e *ending) (again bool) {
	current := store.Current()
	trial := !same(e.cred, current)
	switch {
	case e.proved && j.suspect != nil:
		// The old connection ended before it could serve as the control.
		return true
	case e.proved:
		return false
	case !trial:
		if j.suspect != nil {
			store.NoVerdict(j.suspect, j.reason)
		}
		*j = judge{}
		return false
	case current == nil, !e.fault.presented && e.accepted.IsZero():
		store.NoVerdict(e.cred, e.fault.Error())
		*j = judge{currentsTurn: true}
		return false
	}
	j.failed(e.cred, e.fault)
	return true
}

func same(a, b *certstore.Credential) bool {
	return a == b || a != nil && b != nil && a.Fingerprint() == b.Fingerprint()
}
