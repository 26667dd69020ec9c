package cloud

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"gatewayd/internal/downstream"
	"gatewayd/internal/queue"
)

// Clock tells the time and whether it is to be believed.
type Clock interface {
	Now() (t time.Time, trusted bool)
}

// Local is the way to local clients; *downstream.Local is the real one.
type Local interface {
	Publish(m downstream.LocalMessage) (takers int, err error)
}

// State is what local clients are told about an identity's connection.
type State struct {
	Connected bool
	State     string // in one word, or two
	Fault     string // what is wrong; "" when nothing is
}

// Builtin is a method that the gateway itself answers. The result is encoded as
// JSON; an error that is a *MethodError chooses its status, any other is a 500.
type Builtin func(ctx context.Context, identity string, payload []byte) (result any, err error)

// MethodError is a refusal of a built-in method.
type MethodError struct {
	Status int
	Reason string
}

func (e *MethodError) Error() string { return e.Reason }

// Config is what all identities share. Journal and StateDir are required. Functions
// are called from several goroutines and must not block.
type Config struct {
	Journal  *queue.Journal
	StateDir string // twins are kept in a folder below
	Clock    Clock  // nil = the wall clock, trusted
	Builtins map[string]Builtin
	State    func(identity string) State            // nil = no status topic
	Report   func(identity string) map[string]any   // the gateway's reported properties; nil = none
	Desired  func(identity string, document []byte) // told of desired properties, at the start too; nil = nobody
	Log      *zap.Logger                            // nil = silent
}

const (
	workers    = 4
	statusTick = time.Second
	// maxHeld bounds the payloads of C2D messages, over all identities, that are not
	// on disk yet. Beyond it they are let go: the hub sends them again.
	maxHeld = 16 << 20
	// maxPrograms bounds programs that run at the same time, over all identities.
	maxPrograms = 8
)

// Cloud brings commands down for all identities. It implements
// downstream.Commands, downstream.SubscriptionWatcher and http.Handler.
type Cloud struct {
	cfg      Config
	log      *zap.Logger
	local    Local
	files    files
	work     context.Context // Run's; what methods run under
	held     atomic.Int64
	programs chan struct{} // a slot per running program
	settle   time.Duration // ownSettle
	running  sync.WaitGroup

	mu       sync.Mutex
	ids      map[string]*Identity
	parked   map[string]*Identity // removed, and perhaps back later
	runnable []*Identity
	steps    uint64 // begun
	closed   bool
	wake     chan struct{}
}

// Errors by what the caller tells its client.
var (
	// ErrUnknown: there is no such identity, or the command is switched off for it.
	ErrUnknown = fmt.Errorf("no identity takes this: %w", downstream.ErrNoRoute)
	// ErrStopped: the gateway is stopping.
	ErrStopped = errors.New("commands are not taken any more: stopping")
	// ErrBusy: too much waits; try again later.
	ErrBusy = errors.New("too many commands are waiting")
)

