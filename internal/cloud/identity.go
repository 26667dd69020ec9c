package cloud

import (
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"gatewayd/internal/downstream"
	"gatewayd/internal/hub"
	"gatewayd/internal/packet"
	"gatewayd/internal/queue"
)

// Options say what is brought down for one identity.
type Options struct {
	Name               string
	C2D, Methods, Twin bool
	MaxAge             time.Duration // of a C2D message without $.exp; 0 = kept until acknowledged

	// Targets are methods that go elsewhere than to the local topics.
	Targets map[string]Target
	// Allow names the methods that are answered besides those in Targets; nil = all.
	Allow []string

	// ReportKey is the property under which the gateway reports on itself; "" = it
	// does not.
	ReportKey   string
	ReportEvery time.Duration // 0 = 1 h
}

// Target is where a method goes; with none of the first three it goes to the local
// topics.
type Target struct {
	URL     string   // called with POST; its answer is the method's
	Exec    []string // a program with arguments; payload on stdin, answer on stdout
	Builtin string   // a name in Config.Builtins
	Timeout time.Duration
}

// DefaultMethodTimeout is below the 30 s that the hub grants a method by default,
// so that the caller gets the gateway's reason.
const DefaultMethodTimeout = 25 * time.Second

const (
	maxBox = 1024 // commands of local clients and the hub that wait for a step
	// c2dBytes bounds what waits for local subscribers; the hub holds 50 messages of 64
	// KB for a device, and keeps what this side does not take.
	c2dBytes   = 8 << 20
	maxWaiting = 1024
)

// Identity is one identity's part of a Cloud. It implements hub.Commands.
type Identity struct {
	c       *Cloud
	options atomic.Pointer[Options]
	q       *queue.Queue // nil while there was no C2D message; belongs to the step at hand

	// What follows up to mu belongs to the step at hand.
	c2d     c2d
	methods methods
	twin    twin

	shown   State // belongs to the goroutine that watches states
	told    atomic.Bool
	parked  atomic.Bool  // removed
	waiting atomic.Int32 // C2D messages that wait for a subscriber

	mu      sync.Mutex
	box     []func()
	onStage bool          // scheduled, or in a step
	news    chan struct{} // closed and replaced when there is a new C2D message
	alarm   *time.Timer
	alarmAt time.Time // zero = not set
}

// log is for lines with the identity's name. It is made when there is something to say:
// kept by each of many identities that have nothing to, it would cost 1.2 KiB.
func (id *Identity) log() *zap.Logger { return id.c.log.With(zap.String("identity", id.opt().Name)) }

// opt is what was configured last.
func (id *Identity) opt() *Options { return id.options.Load() }

// Add makes the part of an identity and reads what it has on disk. Called again
// for the same name, while no session of it runs, it changes what is brought down;
// what waits stays. It may be called at any time.
func (c *Cloud) Add(o Options) (*Identity, error) {
	if o.ReportEvery <= 0 {
		o.ReportEvery = time.Hour
	}
	for name, t := range o.Targets {
		if t.Builtin != "" && c.cfg.Builtins[t.Builtin] == nil {
			return nil, fmt.Errorf("methods.%s: there is no built-in method %q", name, t.Builtin)
		}
	}
	if id := c.unpark(o.Name); id != nil {
		return id, id.change(o)
	}
	id := &Identity{c: c, news: make(chan struct{})}
	if err := id.set(o); err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.ids[o.Name] = id
	running := c.work != nil
	c.mu.Unlock()
	if running {
		id.post(id.begin)
	}
	return id, nil
}

// change sets other options, in a step when there may be one.
func (id *Identity) change(o Options) (err error) {
	id.c.mu.Lock()
	running := id.c.work != nil
	id.c.mu.Unlock()
	if !running {
		return id.set(o)
	}
	done := make(chan error, 1)
	if !id.post(func() {
		err := id.set(o)
		if err == nil {
			id.begin()
		}
		done <- err
	}) {
		return ErrStopped
	}
	return <-done
}

