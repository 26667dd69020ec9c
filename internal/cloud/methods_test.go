package cloud

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gatewayd/internal/downstream"
	"gatewayd/internal/hub"
	"gatewayd/internal/hub/hubtest"
	"gatewayd/internal/packet"
)

// A change of certificate finishes the methods that wait for their answer, or tells
// their callers: the hub knows no other connection that could answer them.
func TestMethodsAreAnsweredBeforeARotation(t *testing.T) {
	s := newSite(t, hubtest.Options{}, everything("press-7"))
	s.start()
	c := s.connect(packet.V5, "plc", true)
	c.subscribe("gateway/press-7/methods/+/+")
	for _, tc := range []struct {
		method string
		want   reply
	}{
		{"quick", reply{200, `{"done":true}`, nil}},
		{"slow", reply{503, `{"error":"the gateway gives up this connection to the hub; call the method again"}`, nil}},
	} {
		answer := s.begin(tc.method, "{}")
		topic := c.receive().Properties.ResponseTopic
		before := len(s.hub.ConnectionsOf("press-7"))
		s.rotate("press-7")
		if tc.method == "quick" {
			time.Sleep(200 * time.Millisecond) // on a quiet machine the new connection is ready by now
			if n := len(s.hub.ConnectionsOf("press-7")); n != before {
				t.Errorf("%d connections while a method waits, %d before", n, before)
			}
			c.publish(topic, `{"done":true}`)
		}
		if r := <-answer; r != tc.want {
			t.Errorf("%s: the caller got %+v", tc.method, r)
		}
		s.eventually("another connection", func() bool { return len(s.hub.ConnectionsOf("press-7")) > before })
		s.online()
		if tc.method == "slow" && c.publish(topic, `{}`) != 0 {
			t.Error("a late answer is refused")
		}
	}
	// The end of the gateway is the end of the connection too.
	answer := s.begin("last", "{}")
	c.receive()
	s.stop()
	if r := <-answer; r.status != 503 || r.err != nil {
		t.Errorf("at the end the caller got %+v", r)
	}
}

type reply struct {
	status int
	body   string
	err    error
}

// begin calls a method in the background.
func (s *site) begin(method, payload string) <-chan reply {
	c := make(chan reply, 1)
	go func() {
		status, body, err := s.invoke("press-7", method, payload, patience)
		c <- reply{status, body, err}
	}()
	return c
}

func TestMethodsGoToLocalSubscribers(t *testing.T) {
	s := newSite(t, hubtest.Options{}, everything("press-7"))
	s.start()
	t.Run("3.1.1 answers on the topic form", func(t *testing.T) {
		c := s.connect(packet.V311, "plc", true)
		c.subscribe("gateway/press-7/methods/start/+")
		answer := s.begin("start", `{"speed":3}`)
		p := c.receive()
		rid, ok := strings.CutPrefix(p.Topic, "gateway/press-7/methods/start/")
		if !ok || string(p.Payload) != `{"speed":3}` {
			t.Fatalf("%s %s", p.Topic, p.Payload)
		}
		if code := c.publish("gateway/press-7/methods/res/201/"+rid, `{"ok":true}`); code != 0 {
			t.Errorf("PUBACK code %#x", code)
		}
		if r := <-answer; r != (reply{201, `{"ok":true}`, nil}) {
			t.Errorf("the caller got %+v", r)
		}
		// A second answer, and one to nothing, end where the hub would drop them.
		if c.publish("gateway/press-7/methods/res/500/"+rid, `{}`) != 0 || c.publish("gateway/press-7/methods/res/200/none", `{}`) != 0 {
			t.Error("a late answer is refused")
		}
	})
	t.Run("5 answers to the response topic", func(t *testing.T) {
		c := s.connect(packet.V5, "modern", true)
		c.subscribe("gateway/press-7/methods/stop/#")
		answer := s.begin("stop", "")
		p := c.receive()
		if len(p.Properties.CorrelationData) == 0 || !strings.HasSuffix(p.Topic, string(p.Properties.CorrelationData)) {
			t.Errorf("correlation data %q", p.Properties.CorrelationData)
		}
		if c.publish(p.Properties.ResponseTopic, "") != 0 {
			t.Error("the answer is refused")
		}
		if r := <-answer; r != (reply{200, "", nil}) {
			t.Errorf("the caller got %+v", r)
		}
	})
	t.Run("an answer that is not JSON tells both", func(t *testing.T) {
		c := s.connect(packet.V5, "careless", true)
		c.subscribe("gateway/press-7/methods/odd/#")
		answer := s.begin("odd", "")
		if code := c.publish(c.receive().Properties.ResponseTopic, "not json"); code != packet.ImplementationError {
			t.Errorf("PUBACK code %#x", code)
		}
		if r := <-answer; r.status != 502 || !strings.Contains(r.body, "not JSON") {
			t.Errorf("the caller got %+v", r)
		}
	})
	s.strict()
}

