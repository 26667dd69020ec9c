package main

import (
	"fmt"
	"strings"
	"time"

	"gatewayd/internal/certstore"
	"gatewayd/internal/config"
	"gatewayd/internal/downstream"
	"gatewayd/internal/hub"
	"gatewayd/internal/queue"
)

// reportSchema is raised when a field of report changes its meaning or goes.
const reportSchema = 1

// report is what the gateway says of itself: the answer of /status, of
// `gatewayd status --json`, and what metrics are made from. Times are UTC,
// durations are in seconds.
type report struct {
	Schema     int              `json:"schema"`
	Version    string           `json:"version"`
	ConfigFile string           `json:"config_file"` // absolute
	Now        time.Time        `json:"now"`
	Started    time.Time        `json:"started"`
	Healthy    bool             `json:"healthy"`
	FirstFault string           `json:"first_fault"` // "" when healthy
	Clock      string           `json:"clock"`       // trusted or untrusted
	Disk       diskReport       `json:"disk"`
	Wire       wireRecord       `json:"wire"` // bytes of all identities, those included that are not configured any more
	Identities []identityReport `json:"identities"`
	// Unconfigured are identities that are in no configuration any more and still
	// have messages on disk.
	Unconfigured []string         `json:"unconfigured,omitempty"`
	Listeners    []listenerReport `json:"listeners"`
	// AzureClients are the identities for which Azure SDK clients may log in.
	AzureClients []azureReport `json:"azure_clients,omitempty"`
	sourcesReport
	// Desired is what became of hub.desired_config; nil when there was none to look at.
	Desired *desiredReport           `json:"desired_config,omitempty"`
	OTLP    *otlpReport              `json:"otlp,omitempty"`   // nil when it is off
	Routes  []downstream.RouteCount  `json:"routes,omitempty"` // in their order
	Sources []downstream.SourceCount `json:"sources"`
	Sensors []downstream.Count       `json:"sensors"` // the latest seen, at most 100
	Topics  []downstream.Count       `json:"topics"`  // by first two levels, at most 100
}

type diskReport struct {
	Trouble       string  `json:"trouble"` // "" when nothing is wrong
	Bytes         int64   `json:"bytes"`
	LiveBytes     int64   `json:"live_bytes"`
	Segments      int     `json:"segments"`
	WrittenBytes  uint64  `json:"written_bytes"`
	PayloadBytes  uint64  `json:"payload_bytes"`
	Syncs         uint64  `json:"syncs"`
	LastSync      float64 `json:"last_sync_seconds"`
	PendingBytes  int64   `json:"pending_bytes"`
	Damaged       uint64  `json:"damaged_records"`
	TornGroups    uint64  `json:"torn_groups"`
	Unreadable    int     `json:"unreadable_files"`
	Compacted     uint64  `json:"compacted"`
	Amplification float64 `json:"written_per_payload_byte"`
}

type identityReport struct {
	Name       string       `json:"name"`
	HubID      string       `json:"hub_id"` // device or device/module
	Host       string       `json:"host"`
	Connected  bool         `json:"connected"`
	State      string       `json:"state"`
	Since      time.Time    `json:"since"`
	Step       hub.Step     `json:"step,omitempty"`  // that is waited for while it connects
	FirstFault string       `json:"first_fault"`     // what is wrong, "" when nothing is
	Hint       string       `json:"hint"`            // what to do about it
	Fault      *faultReport `json:"fault,omitempty"` // of the session
	// Refused are subscriptions that the hub refused on this connection.
	Refused   []string `json:"refused_subscriptions,omitempty"`
	Remote    string   `json:"remote"`
	Transport string   `json:"transport"`        // in use: mqtt or mqtt-ws; "" when not connected
	Detour    string   `json:"detour,omitempty"` // with transport: auto, why it is mqtt-ws
	KeepAlive float64  `json:"keepalive_seconds"`
	// KeepAliveLimit is at which keep-alive a silent link died; only with keepalive: auto.
	KeepAliveLimit float64           `json:"keepalive_limit_seconds,omitempty"`
	NextTry        *time.Time        `json:"next_try,omitempty"`
	Progress       *time.Time        `json:"last_acknowledged,omitempty"`
	InFlight       int               `json:"in_flight"`
	Unacked        *time.Time        `json:"unacknowledged_since,omitempty"` // the hub acknowledges nothing
	Window         int               `json:"window"`                         // messages that may be in flight now
	Throttled      bool              `json:"throttled"`                      // fewer than configured, because the hub acknowledged late or closed
	Delivered      uint64            `json:"delivered"`
	Resent         uint64            `json:"resent"`
	Connects       map[string]uint64 `json:"connects"`
	Rotations      uint64            `json:"rotations"`
	Rotation       *rotationReport   `json:"last_rotation,omitempty"`
	Trial          string            `json:"trial"`

	Wire        wireReport       `json:"wire"` // bytes to and from the hub, see hub.Wire
	Certificate certstore.Status `json:"certificate"`
	Queue       queueReport      `json:"queue"`
}

