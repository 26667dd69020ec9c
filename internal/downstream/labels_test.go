package downstream

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"go.uber.org/zap"

	"gatewayd/internal/queue"
)

// lastSink keeps the last message that it was given.
type lastSink struct{ m queue.Message }

func (l *lastSink) Append(_ context.Context, _ string, m queue.Message, done func(uint64, error)) error {
	l.m = m
	done(1, nil)
	return nil
}

func (l *lastSink) SetAside(ctx context.Context, name string, m queue.Message, _ string, done func(uint64, error)) error {
	return l.Append(ctx, name, m, done)
}

func TestNothingIsLabelledAsWhatItIsNot(t *testing.T) {
	assumed := Route{ContentType: "application/json", ContentEncoding: "utf-8", TypeAssumed: true, EncodingAssumed: true}
	written := Route{ContentType: "application/json", ContentEncoding: "utf-8"}
	half := Route{ContentType: "image/png", ContentEncoding: "utf-8", EncodingAssumed: true}
	none := Route{}
	const text, binary = `{"t":1}`, "\xff\xd8\xff"
	for _, tt := range []struct {
		name                    string
		route                   Route
		body, itsType, encoding string // as the sensor says
		wantType, wantEncoding  string
	}{
		{"text", assumed, text, "", "", "application/json", "utf-8"},
		{"empty", assumed, "", "", "", "application/json", "utf-8"},
		{"binary", assumed, binary, "", "", "", ""},
		{"binary with its own type", assumed, binary, "image/jpeg", "", "image/jpeg", ""},
		{"compressed by the sensor", assumed, binary, "application/json", "gzip", "application/json", "gzip"},
		{"text with its own type", assumed, text, "text/csv", "", "text/csv", "utf-8"},
		{"binary, written out", written, binary, "image/jpeg", "", "application/json", "utf-8"},
		{"binary, type written out", half, binary, "", "", "image/png", ""},
		{"text, type written out", half, text, "text/csv", "", "image/png", "utf-8"},
		{"no labels", none, text, "text/csv", "utf-16", "text/csv", "utf-16"},
		{"no labels at all", none, binary, "", "", "", ""},
	} {
		tt.route.Match, tt.route.To = "#", "press-7"
		r, err := NewRouter([]Route{tt.route}, []string{"press-7"})
		if err != nil {
			t.Fatal(err)
		}
		var sink lastSink
		gate := NewGate(r, &sink, NewLedger(0, 0), GateLimits{}, zap.NewNop())
		a := Arrival{Client: gate.Ledger().Source("test").Client("a"), Topic: "t", Payload: []byte(tt.body), ContentType: tt.itsType, ContentEncoding: tt.encoding}
		if err := gate.Accept(t.Context(), a, func(uint64, error) {}); err != nil {
			t.Fatal(err)
		}
		if sink.m.ContentType != tt.wantType || sink.m.ContentEncoding != tt.wantEncoding {
			t.Errorf("%s: %q %q, want %q %q", tt.name, sink.m.ContentType, sink.m.ContentEncoding, tt.wantType, tt.wantEncoding)
		}
	}
}

// What the hub can never take is refused at once; nobody wants to find it set aside.
func TestWhatTheHubCannotTakeIsRefusedAtTheGate(t *testing.T) {
	properties := func(value string, n int) (all []queue.Property) {
		for i := range n {
			all = append(all, queue.Property{Key: string(rune('a' + i)), Value: value})
		}
		return all
	}
	const most = 256<<10 - 256
	for _, tt := range []struct {
		name       string
		route      Route
		size       int
		properties []queue.Property
		want       error
	}{
		{"the largest body", Route{}, most, nil, nil},
		{"a larger one", Route{}, most + 1, nil, queue.ErrTooLarge},
		{"properties count", Route{}, most - 100, properties(strings.Repeat("v", 50), 2), queue.ErrTooLarge},
		{"compression helps", Route{Gzip: true}, 256 << 10, nil, nil},
		{"a program does not", Route{Filter: "true"}, 256 << 10, nil, queue.ErrTooLarge},
		{"properties beyond a topic", Route{}, 1, properties(strings.Repeat("v", 40<<10), 2), ErrProperty},
		{"percent-encoded", Route{}, 1, properties(strings.Repeat("ü", 11<<10), 1), ErrProperty},
		{"not percent-encoded", Route{}, 1, properties(strings.Repeat("v", 22<<10), 1), nil},
	} {
		tt.route.Match, tt.route.To = "#", "press-7"
		r, err := NewRouter([]Route{tt.route}, []string{"press-7"})
		if err != nil {
			t.Fatal(err)
		}
		var sink lastSink
		gate := NewGate(r, &sink, NewLedger(0, 0), GateLimits{}, zap.NewNop())
		a := Arrival{Client: gate.Ledger().Source("test").Client("a"), Topic: "t", Payload: bytes.Repeat([]byte("1"), tt.size), Properties: tt.properties}
		if err := gate.Accept(t.Context(), a, func(uint64, error) {}); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
}