func TestUnansweredMethodsGetAReason(t *testing.T) {
	o := everything("press-7")
	o.Targets = map[string]Target{"slow": {Timeout: 100 * time.Millisecond}}
	o.Allow = []string{"known", "a/b"}
	s := newSite(t, hubtest.Options{}, o)
	s.start()
	c := s.connect(packet.V311, "plc", true)
	c.subscribe("gateway/press-7/methods/slow/#")
	for _, tc := range []struct {
		method string
		status int
		reason string
	}{
		{"known", 404, "no local client has subscribed"},
		{"other", 404, "not allowed"},
		{"a/b", 404, "local topic"},
		{"slow", 504, "in time"},
	} {
		status, body, err := s.invoke("press-7", tc.method, `1`, patience)
		if err != nil || status != tc.status || !strings.Contains(body, tc.reason) || !json.Valid([]byte(body)) {
			t.Errorf("%s: %d %s %v; want %d %s", tc.method, status, body, err, tc.status, tc.reason)
		}
	}
	s.strict()
}

func TestAMethodIsAnsweredOnlyOnTheLinkThatAsked(t *testing.T) {
	s := newSite(t, hubtest.Options{}, everything("press-7"))
	s.start()
	c := s.connect(packet.V5, "plc", true)
	c.subscribe("gateway/press-7/methods/start/#")
	lost, cancel := context.WithCancel(t.Context())
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _, _ = s.hub.InvokeMethod(lost, "press-7", "start", nil, patience)
	}()
	first := c.receive()
	s.reconnect("press-7")
	if c.publish(first.Properties.ResponseTopic, `"late"`) != 0 {
		t.Error("a late answer is refused")
	}
	cancel()
	<-gone
	answer := s.begin("start", "")
	if c.publish(c.receive().Properties.ResponseTopic, `"new"`) != 0 {
		t.Error("the answer is refused")
	}
	if r := <-answer; r.body != `"new"` {
		t.Errorf("got %+v", r)
	}
	s.strict() // an answer on another link is a violation of row 50
}

func TestMethodsThroughRotation(t *testing.T) {
	s := newSite(t, hubtest.Options{}, everything("press-7"))
	s.start()
	c := s.connect(packet.V5, "plc", true)
	c.subscribe("gateway/press-7/methods/#")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan int)
	go func() {
		defer close(done)
		n := 0
		for ctx.Err() == nil {
			// At the moment of the cut-over a caller may find nobody; it never gets a wrong answer.
			status, body, err := s.invoke("press-7", "count", fmt.Sprint(n), 2*time.Second)
			if err == nil && (status != 200 || body != fmt.Sprint(n)) {
				t.Errorf("call %d: %d %s", n, status, body)
			}
			if err == nil {
				n++
			}
		}
		done <- n
	}()
	go func() {
		time.Sleep(100 * time.Millisecond)
		s.rotate("press-7")
		eventually(t, "rotated", func() bool { return s.g.sessions["press-7"].Status().Rotations > 0 })
		time.Sleep(100 * time.Millisecond)
		cancel()
	}()
	check(t, c.nc.SetReadDeadline(time.Now().Add(2*patience)))
	for {
		select {
		case n := <-done:
			if n < 20 {
				t.Errorf("only %d calls were answered", n)
			}
			s.strict()
			return
		default:
		}
		check(t, c.nc.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
		f, err := c.r.Next()
		if err != nil {
			continue
		}
		if f.Type == packet.PUBLISH {
			p, _ := packet.DecodePublish(f, c.v)
			c.send(packet.Publish{Topic: p.Properties.ResponseTopic, Payload: slices.Clone(p.Payload)})
		}
	}
}

