package certstore

import (
	"bytes"
	"context"
	"crypto/x509"
	"path/filepath"
	"sync"
	"time"

	"go.uber.org/zap"
)

const (
	clockTick = 10 * time.Second
	// stepOver is the difference between wall and monotonic progress that counts as a step of the clock; slewing and leap
	// seconds stay below.
	stepOver = 2 * time.Second
	// saveEvery spares the flash: after a power cut the floor is at most this old.
	saveEvery = time.Hour
	// floorSlack lets a machine without a time daemon be set back a little without being distrusted.
	floorSlack = 5 * time.Minute
	// daemonGrace is how long a time daemon that has not synchronised keeps the hub's evidence from counting: after a boot
	// the daemon is about to step the clock; later its servers are out of reach for good, as in plants that open 8883 only.
	daemonGrace = 10 * time.Minute
)

// ClockOptions configure a Clock.
type ClockOptions struct {
	StateDir string      // where the last good time is kept; empty: nowhere
	Build    time.Time   // when the program was built: no earlier time can be right
	Log      *zap.Logger // nil: silent
}

// Clock tells the time and whether to believe it. Gateways without a clock battery boot in 1970 or at the time of their
// last shutdown; until the time is known, they must store readings, and dial with a time at which the hub's certificate
// is valid.
//
// The wall clock is trusted when one of these holds, asked in this order every 10 s and when there is evidence that it
// waited for:
//
//  1. systemd-timesyncd has synchronised since boot (/run/systemd/timesync/synchronized exists) or chronyd says that it is
//     synchronised (tracking request to its command port, UDP 127.0.0.1:323). This trust lasts, through outages of the time
//     servers too, until the clock falls behind the floor. It also corrects a floor that was too late. adjtimex(2) is not
//     asked: it is outside systemd's @system-service set of system calls.
//  2. The hub is evidence: the wall clock lies within the validity of the server certificate that was verified last, and
//     not before the floor. While a time daemon is there that has not synchronised, this counts only after 10 minutes.
//     It is a coarse proof; a machine that restored an old time and has no time daemon is trusted too early.
//
// Else it is not. The floor is the newest of build time and last good time, which is kept on disk hourly while trusted.
// A Clock is safe for concurrent use.
type Clock struct {
	o    ClockOptions
	log  *zap.Logger
	disk disk

	wall    func() time.Time
	daemons func() (synced, present bool)

	fixed bool // WallClock: trusted whatever happens

	evidence chan struct{} // one slot: look now

	mu       sync.Mutex
	floor    time.Time
	source   string // why trusted; "" when not
	gen      uint64
	lastWall time.Time // at the last tick
	lastMono time.Time // at the last tick, with a monotonic reading, as the two below
	savedAt  time.Time
	hubSince time.Time // first evidence
	hub      *x509.Certificate
}

// ClockStatus is a copy of what a Clock knows.
type ClockStatus struct {
	Trusted bool      `json:"trusted"`
	Source  string    `json:"source"` // "timesyncd or chronyd", "hub", "assumed" or ""
	Floor   time.Time `json:"floor"`
}

// WallClock believes the machine's clock: for commands, tests and machines that are known to keep time. It needs no Run.
func WallClock() *Clock {
	return &Clock{fixed: true, source: "assumed", wall: time.Now, log: zap.NewNop()}
}

// OpenClock reads the last good time; one that cannot be read counts as absent. The clock is not trusted before Run has
// looked once.
func OpenClock(o ClockOptions) *Clock {
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	c := &Clock{o: o, log: o.Log, disk: osDisk(), wall: time.Now, floor: o.Build, evidence: make(chan struct{}, 1)}
	c.daemons = func() (bool, bool) { return timeDaemons("/run/systemd/timesync", "127.0.0.1:323") }
	c.lastWall, c.lastMono = c.wall().Round(0), time.Now()
	if o.StateDir != "" {
		if f, err := readFile(c.path()); err == nil {
			if t, err := time.Parse(time.RFC3339, string(bytes.TrimSpace(f.data))); err == nil && t.After(c.floor) {
				c.floor = t
			}
		}
	}
	return c
}

func (c *Clock) path() string { return filepath.Join(c.o.StateDir, "clock") }

// Now returns the wall clock's time and true when it is trusted, else the later of it and the floor, and false.
func (c *Clock) Now() (t time.Time, trusted bool) {
	wall := c.wall()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.source != "" {
		return wall, true
	}
	return later(wall, c.floor), false
}

