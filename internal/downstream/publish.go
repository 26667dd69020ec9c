package downstream

import (
	"context"
	"errors"
	"strings"
	"time"

	"go.uber.org/zap"

	"gatewayd/internal/packet"
	"gatewayd/internal/queue"
)

// recentTopic remembers what was decided for a client's latest topic, which is
// nearly always its next one too.
type recentTopic struct {
	topic    string
	router   *Router
	decision Decision
	err      error
}

// publish handles one PUBLISH from the client. An error ends the connection.
func (c *conn) publish(f packet.Frame) error {
	p, err := packet.DecodePublish(f, c.version)
	if err != nil {
		return err
	}
	if p.QoS == 2 {
		// CONNACK announced Maximum QoS 1; 3.1.1 has no way to refuse but this.
		return &packet.Error{Code: packet.QoSNotSupported, Reason: "PUBLISH with QoS 2, at most 1 is supported"}
	}
	if p.Properties != nil && len(p.Properties.SubscriptionIDs) > 0 {
		// MQTT 5, 3.3.4-6; the codec allows it because servers send it.
		return &packet.Error{Code: packet.ProtocolError, Reason: "PUBLISH from a client with a subscription identifier"}
	}
	if err := c.resolveAlias(&p); err != nil {
		return err
	}
	if p.QoS > 0 {
		// A client that resends within a connection gets the one acknowledgement.
		if p.Dup && c.owes(p.ID) {
			return nil
		}
		if err := c.checkReceiveMaximum(); err != nil {
			return err
		}
	}
	if !c.pace() {
		return nil
	}
	number, ok := c.reserve(p)
	if !ok {
		return nil // the connection is ending
	}
	switch {
	case c.azure != nil:
		err = c.publishAzure(p, number)
	case isLocalTopic(p.Topic):
		err = c.command(p, number)
	default:
		err = c.offer(p, number)
	}
	if err != nil {
		return c.refusePublish(p, number, err)
	}
	return nil
}

// resolveAlias fills in and remembers topic aliases (MQTT 5, 3.3.2.3.4).
func (c *conn) resolveAlias(p *packet.Publish) error {
	if !p.Properties.Has(packet.PropTopicAlias) {
		return nil
	}
	alias := p.Properties.TopicAlias
	if alias > topicAliases {
		return &packet.Error{Code: packet.TopicAliasInvalid, Reason: "topic alias above the maximum"}
	}
	if p.Topic != "" {
		if c.aliases == nil {
			c.aliases = make([]string, topicAliases+1)
		}
		// Over-long topics are refused anyway and must not be held on to.
		if len(p.Topic) <= c.server.gate.limits.TopicBytes {
			c.aliases[alias] = p.Topic
		}
		return nil
	}
	if c.aliases == nil || c.aliases[alias] == "" {
		return &packet.Error{Code: packet.ProtocolError, Reason: "topic alias that was never set"}
	}
	p.Topic = c.aliases[alias]
	return nil
}

func (c *conn) owes(id uint16) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.acks.owes(id)
}