func TestMethodsCallBackAndRunPrograms(t *testing.T) {
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/echo":
			w.WriteHeader(207)
			b, _ := io.ReadAll(r.Body)
			fmt.Fprintf(w, `{"got":%s,"method":%q,"identity":%q}`, b, r.Header.Get("Gatewayd-Method"), r.Header.Get("Gatewayd-Identity"))
		case "/text":
			fmt.Fprint(w, "hello")
		case "/big":
			w.Write(bytes.Repeat([]byte(" "), maxMethodBody+5))
			w.Write([]byte("1"))
		case "/away":
			http.Redirect(w, r, "/echo", http.StatusFound)
		case "/slow":
			io.Copy(io.Discard, r.Body) // so that the end of the client shows
			select {
			case <-r.Context().Done():
			case <-time.After(patience):
			}
		}
	}))
	defer site.Close()
	mark := filepath.Join(t.TempDir(), "mark")
	t.Setenv("SECRET_OF_THE_DAEMON", "x")
	sh := func(script string) Target {
		return Target{Exec: []string{"/bin/sh", "-c", script}, Timeout: 5 * time.Second}
	}
	o := everything("press-7")
	o.Targets = map[string]Target{
		"echo": {URL: site.URL + "/echo"}, "text": {URL: site.URL + "/text"}, "big": {URL: site.URL + "/big"},
		"away": {URL: site.URL + "/away"}, "slow": {URL: site.URL + "/slow", Timeout: 100 * time.Millisecond},
		"down": {URL: "http://127.0.0.1:1/"},
		"cat":  sh(`cat`), "env": sh(`echo "\"$GATEWAYD_IDENTITY $GATEWAYD_METHOD [$SECRET_OF_THE_DAEMON]\""`),
		"fails":   sh(`echo '{"why":"jam"}'; exit 3`),
		"endless": {Exec: []string{"/bin/sh", "-c", "(sleep 1; touch " + mark + ") & wait"}, Timeout: 100 * time.Millisecond},
		"floods":  sh(`yes`), "missing": {Exec: []string{"/no/such/program"}},
		"me": {Builtin: "echo"}, "no": {Builtin: "refuse"},
	}
	s := newSite(t, hubtest.Options{}, o)
	s.start()
	for _, tc := range []struct {
		method, payload string
		status          int
		body            string
	}{
		{"echo", `{"a":1}`, 207, `{"got":{"a":1},"method":"echo","identity":"press-7"}`},
		{"text", `1`, 502, `{"error":"the answer is not JSON"}`},
		{"big", `1`, 502, `{"error":"callback's answer is larger`},
		{"away", `1`, 502, `{"error":"callback answers with a redirect (302)"}`},
		{"slow", `1`, 504, `{"error":"callback did not answer in time"}`},
		{"down", `1`, 502, `{"error":"callback: dial tcp 127.0.0.1:1: connect: connection refused"}`},
		{"cat", `[1,2]`, 200, `[1,2]`},
		{"env", ``, 200, `"press-7 env []"`},
		{"fails", ``, 500, `{"error":"the program ended with exit status 3","output":{"why":"jam"}}`},
		{"endless", ``, 504, `{"error":"the program did not end in time"}`},
		{"floods", ``, 502, `{"error":"the program's answer is larger than 131072 bytes"}`},
		{"missing", ``, 500, `{"error":"the program cannot be run"}`},
		{"me", `7`, 200, `{"identity":"press-7","payload":7}`},
		{"no", ``, 418, `{"error":"not today"}`},
	} {
		status, body, err := s.invoke("press-7", tc.method, tc.payload, patience)
		if err != nil || status != tc.status || !strings.HasPrefix(body, tc.body) {
			t.Errorf("%s: %d %.200s %v; want %d %s", tc.method, status, body, err, tc.status, tc.body)
		}
	}
	time.Sleep(1200 * time.Millisecond)
	if _, err := os.Stat(mark); err == nil {
		t.Error("what a program started outlives its time limit")
	}
	s.strict()
}

