package downstream

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"gatewayd/internal/queue"
)

// asideRoute begins the route's name of what the fake sets aside.
const asideRoute = "aside: "

func (s *fakeSink) SetAside(ctx context.Context, identity string, m queue.Message, reason string, done func(uint64, error)) error {
	m.Route = asideRoute + reason
	return s.Append(ctx, identity, m, done)
}

func (s syncSink) SetAside(ctx context.Context, identity string, m queue.Message, _ string, done func(uint64, error)) error {
	return s.Append(ctx, identity, m, done)
}

func (s journalSink) SetAside(ctx context.Context, _ string, m queue.Message, reason string, done func(uint64, error)) error {
	return s.q.AppendAside(ctx, m, reason, done)
}

// keepSink stores at once, or answers with an error.
type keepSink struct {
	stored []queue.Message
	err    error // given to done
}

func (s *keepSink) Append(_ context.Context, _ string, m queue.Message, done func(uint64, error)) error {
	if s.err == nil {
		m.Payload = bytes.Clone(m.Payload)
		s.stored = append(s.stored, m)
	}
	done(uint64(len(s.stored)), s.err)
	return nil
}

func (s *keepSink) SetAside(ctx context.Context, identity string, m queue.Message, reason string, done func(uint64, error)) error {
	m.Route = asideRoute + reason
	return s.Append(ctx, identity, m, done)
}

// programGate is a gate with one route for everything.
func programGate(t testing.TB, sink Sink, r Route) (*Gate, *Client) {
	t.Helper()
	r.Match, r.To, r.Name = "#", "press-7", "r"
	router, err := NewRouter([]Route{r}, []string{"press-7"})
	if err != nil {
		t.Fatal(err)
	}
	g := NewGate(router, sink, NewLedger(0, 0), GateLimits{}, zap.NewNop())
	return g, g.Ledger().Source("test").Client("c")
}

// send hands a message in and returns the answer that its sensor gets.
func send(t testing.TB, g *Gate, a Arrival) error {
	t.Helper()
	answer := make(chan error, 1)
	if err := g.Accept(t.Context(), a, func(_ uint64, err error) { answer <- err }); err != nil {
		return err
	}
	return <-answer
}