// faultReport is what is wrong with a session: the words of hub.Fault.
type faultReport struct {
	Kind string `json:"kind"`
	Step string `json:"step"` // how far the connection had come
	Text string `json:"text"`
	Hint string `json:"hint"`
}

type rotationReport struct {
	At     time.Time `json:"at"`
	From   string    `json:"from"`
	To     string    `json:"to"`
	GapMS  float64   `json:"gap_ms"`
	Pause  float64   `json:"pause_ms"`
	Resent int       `json:"resent"`
}

// droppedByRoute is the reason of messages that never reached the queue: a program
// of their route failed and its on_error says drop.
const droppedByRoute = "program"

type queueReport struct {
	Messages      int64             `json:"messages"`
	Bytes         int64             `json:"bytes"`
	OldestSeconds float64           `json:"oldest_seconds"`
	Appended      uint64            `json:"appended"`
	Acked         uint64            `json:"acked"`
	Aside         int64             `json:"aside"`
	Dropped       map[string]uint64 `json:"dropped"`
}

type listenerReport struct {
	Kind    string `json:"kind"`
	Address string `json:"address"`
	downstream.MQTTStats
}

type azureReport struct {
	Listener string `json:"listener"`
	downstream.AzureStatus
}

// sensorsShown bounds the tables of sensors and topics in a report.
const sensorsShown = 100

// report takes a copy of everything; parts are consistent in themselves.
func (g *gateway) report() report {
	now, trusted := g.clock.Now()
	r := report{Schema: reportSchema, Version: readBuild().Version, ConfigFile: g.now.Load().cfg.File, Now: now.UTC(), Started: ago(now, g.started), Clock: "untrusted",
		Disk: newDiskReport(g.journal.Stats()), Sources: g.gate.Ledger().Sources(),
		Sensors: g.gate.Ledger().Clients(sensorsShown), Topics: g.gate.Ledger().Prefixes(sensorsShown)}
	if trusted {
		r.Clock = "trusted"
	}
	a := g.now.Load()
	r.Wire = g.wire.total()
	for _, id := range a.identities {
		r.Identities = append(r.Identities, g.dated(id, now))
	}
	r.Unconfigured = g.unconfigured()
	for _, m := range a.mqtt {
		r.Listeners = append(r.Listeners, listenerReport{Kind: "mqtt", Address: m.Addr().String(), MQTTStats: m.Stats()})
		for _, s := range m.AzureClients() {
			if s.Since != nil {
				*s.Since = ago(now, *s.Since)
			}
			r.AzureClients = append(r.AzureClients, azureReport{m.Addr().String(), s})
		}
	}
	for _, h := range a.http {
		r.Listeners = append(r.Listeners, listenerReport{Kind: "http", Address: h.Addr().String()})
	}
	if s := g.now.Load().sources; s != nil {
		r.sourcesReport = s.report()
	}
	r.Desired = g.desired.now(a.cfg)
	r.Routes = g.gate.Router().Counts()
	r.OTLP = g.otlp.report(now)
	r.FirstFault = r.firstFault()
	r.Healthy = r.FirstFault == ""
	return r
}

// identityReport is one identity's part of a report.
func (g *gateway) identityReport(id *identity) identityReport {
	now, _ := g.clock.Now()
	return g.dated(id, now)
}

