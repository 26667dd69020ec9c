package downstream

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"gatewayd/internal/queue"
)

// lineBench is a socket under test.
type lineBench struct {
	t      testing.TB
	sink   *fakeSink
	gate   *Gate
	socket *Socket
	logged *observer.ObservedLogs
	stop   func()
}

func startSocket(t testing.TB, cfg SocketConfig) *lineBench {
	t.Helper()
	b := &lineBench{t: t, sink: newFakeSink(t, time.Millisecond)}
	router, err := NewRouter([]Route{{Match: "sensors/#", To: "press-7"}}, []string{"press-7"})
	if err != nil {
		t.Fatal(err)
	}
	core, logged := observer.New(zap.InfoLevel)
	b.logged = logged
	b.gate = NewGate(router, b.sink, NewLedger(0, 0), GateLimits{}, zap.NewNop())
	cfg.Name, cfg.Listen = "plc", "unix://"+filepath.Join(t.TempDir(), "s")
	if b.socket, err = NewSocket(cfg, b.gate, zap.New(core)); err == nil {
		err = b.socket.Listen()
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := b.socket.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	b.stop = func() { cancel(); running.Wait() }
	t.Cleanup(b.stop)
	return b
}

type lineClient struct {
	net.Conn
	t testing.TB
	r *bufio.Scanner
}

func (b *lineBench) dial() *lineClient {
	b.t.Helper()
	c, err := net.Dial("unix", b.socket.Addr().String())
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return &lineClient{c, b.t, bufio.NewScanner(c)}
}

func (c *lineClient) send(lines ...string) {
	c.t.Helper()
	if _, err := io.WriteString(c, strings.Join(lines, "\n")+"\n"); err != nil {
		c.t.Fatal(err)
	}
}

func (c *lineClient) answer() string {
	c.t.Helper()
	if !c.r.Scan() {
		c.t.Fatalf("no answer: %v", c.r.Err())
	}
	return c.r.Text()
}

func TestLinesAreAnsweredWhenStored(t *testing.T) {
	t.Parallel()
	b := startSocket(t, SocketConfig{Limits: LineLimits{MaxLine: 2000}})
	c := b.dial()
	for _, tt := range []struct{ line, answer, payload string }{
		{`{"id":1,"topic":"sensors/a","payload":{"t": 21.50}}`, `{"ack":1}`, `{"t": 21.50}`},
		{`{"id":"x-1","topic":"sensors/a","payload":"text"}`, `{"ack":"x-1"}`, `text`},
		{`{"id":-2.5e3,"topic":"sensors/a","payload":null}`, `{"ack":-2.5e3}`, `null`},
		{"\t{\"id\":4,\"topic\":\"sensors/a\",\"payload_base64\":\"AAH/\"}\r", `{"ack":4}`, "\x00\x01\xff"},
		{`{"id":5,"topic":"sensors/a","payload":[],"properties":{"b":"2","a":"1"},"content_type":"x/y"}`, `{"ack":5}`, `[]`},
		{`{"id":6,"topic":"other","payload":1}`, `{"nack":6,"error":"no route for this topic"}`, ""},
		{`{"id":7,"topic":"sensors/+","payload":1}`, `{"nack":7,"error":"not a topic that can be published to: empty, not UTF-8, or with a wildcard"}`, ""},
		{`{"id":8,"topic":"sensors/a"}`, `{"nack":8,"error":"malformed: neither payload nor payload_base64"}`, ""},
		{`{"id":9,"topic":"sensors/a","payload":1,"paylaod":2}`, `{"nack":9,"error":"malformed: not a message: json: unknown field \"paylaod\""}`, ""},
		{`{"id":10,"topic":"sensors/a","payload":1} 2`, `{"nack":10,"error":"malformed: more than one JSON value in a line"}`, ""},
		{`{"id":11,"topic":"sensors/a","payload":1,"properties":{"$.mid":"x"}}`, `{"nack":11,"error":"property not allowed: \"$.mid\" is a system property of IoT Hub"}`, ""},
		{`{"id":{"a":1},"topic":"sensors/a","payload":1}`, `{"nack":null,"error":"malformed: id is not a string or number of at most 256 bytes"}`, ""},
		{`hello`, `{"nack":null,"error":"malformed: not a message: invalid character 'h' looking for beginning of value"}`, ""},
		{`{"id":12,"topic":"sensors/a","payload":"` + strings.Repeat("x", 2000) + `"}`, `{"nack":null,"error":"message too large: the limit is 2000 bytes"}`, ""},
		{`{"topic":"sensors/a","payload":"without an id"}` + "\n\n" + `{"id":13,"topic":"sensors/a","payload":13}`, `{"ack":13}`, "13"},
	} {
		before := len(b.sink.messages())
		c.send(tt.line)
		got := c.answer()
		if strings.Contains(tt.answer, "too large") {
			tt.answer = strings.Replace(tt.answer, "message too large", queue.ErrTooLarge.Error(), 1)
		}
		if got != tt.answer {
			t.Errorf("%.80s\ngot  %s\nwant %s", tt.line, got, tt.answer)
		}
		stored := b.sink.messages()[before:]
		if tt.payload == "" && len(stored) > 0 {
			t.Errorf("%.80s: stored", tt.line)
		} else if tt.payload != "" && (len(stored) == 0 || string(stored[len(stored)-1].Payload) != tt.payload) {
			t.Errorf("%.80s: stored %+v", tt.line, stored)
		}
	}
	for _, m := range b.sink.messages() {
		if string(m.Payload) == "[]" && (m.ContentType != "x/y" || fmt.Sprint(m.Properties) != "[{a 1} {b 2} {identity press-7}]" || m.Source != "plc") {
			t.Errorf("%+v", m)
		}
	}
	row := b.gate.Ledger().Sources()[0]
	if row.Source != "socket" || row.Received != 7 || row.Refused["no_route"] != 1 || row.Refused["too_large"] != 1 {
		t.Errorf("%+v", row)
	}
	if n := b.logged.FilterMessage("message refused").Len(); n != 9 {
		t.Errorf("%d refusals are logged", n)
	}
}

func TestARefusalThatPassesSaysSo(t *testing.T) {
	t.Parallel()
	b := startSocket(t, SocketConfig{})
	c := b.dial()
	b.sink.set(func() { b.sink.refuse = queue.ErrFull })
	c.send(`{"id":1,"topic":"sensors/a","payload":1}`)
	if got := c.answer(); !strings.HasSuffix(got, `,"retry":true}`) {
		t.Errorf("full: %s", got)
	}
	b.sink.set(func() { b.sink.refuse, b.sink.failing = nil, queue.ErrDisk })
	c.send(`{"id":2,"topic":"sensors/a","payload":1}`)
	if got := c.answer(); !strings.HasPrefix(got, `{"nack":2,`) || !strings.HasSuffix(got, `,"retry":true}`) {
		t.Errorf("disk: %s", got)
	}
}

func TestNoLineIsAnsweredBeforeTheSync(t *testing.T) {
	t.Parallel()
	b := startSocket(t, SocketConfig{})
	c := b.dial()
	b.sink.set(func() { b.sink.held = true })
	c.send(`{"id":1,"topic":"sensors/a","payload":1}`)
	c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if n, err := c.Read(make([]byte, 1)); n > 0 || !isTimeout(err) {
		t.Fatalf("%d bytes, %v", n, err)
	}
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	b.sink.set(func() { b.sink.held = false })
	if got := c.answer(); got != `{"ack":1}` {
		t.Error(got)
	}
}

func TestMessagesInFlightAreBounded(t *testing.T) {
	t.Parallel()
	b := startSocket(t, SocketConfig{Limits: LineLimits{InFlight: 5}})
	c := b.dial()
	b.sink.set(func() { b.sink.held = true })
	for i := range 20 {
		c.send(fmt.Sprintf(`{"id":%d,"topic":"sensors/a","payload":1}`, i))
	}
	waiting := func() (n int) { b.sink.set(func() { n = len(b.sink.waiting) }); return n }
	eventually(t, "five are taken", func() bool { return waiting() == 5 })
	time.Sleep(50 * time.Millisecond)
	if n := waiting(); n != 5 {
		t.Errorf("%d are taken", n)
	}
	b.sink.set(func() { b.sink.held = false })
	var got []string
	for range 20 {
		got = append(got, c.answer())
	}
	slices.Sort(got)
	if len(slices.Compact(got)) != 20 {
		t.Errorf("answers: %v", got)
	}
}

// One that never reads its answers is stopped; its neighbour does not notice.
func TestAProgramThatDoesNotReadHurtsOnlyItself(t *testing.T) {
	t.Parallel()
	b := startSocket(t, SocketConfig{})
	deaf, other := b.dial(), b.dial()
	id := strings.Repeat("i", 200)
	blocked := make(chan struct{})
	go func() {
		defer close(blocked)
		deaf.SetWriteDeadline(time.Now().Add(2 * time.Second))
		for i := 0; ; i++ {
			if _, err := fmt.Fprintf(deaf, `{"id":"%s%d","topic":"sensors/a","payload":1}`+"\n", id, i); err != nil {
				return
			}
		}
	}()
	<-blocked
	for i := range 50 {
		other.send(fmt.Sprintf(`{"id":%d,"topic":"sensors/b","payload":1}`, i))
		if got := other.answer(); got != fmt.Sprintf(`{"ack":%d}`, i) {
			t.Fatal(got)
		}
	}
	deaf.Close()
	eventually(t, "its connection is given up", func() bool { return b.socket.Stats().Connections == 1 })
}

func TestSocketConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	b := startSocket(t, SocketConfig{MaxConnections: 1})
	c := b.dial()
	c.send(`{"id":1,"topic":"sensors/a","payload":1}`)
	c.answer()
	if n, err := b.dial().Read(make([]byte, 1)); err == nil {
		t.Errorf("read %d", n)
	}
	if s := b.socket.Stats(); s.Connections != 1 || s.Accepted != 1 || s.Refused != 1 {
		t.Errorf("%+v", s)
	}
	c.Close()
	eventually(t, "the place is free", func() bool { return b.socket.Stats().Connections == 0 })
}

