package cloud

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"gatewayd/internal/downstream"
	"gatewayd/internal/hub"
)

const (
	// maxMethodBody is the hub's limit for a request and for an answer.
	maxMethodBody = 128 << 10
	// maxCalls bounds the methods of one identity that wait for their answer. The hub
	// has a limit of its own, which it does not publish.
	maxCalls = 64
	// busyLink is the wait before an answer that the link had no room for is tried
	// again.
	busyLink = 50 * time.Millisecond
)

// methods is the state of an identity's direct methods.
type methods struct {
	calls   map[string]*call // by the gateway's own request id
	leaving *leaving
}

// leaving is a link that is about to be replaced.
type leaving struct {
	link  hub.Link
	until time.Time
	done  func()
}

// call is a method that waits for its answer.
type call struct {
	link     hub.Link // which the answer belongs on
	rid      string   // the hub's
	name     string
	deadline time.Time
	answer   *answer // found, and the link had no room for it
}

// answer is what the caller gets.
type answer struct {
	status int
	body   []byte // JSON or empty
}

// refusal is an answer with a reason.
func refusal(status int, format string, args ...any) answer {
	b, err := json.Marshal(map[string]string{"error": fmt.Sprintf(format, args...)})
	if err != nil {
		b = nil // a map of texts can always be encoded
	}
	return answer{status, b}
}

// overloaded refuses a method, from the connection's goroutine.
func (id *Identity) overloaded(link hub.Link, t topic) {
	a := refusal(http.StatusTooManyRequests, "too much is waiting on this gateway")
	// Without room for it the caller waits until its own time limit.
	_ = link.Publish(answerTopic(t.rid, a.status), a.body, 0, nil)
}

func answerTopic(rid string, status int) string {
	return methodAnswer + strconv.Itoa(status) + "/?$rid=" + rid
}

// called starts a method.
func (id *Identity) called(link hub.Link, t topic, payload []byte) {
	s := &id.methods
	target, own := id.opt().Targets[t.name]
	timeout := target.Timeout
	if timeout <= 0 {
		timeout = DefaultMethodTimeout
	}
	key := newRequestID()
	c := &call{link: link, rid: t.rid, name: t.name, deadline: time.Now().Add(timeout)}
	if s.calls == nil {
		s.calls = make(map[string]*call)
	}
	full := len(s.calls) >= maxCalls
	s.calls[key] = c
	switch {
	case full:
		id.answer(key, refusal(http.StatusTooManyRequests, "%d methods are waiting for their answers already", maxCalls))
	case !own && id.opt().Allow != nil && !slices.Contains(id.opt().Allow, t.name):
		id.answer(key, refusal(http.StatusNotFound, "method %q is not allowed on this gateway", t.name))
	case len(payload) > maxMethodBody:
		id.answer(key, refusal(http.StatusRequestEntityTooLarge, "payload of %d bytes, %d are allowed", len(payload), maxMethodBody))
	case len(payload) > 0 && !json.Valid(payload):
		id.answer(key, refusal(http.StatusBadRequest, "the payload is not JSON"))
	case !id.local(t.name):
		id.wakeAt(c.deadline.Add(handlerGrace))
		id.c.handle(id, key, t.name, target, payload, timeout)
	default:
		id.ask(key, c, payload)
	}
}

// newRequestID is unguessable, so that only who was asked can answer, and short.
func newRequestID() string { return strings.ToLower(rand.Text()[:20]) }

// ask publishes a method to local clients. QoS 0 keeps it from those who are away: a
// method is for now or never.
func (id *Identity) ask(key string, c *call, payload []byte) {
	if strings.ContainsAny(c.name, "/+#\x00") {
		id.answer(key, refusal(http.StatusNotFound, "method name %q cannot be part of a local topic", c.name))
		return
	}
	takers, err := id.c.local.Publish(downstream.LocalMessage{
		Topic: id.topic("methods/" + c.name + "/" + key), Payload: payload, ContentType: jsonType,
		ResponseTopic: id.topic("methods/res/200/" + key), CorrelationData: []byte(key), Expires: c.deadline,
	})
	switch {
	case err != nil:
		id.answer(key, refusal(http.StatusNotFound, "method %q cannot be passed on: %v", c.name, err))
	case takers == 0:
		id.answer(key, refusal(http.StatusNotFound, "no local client has subscribed to method %q", c.name))
	default:
		id.wakeAt(c.deadline)
	}
}