// dated is the report of an identity with times by the clock that says now, and
// what its routes dropped.
func (g *gateway) dated(id *identity, now time.Time) identityReport {
	r := id.report()
	r.Queue.Dropped[droppedByRoute] = g.gate.Dropped(id.cfg.Name)
	for _, t := range []*time.Time{&r.Since, r.NextTry, r.Progress, r.Unacked} {
		if t != nil {
			*t = ago(now, *t)
		}
	}
	return r
}

// firstFault is the one line that an operator needs first: the disk concerns
// every identity, then the identities in the order of the file.
func (r *report) firstFault() string {
	if r.Disk.Trouble != "" {
		return "disk: " + r.Disk.Trouble
	}
	for _, id := range r.Identities {
		if id.FirstFault != "" {
			return id.Name + ": " + id.FirstFault
		}
	}
	return r.sourcesReport.firstFault()
}

func newDiskReport(s queue.JournalStats) diskReport {
	d := diskReport{Trouble: s.Trouble, Bytes: s.DiskBytes, LiveBytes: s.LiveBytes, Segments: s.Segments, WrittenBytes: s.DiskWritten,
		PayloadBytes: s.PayloadBytes, Syncs: s.Syncs, LastSync: s.LastSync.Seconds(), PendingBytes: s.Pending, Damaged: s.Damaged,
		TornGroups: s.Torn, Unreadable: s.Unreadable, Compacted: s.Compacted}
	if s.PayloadBytes > 0 {
		d.Amplification = float64(s.DiskWritten) / float64(s.PayloadBytes)
	}
	return d
}

func (id *identity) report() identityReport {
	s, q, c := id.session.Status(), id.queue.Stats(), id.store.Status()
	r := identityReport{
		Name: id.cfg.Name, HubID: id.cfg.HubID(), Host: id.cfg.HostName, Connected: s.State == hub.StateConnected, State: s.State,
		Since: s.Since.UTC(), Step: s.Step, Refused: s.Refused, Remote: s.Remote, Transport: string(s.Transport),
		KeepAlive: s.KeepAlive.Seconds(), KeepAliveLimit: s.KeepAliveLimit.Seconds(), NextTry: timeOrNil(s.NextTry), Progress: timeOrNil(s.Progress), InFlight: s.InFlight, Window: s.Window, Throttled: s.Throttled,
		Delivered: s.Delivered, Resent: s.Resent, Connects: s.Connects, Rotations: s.Rotations, Trial: s.Trial, Certificate: c, Wire: id.wire.report(),
		Queue: queueReport{Messages: q.Messages, Bytes: q.Bytes, OldestSeconds: q.OldestAge.Seconds(), Appended: q.Appended,
			Acked: q.Acked, Aside: q.Aside, Dropped: q.Dropped},
	}
	if s.Rotations > 0 {
		r.Rotation = &rotationReport{At: s.Rotation.At.UTC(), From: s.Rotation.From, To: s.Rotation.To,
			GapMS: millis(s.Rotation.Gap), Pause: millis(s.Rotation.Pause), Resent: s.Rotation.Resent}
	}
	if s.Detour != nil {
		r.Detour = s.Detour.Error()
	}
	if f := s.Fault; f != nil {
		r.Fault = &faultReport{Kind: string(f.Kind), Step: string(f.Step), Text: f.Text, Hint: f.Hint}
	}
	if !s.Unacked.IsZero() && time.Since(s.Unacked) > quietLimit {
		r.Unacked = &s.Unacked
	}
	r.FirstFault, r.Hint = firstIdentityFault(s, c, id.roots.Status().Problems)
	if r.FirstFault == "" {
		r.FirstFault, r.Hint = r.flowFault(id.cfg)
	}
	return r
}

// firstIdentityFault looks in the order in which a cause hides the next: files,
// connection, then what threatens later.
func firstIdentityFault(s hub.Status, c certstore.Status, trust []string) (fault, hint string) {
	switch {
	case c.Current == nil:
		return strings.TrimSuffix("no usable certificate: "+c.CandidateReason, ": "), c.CandidateHint
	case s.Fault != nil:
		return s.Fault.Error(), s.Fault.Hint
	case s.State != hub.StateConnected && s.State != hub.StateNew && s.State != hub.StateConnecting:
		return s.State, ""
	case c.CandidateState == certstore.Refused || c.CandidateState == certstore.Missed || c.CandidateState == certstore.Rejected:
		return fmt.Sprintf("new certificate %s: %s", c.CandidateState, c.CandidateReason), c.CandidateHint
	case c.FromLastGood && c.CandidateReason != "":
		return "only the copy of the last good certificate is left: " + c.CandidateReason, c.CandidateHint
	case len(c.Problems) > 0:
		return c.Problems[0], ""
	case len(trust) > 0:
		return "trust: " + trust[0], "the roots read before stay in use"
	}
	return "", ""
}

