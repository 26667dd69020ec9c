package downstream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"go.uber.org/zap"

	"gatewayd/internal/bag"
	"gatewayd/internal/packet"
	"gatewayd/internal/queue"
)

// Why a message is refused. The queue's own ErrFull, ErrDisk, ErrClosed (tell
// the sensor to try later) and ErrTooLarge (permanent) pass through unchanged.
var (
	// ErrTopic: not a topic name, too long, or one of the gateway's own. Permanent.
	ErrTopic = errors.New("not a topic that can be published to")
	// ErrProperty: a property that may not travel to the hub. Permanent.
	ErrProperty = errors.New("property not allowed")
	// ErrNotAllowed: the access rules do not let this client use the topic. Permanent.
	ErrNotAllowed = errors.New("not allowed by the access rules")
)

// Properties that mark what MQTT says about a message and IoT Hub has no place
// for; IoT Hub itself uses the first name for messages sent to it with RETAIN.
const (
	PropertyRetain = "mqtt-retain"
	PropertyWill   = "mqtt-will"
)

// MaxProperties bounds the properties that a sensor may give one message.
const MaxProperties = 64

// Sink stores messages for an identity. Append has the contract of
// queue.Queue.Append: nil means that done is called exactly once, after the
// sync, in the order of the appends to one identity, and must not block; an
// error means that done is never called. It is used by any number of goroutines
// and copies what it keeps before it returns.
type Sink interface {
	Append(ctx context.Context, identity string, m queue.Message, done func(seq uint64, err error)) error
	// SetAside stores a message that a route's program fails for, out of the way of
	// the others. The contract is that of Append.
	SetAside(ctx context.Context, identity string, m queue.Message, reason string, done func(seq uint64, err error)) error
}

// Arrival is one message as a source received it.
type Arrival struct {
	Client          *Client // who sent it, from Ledger.Client
	Topic           string
	Payload         []byte // may be reused once Accept has returned
	Properties      []queue.Property
	ContentType     string // used where the route has none written down
	ContentEncoding string
	MaxAge          time.Duration // shortens the route's; 0 = none

	// own are properties that are kept as they are, also those that are the hub's to
	// name: of a client that speaks for its identity and was checked for it.
	own []queue.Property
}

// Gate is the one way into the queue: every source hands its arrivals to Accept.
// It is used by any number of goroutines.
type Gate struct {
	router atomic.Pointer[Router]
	sink   Sink
	ledger *Ledger
	limits GateLimits
	log    *zap.Logger
	notes  notes
	drops  sync.Map // identity to *atomic.Uint64, of messages that a program dropped by failing
}

// GateLimits bound what any source may hand in. Zero values are the defaults.
type GateLimits struct {
	TopicBytes   int // longest local topic; default 1,024
	PayloadBytes int // largest payload; default 256 KiB
}

// NewGate wires the parts of the way into the queue.
func NewGate(router *Router, sink Sink, ledger *Ledger, limits GateLimits, log *zap.Logger) *Gate {
	if limits.TopicBytes <= 0 {
		limits.TopicBytes = 1024
	}
	if limits.PayloadBytes <= 0 {
		limits.PayloadBytes = 256 << 10
	}
	g := &Gate{sink: sink, ledger: ledger, limits: limits, log: log}
	g.router.Store(router)
	return g
}

// SetRouter replaces the routes; messages accepted from now on follow the new ones.
func (g *Gate) SetRouter(r *Router) { g.router.Store(r) }

// Router is the one in use.
func (g *Gate) Router() *Router { return g.router.Load() }

// Ledger is where the gate counts.
func (g *Gate) Ledger() *Ledger { return g.ledger }

// Accept routes one message and hands it to the queue. Nil means that done will
// be called exactly once, after the sync or with what prevented it; an error
// means that the message is refused for that reason and done is never called.
// done must not block. Accept itself blocks only while the queue has no memory
// for more, until ctx ends. Either way the message is counted.
func (g *Gate) Accept(ctx context.Context, a Arrival, done func(seq uint64, err error)) error {
	route, err := g.Decide(a.Topic)
	if err != nil {
		a.Client.refused(a.Topic, err)
		return err
	}
	if err := g.accept(ctx, a, route, done); err != nil {
		a.Client.refused(a.Topic, err)
		return err
	}
	return nil
}

// Decide checks a topic and finds its route, without accepting anything.
func (g *Gate) Decide(topic string) (Decision, error) {
	if err := g.CheckTopic(topic); err != nil {
		return Decision{}, err
	}
	return g.router.Load().Route(topic)
}

// CheckTopic tells whether sensors may publish to a topic at all. Topics under
// gateway/ and $ are the gateway's own, never routed.
func (g *Gate) CheckTopic(topic string) error {
	switch {
	case len(topic) > g.limits.TopicBytes:
		return fmt.Errorf("%w: longer than %d bytes", ErrTopic, g.limits.TopicBytes)
	case !packet.ValidTopic(topic):
		return fmt.Errorf("%w: empty, not UTF-8, or with a wildcard", ErrTopic)
	case topic[0] == '$' || isLocalTopic(topic):
		return fmt.Errorf("%w: reserved for the gateway", ErrTopic)
	}
	return nil
}

// accept is Accept for a topic that is decided already; the caller counts a refusal.
func (g *Gate) accept(ctx context.Context, a Arrival, route Decision, done func(seq uint64, err error)) error {
	m, err := g.message(a, route)
	if err != nil {
		return err
	}
	c, topic, n := a.Client, a.Topic, len(a.Payload)
	counted := func(seq uint64, err error) {
		if err != nil {
			c.refused(topic, err)
		} else {
			c.received(topic, n)
			if route.taken != nil { // an Azure SDK client's message has no route
				route.taken.Add(1)
			}
		}
		done(seq, err)
	}
	if route.programs != nil {
		return g.process(ctx, route.Identity, route.programs, m, counted)
	}
	return g.append(ctx, route.Identity, m, counted)
}