// What was handed in before the stop is answered.
func TestStoppingASocketAnswersWhatItTook(t *testing.T) {
	t.Parallel()
	b := startSocket(t, SocketConfig{})
	c := b.dial()
	b.sink.set(func() { b.sink.held = true })
	c.send(`{"id":1,"topic":"sensors/a","payload":1}`)
	eventually(t, "it is taken", func() (taken bool) { b.sink.set(func() { taken = len(b.sink.waiting) == 1 }); return taken })
	time.AfterFunc(50*time.Millisecond, func() { b.sink.set(func() { b.sink.held = false }) })
	b.stop()
	if got := c.answer(); got != `{"ack":1}` {
		t.Error(got)
	}
	if c.r.Scan() {
		t.Errorf("and %q", c.r.Text())
	}
	if _, err := os.Stat(b.socket.Addr().String()); err == nil {
		t.Error("the socket is still there")
	}
}

func TestLongLinesCostNoMemory(t *testing.T) {
	r := bufio.NewReaderSize(io.MultiReader(strings.NewReader("ab\n"), io.LimitReader(endless{}, 8<<20), strings.NewReader("\nok\nlast")), 1024)
	for _, want := range []struct {
		line string
		err  error
	}{{"ab\n", nil}, {"", errLongLine}, {"ok\n", nil}, {"last", io.EOF}} {
		line, err := readLine(r, nil, 100)
		if string(line) != want.line || err != want.err {
			t.Errorf("got %.20q %v, want %q %v", line, err, want.line, want.err)
		}
		if cap(line) > 4096 {
			t.Errorf("%d bytes for a line", cap(line))
		}
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

func FuzzLine(f *testing.F) {
	for _, s := range []string{
		`{"id":1,"topic":"a","payload":{}}`, `{"id":"\ud800","topic":"a","payload_base64":"AA=="}`, `{"id":null}`, `[]`, `{"id":1e5,"id":2}`, `{"ID":"x"`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		id, a, err := parseLine(line)
		if err == nil && a.Payload == nil && len(line) == 0 {
			t.Error("an empty line is a message")
		}
		if len(id) == 0 {
			return
		}
		for _, problem := range []error{nil, err} {
			answer := appendAnswer(nil, id, problem)
			if !json.Valid(answer) || strings.Count(string(answer), "\n") != 1 || len(answer) > 4096+len(line)*12 {
				t.Errorf("%q is answered with %q", line, answer)
			}
		}
	})
}
