package downstream

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"go.uber.org/zap"

	"gatewayd/internal/bag"
	"gatewayd/internal/packet"
	"gatewayd/internal/queue"
)

// The topics of IoT Hub that do not name the identity, from
// https://learn.microsoft.com/azure/iot/iot-mqtt-connect-to-iot-hub.
const (
	azureMethods      = "$iothub/methods/POST/"
	azureMethodAnswer = "$iothub/methods/res/"
	azureTwinGet      = "$iothub/twin/GET/"
	azureTwinPatch    = "$iothub/twin/PATCH/properties/reported/"
	azureTwinAnswers  = "$iothub/twin/res/"
	azureDesired      = "$iothub/twin/PATCH/properties/desired/"
)

// azureRoute is what stands for a route in messages of Azure SDK clients: they speak
// for their identity, and no route decides about them.
const azureRoute = "azure_clients"

// Bounds of what a client of the dialect may ask for.
const (
	maxAzureMessage    = 256 << 10 // the hub's, which counts properties too
	azureAdded         = 128       // what the gateway adds to it: an id and a time, with their names and escapes
	maxAzureProperties = 256
	maxRequestID       = 256
)

// localFilter translates a filter of the dialect to that of the identity's local
// topics; ok is false for one that the hub does not have. What never matches a
// local topic, such as a module's inputs, stays as it is.
func (e *azureEntry) localFilter(filter string) (local string, ok bool) {
	switch {
	case e.c2d != "" && filter == e.c2d+"#":
		return e.local + "c2d/#", true
	case filter == azureMethods+"#":
		return e.local + "methods/+/+", true
	case filter == azureDesired+"#":
		return e.local + "twin/change/+", true
	case filter == azureTwinAnswers+"#", e.inputs != "" && (filter == e.inputs+"#" || filter == e.inputs+"inputs/#"):
		return filter, true
	}
	return "", false
}

// azureSubscriptions names what a client listens to, for its status.
func (l *Local) azureSubscriptions(s *session, e *azureEntry) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []string
	for filter, what := range map[string]string{
		e.local + "c2d/#": "c2d", e.local + "methods/+/+": "methods", e.local + "twin/change/+": "desired", azureTwinAnswers + "#": "twin",
	} {
		if _, has := s.subs[filter]; has {
			all = append(all, what)
		}
	}
	slices.Sort(all)
	return all
}

// topic translates a local topic to the dialect.
func (e *azureEntry) topic(local string) string {
	rest, ok := strings.CutPrefix(local, e.local)
	if !ok {
		return local // an answer, which has its topic already
	}
	kind, rest, _ := strings.Cut(rest, "/")
	switch kind {
	case "c2d":
		return e.c2d + rest
	case "methods":
		name, rid, _ := strings.Cut(rest, "/")
		return azureMethods + bag.Escape(name) + "/?$rid=" + rid
	case "twin":
		return azureDesired + "?$version=" + strings.TrimPrefix(rest, "change/")
	}
	return local
}

// publishAzure handles a PUBLISH of a client of the dialect. Like the hub it ends
// the connection over a topic that is not the client's.
func (c *conn) publishAzure(p packet.Publish, number uint64) error {
	if pairs, ok := strings.CutPrefix(p.Topic, c.azure.events); ok && (pairs == "" || pairs[0] == '/') {
		a, d, err := c.azureArrival(pairs, p)
		if err != nil {
			return err
		}
		return c.handIn(p, a, d, number)
	}
	if c.server.local.commands == nil {
		return ErrNoRoute
	}
	if query, ok := strings.CutPrefix(p.Topic, azureTwinGet); ok {
		return c.twinRequest(TwinGet, query, p, number)
	}
	if query, ok := strings.CutPrefix(p.Topic, azureTwinPatch); ok {
		return c.twinRequest(Reported, query, p, number)
	}
	if rest, ok := strings.CutPrefix(p.Topic, azureMethodAnswer); ok {
		return c.methodAnswer(rest, p, number)
	}
	return fmt.Errorf("%w: not one of the identity's at IoT Hub", ErrTopic)
}

// azureArrival reads a message with the property bag of its topic.
func (c *conn) azureArrival(pairs string, p packet.Publish) (Arrival, Decision, error) {
	a := Arrival{Client: c.counters, Topic: c.azure.events, Payload: p.Payload}
	d := Decision{Identity: c.azure.Identity, Route: azureRoute}
	all := bag.Parse(strings.TrimPrefix(pairs, "/"))
	if len(all) > maxAzureProperties {
		return a, d, fmt.Errorf("%w: more than %d", ErrProperty, maxAzureProperties)
	}
	if p.Retain {
		all = append(all, queue.Property{Key: PropertyRetain, Value: "true"}) // as the hub does
	}
	for _, one := range all {
		switch one.Key {
		case "$.ct":
			a.ContentType = one.Value
		case "$.ce":
			a.ContentEncoding = one.Value
		case "$.on":
			d.Output = one.Value
		default:
			if one.Key == "$.mid" && one.Value == "" {
				continue // the queue's
			}
			if err := checkAzureProperty(one); err != nil {
				return a, d, err
			}
			a.own = putProperty(a.own, one)
		}
	}
	size := len(a.Payload) + len(a.ContentType) + len(a.ContentEncoding) + len(d.Output) + azureAdded
	for _, one := range a.own {
		size += len(one.Key) + len(one.Value)
	}
	// Escaping makes a text at most three times as long.
	long := len(p.Topic) > packet.MaxString/4 && len(bag.Append(nil, all))+len(a.Topic)+azureAdded > packet.MaxString
	if size > maxAzureMessage || long {
		return a, d, queue.ErrTooLarge
	}
	return a, d, nil
}