// What the hub takes at most: of one message, as it counts, and of its properties as a
// part of a topic. Room is left for what the gateway adds: id, time, the topic before
// the properties.
const (
	maxHubMessage = 256<<10 - 256
	maxBag        = 64<<10 - 1024
)

// append hands a message over, unless it could never be delivered: the sensor shall
// hear of that, and not somebody who finds it set aside.
func (g *Gate) append(ctx context.Context, identity string, m queue.Message, done func(seq uint64, err error)) error {
	size, encoded := len(m.Payload), 0
	for _, s := range [...]string{m.ContentType, m.ContentEncoding, m.Output} {
		size += len(s)
		encoded += bag.EscapedLen(s)
	}
	for i := range m.Properties {
		p := &m.Properties[i]
		size += len(p.Key) + len(p.Value)
		encoded += bag.EscapedLen(p.Key) + bag.EscapedLen(p.Value) + len("&=")
	}
	switch {
	case encoded > maxBag:
		return fmt.Errorf("%w: %d bytes with percent-encoding, %d are allowed", ErrProperty, encoded, maxBag)
	case size > maxHubMessage:
		return queue.ErrTooLarge
	}
	return g.sink.Append(ctx, identity, m, done)
}

func (g *Gate) message(a Arrival, route Decision) (queue.Message, error) {
	if len(a.Payload) > g.limits.PayloadBytes {
		return queue.Message{}, queue.ErrTooLarge
	}
	properties, err := mergeProperties(a.Properties, route.Properties)
	if err != nil {
		return queue.Message{}, err
	}
	if len(a.own) > 0 {
		properties = append(slices.Clone(properties), a.own...)
	}
	m := queue.Message{
		Source: a.Client.Name(), Topic: a.Topic, Route: route.Route,
		Output: route.Output, Properties: properties, Priority: route.Priority, MaxAge: route.MaxAge, Pack: route.Pack, Payload: a.Payload,
	}
	m.ContentType, m.ContentEncoding = labels(a, route)
	if a.MaxAge > 0 && (m.MaxAge == 0 || a.MaxAge < m.MaxAge) {
		m.MaxAge = a.MaxAge
	}
	return m, nil
}

// labels tell the hub how to read the body. What the route says goes before what
// the sensor says, and that before what is only assumed. Nothing is assumed of a
// body that is not UTF-8.
func labels(a Arrival, route Decision) (contentType, encoding string) {
	text := !route.typeAssumed && !route.encodingAssumed || utf8.Valid(a.Payload)
	choose := func(given, sensor string, assumed bool) string {
		switch {
		case given != "" && !assumed:
			return given
		case sensor != "" || !text:
			return sensor
		}
		return given
	}
	return choose(route.ContentType, a.ContentType, route.typeAssumed), choose(route.ContentEncoding, a.ContentEncoding, route.encodingAssumed)
}

// mergeProperties puts the sensor's properties before the route's. A name is
// kept once, because IoT Hub does not say what it does with two: the route wins
// over the sensor, a later one over an earlier.
func mergeProperties(sensor, route []queue.Property) ([]queue.Property, error) {
	if len(sensor) == 0 {
		return route, nil
	}
	if len(sensor) > MaxProperties {
		return nil, fmt.Errorf("%w: more than %d", ErrProperty, MaxProperties)
	}
	merged := make([]queue.Property, 0, len(sensor)+len(route))
	put := func(p queue.Property) {
		for i := range merged {
			if merged[i].Key == p.Key {
				merged[i].Value = p.Value
				return
			}
		}
		merged = append(merged, p)
	}
	for _, p := range sensor {
		if err := CheckProperty(p.Key); err != nil {
			return nil, err
		}
		put(p)
	}
	for _, p := range route {
		put(p)
	}
	return merged, nil
}

// CheckProperty tells whether a name may be used for an application property.
// Names that start with $. or iothub- are system properties of IoT Hub, which a
// sensor must not forge.
func CheckProperty(key string) error {
	switch {
	case key == "":
		return fmt.Errorf("%w: empty name", ErrProperty)
	case len(key) > 256:
		return fmt.Errorf("%w: name longer than 256 bytes", ErrProperty)
	case key[0] == '$', strings.HasPrefix(key, "iothub-"):
		return fmt.Errorf("%w: %q is a system property of IoT Hub", ErrProperty, key)
	}
	return nil
}

// reasonOf names why a message was refused, for counters.
func reasonOf(err error) Reason {
	switch {
	case errors.Is(err, ErrNoRoute):
		return ReasonNoRoute
	case errors.Is(err, queue.ErrFull):
		return ReasonFull
	case errors.Is(err, queue.ErrTooLarge):
		return ReasonTooLarge
	case errors.Is(err, ErrTopic):
		return ReasonTopic
	case errors.Is(err, ErrNotAllowed):
		return ReasonNotAllowed
	case errors.Is(err, ErrProperty):
		return ReasonProperty
	case errors.Is(err, errRate):
		return ReasonRate
	}
	return ReasonUnavailable
}

// temporary tells whether sending the same message again later may succeed.
func temporary(err error) bool {
	switch reasonOf(err) {
	case ReasonFull, ReasonUnavailable, ReasonRate:
		return true
	}
	return false
}
