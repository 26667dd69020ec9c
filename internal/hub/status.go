package hub

import (
	"maps"
	"sync"
	"sync/atomic"
	"time"
)

// The states of a session besides those named by a [Kind], which mean "waiting to
// try again after that".
const (
	StateNew           = "new"
	StateNoCertificate = "no certificate"
	StateConnecting    = "connecting"
	StateConnected     = "connected"
	StateStopped       = "stopped"
)

// ResultAccepted is the key of Status.Connects for a CONNECT that the hub
// accepted; the other keys are kinds of faults.
const ResultAccepted = "accepted"

// Rotation is one change of certificate on a working connection.
type Rotation struct {
	At time.Time
	// From and To are fingerprints.
	From, To string
	// Gap is the time from the last acknowledgement on the old connection to the first
	// on the new; with nothing to send, the time for which sending was not possible.
	Gap time.Duration
	// Pause is how long sending stopped.
	Pause time.Duration
	// Resent is how many messages had no acknowledgement when the old connection ended.
	Resent int
}

// Status is what a session is doing and why it is not.
type Status struct {
	Identity    string
	State       string // one of the State constants, or a Kind while waiting after a fault
	Since       time.Time
	Fingerprint string        // of the credential in use; "" when not connected
	Remote      string        // with a proxy: the hub's address "through" the proxy's
	Transport   Transport     // of the connection in use; "" when not connected
	Detour      *Fault        // with Auto: why OverTLS, which would go first, is not in use; nil when it is
	KeepAlive   time.Duration // at this moment
	// KeepAliveLimit is at which keep-alive a silent link died, with KeepAliveAuto; 0:
	// none is known.
	KeepAliveLimit time.Duration
	Fault          *Fault    // the first thing that is wrong; nil when nothing is
	Attempt        int       // attempts without progress
	Step           Step      // which one StateConnecting waits for; "" while it waits for its turn
	NextTry        time.Time // zero when not waiting
	Progress       time.Time // of the latest acknowledged message; zero: none since the start

	Trial      string // what the cut-over to a candidate is doing; "" when there is none
	TrialFault *Fault // why the latest trial failed; nil after a success

	Refused []string // subscriptions that the hub refused on this connection; not to be changed

	InFlight    int
	Unacked     time.Time // since when the oldest message in flight is the oldest; zero: none is
	Window      int       // messages that may be in flight now
	Throttled   bool      // Window is less than configured, because the hub was slow to acknowledge, or closed
	Delivered   uint64
	Resent      uint64
	SetAside    uint64
	UnknownAcks uint64 // acknowledgements for nothing in flight
	Connects    map[string]uint64
	Rotations   uint64
	Rotation    Rotation // the latest
}

// board is the part of a session that others may read.
type board struct {
	delivered, unknownAcks atomic.Uint64

	mu sync.Mutex
	st Status // guarded by mu
}

func (b *board) set(f func(*Status)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(&b.st)
}

// state changes the state; Since stays when it is the same already.
func (b *board) state(s string) {
	b.set(func(st *Status) {
		if st.State != s {
			st.State, st.Since = s, time.Now()
		}
	})
}

func (b *board) count(result string) {
	b.set(func(st *Status) { st.Connects[result]++ })
}

// Turns counts how often Run has looked around, and wakes it when it is connected
// so that it does so again. A count that stands still for longer than Timing.Write
// between two calls, connected at both, means that Run hangs. Unconnected, Run waits
// for others, each time for a bounded time.
func (s *Session) Turns() (n uint64, connected bool) {
	s.board.mu.Lock()
	defer s.board.mu.Unlock()
	if s.shown == nil {
		return s.turns.Load(), false
	}
	defer poke(s.shown.wake)
	return s.turns.Load(), true
}

// State is the part of Status that is looked at often; it costs nothing. fault is nil
// when nothing is wrong.
func (s *Session) State() (state string, fault *Fault) {
	s.board.mu.Lock()
	defer s.board.mu.Unlock()
	return s.board.st.State, s.board.st.Fault
}

// Status returns a copy.
func (s *Session) Status() Status {
	s.board.mu.Lock()
	defer s.board.mu.Unlock()
	st := s.board.st
	st.Connects = maps.Clone(st.Connects)
	st.Delivered, st.UnknownAcks = s.board.delivered.Load(), s.board.unknownAcks.Load()
	st.KeepAlive = s.cfg.KeepAlive
	if s.keep != nil {
		st.KeepAlive, st.KeepAliveLimit = s.keep.state()
	}
	if st.State == StateConnecting {
		st.Step = s.dial.at()
	}
	if c := s.shown; c != nil {
		st.Refused = c.refusals()
		st.InFlight = c.inFlight()
		if since, waiting := c.stalledSince(); waiting {
			st.Unacked = since
		}
		if at := c.lastAck.Load(); at > 0 {
			st.Progress = c.born.Add(time.Duration(at))
		}
	}
	return st
}