func TestProgramsDecideWhatIsStored(t *testing.T) {
	const long = `"x" * 300000`
	for _, tt := range []struct {
		name, body string
		route      Route
		want       string // payload; "" = nothing stored
		properties string
		aside      string // part of the reason
	}{
		{"no program", `x`, Route{}, `x`, "[{p 1}]", ""},
		{"filter true", `{"level":3}`, Route{Filter: ".level > 2"}, `{"level":3}`, "[{p 1}]", ""},
		{"filter false", `{"level":1}`, Route{Filter: ".level > 2"}, ``, "", ""},
		{"filter null", `{}`, Route{Filter: ".wanted"}, ``, "", ""},
		{"filter gives nothing", `{}`, Route{Filter: "empty"}, ``, "", ""},
		{"filter fails", `{"level":{}}`, Route{Filter: ".level[0]"}, `{"level":{}}`, "[{p 1}]", "r: filter: program failed: expected"},
		{"not JSON", `21.5 °C`, Route{Filter: "true"}, `21.5 °C`, "[{p 1}]", "the body is not JSON"},
		{"two bodies", `1 2`, Route{Filter: "true"}, `1 2`, "[{p 1}]", "the body is not JSON"},
		{"transform", `{"b":[1,2],"a":"x"}`, Route{Transform: "{a, n: (.b|length), $topic, p: $properties.p}"}, `{"a":"x","n":2,"p":"1","topic":"a/b"}`, "[{p 1}]", ""},
		{"digits survive", `{"n":12345678901234567890.120}`, Route{Transform: "."}, `{"n":12345678901234567890.120}`, "[{p 1}]", ""},
		{"transform to nothing", `{}`, Route{Transform: "empty"}, ``, "", ""},
		{"transform to two", `[1,2]`, Route{Transform: ".[]"}, `[1,2]`, "[{p 1}]", "more than one result"},
		{"transform too large", `1`, Route{Transform: long}, `1`, "[{p 1}]", "larger than 262144 bytes"},
		{"transform without end", `1`, Route{Transform: "last(repeat(1))"}, `1`, "[{p 1}]", "takes longer than 250ms"},
		{"halt", `1`, Route{Transform: "halt"}, `1`, "[{p 1}]", "halted"},
		{"no environment", `1`, Route{Transform: "[env, $ENV]"}, `[{},{}]`, "[{p 1}]", ""},
		{"set", `{"s":"x","n":5,"o":{"k":[1]}}`, Route{Set: map[string]string{"a": ".s", "b": ".n", "c": ".o", "d": ".none", "e": "empty", "p": "7"}}, `{"s":"x","n":5,"o":{"k":[1]}}`, `[{p 7} {a x} {b 5} {c {"k":[1]}}]`, ""},
		{"set sees the body as it came", `{"s":"x"}`, Route{Set: map[string]string{"a": ".s"}, Transform: "{}"}, `{}`, `[{p 1} {a x}]`, ""},
		{"set too long", `1`, Route{Set: map[string]string{"a": `"x" * 5000`}}, `1`, `[{p 1}]`, "set.a: program failed: the result is longer than 4096"},
		{"error drops", `x`, Route{Filter: ".", OnError: ErrorDrop}, ``, "", ""},
		{"error passes", `x`, Route{Filter: ".", Transform: "1", OnError: ErrorPass}, `x`, "[{p 1}]", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sink := &keepSink{}
			g, c := programGate(t, sink, tt.route)
			a := Arrival{Client: c, Topic: "a/b", Payload: []byte(tt.body), Properties: []queue.Property{{Key: "p", Value: "1"}}}
			if err := send(t, g, a); err != nil {
				t.Fatal(err)
			}
			if tt.want == "" {
				if len(sink.stored) != 0 {
					t.Errorf("stored %s", sink.stored[0].Payload)
				}
				return
			}
			if len(sink.stored) != 1 {
				t.Fatalf("stored %d", len(sink.stored))
			}
			m := sink.stored[0]
			if string(m.Payload) != tt.want || fmt.Sprint(m.Properties) != tt.properties {
				t.Errorf("got  %s %v\nwant %s %s", m.Payload, m.Properties, tt.want, tt.properties)
			}
			if aside := strings.HasPrefix(m.Route, asideRoute); aside != (tt.aside != "") || !strings.Contains(m.Route, tt.aside) {
				t.Errorf("route %q, want %q", m.Route, tt.aside)
			}
			if n := g.Ledger().Sources()[0].Received; n != 1 {
				t.Errorf("received %d", n)
			}
		})
	}
}

// A new body is JSON, whatever the sensor said of its own, unless the route says
// otherwise.
func TestANewBodyHasItsOwnLabels(t *testing.T) {
	for _, tt := range []struct {
		route      Route
		kind, code string
	}{
		{Route{Transform: ".", ContentType: "application/json", ContentEncoding: "utf-8", TypeAssumed: true, EncodingAssumed: true}, "application/json", "utf-8"},
		{Route{Transform: ".", ContentType: "application/senml+json"}, "application/senml+json", "latin-1"},
		{Route{Filter: "true", ContentType: "application/json", TypeAssumed: true, EncodingAssumed: true}, "text/plain", "latin-1"},
	} {
		sink := &keepSink{}
		g, c := programGate(t, sink, tt.route)
		if err := send(t, g, Arrival{Client: c, Topic: "a", Payload: []byte("1"), ContentType: "text/plain", ContentEncoding: "latin-1"}); err != nil {
			t.Fatal(err)
		}
		if m := sink.stored[0]; m.ContentType != tt.kind || m.ContentEncoding != tt.code {
			t.Errorf("%+v: got %q %q", tt.route, m.ContentType, m.ContentEncoding)
		}
	}
}

