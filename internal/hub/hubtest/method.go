package hubtest

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"gatewayd/internal/packet"
)

const (
	defaultMethodTimeout = 30 * time.Second
	maxPastCalls         = 1024
)

// methodCall is a direct method on its way. It stays known for a while after its end, so that a late answer
// can be told from a made-up one.
type methodCall struct {
	conn     *conn // an answer counts only on the connection that was asked
	answer   chan methodResult
	answered bool
	over     bool
}

type methodResult struct {
	status int
	body   []byte
	err    error
}

// InvokeMethod calls a direct method and waits for the answer. Payload is JSON or empty. The timeout is 30 s
// if zero. Errors: ErrNotOnline at once when the identity is not connected or not subscribed,
// ErrMethodTimeout, ErrTooManyMethods, ErrTooLarge, ErrUnknownIdentity, or ctx's own.
func (h *Hub) InvokeMethod(
	ctx context.Context, identity, name string, payload []byte, timeout time.Duration,
) (status int, body []byte, err error) {
	id, err := h.identity(identity)
	if err != nil {
		return 0, nil, err
	}
	if len(payload) > maxMethodBody {
		return 0, nil, ErrTooLarge
	}
	if len(payload) > 0 && !json.Valid(payload) {
		return 0, nil, fmt.Errorf("payload of method %q is not JSON", name)
	}
	set(&timeout, defaultMethodTimeout)
	rid := fmt.Sprintf("%x-m", h.rids.Add(1)) // not a number, since clients must not read it as one
	call, err := id.call(h, rid, name, payload)
	if err != nil {
		return 0, nil, err
	}
	defer id.hangUp(call)
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case r := <-call.answer:
		return r.status, r.body, r.err
	case <-timer.C:
		return 0, nil, ErrMethodTimeout
	case <-ctx.Done():
		return 0, nil, ctx.Err()
	}
}

func (id *identity) call(h *Hub, rid, name string, payload []byte) (*methodCall, error) {
	id.mu.Lock()
	defer id.mu.Unlock()
	c := id.conn
	if c == nil || !id.subs.has(toMethods) {
		return nil, ErrNotOnline
	}
	busy := 0
	for _, m := range id.methods {
		if !m.over {
			busy++
		}
	}
	if busy >= h.opt.MaxMethods {
		return nil, ErrTooManyMethods
	}
	if len(id.methods) > maxPastCalls {
		for old, m := range id.methods {
			if m.over {
				delete(id.methods, old)
			}
		}
	}
	call := &methodCall{conn: c, answer: make(chan methodResult, 1)}
	id.methods[rid] = call
	topic := "$iothub/methods/POST/" + string(escape(nil, name)) + "/?$rid=" + rid
	c.out.packet(packet.Publish{Topic: topic, Payload: payload})
	poke(c.wake)
	return call, nil
}

func (id *identity) hangUp(call *methodCall) {
	id.mu.Lock()
	defer id.mu.Unlock()
	call.over = true
}

// methodAnswered handles {status}/?$rid={rid}.
func (c *conn) methodAnswered(rest string, body []byte) {
	text, query, ok := strings.Cut(rest, "/")
	status, err := strconv.Atoi(text)
	if !ok || err != nil {
		c.tolerate(51, "method answer with status %.40q", text)
		return
	}
	rid, _, ok := requestID(query)
	if !ok {
		c.tolerate(51, "method answer without $rid")
		return
	}
	result := methodResult{status: status, body: append([]byte(nil), body...)}
	if len(body) > maxMethodBody {
		result = methodResult{err: ErrTooLarge}
		c.breach(52, false, "method answer of %d bytes", len(body))
	} else if len(body) > 0 && !json.Valid(body) {
		if !c.tolerate(51, "method answer is not JSON") {
			return
		}
	}
	id := c.id
	id.mu.Lock()
	call := id.methods[rid]
	wrong := call == nil || call.answered || call.conn != c
	if !wrong {
		call.answered = true
		call.answer <- result // one slot, and answered only once
	}
	id.mu.Unlock()
	if wrong {
		c.breach(50, false, "method answer with unknown or reused $rid %.80q", rid)
	}
}

// requestID reads ?$rid={rid}[&$version={n}]. The rid is returned as it stands, since it has to be echoed so.
func requestID(query string) (rid, version string, ok bool) {
	query, marked := strings.CutPrefix(query, "?")
	if !marked {
		return "", "", false
	}
	for part := range strings.SplitSeq(query, "&") {
		rawKey, value, _ := strings.Cut(part, "=")
		key, err := unescape(nil, rawKey)
		if err != nil {
			return "", "", false
		}
		switch string(key) {
		case "$rid":
			set(&rid, value)
		case "$version":
			set(&version, value)
		}
	}
	return rid, version, rid != ""
}