// checkAzureProperty refuses what the hub would end the connection for, and what
// would make a message seem to come from somebody else.
func checkAzureProperty(p queue.Property) error {
	switch {
	case p.Key == "$.mid":
		if !bag.ValidMessageID(p.Value) {
			return fmt.Errorf("%w: the message id has to be 1 to %d characters of those that IoT Hub takes", ErrProperty, bag.MaxMessageID)
		}
	case p.Key[0] == '$' && !bag.FromDevice(p.Key):
		return fmt.Errorf("%w: %q is not a system property that a device may give", ErrProperty, clip(p.Key))
	case strings.HasPrefix(p.Key, "iothub-connection-"), p.Key == "iothub-enqueuedtime", p.Key == "iothub-message-source":
		return fmt.Errorf("%w: %q is IoT Hub's to say", ErrProperty, clip(p.Key))
	}
	return nil
}

// publishAzureWill hands a will in, marked as the hub marks it.
func (c *conn) publishAzureWill(p packet.Publish) error {
	pairs, ok := strings.CutPrefix(p.Topic, c.azure.events)
	if !ok || pairs != "" && pairs[0] != '/' {
		return ErrTopic
	}
	a, d, err := c.azureArrival(pairs, p)
	if err != nil {
		return err
	}
	a.own = putProperty(a.own, queue.Property{Key: "iothub-MessageType", Value: "Will"})
	return c.server.gate.accept(c.context(), a, d, func(uint64, error) {})
}

// methodAnswer reads {status}/?$rid={rid}.
func (c *conn) methodAnswer(rest string, p packet.Publish, number uint64) error {
	text, query, _ := strings.Cut(rest, "/")
	status, err := strconv.ParseInt(text, 10, 32)
	rid, _ := bag.Query(query)
	if err != nil || rid == "" || len(rid) > maxRequestID {
		return fmt.Errorf("%w: a method is answered at %s{status}/?$rid={id}", ErrTopic, azureMethodAnswer)
	}
	quickAck(c.raw)
	cmd := c.azureCommand(MethodResponse, p)
	cmd.Status, cmd.RequestID = int(status), rid
	done := func(err error) {
		if err != nil {
			c.note("answer to a method refused", zap.Error(err))
		}
		c.settle(p.QoS, number, cost(p), nil)
	}
	if err := c.server.local.commands.Do(c.context(), cmd, done); err != nil {
		done(err)
	}
	return nil
}

func (c *conn) azureCommand(kind CommandKind, p packet.Publish) Command {
	return Command{Kind: kind, Client: c.id, User: c.user, Identity: c.azure.Identity, Payload: append([]byte(nil), p.Payload...)}
}

// twinRequest asks for the twin or changes it; the answer is a message.
func (c *conn) twinRequest(kind CommandKind, query string, p packet.Publish, number uint64) error {
	rid, base := bag.Query(query)
	if rid == "" || len(rid) > maxRequestID {
		return fmt.Errorf("%w: a twin request needs ?$rid={id}", ErrTopic)
	}
	cmd := c.azureCommand(kind, p)
	cmd.Base = base
	good := 200
	if kind == Reported {
		good = 204
	}
	cmd.Reply = func(version int64, body []byte) { c.answerTwin(rid, good, version, body) }
	qos, n := p.QoS, cost(p)
	if kind == TwinGet {
		// Whatever it waits for, nothing else has to wait for it.
		c.settle(qos, number, n, nil)
	}
	done := func(err error) {
		if err != nil {
			status, body := twinRefusal(err)
			c.answerTwin(rid, status, 0, body)
		}
		if kind != TwinGet {
			c.settle(qos, number, n, nil)
		}
	}
	if err := c.server.local.commands.Do(c.context(), cmd, done); err != nil {
		done(err)
	}
	return nil
}

// twinRefusal is the hub's way to say no to a twin request.
func twinRefusal(err error) (status int, body []byte) {
	switch {
	case errors.Is(err, ErrProperty):
		status = 400
	case errors.Is(err, ErrNoRoute):
		status = 404
	case errors.Is(err, ErrVersion):
		status = 412
	case errors.Is(err, queue.ErrFull):
		status = 429
	default:
		status = 503
	}
	body, _ = json.Marshal(map[string]any{"errorCode": status, "message": err.Error()}) // texts and numbers can always be encoded
	return status, body
}

func (c *conn) answerTwin(rid string, status int, version int64, body []byte) {
	topic := azureTwinAnswers + strconv.Itoa(status) + "/?$rid=" + rid
	if version > 0 {
		topic += "&$version=" + strconv.FormatInt(version, 10)
	}
	if !c.server.local.reply(c, LocalMessage{Topic: topic, Payload: body}) {
		c.note("answer to a twin request dropped: the client takes nothing, or has not subscribed")
	}
}

// reply gives a message to one connection, if it is still the session's and wants
// answers.
func (l *Local) reply(c *conn, m LocalMessage) bool {
	l.mu.Lock()
	s := c.session
	_, wanted := s.subs[azureTwinAnswers+"#"]
	wanted = wanted && s.conn == c
	if wanted {
		wanted = s.box.put(delivery{m: m}, true, l.cfg)
	}
	gone := s.conn != c
	l.mu.Unlock()
	if wanted {
		c.kick()
	}
	return wanted || gone
}

func putProperty(all []queue.Property, p queue.Property) []queue.Property {
	for i := range all {
		if all[i].Key == p.Key {
			all[i].Value = p.Value
			return all
		}
	}
	return append(all, p)
}

func sortAzure(rows []AzureStatus) {
	slices.SortFunc(rows, func(a, b AzureStatus) int { return strings.Compare(a.ClientID, b.ClientID) })
}