// set takes options over and reads from disk what they ask for and is not known.
func (id *Identity) set(o Options) error {
	if o.C2D && id.q == nil && slices.Contains(id.c.cfg.Journal.Identities(), QueueName(o.Name)) {
		err := id.openQueue(o.Name)
		if err == nil {
			err = id.restoreC2D()
		}
		if err != nil {
			id.q = nil
			return fmt.Errorf("commands of %s: %w", o.Name, err)
		}
	}
	if was := id.opt(); o.Twin && (was == nil || !was.Twin) {
		id.twin = twin{}
		id.restoreTwin(o.Name)
	} else if was != nil && was.Twin && !o.Twin {
		id.retain("twin/desired", nil)
	}
	id.options.Store(&o)
	return nil
}

// openQueue opens the C2D queue. One that was never used is opened by the first
// message: most identities never get one.
func (id *Identity) openQueue(name string) (err error) {
	id.q, err = id.c.cfg.Journal.Queue(QueueName(name), queue.Limits{MaxBytes: c2dBytes})
	return err
}

// Remove takes an identity out of service, whose session has ended: local clients
// find nothing of it any more. What is on its way to the disk still gets there, and
// Add brings the identity back as it was.
func (c *Cloud) Remove(name string) {
	c.mu.Lock()
	id := c.ids[name]
	if id != nil {
		delete(c.ids, name)
		c.parked[name] = id
	}
	c.mu.Unlock()
	if id == nil {
		return
	}
	id.parked.Store(true)
	id.stopAlarm()
	id.post(func() {
		// An empty value only takes the retained one away.
		id.retain("status", nil)
		id.retain("twin/desired", nil)
	})
}

// unpark returns the identity to change, if there is one already.
func (c *Cloud) unpark(name string) *Identity {
	c.mu.Lock()
	defer c.mu.Unlock()
	if id := c.parked[name]; id != nil {
		delete(c.parked, name)
		c.ids[name] = id
		id.told.Store(false)
		id.parked.Store(false)
	}
	return c.ids[name]
}

// post puts something into the box. It never blocks, and does nothing when the
// Cloud has ended.
func (id *Identity) post(f func()) bool { return id.put(f, false) }

// accept is post for what others send: it is refused when too much waits.
func (id *Identity) accept(f func()) error {
	if id.put(f, true) {
		return nil
	}
	id.c.mu.Lock()
	defer id.c.mu.Unlock()
	if id.c.closed {
		return ErrStopped
	}
	return ErrBusy
}

func (id *Identity) put(f func(), bounded bool) bool {
	id.mu.Lock()
	defer id.mu.Unlock()
	if bounded && len(id.box) >= maxBox {
		return false
	}
	if !id.onStage {
		if !id.c.schedule(id) {
			return false
		}
		id.onStage = true
	}
	id.box = append(id.box, f)
	return true
}

// step handles everything in the box. The journal, connections and listeners only
// put into it, so it is the one place where the identity's state changes.
func (id *Identity) step() {
	id.mu.Lock()
	box := id.box
	id.box = nil
	id.mu.Unlock()
	for _, f := range box {
		f()
	}
	id.flushTwin()
	id.mu.Lock()
	defer id.mu.Unlock()
	if len(id.box) == 0 {
		id.onStage = false
		return
	}
	if !id.c.schedule(id) {
		// The end: what has arrived since is handled by the caller's last round.
		id.c.mu.Lock()
		id.c.runnable = append(id.c.runnable, id)
		id.c.mu.Unlock()
	}
}

// begin is the first step after the start.
func (id *Identity) begin() {
	if id.opt().Twin {
		id.showDesired()
	}
	if id.opt().C2D && id.waiting.Load() > 0 {
		id.offerAll()
	}
	id.tick() // nothing of an identity that comes back waits for an alarm that was stopped
}

// wakeAt asks for a tick at a time, or earlier.
func (id *Identity) wakeAt(t time.Time) {
	id.mu.Lock()
	defer id.mu.Unlock()
	if id.parked.Load() || !id.alarmAt.IsZero() && !t.Before(id.alarmAt) {
		return
	}
	id.alarmAt = t
	d := max(time.Until(t), 0)
	if id.alarm == nil {
		id.alarm = time.AfterFunc(d, id.rang)
		return
	}
	id.alarm.Reset(d)
}

