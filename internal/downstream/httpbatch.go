package downstream

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"gatewayd/internal/queue"
)

// batchItem is one message of a batch. A payload that is a JSON string is its
// text; any other JSON value is sent as it is written.
type batchItem struct {
	Topic         string            `json:"topic"`
	Payload       json.RawMessage   `json:"payload"`
	PayloadBase64 *string           `json:"payload_base64"`
	ContentType   string            `json:"content_type"`
	Properties    map[string]string `json:"properties"`
}

// serveBatch handles POST /v1/batch: a JSON array, or NDJSON. It answers 202 when
// every item is on disk; else with the status of what failed, 503 first, so that
// a client which looks at the status only does not take a loss for a success. The
// body says it per item.
func (h *HTTP) serveBatch(w http.ResponseWriter, r *http.Request, c *Client) {
	body, release, ok := h.body(w, r, c, "(batch)", h.cfg.MaxBatch)
	if !ok {
		return
	}
	defer release()
	raw, err := splitBatch(body, h.cfg.MaxItems)
	if err != nil {
		code := http.StatusBadRequest
		if errors.Is(err, queue.ErrTooLarge) {
			code = http.StatusRequestEntityTooLarge
		}
		fail(w, code, err.Error())
		return
	}
	if !h.admit(w, c, len(raw)) {
		return
	}
	answers := make([]accepted, len(raw))
	arrivals, places := make([]Arrival, 0, len(raw)), make([]int, 0, len(raw))
	for i, item := range raw {
		a, err := parseItem(item)
		if err != nil {
			answers[i] = accepted{Status: http.StatusBadRequest, Error: err.Error()}
			c.refused("", ErrTopic)
			continue
		}
		a.Client = c
		arrivals, places = append(arrivals, a), append(places, i)
	}
	for i, res := range h.acceptAll(r.Context(), arrivals) {
		a := &answers[places[i]]
		if res.err != nil {
			*a = accepted{Status: verdict(res.err), Error: explain(res.err)}
		} else {
			*a = accepted{Status: http.StatusAccepted, Identity: res.identity, Sequence: res.seq}
		}
	}
	status := batchStatus(answers)
	if status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", strconv.Itoa(retryLater))
	}
	answer(w, status, answers)
}

func batchStatus(answers []accepted) int {
	status := http.StatusAccepted
	for _, a := range answers {
		switch {
		case a.Status == http.StatusServiceUnavailable:
			return a.Status
		case status == http.StatusAccepted:
			status = a.Status
		}
	}
	return status
}

// splitBatch cuts a batch into its items without looking into them.
func splitBatch(body []byte, most int) ([]json.RawMessage, error) {
	var items []json.RawMessage
	trimmed := bytes.TrimLeft(body, " \t\r\n")
	if len(trimmed) > 0 && trimmed[0] == '[' {
		if err := splitArray(trimmed, most, &items); err != nil {
			return nil, err
		}
	} else {
		for line := range bytes.Lines(body) {
			if line = bytes.TrimSpace(line); len(line) > 0 {
				items = append(items, line)
			}
			if len(items) > most {
				break
			}
		}
	}
	switch {
	case len(items) == 0:
		return nil, fmt.Errorf("%w: no items", errMalformed)
	case len(items) > most:
		return nil, fmt.Errorf("%w: more than %d items in a batch", queue.ErrTooLarge, most)
	}
	return items, nil
}

// splitArray reads an array item by item, so that the number of items is bounded
// before memory is spent on them.
func splitArray(body []byte, most int, items *[]json.RawMessage) error {
	d := json.NewDecoder(bytes.NewReader(body))
	if _, err := d.Token(); err != nil {
		return fmt.Errorf("%w: not a JSON array: %w", errMalformed, err)
	}
	for d.More() && len(*items) <= most {
		var item json.RawMessage
		if err := d.Decode(&item); err != nil {
			return fmt.Errorf("%w: not a JSON array: %w", errMalformed, err)
		}
		*items = append(*items, item)
	}
	if len(*items) > most {
		return nil
	}
	if _, err := d.Token(); err != nil {
		return fmt.Errorf("%w: the JSON array has no end", errMalformed)
	}
	if len(bytes.TrimSpace(body[d.InputOffset():])) > 0 {
		return fmt.Errorf("%w: something follows the JSON array", errMalformed)
	}
	return nil
}

func parseItem(raw json.RawMessage) (Arrival, error) {
	var item batchItem
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&item); err != nil {
		return Arrival{}, fmt.Errorf("%w: not a message: %w", errMalformed, err)
	}
	if len(bytes.TrimSpace(raw[d.InputOffset():])) > 0 {
		return Arrival{}, fmt.Errorf("%w: more than one JSON value in a line", errMalformed)
	}
	return item.arrival()
}

func (item *batchItem) arrival() (Arrival, error) {
	a := Arrival{Topic: item.Topic, ContentType: item.ContentType}
	switch {
	case item.PayloadBase64 != nil && item.Payload != nil:
		return Arrival{}, fmt.Errorf("%w: payload and payload_base64 exclude each other", errMalformed)
	case item.PayloadBase64 != nil:
		b, err := base64.StdEncoding.DecodeString(*item.PayloadBase64)
		if err != nil {
			return Arrival{}, fmt.Errorf("%w: payload_base64: %w", errMalformed, err)
		}
		a.Payload = b
	case len(item.Payload) > 0 && item.Payload[0] == '"':
		var text string
		if err := json.Unmarshal(item.Payload, &text); err != nil {
			return Arrival{}, fmt.Errorf("%w: payload: %w", errMalformed, err)
		}
		a.Payload = []byte(text)
	case item.Payload != nil:
		a.Payload = item.Payload
		if a.ContentType == "" {
			a.ContentType, a.ContentEncoding = "application/json", "utf-8"
		}
	default:
		return Arrival{}, fmt.Errorf("%w: neither payload nor payload_base64", errMalformed)
	}
	for key, value := range item.Properties {
		a.Properties = append(a.Properties, queue.Property{Key: key, Value: value})
	}
	slices.SortFunc(a.Properties, func(x, y queue.Property) int { return strings.Compare(x.Key, y.Key) })
	return a, nil
}