// flowFault is what is wrong with an identity of whose connection nothing bad is
// known: it takes long, or readings do not get on.
func (r *identityReport) flowFault(cfg *config.Identity) (fault, hint string) {
	switch {
	case !r.Connected && time.Since(r.Since) > quietLimit && r.Step != "":
		return fmt.Sprintf("not connected yet: %s for %s, waits for an answer at step %s", r.State, time.Since(r.Since).Round(time.Second), r.Step),
			"the other end is silent, or something on the way swallows what is sent: a firewall, a proxy, a link that is down"
	case !r.Connected && time.Since(r.Since) > quietLimit:
		return fmt.Sprintf("not connected yet: %s for %s", r.State, time.Since(r.Since).Round(time.Second)),
			"with many identities it may wait for its turn (hub.connect_rate)"
	case len(r.Refused) > 0:
		return "connected, and the hub refuses the subscription " + r.Refused[0], "what comes from the cloud that way does not arrive; commands of the identity switches it off"
	case r.Unacked != nil:
		return fmt.Sprintf("connected, and none of %d messages in flight was acknowledged for %s", r.InFlight, time.Since(*r.Unacked).Round(time.Second)),
			"the hub throttles, or the daily message quota is used up (it resets at 00:00 UTC): look at the hub's metrics, and at hub.send_rate"
	case r.Throttled:
		return fmt.Sprintf("connected, and the hub is slow to acknowledge or closes: %d of %d messages may be in flight", r.Window, cfg.Hub.Window),
			"the gateway sends less until that is over; look at the hub's metrics for throttling, at its tier and units, and at hub.send_rate"
	}
	return r.Queue.fault(cfg)
}

// fullPercent is from when on a queue is told to be full.
const fullPercent = 90

// fault is what keeps readings from being stored or sent; "" for nothing.
func (q *queueReport) fault(cfg *config.Identity) (fault, hint string) {
	limit := cfg.Queue.MaxBytes
	switch {
	case q.Aside > 0:
		return fmt.Sprintf("%d messages were set aside: the hub does not take them, or a program of a route failed", q.Aside),
			fmt.Sprintf("see why with gatewayd queue inspect %s; queue requeue puts them back, queue export saves them, queue drop --aside forgets them", cfg.Name)
	case limit > 0 && q.Bytes >= limit/100*fullPercent:
		hint = "new readings are refused"
		if cfg.Queue.WhenFull == config.WhenFullDropOldest {
			hint = "the oldest readings are dropped"
		}
		return fmt.Sprintf("the queue is full to %d %%: %d messages with %d of %d bytes", q.Bytes*100/limit, q.Messages, q.Bytes, limit),
			hint + " at 100 % until the hub takes some; raise queue.max_bytes of the identity if there is disk for it"
	}
	return "", ""
}

// ago is when t was, by the clock that says now. What was noted while the machine
// believed in 1970 is no half a century old.
func ago(now, t time.Time) time.Time { return now.Add(-time.Since(t)).UTC() }

func timeOrNil(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// statusLine is the one line that systemctl shows.
func (g *gateway) statusLine() string {
	connected, queued := 0, int64(0)
	identities := g.now.Load().identities
	for _, id := range identities {
		if state, _ := id.session.State(); state == hub.StateConnected {
			connected++
		}
		queued += id.queue.Messages()
	}
	line := fmt.Sprintf("%d of %d identities connected, %d queued", connected, len(identities), queued)
	if t := g.journal.Stats().Trouble; t != "" {
		line += "; disk: " + t
	}
	if _, trusted := g.clock.Now(); !trusted {
		line += "; clock=untrusted"
	}
	return line
}
