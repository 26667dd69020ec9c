package downstream

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/paho"
	"go.uber.org/zap"
)

const (
	// brokerOffer is the wait before what a broker did not take is offered again.
	brokerOffer = 5 * time.Second
	// noSubscribers is the broker's word that nobody has subscribed (MQTT 5, 3.4.2.1).
	noSubscribers = 0x10
)

// localFilters are the topics on which clients of the broker answer. The gateway
// publishes to none of them.
func localFilters() []string {
	return []string{LocalPrefix + "+/methods/res/#", LocalPrefix + "+/twin/reported"}
}

// passOn publishes to the broker what local clients get, until ctx ends: one message
// after the other, in order. The broker's acknowledgement counts as a subscriber's,
// unless it says that it has none for it.
func (b *Broker) passOn(ctx context.Context, m *autopaho.ConnectionManager) {
	again := time.NewTimer(time.Hour)
	again.Stop()
	defer again.Stop()
	for {
		for {
			one, ok := b.mirror.next()
			if !ok || ctx.Err() != nil {
				break
			}
			if !b.passOne(m, one) {
				b.mirror.giveBack(one)
				again.Reset(brokerOffer)
			}
		}
		if b.mirror.overflowed() {
			b.mirror.renew()
		}
		select {
		case <-b.mirror.wake:
		case <-again.C:
			b.mirror.renew()
		case <-ctx.Done():
			return
		}
	}
}

// passOne publishes one message; false when it has to be offered again.
func (b *Broker) passOne(m *autopaho.ConnectionManager, one mirrored) bool {
	b.mu.Lock()
	link := b.link // a Publish does not end by itself when the connection does
	b.mu.Unlock()
	got, err := m.Publish(link, localPublish(&one.m))
	kept := one.acked != nil && one.acked.call != nil
	switch {
	case err == nil && (got == nil || got.ReasonCode != noSubscribers || !kept):
		one.acked.done()
		return true
	case err == nil:
		return false // it waits, as it does without a local subscriber
	case link.Err() != nil, errors.Is(err, autopaho.ConnectionDownError), got == nil:
		return !kept // the connection was lost, which is told elsewhere
	}
	text := fmt.Sprintf("the broker refuses a local topic, reason %#x", got.ReasonCode)
	b.mu.Lock()
	b.stats.Fault = text
	b.mu.Unlock()
	b.notes.once(one.m.Topic, text, func() {
		b.log.Warn("local topic refused by the broker", zap.String("broker", b.server.Host), zap.String("topic", clip(one.m.Topic)), zap.String("reason", text))
	})
	return !kept
}

func localPublish(m *LocalMessage) *paho.Publish {
	p := &paho.Publish{Topic: m.Topic, Payload: m.Payload, QoS: m.QoS, Retain: m.Retain, Properties: &paho.PublishProperties{
		ContentType: m.ContentType, ResponseTopic: m.ResponseTopic, CorrelationData: m.CorrelationData,
	}}
	for _, u := range m.Properties {
		p.Properties.User = append(p.Properties.User, paho.UserProperty{Key: u.Key, Value: u.Value})
	}
	if !m.Expires.IsZero() {
		left := uint32(max(time.Until(m.Expires), time.Second) / time.Second)
		p.Properties.MessageExpiry = &left
	}
	return p
}

// takeCommand handles what a client of the broker has published to one of the
// gateway's topics; false: it is no such topic. What the gateway itself published,
// which a shared subscription brings back, is left alone.
func (b *Broker) takeCommand(ctx context.Context, item brokerItem) bool {
	if b.mirror == nil || !isLocalTopic(item.p.Topic) {
		return false
	}
	cmd, ok := parseCommand(item.p.Topic)
	if !ok || b.cfg.Local.commands == nil {
		b.intake.done(item)
		return true
	}
	cmd.Client, cmd.Payload = b.cfg.ClientID, item.p.Payload
	wait := 50 * time.Millisecond
	for {
		err := b.cfg.Local.commands.Do(ctx, cmd, func(err error) {
			if err != nil {
				b.commandRefused(cmd, item.p.Topic, err)
			}
			b.intake.done(item)
		})
		if err == nil {
			return true
		}
		if !temporary(err) || item.p.QoS == 0 {
			if !errors.Is(err, ErrNoRoute) { // another gateway's identity
				b.commandRefused(cmd, item.p.Topic, err)
			}
			b.intake.done(item)
			return true
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return true // not acknowledged, the broker keeps it
		}
		wait = min(2*wait, time.Second)
	}
}

func (b *Broker) commandRefused(cmd Command, topic string, err error) {
	b.notes.once(topic, err.Error(), func() {
		b.log.Warn("answer of a client of the broker refused", zap.String("broker", b.server.Host), zap.String("identity", clip(cmd.Identity)), zap.Error(err))
	})
}
