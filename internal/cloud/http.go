package cloud

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"gatewayd/internal/bag"
	"gatewayd/internal/downstream"
	"gatewayd/internal/queue"
)

// Paths that ServeHTTP answers; a listener mounts them behind its login.
const (
	C2DPath  = "/v1/c2d/"
	TwinPath = "/v1/twin/"
)

const (
	defaultPoll = 30 * time.Second
	maxPoll     = 5 * time.Minute
	// heartbeat keeps a stream's connection from being taken for dead.
	heartbeat   = 15 * time.Second
	httpSlack   = 20 * time.Second // for a client to take what is written
	httpAnswer  = 30 * time.Second // for the disk
	streamBatch = 16
)

// message is a C2D message as HTTP clients see it. One of Body and Base64 is there.
type message struct {
	Sequence   uint64            `json:"sequence"`
	ID         string            `json:"id,omitempty"`
	Properties map[string]string `json:"properties"` // those of the hub begin with $
	Body       json.RawMessage   `json:"body,omitempty"`
	Base64     []byte            `json:"body_base64,omitempty"`
}

// ServeHTTP answers
//
//	GET    /v1/c2d/{identity}?wait=30s&after=0   the next message that waits, or 204 after wait
//	GET    /v1/c2d/{identity}  Accept: text/event-stream   all of them, and those to come
//	DELETE /v1/c2d/{identity}/{sequence}   acknowledges one
//	GET    /v1/twin/{identity}
//	PATCH  /v1/twin/{identity}   {"reported": merge patch}; 202 when it is on disk
//
// A message is given again until it is acknowledged; after, or a stream's
// Last-Event-ID, leaves out what the client has already.
func (c *Cloud) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rest, isTwin := strings.CutPrefix(r.URL.Path, TwinPath)
	if !isTwin {
		rest = strings.TrimPrefix(r.URL.Path, C2DPath)
	}
	name, sequence, single := strings.Cut(rest, "/")
	id, err := c.identity(name)
	if err != nil || isTwin && (!id.opt().Twin || single) || !isTwin && !id.opt().C2D {
		fail(w, http.StatusNotFound, "there is no such identity, or this is switched off for it")
		return
	}
	switch {
	case isTwin && r.Method == http.MethodGet:
		id.serveTwin(w, r)
	case isTwin && r.Method == http.MethodPatch:
		id.servePatch(w, r)
	case isTwin:
		notAllowed(w, "GET, PATCH")
	case single && r.Method == http.MethodDelete:
		id.serveAck(w, r, sequence)
	case single:
		notAllowed(w, "DELETE")
	case r.Method == http.MethodGet:
		id.serveC2D(w, r)
	default:
		notAllowed(w, "GET")
	}
}

func notAllowed(w http.ResponseWriter, methods string) {
	w.Header().Set("Allow", methods)
	fail(w, http.StatusMethodNotAllowed, "only "+methods)
}

// fail answers with a problem document (RFC 9457).
func fail(w http.ResponseWriter, status int, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	if status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	w.WriteHeader(status)
	_, _ = w.Write(encode(map[string]any{"title": http.StatusText(status), "status": status, "detail": detail}))
}

