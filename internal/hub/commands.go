package hub

import (
	"time"

	"gatewayd/internal/packet"
)

// Commands is the part of an identity that listens to the cloud. A session
// without one only publishes. All methods are called from the connection's
// goroutine and must not block; during a change of certificate two connections
// may call at the same time.
type Commands interface {
	// Filters are subscribed on every connection right after CONNACK, before
	// anything else is sent. The hub keeps subscriptions of earlier connections,
	// perhaps of other software: those in unwanted are then taken back.
	Filters(Identity) (wanted []packet.Subscription, unwanted []string)
	// Connected says that the hub answered the subscriptions on this link; refused
	// are those it did not grant. An earlier link is over, or ends now.
	Connected(link Link, refused []string)
	// Leaving says that the link is about to be replaced by another one, or closed. What
	// waits for an answer on it is answered within wait; done, called once and from any
	// goroutine, says that it is. It is not waited for much longer. The link may stay
	// after all, when the other one does not come about.
	Leaving(link Link, wait time.Duration, done func())
	// Received hands over a message. ack tells the hub that it is taken care of; it
	// may be called once, at any time, from any goroutine, and does nothing when
	// the link has ended or the message needs none. An answer belongs on this link.
	Received(link Link, m Inbound, ack func())
}

// Inbound is a message from the hub. The receiver owns Payload.
type Inbound struct {
	Topic   string
	Payload []byte
	QoS     byte
	Dup     bool
}

// Link is one connection to the hub. Its methods are safe for concurrent use.
type Link interface {
	// Publish sends a control message, such as the answer to a method, ahead of
	// waiting telemetry. done, when not nil, is called once: with nil when the hub
	// acknowledged it (QoS 1) or it was written (QoS 0), with an error when the link
	// ended before. Publish returns ErrLinkBusy or ErrLinkEnded at once, and then
	// done is never called.
	Publish(topic string, payload []byte, qos byte, done func(error)) error
	// Done is closed when the link has ended.
	Done() <-chan struct{}
}