func TestFailuresOfProgramsAreCountedAndLogged(t *testing.T) {
	for _, on := range []OnError{ErrorSetAside, ErrorDrop, ErrorPass} {
		g, c := programGate(t, &keepSink{}, Route{Filter: ".ok", OnError: on})
		core, logged := observer.New(zap.WarnLevel)
		g.log = zap.New(core)
		for _, body := range []string{`{"ok":true}`, `{"ok":false}`, `[]`, `x`} {
			if err := send(t, g, Arrival{Client: c, Topic: "a", Payload: []byte(body)}); err != nil {
				t.Fatal(err)
			}
		}
		got := g.Router().Counts()
		want := RouteCount{Route: "r", Match: "#", To: "press-7", Messages: 4, Unwanted: 1, Failed: 2, LastError: "program failed: the body is not JSON"}
		if len(got) != 1 || got[0] != want {
			t.Errorf("%d: got %+v, want %+v", on, got, want)
		}
		if n, want := g.Dropped("press-7"), map[OnError]uint64{ErrorDrop: 2}[on]; n != want {
			t.Errorf("%d: dropped %d, want %d", on, n, want)
		}
		if all := logged.All(); len(all) != 1 || all[0].ContextMap()["error"] != "filter: program failed: expected an object but got: array ([])" {
			t.Errorf("%d: logged %v", on, all)
		}
	}
}

// What the disk refused was not counted as kept, and the sensor is told.
func TestARefusalToSetAsideReachesTheSensor(t *testing.T) {
	g, c := programGate(t, &keepSink{err: queue.ErrDisk}, Route{Filter: ".ok"})
	if err := send(t, g, Arrival{Client: c, Topic: "a", Payload: []byte(`x`)}); !errors.Is(err, queue.ErrDisk) {
		t.Errorf("got %v", err)
	}
	if n := g.Router().Counts()[0].Failed; n != 0 {
		t.Errorf("failed %d", n)
	}
}

// A connection that ends while a program runs is not the program's fault.
func TestAnEndedConnectionIsNotAFailure(t *testing.T) {
	sink := &keepSink{}
	g, c := programGate(t, sink, Route{Filter: "last(repeat(1))"})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := g.Accept(ctx, Arrival{Client: c, Topic: "a", Payload: []byte(`1`)}, func(uint64, error) { t.Error("answered") })
	if !errors.Is(err, context.Canceled) || len(sink.stored) != 0 {
		t.Errorf("%v, stored %d", err, len(sink.stored))
	}
}

func TestBadProgramsAreNamed(t *testing.T) {
	_, err := NewRouter([]Route{
		{Match: "a", To: "x", Filter: "."},
		{Match: "b", To: "x", Filter: ".a |", Transform: "$nope", Set: map[string]string{"k": "nosuch(1)", "$.x": "1"}},
		{Match: "c", To: "x", Transform: `import "a" as a; 1`},
		{Match: "d", To: "x", Transform: `input`},
	}, []string{"x"})
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{
		"routes[1].filter: not a jq program: ", "routes[1].transform: not a jq program: variable not defined: $nope",
		"routes[1].set.k: not a jq program: function not defined: nosuch/1", "routes[1].set: property not allowed",
		"routes[2].transform: not a jq program: ", "routes[3].transform: not a jq program: ",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in\n%v", want, err)
		}
	}
	if strings.Contains(err.Error(), "routes[0]") {
		t.Error(err)
	}
}

func TestGzipIsUsedWhereItSaves(t *testing.T) {
	sink := &keepSink{}
	g, c := programGate(t, sink, Route{Gzip: true, ContentEncoding: "utf-8"})
	bodies := []string{strings.Repeat("abc ", 1000), "short", strings.Repeat("x", 64)}
	for _, b := range bodies {
		if err := send(t, g, Arrival{Client: c, Topic: "a", Payload: []byte(b)}); err != nil {
			t.Fatal(err)
		}
	}
	for i, m := range sink.stored {
		switch m.ContentEncoding {
		case "utf-8":
			if string(m.Payload) != bodies[i] || i != 1 {
				t.Errorf("%d is not compressed: %.40q", i, m.Payload)
			}
		case "gzip":
			r, err := gzip.NewReader(bytes.NewReader(m.Payload))
			if err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(r); err != nil || string(b) != bodies[i] || len(m.Payload) >= len(b) {
				t.Errorf("%d: %d bytes, %v", i, len(m.Payload), err)
			}
		default:
			t.Errorf("%d: encoding %q", i, m.ContentEncoding)
		}
	}
}