// TLSTime is the time for tls.Config.Time of a dial with cred (nil allowed): Now, but while the clock is not trusted
// never earlier than cred's own NotBefore, which somebody with a clock wrote.
func (c *Clock) TLSTime(cred *Credential) time.Time {
	t, trusted := c.Now()
	if !trusted && cred != nil {
		t = later(t, cred.about.notBefore)
	}
	return t
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// Observed tells the clock that the hub's certificate was verified at TLSTime and the connection proved: evidence for the
// time if the wall clock lies within its validity.
func (c *Clock) Observed(server *x509.Certificate) {
	if c.fixed || server == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hub = server
	if c.hubSince.IsZero() {
		c.hubSince = time.Now()
	}
	if c.source == "" {
		select {
		case c.evidence <- struct{}{}:
		default:
		}
	}
}

// Status returns a copy.
func (c *Clock) Status() ClockStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	return ClockStatus{Trusted: c.source != "", Source: c.source, Floor: c.floor}
}

// Behind says that the wall clock shows a time which has passed already, and which one: it is before the floor, by more
// than a machine without a time daemon may be set back.
func (c *Clock) Behind() (floor time.Time, behind bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.floor, c.wall().Before(c.floor.Add(-floorSlack))
}

// Generation changes when the clock stepped or its trust changed. Whoever waits after a failure that the time may have
// caused should try again then; a running Store signals Changed for it.
func (c *Clock) Generation() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.gen
}

// Run watches for steps and for evidence until ctx ends. Steps are noticed by comparing the progress of the wall clock
// with that of the monotonic clock, which also shows a suspend, during which the latter stands still.
func (c *Clock) Run(ctx context.Context) error {
	if c.fixed {
		<-ctx.Done()
		return nil
	}
	t := time.NewTicker(clockTick)
	defer t.Stop()
	for {
		c.tick(time.Now())
		select {
		case <-ctx.Done():
			c.save(time.Now(), true)
			return nil
		case <-t.C:
		case <-c.evidence:
		}
	}
}

// tick looks once; mono carries a monotonic reading.
func (c *Clock) tick(mono time.Time) {
	synced, present := c.daemons()
	wall := c.wall().Round(0)
	c.mu.Lock()
	step := wall.Sub(c.lastWall) - mono.Sub(c.lastMono)
	stepped := step > stepOver || step < -stepOver
	c.lastWall, c.lastMono = wall, mono
	was := c.source
	c.source = c.decide(wall, mono, synced, present)
	now := c.source
	if stepped || was != now {
		c.gen++
	}
	if now == sourceDaemon && synced && wall.Before(c.floor) {
		c.floor = later(wall, c.o.Build) // it was written under a clock that ran ahead
	}
	floor := c.floor
	c.mu.Unlock()
	if stepped {
		c.log.Info("clock stepped", zap.Duration("step", step))
	}
	switch {
	case was == "" && now != "":
		c.log.Info("clock trusted", zap.String("source", now))
	case was != "" && now == "":
		c.log.Warn("clock not trusted any more", zap.Time("floor", floor))
	}
	c.save(mono, was == "")
}

const (
	sourceDaemon = "timesyncd or chronyd"
	sourceHub    = "hub"
)

// decide applies the rules that the type states.
func (c *Clock) decide(wall, mono time.Time, synced, present bool) string {
	behind := wall.Before(c.floor.Add(-floorSlack))
	switch {
	case synced && !wall.Before(c.o.Build):
		return sourceDaemon
	case c.source == sourceDaemon && !behind:
		return sourceDaemon
	case c.hub == nil || behind || wall.Before(c.hub.NotBefore) || wall.After(c.hub.NotAfter):
		return ""
	case present && mono.Sub(c.hubSince) < daemonGrace && c.source != sourceHub:
		return ""
	}
	return sourceHub
}

// save raises the floor to the trusted time and keeps it: hourly, or now when asked.
func (c *Clock) save(mono time.Time, now bool) {
	wall := c.wall().Round(0)
	c.mu.Lock()
	due := c.source != "" && (now || mono.Sub(c.savedAt) >= saveEvery)
	if due {
		c.floor, c.savedAt = later(wall, c.floor), mono
	}
	floor := c.floor
	c.mu.Unlock()
	if !due || c.o.StateDir == "" {
		return
	}
	if err := c.disk.replace(c.path(), []byte(floor.UTC().Format(time.RFC3339)+"\n")); err != nil {
		c.log.Warn("last good time not persisted, trying again in an hour", zap.Error(err))
	}
}
