package hub

import "gatewayd/internal/certstore"

// spare is the credential that served before the one in use, until the hub has
// acknowledged a message under the one in use. A round trip commits a new one when
// there is nothing to send, and says nothing about a hub that accepts connections and
// ends them at the first message. Then the spare is the control: it is dialled at
// once, both take turns while neither works, and when a message goes through under
// the spare it is current again and the other one has missed.
type spare struct {
	cred *certstore.Credential // nil: the one in use has carried a message, or is the first
	turn bool                  // of the next connection
}

// committed notes a change from before to cred. Of several without a message the
// oldest stays, which is the one that has carried some.
func (p *spare) committed(before, cred *certstore.Credential) {
	switch {
	case same(before, cred):
	case same(p.cred, cred):
		*p = spare{}
	case p.cred == nil:
		p.cred = before
	}
}

// weigh looks at a connection that ended. known says that its end was about the
// spare and not about a candidate; again, that it is the other one's turn at once.
func (p *spare) weigh(j *judge, store Credentials, e *ending) (again, known bool) {
	current := store.Current()
	switch {
	case p.cred == nil:
		return false, false
	case e.acked:
		if same(e.cred, current) {
			*p = spare{}
		}
		return false, false
	case same(e.cred, p.cred) && !same(p.cred, current):
		// Neither works: no verdict.
		p.turn = false
		*j = judge{}
		return false, true
	case !same(e.cred, current), e.fault == nil, e.fault.Kind == Contested, !e.mayBeTheCredentials():
		return false, false
	}
	p.turn = true
	j.failed(e.cred, e.fault)
	return true, true
}

// mayBeTheCredentials says whether the hub had seen the credential when it ended.
func (e *ending) mayBeTheCredentials() bool {
	if e.accepted.IsZero() {
		return e.fault.presented
	}
	return e.byPeer || e.fault.Kind == Stalled
}
