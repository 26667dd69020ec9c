package downstream

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/cloudevents/sdk-go/v2/binding"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
	"github.com/cloudevents/sdk-go/v2/types"

	"gatewayd/internal/queue"
)

// cloudEventPrefix marks attributes of a CloudEvent among the properties, as its
// AMQP binding does (3.1.3.1, the form without a colon): the receiving end of IoT
// Hub is AMQP.
const cloudEventPrefix = "cloudEvents_"

// isCloudEvent tells whether a request carries a CloudEvent, in structured or in
// binary form.
func isCloudEvent(h http.Header) bool {
	return strings.HasPrefix(h.Get("Content-Type"), "application/cloudevents") || h.Get("Ce-Specversion") != ""
}

// fromCloudEvent takes payload and properties from a CloudEvent: its data becomes
// the payload, its attributes become properties.
func (a *Arrival) fromCloudEvent(ctx context.Context, header http.Header, body []byte) error {
	m := cehttp.NewMessage(header, io.NopCloser(bytes.NewReader(body)))
	e, err := binding.ToEvent(ctx, m)
	if err == nil {
		err = e.Validate()
	}
	if err != nil {
		return fmt.Errorf("%w: not a CloudEvent: %w", errMalformed, err)
	}
	a.Payload = e.Data()
	a.ContentType, a.ContentEncoding = contentOf(http.Header{"Content-Type": {e.DataContentType()}})
	add := func(name, value string) {
		if value != "" {
			a.Properties = append(a.Properties, queue.Property{Key: cloudEventPrefix + name, Value: value})
		}
	}
	add("specversion", e.SpecVersion())
	add("id", e.ID())
	add("source", e.Source())
	add("type", e.Type())
	add("subject", e.Subject())
	add("dataschema", e.DataSchema())
	if !e.Time().IsZero() {
		add("time", types.FormatTime(e.Time()))
	}
	extensions := e.Extensions()
	for _, name := range slices.Sorted(maps.Keys(extensions)) {
		value, err := types.Format(extensions[name])
		if err != nil {
			return fmt.Errorf("%w: CloudEvent attribute %s: %w", errMalformed, name, err)
		}
		add(name, value)
	}
	return nil
}