func TestMethodsOfAnIdentityAreBounded(t *testing.T) {
	s := newSite(t, hubtest.Options{MaxMethods: 2 * maxCalls}, everything("press-7"))
	s.start()
	c := s.connect(packet.V311, "plc", true)
	c.subscribe("gateway/press-7/methods/#")
	ctx, cancel := context.WithCancel(t.Context())
	results := make(chan int, maxCalls)
	for range maxCalls {
		go func() {
			status, _, _ := s.hub.InvokeMethod(ctx, "press-7", "hang", nil, patience)
			results <- status
		}()
	}
	for range maxCalls {
		c.receive()
	}
	if status, body, err := s.invoke("press-7", "hang", "", patience); status != 429 {
		t.Errorf("one too many: %d %s %v", status, body, err)
	}
	cancel()
	for range maxCalls {
		<-results
	}
}

// fakeLink is a link that takes what a test lets it take.
type fakeLink struct {
	done chan struct{}
	busy int // so often
	sent []string
}

func (l *fakeLink) Done() <-chan struct{} { return l.done }

func (l *fakeLink) Publish(topic string, payload []byte, _ byte, _ func(error)) error {
	if l.busy > 0 {
		l.busy--
		return hub.ErrLinkBusy
	}
	l.sent = append(l.sent, topic+" "+string(payload))
	return nil
}

// The steps of an identity by hand, without anything that runs beside.
func byHand(t *testing.T, o Options) *Identity {
	t.Helper()
	c := New(Config{StateDir: t.TempDir(), Builtins: testBuiltins})
	o.C2D = false // needs a journal
	return must(c.Add(o))(t)
}

func TestABusyLinkGetsTheAnswerLater(t *testing.T) {
	id := byHand(t, everything("press-7"))
	l := &fakeLink{done: make(chan struct{}), busy: 2}
	id.called(l, parseTopic("$iothub/methods/POST/x/?$rid=a+b"), nil)
	for range 3 {
		id.tickMethods(time.Now())
	}
	want := `$iothub/methods/res/404/?$rid=a+b {"error":"no local client has subscribed to method \"x\""}`
	if !slices.Equal(l.sent, []string{want}) || id.methods.calls != nil {
		t.Errorf("sent %q, %d calls left", l.sent, len(id.methods.calls))
	}
}

func TestCommandsForNobodyAreRefused(t *testing.T) {
	id := byHand(t, Options{Name: "press-7", Methods: true})
	for _, cmd := range []downstream.Command{
		{Kind: downstream.MethodResponse, Identity: "oven"},
		{Kind: downstream.Reported, Identity: "press-7"}, // the twin is off
	} {
		err := id.c.Do(t.Context(), cmd, func(error) { t.Error("done was called") })
		if !errors.Is(err, downstream.ErrNoRoute) {
			t.Errorf("%+v: %v", cmd, err)
		}
	}
}

// A round trip through the gateway, from the hub to a local client and back, takes
// less than 5 ms at the median.
func TestMethodRoundTripIsQuick(t *testing.T) {
	s := newSite(t, hubtest.Options{}, everything("press-7"))
	s.start()
	c := s.connect(packet.V5, "plc", true)
	c.subscribe("gateway/press-7/methods/#")
	const n = 200
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		for range n {
			p := c.receive()
			c.send(packet.Publish{Topic: p.Properties.ResponseTopic, Payload: p.Payload})
		}
	}()
	var took []time.Duration
	for range n {
		begun := time.Now()
		if status, _, err := s.invoke("press-7", "x", `{}`, patience); status != 200 {
			t.Fatal(status, err)
		}
		took = append(took, time.Since(begun))
	}
	<-answered
	slices.Sort(took)
	t.Logf("median %v, 99 %% below %v", took[n/2], took[n*99/100])
	if took[n/2] > 5*time.Millisecond {
		t.Errorf("median %v", took[n/2])
	}
}