// errAnswer wraps what is wrong with a local client's answer.
var errAnswer = fmt.Errorf("%w: the answer to a method", downstream.ErrProperty)

// answered takes a local client's answer. One that comes too late, or second, is
// dropped without a word, as the hub does with it.
func (id *Identity) answered(status int, key string, body []byte) error {
	c := id.methods.calls[key]
	if c == nil || c.answer != nil {
		return nil
	}
	if !id.local(c.name) {
		return nil
	}
	a, err := sound(answer{status, body})
	id.answer(key, a)
	return err
}

// sound makes an answer that the hub takes of one that it would not.
func sound(a answer) (answer, error) {
	switch {
	case len(a.body) > maxMethodBody:
		return refusal(http.StatusBadGateway, "the answer has %d bytes, the hub allows %d", len(a.body), maxMethodBody),
			fmt.Errorf("%w has %d bytes, the hub allows %d", errAnswer, len(a.body), maxMethodBody)
	case len(a.body) > 0 && !json.Valid(a.body):
		return refusal(http.StatusBadGateway, "the answer is not JSON"), fmt.Errorf("%w is not JSON", errAnswer)
	}
	return a, nil
}

// answer sends the answer on the link that asked, and nowhere else.
func (id *Identity) answer(key string, a answer) {
	c := id.methods.calls[key]
	if c == nil {
		return
	}
	err := c.link.Publish(answerTopic(c.rid, a.status), a.body, 0, nil)
	if errors.Is(err, hub.ErrLinkBusy) && time.Now().Before(c.deadline.Add(handlerGrace)) {
		c.answer = &a
		id.wakeAt(time.Now().Add(busyLink))
		return
	}
	delete(id.methods.calls, key)
	if len(id.methods.calls) == 0 {
		id.methods.calls = nil
	}
	id.freeLink(time.Now())
}

// Leaving is part of hub.Commands.
func (id *Identity) Leaving(link hub.Link, wait time.Duration, done func()) {
	posted := id.post(func() {
		now := time.Now()
		id.methods.leaving = &leaving{link, now.Add(wait), done}
		id.freeLink(now)
	})
	if !posted {
		done()
	}
}

// freeLink lets a link go when nothing waits on it any more, or has waited for long
// enough: then callers hear so instead of nothing.
func (id *Identity) freeLink(now time.Time) {
	l := id.methods.leaving
	if l == nil {
		return
	}
	var waiting []string
	for key, c := range id.methods.calls {
		if c.link == l.link {
			waiting = append(waiting, key)
		}
	}
	if len(waiting) > 0 && now.Before(l.until) {
		id.wakeAt(l.until)
		return
	}
	id.methods.leaving = nil
	for _, key := range waiting {
		id.answer(key, refusal(http.StatusServiceUnavailable, "the gateway gives up this connection to the hub; call the method again"))
	}
	l.done()
}

func (id *Identity) tickMethods(now time.Time) {
	for key, c := range id.methods.calls {
		switch {
		case c.answer != nil:
			id.answer(key, *c.answer)
		case ended(c.link):
			delete(id.methods.calls, key)
		case !now.Before(c.deadline.Add(handlerGrace)), !now.Before(c.deadline) && id.local(c.name):
			id.answer(key, refusal(http.StatusGatewayTimeout, "no local client has answered method %q in time", c.name))
		case id.local(c.name):
			id.wakeAt(c.deadline)
		default:
			id.wakeAt(c.deadline.Add(handlerGrace))
		}
	}
	id.freeLink(now)
}

// local says whether a method goes to the local topics.
func (id *Identity) local(name string) bool {
	t := id.opt().Targets[name]
	return t.URL == "" && len(t.Exec) == 0 && t.Builtin == ""
}