func TestOnlyChangesPass(t *testing.T) {
	type step struct {
		after time.Duration
		body  string
		pass  bool
	}
	for _, tt := range []struct {
		name  string
		route Route
		steps []step
	}{
		{"deadband", Route{OnlyChanges: OnlyChanges{Deadband: 0.5, MaxInterval: time.Minute}}, []step{
			{0, `{"t":20,"s":"on"}`, true}, {time.Second, `{"t":20.5,"s":"on"}`, false}, {time.Second, `{"t":20.6,"s":"on"}`, true},
			{time.Second, `{"t":20.2,"s":"on"}`, false}, {time.Second, `{"t":20.2,"s":"off"}`, true}, {time.Second, `{"s":"off","t":20.2}`, false},
			{time.Second, `{"t":20.2}`, true}, {time.Second, `{"t":null}`, true}, {time.Second, `{"u":null}`, true},
		}},
		{"slow drift adds up", Route{OnlyChanges: OnlyChanges{Deadband: 1, MaxInterval: time.Hour}}, []step{
			{0, `1`, true}, {time.Second, `1.6`, false}, {time.Second, `2.2`, true},
		}},
		{"at least every max_interval", Route{OnlyChanges: OnlyChanges{MaxInterval: time.Minute}}, []step{
			{0, `5`, true}, {59 * time.Second, `5`, false}, {time.Second, `5`, true}, {time.Second, `5`, false}, {time.Second, `6`, true},
		}},
		{"never without a change", Route{OnlyChanges: OnlyChanges{Deadband: 1}}, []step{
			{0, `5`, true}, {1000 * time.Hour, `5`, false}, {time.Second, `7`, true},
		}},
		{"at most every min_interval", Route{OnlyChanges: OnlyChanges{MinInterval: 10 * time.Second}}, []step{
			{0, `5`, true}, {9 * time.Second, `6`, false}, {time.Second, `6`, true},
		}},
		{"named fields only", Route{OnlyChanges: OnlyChanges{Deadbands: map[string]float64{"t": 1, "m.s": 0}, MaxInterval: time.Hour}}, []step{
			{0, `{"t":1,"m":{"s":5},"at":1}`, true}, {time.Second, `{"t":1.5,"m":{"s":5},"at":2}`, false}, {time.Second, `{"t":1,"m":{"s":6},"at":3}`, true},
			{time.Second, `{"t":1,"m":6}`, true}, {time.Second, `{"t":1}`, false}, {time.Second, `not JSON`, true}, {time.Second, `not JSON`, false},
		}},
		{"arrays and text", Route{OnlyChanges: OnlyChanges{Deadband: 1, MaxInterval: time.Hour}}, []step{
			{0, `[1,2]`, true}, {time.Second, `[1.5,2.5]`, false}, {time.Second, `[2,1]`, false}, {time.Second, `[1]`, true}, {time.Second, `["1"]`, true}, {time.Second, `hot`, true}, {time.Second, `hot`, false},
		}},
		{"large numbers", Route{OnlyChanges: OnlyChanges{MaxInterval: time.Hour}}, []step{
			{0, `9007199254740993`, true}, {time.Second, `9007199254740992`, true}, {time.Second, `1e999`, true}, {time.Second, `-1e999`, true},
		}},
		{"the new body counts", Route{Transform: "{t}", OnlyChanges: OnlyChanges{Deadband: 1, MaxInterval: time.Hour}}, []step{
			{0, `{"t":1,"at":1}`, true}, {time.Second, `{"t":1,"at":2}`, false},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sink := &keepSink{}
				g, c := programGate(t, sink, tt.route)
				for i, s := range tt.steps {
					time.Sleep(s.after)
					before := len(sink.stored)
					if err := send(t, g, Arrival{Client: c, Topic: "a", Payload: []byte(s.body)}); err != nil {
						t.Fatal(err)
					}
					if got := len(sink.stored) > before; got != s.pass {
						t.Errorf("step %d, %s: passed %v", i, s.body, got)
					}
				}
			})
		})
	}
}

