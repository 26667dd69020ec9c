package downstream

import (
	"strings"

	"go.uber.org/zap"

	"gatewayd/internal/packet"
)

// subscribe handles a SUBSCRIBE: a code per filter, then the retained values.
func (c *conn) subscribe(f packet.Frame) error {
	p, err := packet.DecodeSubscribe(f, c.version)
	if err != nil {
		return err
	}
	var identifier uint32
	if p.Properties != nil && len(p.Properties.SubscriptionIDs) > 0 {
		identifier = p.Properties.SubscriptionIDs[0]
	}
	codes := make([]byte, len(p.Subscriptions))
	var retained []delivery
	var granted []string
	for i, sub := range p.Subscriptions {
		sub.Filter, codes[i] = c.filterCode(sub.Filter)
		if codes[i] != packet.Success {
			continue
		}
		sub.QoS = min(sub.QoS, 1)
		values, err := c.server.local.subscribe(c.session, subscription{sub, identifier}, c.server.cfg.MaxSubscriptions)
		if err != nil {
			codes[i] = packet.QuotaExceeded
			continue
		}
		codes[i] = sub.QoS
		granted = append(granted, sub.Filter)
		retained = append(retained, values...)
	}
	if c.version == packet.V311 {
		for i := range codes {
			if codes[i] > 2 {
				codes[i] = packet.SubackFailure
			}
		}
	}
	a := packet.Suback{Type: packet.SUBACK, ID: p.ID, Codes: codes}
	if err := c.send(func(b []byte) ([]byte, error) { return a.Append(b, c.version) }); err != nil {
		return err
	}
	for _, d := range retained {
		c.session.box.put(d, true, c.server.local.cfg)
	}
	if len(retained) > 0 {
		c.kick()
	}
	c.server.local.subscribed(granted)
	return nil
}

// filterCode says whether this client may subscribe to a filter: only to the
// gateway's own topics, within the access rules. An Azure SDK client says its
// filters in IoT Hub's words.
func (c *conn) filterCode(filter string) (local string, code byte) {
	if c.azure != nil {
		if local, ok := c.azure.localFilter(filter); ok {
			return local, packet.Success
		}
		c.note("an Azure SDK client asks for a topic that its identity does not have", zap.String("filter", clip(filter)))
		return filter, packet.UnspecifiedError
	}
	switch {
	case !packet.ValidFilter(filter):
		code = packet.TopicFilterInvalid
	case strings.HasPrefix(filter, "$share/"):
		code = packet.SharedNotSupported
	case !strings.HasPrefix(filter, LocalPrefix):
		// What the Eclipse conformance suites expect of a topic nobody may subscribe to.
		code = packet.UnspecifiedError
	case !c.server.access.maySubscribe(c.user, c.id, filter):
		code = packet.NotAuthorized
	}
	return filter, code
}

func (c *conn) unsubscribe(f packet.Frame) error {
	p, err := packet.DecodeUnsubscribe(f, c.version)
	if err != nil {
		return err
	}
	a := packet.Suback{Type: packet.UNSUBACK, ID: p.ID, Codes: make([]byte, len(p.Filters))}
	for i, filter := range p.Filters {
		if c.azure != nil {
			filter, _ = c.azure.localFilter(filter)
		}
		if !c.server.local.unsubscribe(c.session, filter) {
			a.Codes[i] = packet.NoSubscriptionExisted
		}
	}
	return c.send(func(b []byte) ([]byte, error) { return a.Append(b, c.version) })
}

// acknowledged handles a PUBACK from the client; one for an unknown id is what a
// client sends again after a lost connection, and harmless.
func (c *conn) acknowledged(f packet.Frame) error {
	p, err := packet.DecodeAck(f, c.version)
	if err != nil {
		return err
	}
	quickAck(c.raw)
	if d, ok := c.session.box.ack(p.ID); ok {
		d.acked.done()
		c.kick()
	}
	return nil
}

// subscribe adds or replaces a subscription and returns the retained values that
// it is owed.
func (l *Local) subscribe(s *session, sub subscription, most int) ([]delivery, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, exists := s.subs[sub.Filter]
	if !exists && len(s.subs) >= most {
		return nil, errSubLimit
	}
	if s.subs == nil {
		s.subs = make(map[string]subscription)
	}
	s.subs[sub.Filter] = sub
	l.subscribers[s] = struct{}{}
	l.changes++
	s.since = l.changes
	if sub.RetainHandling == 2 || (sub.RetainHandling == 1 && exists) {
		return nil, nil
	}
	var owed []delivery
	for topic, m := range l.retained {
		if !packet.Match(sub.Filter, topic) {
			continue
		}
		d := delivery{m: m, qos: min(sub.QoS, m.QoS), retain: true}
		if sub.identifier != 0 {
			d.identifiers = []uint32{sub.identifier}
		}
		owed = append(owed, d)
	}
	return owed, nil
}

func (l *Local) unsubscribe(s *session, filter string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := s.subs[filter]; !ok {
		return false
	}
	delete(s.subs, filter)
	if len(s.subs) == 0 {
		delete(l.subscribers, s)
	}
	return true
}