func (c *conn) checkReceiveMaximum() error {
	if c.version != packet.V5 {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.acks.n >= c.server.cfg.InFlight {
		return &packet.Error{Code: packet.ReceiveMaxExceeded, Reason: "more messages in flight than the receive maximum"}
	}
	return nil
}

// reserve makes room for a message among those that wait for the sync, waiting
// where there is none: to read no further is what tells a client to slow down.
func (c *conn) reserve(p packet.Publish) (number uint64, ok bool) {
	for {
		c.mu.Lock()
		if c.state != open {
			c.mu.Unlock()
			return 0, false
		}
		if c.acks.n < c.server.cfg.InFlight && c.pending < maxPendingByte {
			c.pending += cost(p)
			if p.QoS > 0 {
				number = c.acks.push(p.ID)
			}
			c.mu.Unlock()
			return number, true
		}
		c.mu.Unlock()
		select {
		case <-c.room:
		case <-c.over:
		}
	}
}

// cost is what a message counts against maxPendingByte; never 0, so that empty
// messages are bounded too.
func cost(p packet.Publish) int { return len(p.Payload) + len(p.Topic) + 128 }

// offer hands a message for the cloud to the gate.
func (c *conn) offer(p packet.Publish, number uint64) error {
	decision, err := c.decide(p.Topic)
	if err != nil {
		return err
	}
	return c.handIn(p, c.arrival(p), decision, number)
}

// handIn hands over what was decided about. 3.1.1 has no word for "later": its QoS 1
// messages wait here for a while, unread ones behind them.
func (c *conn) handIn(p packet.Publish, a Arrival, decision Decision, number uint64) error {
	n, qos := cost(p), p.QoS
	done := func(_ uint64, err error) { c.settle(qos, number, n, err) }
	patient := c.version == packet.V311 && p.QoS > 0
	wait, waited := 50*time.Millisecond, time.Duration(0)
	for {
		err := c.server.gate.accept(c.context(), a, decision, done)
		if err == nil || !patient || !temporary(err) || waited >= stallTimeout {
			return err
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-c.over:
			timer.Stop()
			return err
		}
		if c.isDraining() {
			return err
		}
		waited += wait
		wait = min(2*wait, time.Second)
	}
}

func (c *conn) decide(topic string) (Decision, error) {
	router := c.server.gate.Router()
	if r := &c.recent; r.topic == topic && r.router == router {
		return r.decision, r.err
	}
	d, err := c.decideAnew(topic)
	c.recent = recentTopic{topic: topic, router: router, decision: d, err: err}
	return d, err
}

func (c *conn) decideAnew(topic string) (Decision, error) {
	if !c.server.access.mayPublish(c.user, c.id, topic) {
		return Decision{}, ErrNotAllowed
	}
	return c.server.gate.Decide(topic)
}

func (c *conn) arrival(p packet.Publish) Arrival {
	a := Arrival{Client: c.counters, Topic: p.Topic, Payload: p.Payload}
	a.describe(p.Properties)
	if p.Retain {
		a.mark(PropertyRetain)
	}
	return a
}

// describe takes over what MQTT 5 says about a message.
func (a *Arrival) describe(props *packet.Properties) {
	if props == nil {
		return
	}
	a.ContentType = props.ContentType
	if props.PayloadFormat == 1 {
		a.ContentEncoding = "utf-8"
	}
	if props.Has(packet.PropMessageExpiry) {
		a.MaxAge = max(time.Duration(props.MessageExpiry)*time.Second, time.Millisecond)
	}
	for _, u := range props.User {
		a.Properties = append(a.Properties, queue.Property{Key: u.Key, Value: u.Value})
	}
}

func (a *Arrival) mark(property string) {
	a.Properties = append(a.Properties, queue.Property{Key: property, Value: "true"})
}

// settle records the queue's answer. It is called from the queue's goroutine.
func (c *conn) settle(qos byte, number uint64, n int, err error) {
	code := packet.Success
	if err != nil {
		code = refusalCode(err)
	}
	c.mu.Lock()
	full := c.pending >= maxPendingByte
	c.pending -= n
	switch {
	case qos > 0:
		if c.acks.settle(number, code) {
			c.kickLocked()
		}
	case c.state == draining:
		full = true
	}
	c.mu.Unlock()
	if full {
		wake(c.room)
	}
}

// refusePublish answers a message that is not accepted: with a reason where the
// version has one, by ending the connection where it has none.
func (c *conn) refusePublish(p packet.Publish, number uint64, err error) error {
	c.noteRefusal(p.Topic, err)
	// A QoS 0 message that comes at a bad time is lost, as QoS 0 allows; one that
	// can never be taken is a mistake somebody has to see.
	fatal := p.QoS == 0 && !temporary(err)
	c.settle(p.QoS, number, cost(p), err)
	if fatal {
		return &endError{code: refusalCode(err)}
	}
	return nil
}

func (c *conn) noteRefusal(topic string, err error) {
	c.counters.refused(topic, err)
	if !temporary(err) || c.version == packet.V311 {
		c.note("message refused", zap.String("topic", clip(topic)), zap.Error(err))
	}
}

// endError ends a connection for a reason that is noted already.
type endError struct{ code byte }

func (e *endError) Error() string { return "connection ended by the gateway" }

// refusalCode is the reason code of a PUBACK (MQTT 5, 3.4.2.1).
func refusalCode(err error) byte {
	switch {
	case errors.Is(err, ErrNoRoute), errors.Is(err, ErrTopic):
		return packet.TopicNameInvalid
	case errors.Is(err, ErrNotAllowed):
		return packet.NotAuthorized
	case errors.Is(err, ErrProperty), errors.Is(err, queue.ErrTooLarge):
		return packet.ImplementationError
	}
	return packet.QuotaExceeded
}

// clip keeps log lines short whatever a client sends.
func clip(s string) string {
	const most = 128
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}

// untilOver is a context that ends with the connection.
func (c *conn) untilOver() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(c.context())
	stop := make(chan struct{})
	go func() {
		select {
		case <-c.over:
			cancel()
		case <-stop:
		}
	}()
	return ctx, func() { close(stop); cancel() }
}