func (id *Identity) rang() {
	id.mu.Lock()
	id.alarmAt = time.Time{}
	id.mu.Unlock()
	id.post(id.tick)
}

func (id *Identity) stopAlarm() {
	id.mu.Lock()
	defer id.mu.Unlock()
	id.alarmAt = time.Time{}
	if id.alarm != nil {
		id.alarm.Stop()
	}
}

// tick looks at everything that waits for a time and asks for the next one.
func (id *Identity) tick() {
	if id.parked.Load() {
		return
	}
	now := time.Now()
	if id.opt().C2D {
		id.tickC2D(now)
	}
	id.tickMethods(now)
	if id.opt().Twin {
		id.tickTwin(now)
	}
}

// Filters is part of hub.Commands. Modules get no C2D messages.
func (id *Identity) Filters(h hub.Identity) (wanted []packet.Subscription, unwanted []string) {
	add := func(want bool, filter string, qos byte) {
		if want {
			wanted = append(wanted, packet.Subscription{Filter: filter, QoS: qos})
		} else {
			unwanted = append(unwanted, filter)
		}
	}
	o := id.opt()
	if h.ModuleID == "" {
		add(o.C2D, "devices/"+h.DeviceID+c2dLevels+"#", 1)
	}
	add(o.Methods, methodPrefix+"#", 0)
	add(o.Twin, twinAnswerPrefix+"#", 0)
	add(o.Twin, desiredPrefix+"#", 0)
	return wanted, unwanted
}

// Connected is part of hub.Commands.
func (id *Identity) Connected(link hub.Link, refused []string) {
	for _, f := range refused {
		id.log().Warn("the hub refuses a subscription", zap.String("filter", f))
	}
	id.post(func() {
		if id.opt().Twin {
			id.twinConnected(link)
		}
	})
}

// Received is part of hub.Commands. What no part of this package asked for is
// acknowledged and dropped: the hub would send it again for ever.
func (id *Identity) Received(link hub.Link, m hub.Inbound, ack func()) {
	t := parseTopic(m.Topic)
	switch {
	case t.kind == topicC2D && id.opt().C2D:
		id.arrived(link, t.bag, m.Payload, ack)
	case t.kind == topicC2D:
		// Of a subscription that is being taken back: the hub keeps it.
	case t.kind == topicMethod && id.opt().Methods:
		if id.accept(func() { id.called(link, t, m.Payload) }) != nil {
			id.overloaded(link, t)
		}
	case t.kind == topicTwinAnswer && id.opt().Twin:
		id.post(func() { id.twinAnswered(link, t, m.Payload) })
	case t.kind == topicDesired && id.opt().Twin:
		id.post(func() { id.desiredChanged(link, t, m.Payload) })
	default:
		ack()
	}
}

// showState publishes the retained state when it is another one.
func (id *Identity) showState(s State) {
	if id.told.Swap(true) && s == id.shown {
		return
	}
	id.shown = s
	now, _ := id.c.cfg.Clock.Now()
	b, err := json.Marshal(struct {
		Connected bool      `json:"connected"`
		State     string    `json:"state"`
		Fault     string    `json:"fault,omitempty"`
		Since     time.Time `json:"since"`
	}{s.Connected, s.State, s.Fault, now.UTC().Truncate(time.Second)})
	if err == nil {
		id.post(func() {
			if !id.parked.Load() {
				id.retain("status", b)
			}
		})
	}
}

// retain publishes a retained value of the identity.
func (id *Identity) retain(topic string, payload []byte) {
	_, err := id.c.local.Publish(downstream.LocalMessage{Topic: id.topic(topic), Payload: payload, QoS: 1, Retain: true,
		ContentType: jsonType})
	if err != nil {
		id.log().Warn("value not retained for local clients", zap.String("topic", topic), zap.Error(err))
	}
}

func (id *Identity) topic(rest string) string {
	return downstream.LocalPrefix + id.opt().Name + "/" + rest
}

const jsonType = "application/json"
