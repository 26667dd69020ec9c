package certstore

import "time"

// CandidateState says where the newest certificate on disk is on its way to being current.
type CandidateState string

const (
	// None means that the files hold the current credential.
	None CandidateState = "none"
	// Settling means that the files changed a moment ago and are not believed yet.
	Settling CandidateState = "settling"
	// Waits means that the files hold no usable pair yet: missing, torn, or certificate and key of different renewals.
	Waits CandidateState = "incomplete"
	// Refused means that the files are whole and cannot be used; the reason says why.
	Refused CandidateState = "invalid"
	// Early means valid and different, but not before its NotBefore.
	Early CandidateState = "not yet valid"
	// Staged means valid and different: a session may try it now, or as soon as cut-overs are spaced enough.
	Staged CandidateState = "staged"
	// Missed means that a trial failed while the current credential got through; it is tried again at NextRetry.
	Missed CandidateState = "missed"
	// Rejected means missed three times or more: an operator has to look. It is still tried at NextRetry, at most hourly,
	// because a thumbprint or an issuer may be entered in the hub late.
	Rejected CandidateState = "rejected"
)

// Summary is what may be told about a credential.
type Summary struct {
	Fingerprint string    `json:"fingerprint"`
	SHA1        string    `json:"sha1"`   // thumbprint of the leaf, upper-case hex
	SHA256      string    `json:"sha256"` // thumbprint of the leaf, upper-case hex
	CommonName  string    `json:"common_name"`
	Subject     string    `json:"subject"`
	Issuer      string    `json:"issuer"`
	Serial      string    `json:"serial"` // lower-case hex
	Key         string    `json:"key"`    // for example "ECDSA P-256"
	Chain       int       `json:"chain"`  // certificates sent
	NotBefore   time.Time `json:"not_before"`
	NotAfter    time.Time `json:"not_after"`
	DaysLeft    float64   `json:"days_left"` // negative when expired
}

// Status is a copy of what a Store knows about its identity's certificate.
type Status struct {
	Identity string   `json:"identity"`
	Watch    string   `json:"watch"`              // "events", "poll-only", or "" before the watcher runs
	Problems []string `json:"problems,omitempty"` // what is wrong with the files' place, and what expiry threatens

	Current      *Summary  `json:"current,omitempty"`
	Proved       bool      `json:"proved"`                 // the hub accepted Current since the start
	FromLastGood bool      `json:"from_last_good"`         // Current comes from the copy in the state folder, not from the files
	Generation   uint64    `json:"generation"`             // number of different credentials proved so far, over restarts
	LastRotation time.Time `json:"last_rotation,omitzero"` // zero: never
	// GapMS is the last rotation's time without an acknowledged message, as the session measured it, in milliseconds.
	GapMS        float64 `json:"gap_ms"`
	Backwards    bool    `json:"backwards"`     // the last rotation went to a credential with an earlier NotBefore
	NotPersisted string  `json:"not_persisted"` // why the last proof is not on disk yet; "" when it is
	Expiry       string  `json:"expiry"`        // the most urgent warning passed: "1/3", "1/10", "7d", "1d", "1/20", "1h", "expired" or ""

	CandidateState  CandidateState `json:"candidate_state"`
	Candidate       *Summary       `json:"candidate,omitempty"`
	CandidateReason string         `json:"candidate_reason"`
	CandidateHint   string         `json:"candidate_hint"`
	Misses          int            `json:"misses"`
	NoVerdicts      int            `json:"no_verdicts"`
	NextRetry       time.Time      `json:"next_retry,omitzero"` // zero: now, or nothing to retry

	ClockTrusted bool `json:"clock_trusted"`

	Committed       uint64 `json:"committed"`        // rotations to a proved candidate since the start
	MissedTrials    uint64 `json:"missed_trials"`    // trials that counted against a candidate since the start
	RejectedTotal   uint64 `json:"rejected_total"`   // candidates that became Rejected since the start
	CandidatesTotal uint64 `json:"candidates_total"` // different credentials staged since the start
}

// Summarize describes a credential at a given time.
func Summarize(c *Credential, now time.Time) Summary {
	a := &c.about
	return Summary{
		Fingerprint: c.Fingerprint(), SHA1: c.SHA1(), SHA256: c.SHA256(),
		CommonName: a.commonName, Subject: a.subject, Issuer: a.issuer, Serial: a.serial, Key: a.key, Chain: len(c.chain),
		NotBefore: a.notBefore, NotAfter: a.notAfter, DaysLeft: a.notAfter.Sub(now).Hours() / 24,
	}
}