// do runs something in the actor and waits for it.
func (id *Identity) do(ctx context.Context, f func()) error {
	done := make(chan struct{})
	if err := id.accept(func() { f(); close(done) }); err != nil {
		return err
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// messages reads up to most messages above a sequence.
func (id *Identity) messages(ctx context.Context, after uint64, most int) (out []message, err error) {
	var all []message // the actor may still write it when ctx has ended
	err = id.do(ctx, func() {
		id.scan(after, func(p *pending, m queue.Message) bool {
			all = append(all, newMessage(p, m))
			return len(all) < most
		})
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

func newMessage(p *pending, m queue.Message) message {
	out := message{Sequence: p.seq, ID: p.id, Properties: map[string]string{}}
	for _, b := range bag.Parse(m.Topic) {
		out.Properties[b.Key] = b.Value
	}
	switch {
	case json.Valid(m.Payload):
		out.Body = m.Payload
	case utf8.Valid(m.Payload):
		out.Body = encode(string(m.Payload))
	default:
		out.Base64 = m.Payload
	}
	return out
}

func (id *Identity) serveC2D(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	after, err := sequenceOf(query.Get("after"))
	if last := r.Header.Get("Last-Event-ID"); err == nil && last != "" {
		after, err = sequenceOf(last)
	}
	if err != nil {
		fail(w, http.StatusBadRequest, err.Error())
		return
	}
	if strings.Contains(r.Header.Get("Accept"), "text/event-stream") {
		id.stream(w, r, after)
		return
	}
	wait := defaultPoll
	if s := query.Get("wait"); s != "" {
		if wait, err = time.ParseDuration(s); err != nil || wait < 0 || wait > maxPoll {
			fail(w, http.StatusBadRequest, fmt.Sprintf("wait is not a duration up to %v, such as 30s", maxPoll))
			return
		}
	}
	extend(w, wait+httpSlack)
	limit := time.NewTimer(wait)
	defer limit.Stop()
	for {
		news := id.newsLater()
		all, err := id.messages(r.Context(), after, 1)
		if err != nil {
			failFor(w, err)
			return
		}
		if len(all) > 0 {
			w.Header().Set("Content-Type", jsonType)
			_, _ = w.Write(encode(all[0]))
			return
		}
		select {
		case <-news:
		case <-limit.C:
			w.WriteHeader(http.StatusNoContent)
			return
		case <-r.Context().Done():
			fail(w, http.StatusServiceUnavailable, "the gateway is stopping")
			return
		}
	}
}

// extend gives a request more time than the listener's own limits. A writer that
// has no limits needs none extended.
func extend(w http.ResponseWriter, d time.Duration) {
	c := http.NewResponseController(w)
	_ = c.SetReadDeadline(time.Now().Add(d))
	_ = c.SetWriteDeadline(time.Now().Add(d))
}

func sequenceOf(s string) (uint64, error) {
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%.40q is not a sequence", s)
	}
	return n, nil
}

// stream sends messages as Server-Sent Events until the client or the listener
// ends it. The event's id is the sequence.
func (id *Identity) stream(w http.ResponseWriter, r *http.Request, after uint64) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	flusher := http.NewResponseController(w)
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	for {
		news := id.newsLater()
		all, err := id.messages(r.Context(), after, streamBatch)
		if err != nil && !errors.Is(err, ErrBusy) {
			return
		}
		extend(w, heartbeat+httpSlack)
		for _, m := range all {
			after = m.Sequence
			if _, err := fmt.Fprintf(w, "id: %d\nevent: c2d\ndata: %s\n\n", m.Sequence, encode(m)); err != nil {
				return
			}
		}
		if flusher.Flush() != nil {
			return
		}
		if len(all) == streamBatch {
			continue
		}
		select {
		case <-news:
		case <-beat.C:
			if _, err := io.WriteString(w, ":\n\n"); err != nil {
				return
			}
		case <-r.Context().Done():
			return
		}
	}
}

// serveAck acknowledges a message and answers when that is durable.
func (id *Identity) serveAck(w http.ResponseWriter, r *http.Request, sequence string) {
	seq, err := sequenceOf(sequence)
	if err != nil || seq == 0 {
		fail(w, http.StatusBadRequest, fmt.Sprintf("%.40q is not a sequence", sequence))
		return
	}
	found := make(chan bool, 1)
	done := make(chan struct{})
	err = id.accept(func() {
		for _, p := range id.c2d.waiting {
			if p.seq == seq {
				found <- true
				id.finish(p, func() { close(done) })
				return
			}
		}
		found <- false
	})
	if err != nil {
		failFor(w, err)
		return
	}
	select {
	case ok := <-found:
		if !ok {
			fail(w, http.StatusNotFound, "no message with this sequence waits: it was acknowledged or has expired")
			return
		}
	case <-r.Context().Done():
		return
	}
	select {
	case <-done:
		w.WriteHeader(http.StatusNoContent)
	case <-r.Context().Done():
		fail(w, http.StatusServiceUnavailable, "the gateway is stopping")
	}
}

func (id *Identity) serveTwin(w http.ResponseWriter, r *http.Request) {
	var body []byte
	ctx, cancel := context.WithTimeout(r.Context(), httpAnswer)
	defer cancel()
	err := id.do(ctx, func() {
		t := &id.twin
		answer := map[string]any{"desired": json.RawMessage("{}"), "unsent": len(t.unsent)}
		if len(t.raw) > 0 {
			answer["desired"] = json.RawMessage(t.raw)
		}
		answer["reported"] = t.document()
		body = encode(answer)
	})
	if err != nil {
		failFor(w, err)
		return
	}
	w.Header().Set("Content-Type", jsonType)
	_, _ = w.Write(body)
}

func (id *Identity) servePatch(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxSection+1<<10))
	if err != nil {
		fail(w, http.StatusRequestEntityTooLarge, fmt.Sprintf("the hub allows %d bytes", maxSection))
		return
	}
	patch, err := decodeObject(body)
	reported, ok := patch["reported"].(object)
	if err != nil || !ok || len(patch) != 1 {
		fail(w, http.StatusBadRequest, `the body has to be {"reported": {...}}: a device writes nothing else`)
		return
	}
	done := make(chan error, 1)
	if err := id.accept(func() { id.patch(encode(reported), 0, func(_ int64, err error) { done <- err }) }); err != nil {
		failFor(w, err)
		return
	}
	select {
	case err := <-done:
		if err != nil {
			failFor(w, err)
			return
		}
		w.WriteHeader(http.StatusAccepted)
	case <-time.After(httpAnswer):
		fail(w, http.StatusServiceUnavailable, "the disk does not answer")
	}
}

// failFor answers for an error of the actor.
func failFor(w http.ResponseWriter, err error) {
	switch {
	case errors.Is(err, downstream.ErrProperty):
		_, reason, _ := strings.Cut(err.Error(), ": ")
		fail(w, http.StatusBadRequest, reason)
	default:
		fail(w, http.StatusServiceUnavailable, "not possible at the moment, try again later")
	}
}
