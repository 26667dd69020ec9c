package hubtest

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"gatewayd/internal/packet"
)

// Twin is an identity's twin as its GET shows it.
type Twin struct {
	Desired, Reported               json.RawMessage // with $version
	DesiredVersion, ReportedVersion int64
}

type twin struct {
	desired, reported               map[string]any
	desiredVersion, reportedVersion int64
	loseDesired                     int // notifications still to be lost
}

func newTwin() twin {
	return twin{desired: map[string]any{}, reported: map[string]any{}, desiredVersion: 1, reportedVersion: 1}
}

// document is a section with its version, as the wire shows it.
func document(section map[string]any, version int64) map[string]any {
	doc := make(map[string]any, len(section)+1)
	for k, v := range section {
		doc[k] = v
	}
	doc["$version"] = version
	return doc
}

// encode writes JSON that came from a JSON decoder, which cannot fail.
func encode(v any) []byte {
	b, _ := json.Marshal(v)
	return b
}

// Twin returns the twin of an identity; the zero Twin for an unknown one.
func (h *Hub) Twin(identity string) Twin {
	id, err := h.identity(identity)
	if err != nil {
		return Twin{}
	}
	id.mu.Lock()
	defer id.mu.Unlock()
	t := &id.twin
	return Twin{
		Desired:        encode(document(t.desired, t.desiredVersion)),
		Reported:       encode(document(t.reported, t.reportedVersion)),
		DesiredVersion: t.desiredVersion, ReportedVersion: t.reportedVersion,
	}
}

// PatchDesired merges a JSON object into the desired properties, tells the device if it is connected and
// subscribed, and returns the new version.
func (h *Hub) PatchDesired(identity, patch string) (int64, error) {
	id, err := h.identity(identity)
	if err != nil {
		return 0, err
	}
	change, err := decodeObject([]byte(patch))
	if err != nil {
		return 0, fmt.Errorf("patch of desired properties: %w", err)
	}
	if err := checkPatch(change); err != nil {
		return 0, fmt.Errorf("patch of desired properties: %w", err)
	}
	id.mu.Lock()
	defer id.mu.Unlock()
	t := &id.twin
	merged := merge(t.desired, change)
	if len(encode(merged)) > maxSection {
		return 0, fmt.Errorf("desired properties: %w", errSectionSize)
	}
	t.desired = merged
	t.desiredVersion++
	if t.loseDesired > 0 {
		t.loseDesired--
		return t.desiredVersion, nil
	}
	if c := id.conn; c != nil && id.subs.has(toDesired) {
		topic := "$iothub/twin/PATCH/properties/desired/?$version=" + strconv.FormatInt(t.desiredVersion, 10)
		c.out.packet(packet.Publish{Topic: topic, Payload: encode(document(change, t.desiredVersion))})
		poke(c.wake)
	}
	return t.desiredVersion, nil
}

// LoseDesired keeps the next n desired changes of an identity from being told, so that the device sees a gap
// in the versions.
func (h *Hub) LoseDesired(name string, n int) error {
	return h.with(name, func(id *identity) { id.twin.loseDesired = n })
}

// ResetTwin empties a twin and starts its versions anew, as deleting and creating the identity again does.
func (h *Hub) ResetTwin(name string) error {
	return h.with(name, func(id *identity) { id.twin = newTwin() })
}

// twinRequest handles GET and PATCH. rest is what follows the fixed part of the topic.
func (c *conn) twinRequest(rest string, body []byte, patch bool) {
	rid, version, ok := requestID(rest)
	if !ok {
		c.violate(53, "twin request without $rid")
		return
	}
	h, id := c.h, c.id
	h.shape.mu.Lock()
	_, inTime := h.shape.twin.reserve(time.Now(), 0)
	h.shape.mu.Unlock()
	defer h.ledger.touch()
	id.mu.Lock()
	defer id.mu.Unlock()
	a := twinAnswer{}
	switch {
	case len(id.fail) > 0:
		a.fail(id.fail[0], errors.New("failed on request"))
		id.fail = id.fail[1:]
	case !inTime:
		a.fail(429, errors.New("too many twin requests"))
	case patch:
		a = id.twin.patchReported(body, version, h.opt)
	default:
		a = twinAnswer{status: 200, body: encode(map[string]any{
			"desired":  document(id.twin.desired, id.twin.desiredVersion),
			"reported": document(id.twin.reported, id.twin.reportedVersion),
		})}
	}
	if !id.subs.has(toTwinReplies) && !h.opt.AnswerUnsubscribed {
		return
	}
	topic := fmt.Sprintf("$iothub/twin/res/%d/?$rid=%s", a.status, rid)
	if a.version > 0 {
		topic += "&$version=" + strconv.FormatInt(a.version, 10)
	}
	c.out.packet(packet.Publish{Topic: topic, Payload: a.body})
}

type twinAnswer struct {
	status  int
	version int64 // of a successful patch
	body    []byte
}

// fail fills in an error in the shape that the SDKs' tests show.
func (a *twinAnswer) fail(status int, err error) {
	a.status, a.body = status, encode(map[string]any{
		"errorCode": status*1000 + 4, "trackingId": "stand-in", "message": err.Error(),
		"timestampUtc": time.Now().UTC().Format(time.RFC3339),
	})
}

func (t *twin) patchReported(body []byte, version string, opt Options) (a twinAnswer) {
	change, err := decodeObject(body)
	if err == nil {
		err = checkPatch(change)
	}
	if err != nil {
		a.fail(400, err)
		return a
	}
	if version != "" && version != strconv.FormatInt(t.reportedVersion, 10) {
		a.fail(opt.ConditionalStatus, fmt.Errorf("$version %s is not the current %d", version, t.reportedVersion))
		return a
	}
	merged := merge(t.reported, change)
	if len(encode(merged)) > maxSection {
		a.fail(opt.TooLargeStatus, errSectionSize)
		return a
	}
	t.reported = merged
	t.reportedVersion++
	return twinAnswer{status: 204, version: t.reportedVersion}
}

// merge applies a JSON merge patch (RFC 7396) without changing its arguments.
func merge(base, change map[string]any) map[string]any {
	out := make(map[string]any, len(base)+len(change))
	for k, v := range base {
		out[k] = v
	}
	for k, v := range change {
		switch v := v.(type) {
		case nil:
			delete(out, k)
		case map[string]any:
			old, _ := out[k].(map[string]any)
			out[k] = merge(old, v)
		default:
			out[k] = v
		}
	}
	return out
}
