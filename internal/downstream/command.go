package downstream

import (
	"context"
	"errors"
	"strconv"
	"strings"

	"gatewayd/internal/packet"
)

// CommandKind says what a local client has published to one of the gateway's topics.
type CommandKind uint8

// The kinds.
const (
	MethodResponse CommandKind = iota + 1 // gateway/{identity}/methods/res/{status}/{rid}
	Reported                              // gateway/{identity}/twin/reported
	TwinGet                               // only an Azure SDK client asks: the others have retained topics
)

// Command is what a local client has published to one of the gateway's topics.
type Command struct {
	Kind      CommandKind
	Client    string // its client id
	User      string // "" = anonymous
	Identity  string // as in the topic; nobody has checked that it exists
	Status    int    // of a MethodResponse
	RequestID string // of a MethodResponse
	Payload   []byte // a copy, the receiver's to keep
	// Base is the version of the reported properties that a Reported is meant for; 0 =
	// any. ErrVersion refuses another.
	Base int64
	// Reply, when not nil, is called once before done is called with nil: with the
	// twin for a TwinGet, with the new version for a Reported. It must not be called
	// with a lock held that Do needs.
	Reply func(version int64, body []byte)
}

// ErrVersion says that the reported properties have another version by now.
var ErrVersion = errors.New("the reported properties have another version")

// Commands takes what local clients publish to the gateway's topics. Do is called
// from many goroutines. With nil it promises to call done exactly once, from any
// goroutine, when the client may be told yes or no; an error refuses at once and
// done is never called. ErrNoRoute, wrapped, says that there is nobody to take it.
type Commands interface {
	Do(ctx context.Context, c Command, done func(error)) error
}

// command handles a PUBLISH to one of the gateway's own topics.
func (c *conn) command(p packet.Publish, number uint64) error {
	if !c.server.access.mayPublish(c.user, c.id, p.Topic) {
		return ErrNotAllowed
	}
	cmd, ok := parseCommand(p.Topic)
	if !ok || c.server.local.commands == nil {
		return ErrNoRoute
	}
	cmd.Client, cmd.User = c.id, c.user
	cmd.Payload = append([]byte(nil), p.Payload...)
	quickAck(c.raw)
	topic, qos, n := p.Topic, p.QoS, cost(p)
	return c.server.local.commands.Do(c.context(), cmd, func(err error) {
		if err != nil {
			c.noteRefusal(topic, err)
		}
		c.settle(qos, number, n, err)
	})
}

func parseCommand(topic string) (Command, bool) {
	levels := strings.Split(topic, "/")
	if len(levels) < 4 || levels[0] != "gateway" || levels[1] == "" {
		return Command{}, false
	}
	c := Command{Identity: levels[1]}
	switch rest := levels[2:]; {
	case len(rest) == 2 && rest[0] == "twin" && rest[1] == "reported":
		c.Kind = Reported
		return c, true
	case len(rest) == 4 && rest[0] == "methods" && rest[1] == "res" && rest[3] != "":
		status, err := strconv.ParseInt(rest[2], 10, 32)
		if err != nil {
			return Command{}, false
		}
		c.Kind, c.Status, c.RequestID = MethodResponse, int(status), rest[3]
		return c, true
	}
	return Command{}, false
}
