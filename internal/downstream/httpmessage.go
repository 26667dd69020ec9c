package downstream

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"gatewayd/internal/queue"
)

// accepted is the answer for a message that is on disk.
type accepted struct {
	Status   int    `json:"status"`
	Identity string `json:"identity,omitempty"`
	Sequence uint64 `json:"sequence,omitempty"`
	Error    string `json:"error,omitempty"` // of a batch item
}

var errMalformed = errors.New("malformed")

// serveMessage handles POST /v1/messages/{topic}: the body is the payload.
func (h *HTTP) serveMessage(w http.ResponseWriter, r *http.Request, c *Client, topic string) {
	body, release, ok := h.body(w, r, c, topic, h.cfg.MaxBody)
	if !ok {
		return
	}
	defer release()
	if !h.admit(w, c, 1) {
		return
	}
	a := Arrival{Client: c, Topic: topic, Payload: body}
	a.ContentType, a.ContentEncoding = contentOf(r.Header)
	a.Properties = requestProperties(r)
	if isCloudEvent(r.Header) {
		if err := a.fromCloudEvent(r.Context(), r.Header, body); err != nil {
			failFor(w, err)
			return
		}
	}
	result := h.acceptAll(r.Context(), []Arrival{a})[0]
	if result.err != nil {
		failFor(w, result.err)
		return
	}
	answer(w, http.StatusAccepted, accepted{http.StatusAccepted, result.identity, result.seq, ""})
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(body)
}

// body reads a request's body within its limit and within what all requests
// together may hold; ok is false after an answer.
func (h *HTTP) body(w http.ResponseWriter, r *http.Request, c *Client, topic string, most int) (body []byte, release func(), ok bool) {
	if r.ContentLength > int64(most) {
		c.refused(topic, queue.ErrTooLarge)
		fail(w, http.StatusRequestEntityTooLarge, "the limit is "+strconv.Itoa(most)+" bytes")
		return nil, nil, false
	}
	size := int64(most)
	if r.ContentLength >= 0 {
		size = r.ContentLength
	}
	if !h.buffered.TryAcquire(size) {
		w.Header().Set("Retry-After", strconv.Itoa(retrySoon))
		fail(w, http.StatusServiceUnavailable, "too many requests are being handled, try again soon")
		return nil, nil, false
	}
	release = func() { h.buffered.Release(size) }
	// Grown as bytes arrive: a length that is only announced costs nothing.
	var buf bytes.Buffer
	_, err := buf.ReadFrom(http.MaxBytesReader(w, r.Body, int64(most)))
	var large *http.MaxBytesError
	switch {
	case err == nil:
		return buf.Bytes(), release, true
	case errors.As(err, &large):
		c.refused(topic, queue.ErrTooLarge)
		fail(w, http.StatusRequestEntityTooLarge, "the limit is "+strconv.Itoa(most)+" bytes")
	case errors.Is(err, io.ErrUnexpectedEOF):
		fail(w, http.StatusBadRequest, "the body is shorter than announced")
	default:
		fail(w, http.StatusRequestTimeout, "the body did not arrive in time")
	}
	release()
	return nil, nil, false
}

// result is what became of one arrival.
type result struct {
	identity string
	seq      uint64
	err      error
}

// acceptAll hands arrivals to the gate in order and waits until the queue has
// answered for all of them.
func (h *HTTP) acceptAll(ctx context.Context, arrivals []Arrival) []result {
	type outcome struct {
		i   int
		seq uint64
		err error
	}
	results := make([]result, len(arrivals))
	outcomes := make(chan outcome, len(arrivals)) // never blocks the queue
	waiting := 0
	for i, a := range arrivals {
		d, err := h.gate.Decide(a.Topic)
		if err == nil {
			err = h.gate.accept(ctx, a, d, func(seq uint64, err error) { outcomes <- outcome{i, seq, err} })
		}
		results[i] = result{identity: d.Identity, err: err}
		if err != nil {
			a.Client.refused(a.Topic, err)
		} else {
			waiting++
			results[i].err = queue.ErrDisk // until it says otherwise
		}
	}
	limit := time.NewTimer(httpSyncTimeout)
	defer limit.Stop()
	for ; waiting > 0; waiting-- {
		select {
		case o := <-outcomes:
			results[o.i].seq, results[o.i].err = o.seq, o.err
		case <-limit.C:
			// Perhaps stored, perhaps not: the sensor has to send it again.
			return results
		}
	}
	return results
}

// contentOf takes content type and character set from the headers. The type that
// curl and HTML forms send by default says nothing about a reading.
func contentOf(header http.Header) (contentType, encoding string) {
	encoding = header.Get("Content-Encoding")
	contentType, params, err := mime.ParseMediaType(header.Get("Content-Type"))
	if err != nil || contentType == "application/x-www-form-urlencoded" {
		return "", encoding
	}
	if encoding == "" {
		encoding = strings.ToLower(params["charset"])
	}
	// JSON between systems is UTF-8 (RFC 8259, 8.1); IoT Hub routes on bodies only
	// when it is told.
	if encoding == "" && contentType == "application/json" {
		encoding = "utf-8"
	}
	return contentType, encoding
}

// requestProperties reads ?p.KEY=VALUE and X-Property-KEY headers. Names of
// headers have no case: they become lower case. The query wins.
func requestProperties(r *http.Request) []queue.Property {
	var out []queue.Property
	for name, values := range r.Header {
		if key, ok := strings.CutPrefix(name, "X-Property-"); ok {
			out = append(out, queue.Property{Key: strings.ToLower(key), Value: values[len(values)-1]})
		}
	}
	byKey := func(a, b queue.Property) int { return strings.Compare(a.Key, b.Key) }
	slices.SortFunc(out, byKey)
	fromQuery := len(out)
	for name, values := range r.URL.Query() {
		if key, ok := strings.CutPrefix(name, "p."); ok {
			out = append(out, queue.Property{Key: key, Value: values[len(values)-1]})
		}
	}
	slices.SortFunc(out[fromQuery:], byKey)
	return out
}