func TestAMessageThatWasNotStoredIsNoBasis(t *testing.T) {
	sink := &keepSink{err: queue.ErrDisk}
	g, c := programGate(t, sink, Route{OnlyChanges: OnlyChanges{MaxInterval: time.Hour}})
	a := Arrival{Client: c, Topic: "a", Payload: []byte(`1`)}
	if err := send(t, g, a); !errors.Is(err, queue.ErrDisk) {
		t.Fatal(err)
	}
	sink.err = nil
	for range 2 {
		if err := send(t, g, a); err != nil {
			t.Fatal(err)
		}
	}
	if len(sink.stored) != 1 || g.Router().Counts()[0].Unchanged != 1 {
		t.Errorf("stored %d, %+v", len(sink.stored), g.Router().Counts())
	}
}

func TestWhatOnlyChangesRemembersIsBounded(t *testing.T) {
	c := newChanges(OnlyChanges{MaxInterval: time.Hour})
	wide := "[" + strings.Repeat("1,", 500) + "1]"
	other := "[" + strings.Repeat("1,", 500) + "2]"
	if _, pass := c.look("none", &value{raw: []byte(wide)}, time.Now()); !pass {
		t.Error("the first one of a topic does not pass")
	}
	m, _ := c.look("wide", &value{raw: []byte(wide)}, time.Now())
	c.keep(m)
	if len(m.leaves) != changeLeaves {
		t.Errorf("%d leaves", len(m.leaves))
	}
	if _, pass := c.look("wide", &value{raw: []byte(other)}, time.Now()); !pass {
		t.Error("a change behind the bound is not seen")
	}
	if _, pass := c.look("wide", &value{raw: []byte(wide)}, time.Now()); pass {
		t.Error("a repetition passes")
	}
	for i := range 2 * changeTopics {
		c.keep(mark{topic: fmt.Sprint(i), passed: passed{at: time.Now()}})
	}
	if len(c.last) > changeTopics {
		t.Errorf("%d topics are remembered", len(c.last))
	}
	if _, known := c.last[fmt.Sprint(2*changeTopics-1)]; !known {
		t.Error("the newest is forgotten")
	}
}

func FuzzPrograms(f *testing.F) {
	for _, s := range []string{`{"a":1}`, `[1,[2]]`, `1e999999999`, `"\ud800"`, `x`, `{"a":{"a":{"a":[]}}}`, `-0.0`, "\xff", strings.Repeat("[", 9000)} {
		f.Add([]byte(s))
	}
	sink := &keepSink{}
	g, c := programGate(f, sink, Route{
		Filter: `. != 0`, Transform: `{t: $topic, v: ., s: (tostring|length), sorted: [.. | numbers] | sort}`,
		Set: map[string]string{"k": `[paths] | length`, "n": `.. | numbers | . * 2`}, OnlyChanges: OnlyChanges{Deadband: 0.1, MaxInterval: time.Nanosecond},
	})
	f.Fuzz(func(t *testing.T, body []byte) {
		sink.stored = sink.stored[:0]
		if err := send(t, g, Arrival{Client: c, Topic: "a", Payload: body}); err != nil && !errors.Is(err, queue.ErrTooLarge) {
			t.Fatal(err)
		}
		for _, m := range sink.stored {
			v := value{raw: m.Payload}
			if _, err := v.json(); err != nil && !strings.HasPrefix(m.Route, asideRoute) {
				t.Errorf("%q became %q", body, m.Payload)
			}
		}
	})
}
