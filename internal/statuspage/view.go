package statuspage

import "time"

// Gateway is what the page asks of the gateway. All are called from several
// goroutines.
type Gateway interface {
	// View is a copy of the state of everything.
	View() View
	// Sensors are all local clients that are remembered, in any order.
	Sensors() []Sensor
	// Detail is all about one identity, as JSON in the form of /status; false: there
	// is none of that name.
	Detail(identity string) (any, bool)
}

// View is the gateway at one moment. Times are by the clock that Now is.
type View struct {
	Head
	Identities []Identity
	Routes     []Route
	Sources    []Source
	Listeners  []Listener
}

// Head is what concerns the whole gateway.
type Head struct {
	Machine      string    `json:"machine"`
	Version      string    `json:"version"`
	Now          time.Time `json:"now"`
	Started      time.Time `json:"started"`
	FirstFault   string    `json:"first_fault"`    // "" when nothing is wrong
	FaultHint    string    `json:"fault_hint"`     // what to do about it
	FaultAt      string    `json:"fault_identity"` // the identity it concerns, or ""
	Clock        string    `json:"clock"`          // trusted or untrusted
	Disk         Disk      `json:"disk"`
	SensorCount  int       `json:"sensor_count"`
	Unconfigured []string  `json:"unconfigured"` // identities with messages on disk and without configuration
}

// Disk is where the queues are.
type Disk struct {
	Trouble    string  `json:"trouble"`
	Bytes      int64   `json:"bytes"`
	LastSyncMS float64 `json:"last_sync_ms"`
}

// Identity is a row of the overview.
type Identity struct {
	Name      string    `json:"name"`
	HubID     string    `json:"hub_id"`
	State     string    `json:"state"`
	Connected bool      `json:"connected"`
	Since     time.Time `json:"since"`
	Fault     string    `json:"fault"`
	Hint      string    `json:"hint"`

	CertificateFrom  time.Time `json:"cert_from,omitzero"`
	CertificateUntil time.Time `json:"cert_until,omitzero"`
	Candidate        string    `json:"candidate"` // state of a certificate that is not in use yet, or ""

	Received  uint64 `json:"received"`
	Delivered uint64 `json:"delivered"`
	Queued    int64  `json:"queued"`
	Bytes     int64  `json:"bytes"`
	OldestSec int64  `json:"oldest"` // age of the oldest message that waits, in seconds
	Aside     int64  `json:"aside"`
	Dropped   uint64 `json:"dropped"`
	Rotations uint64 `json:"rotations"`
}

// Sensor is a local client as its source knows it.
type Sensor struct {
	Source   string    `json:"source"`
	Name     string    `json:"name"`
	Messages uint64    `json:"messages"`
	Bytes    uint64    `json:"bytes"`
	Refused  uint64    `json:"refused"`
	LastSeen time.Time `json:"last_seen"`
}

// Route is a line of the configuration's routes with what it did since it was
// loaded.
type Route struct {
	Name      string `json:"name"`
	Match     string `json:"match"`
	To        string `json:"to"`
	Messages  uint64 `json:"messages"` // taken by the queue
	Unwanted  uint64 `json:"unwanted"`
	Unchanged uint64 `json:"unchanged"`
	Failed    uint64 `json:"failed"`
	LastError string `json:"last_error"`
}

// Source is a kind of source.
type Source struct {
	Name     string            `json:"name"`
	Received uint64            `json:"received"`
	Refused  map[string]uint64 `json:"refused"`
}

// Listener is a place where readings come in.
type Listener struct {
	Kind        string `json:"kind"`
	Address     string `json:"address"`
	Connections int    `json:"connections"` // -1 = not counted
	Fault       string `json:"fault"`
}