// New makes a Cloud without identities; it starts nothing.
func New(cfg Config) *Cloud {
	if cfg.Clock == nil {
		cfg.Clock = wallClock{}
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	return &Cloud{
		cfg: cfg, log: cfg.Log, local: nowhere{}, ids: make(map[string]*Identity), parked: make(map[string]*Identity), wake: make(chan struct{}, 1),
		files: files{dir: filepath.Join(cfg.StateDir, "twins")}, programs: make(chan struct{}, maxPrograms), settle: ownSettle,
	}
}

// Attach says where local clients are. It is called once, before Run: the local
// side is made with the Cloud as its Commands, so it comes second.
func (c *Cloud) Attach(l Local) { c.local = l }

type wallClock struct{}

func (wallClock) Now() (time.Time, bool) { return time.Now(), true }

// nowhere is a local side without anybody.
type nowhere struct{}

func (nowhere) Publish(downstream.LocalMessage) (int, error) { return 0, nil }

// QueueName is the journal's name for the C2D queue of an identity. No identity has
// a name like it, because names have no slash.
func QueueName(identity string) string { return identity + queueSuffix }

const queueSuffix = "/c2d"

// QueueOwner tells whose C2D queue a name of the journal is; ok is false for the
// queue of an identity itself.
func QueueOwner(name string) (identity string, ok bool) { return strings.CutSuffix(name, queueSuffix) }

// Run works until ctx ends. Sessions should have ended before, the journal must
// not; what is in the boxes then is still handled. It returns nil.
func (c *Cloud) Run(ctx context.Context) error {
	work, stop := context.WithCancel(ctx)
	defer stop()
	c.mu.Lock()
	c.work = work
	ids := make([]*Identity, 0, len(c.ids))
	for _, id := range c.ids {
		ids = append(ids, id)
	}
	c.mu.Unlock()
	for _, id := range ids {
		id.post(id.begin)
	}
	for range workers {
		c.running.Go(func() { c.serve(ctx) })
	}
	if c.cfg.State != nil {
		c.running.Go(func() { c.watchStates(ctx) })
	}
	<-ctx.Done()
	c.running.Wait()
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	// Nobody runs steps any more, and nobody can ask for one: what is left, such as
	// changes that clients wait for, is finished here.
	for id := c.next(); id != nil; id = c.next() {
		id.step()
	}
	for _, id := range c.all() {
		id.stopAlarm()
	}
	return nil
}

// serve is a worker.
func (c *Cloud) serve(ctx context.Context) {
	for ctx.Err() == nil {
		if id := c.next(); id != nil {
			id.step()
			continue
		}
		select {
		case <-c.wake:
		case <-ctx.Done():
		}
	}
}

// next takes the identity that has waited longest for its step.
func (c *Cloud) next() *Identity {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.runnable) == 0 {
		c.runnable = nil
		return nil
	}
	id := c.runnable[0]
	c.steps++
	c.runnable = c.runnable[1:]
	if len(c.runnable) > 0 {
		poke(c.wake) // for another worker
	}
	return id
}

// Steps counts the steps that were begun, and says whether others wait. While they
// do, a count that stands still means that all workers hang.
func (c *Cloud) Steps() (n uint64, waiting bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.steps, len(c.runnable) > 0
}

// schedule has a step of the identity run; false when the Cloud has ended.
func (c *Cloud) schedule(id *Identity) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.runnable = append(c.runnable, id)
	poke(c.wake)
	return true
}

func (c *Cloud) identity(name string) (*Identity, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if id := c.ids[name]; id != nil {
		return id, nil
	}
	return nil, ErrUnknown
}

func (c *Cloud) all() []*Identity {
	c.mu.Lock()
	defer c.mu.Unlock()
	ids := make([]*Identity, 0, len(c.ids))
	for _, id := range c.ids {
		ids = append(ids, id)
	}
	return ids
}

// Do is part of downstream.Commands.
func (c *Cloud) Do(_ context.Context, cmd downstream.Command, done func(error)) error {
	id, err := c.identity(cmd.Identity)
	if err != nil {
		return err
	}
	switch {
	case cmd.Kind == downstream.MethodResponse && id.opt().Methods:
		return id.accept(func() { done(id.answered(cmd.Status, cmd.RequestID, cmd.Payload)) })
	case cmd.Kind == downstream.Reported && id.opt().Twin:
		return id.accept(func() { id.patch(cmd.Payload, cmd.Base, told(cmd.Reply, done)) })
	case cmd.Kind == downstream.TwinGet && id.opt().Twin:
		return id.accept(func() { id.askTwin(cmd.Reply, done) })
	}
	return ErrUnknown
}

// told is a done of a patch that replies before it says yes.
func told(reply func(int64, []byte), done func(error)) func(int64, error) {
	return func(version int64, err error) {
		if err == nil && reply != nil {
			reply(version, nil)
		}
		done(err)
	}
}

// Subscribed is part of downstream.SubscriptionWatcher: C2D messages that wait are
// offered to the new subscriber.
func (c *Cloud) Subscribed(filter string) {
	levels := strings.SplitN(filter, "/", 4)
	if len(levels) < 2 {
		return
	}
	if levels[1] != "+" && levels[1] != "#" {
		if id, err := c.identity(levels[1]); err == nil {
			id.subscribed()
		}
		return
	}
	for _, id := range c.all() {
		id.subscribed()
	}
}

// watchStates publishes the retained state of each identity when it changes.
func (c *Cloud) watchStates(ctx context.Context) {
	tick := time.NewTicker(statusTick)
	defer tick.Stop()
	for {
		for _, id := range c.all() {
			id.showState(c.cfg.State(id.opt().Name))
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func poke(signal chan struct{}) {
	select {
	case signal <- struct{}{}:
	default:
	}
}
