package downstream

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"

	"gatewayd/internal/packet"
	"gatewayd/internal/queue"
)

// syncSink stores at once and remembers nothing.
type syncSink struct{}

func (syncSink) Append(_ context.Context, _ string, _ queue.Message, done func(uint64, error)) error {
	done(1, nil)
	return nil
}

// FuzzConnection feeds bytes to a connection: whatever they are, it ends without a
// panic once they have been read.
func FuzzConnection(f *testing.F) {
	seed := func(v packet.Version, packets ...packet.Packet) {
		b, _ := packet.Connect{Version: v, ClientID: "a", KeepAlive: 1}.Append(nil, v)
		for _, p := range packets {
			b, _ = p.Append(b, v)
		}
		f.Add(b)
	}
	for _, v := range []packet.Version{packet.V311, packet.V5} {
		seed(v, telemetry(1, "x"), telemetry(0, "y"), packet.Disconnect{})
		seed(v, packet.Subscribe{ID: 1, Subscriptions: []packet.Subscription{{Filter: "gateway/#", QoS: 1}}}, packet.Ack{Type: packet.PUBACK, ID: 1},
			packet.Unsubscribe{ID: 2, Filters: []string{"gateway/#"}}, packet.Ack{Type: packet.PUBREL, ID: 2})
		seed(v, packet.Publish{Topic: "gateway/a/methods/res/200/1", QoS: 1, ID: 9})
	}
	seed(packet.V5, packet.Publish{Topic: "sensors/a/telemetry", QoS: 1, ID: 1, Properties: &packet.Properties{TopicAlias: 1}},
		packet.Publish{QoS: 1, ID: 2, Properties: &packet.Properties{TopicAlias: 1}})
	router, err := NewRouter(defaultRoutes(), []string{"press-7"})
	if err != nil {
		f.Fatal(err)
	}
	gate := NewGate(router, syncSink{}, NewLedger(10, 10), GateLimits{}, zap.NewNop())
	f.Fuzz(func(t *testing.T, input []byte) {
		local := NewLocal(LocalConfig{}, &fakeCommands{fail: ErrNoRoute})
		local.Publish(LocalMessage{Topic: "gateway/a", Payload: []byte("x"), Retain: true, QoS: 1})
		s, err := NewMQTT(MQTTConfig{Listen: "127.0.0.1:0"}, gate, local, zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		var cancel context.CancelFunc
		s.work, cancel = context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		c, ok := s.enter(&memoryConn{r: bytes.NewReader(input)}, nil)
		if !ok {
			t.Fatal("not let in")
		}
		c.stream = c.raw
		s.serve(c)
		s.running.Wait()
		if n := s.Stats().Connections; n != 0 {
			t.Errorf("%d connections left", n)
		}
	})
}

// memoryConn is a peer that has sent all it will ever send.
type memoryConn struct {
	net.Conn
	mu     sync.Mutex
	r      *bytes.Reader
	closed bool
}

func (c *memoryConn) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return 0, io.ErrClosedPipe
	}
	return c.r.Read(p)
}

func (c *memoryConn) Write(p []byte) (int, error)      { return len(p), nil }
func (c *memoryConn) Close() error                     { c.mu.Lock(); c.closed = true; c.mu.Unlock(); return nil }
func (c *memoryConn) SetReadDeadline(time.Time) error  { return nil }
func (c *memoryConn) SetWriteDeadline(time.Time) error { return nil }
func (c *memoryConn) RemoteAddr() net.Addr             { return nil }

// FuzzRoute: a route that compiles decides about every topic without a panic, and
// what its wildcards took is part of the topic.
func FuzzRoute(f *testing.F) {
	f.Add("sensors/+/telemetry", "{1}", "sensors/a/telemetry")
	f.Add("a/+/#", "x{1}{2}", "a/b/c/d")
	f.Add("a/#", "{1}", "a")
	f.Add("+/+", "{2}", "/")
	f.Fuzz(func(t *testing.T, match, value, topic string) {
		r, err := NewRouter([]Route{{Match: match, To: "id", Properties: map[string]string{"k": value}}}, []string{"id"})
		if err != nil || !packet.ValidTopic(topic) {
			return
		}
		d, err := r.Route(topic)
		if (err == nil) != packet.Match(match, topic) {
			t.Fatalf("matched: %v", err)
		}
		if err == nil && value == "{1}" && !strings.Contains(topic, d.Properties[0].Value) {
			t.Errorf("%q is not in the topic", d.Properties[0].Value)
		}
	})
}

// FuzzCovers: what lies within an allowed filter is allowed topic by topic.
func FuzzCovers(f *testing.F) {
	f.Add("gateway/+/c2d/#", "gateway/a/c2d/+", "gateway/a/c2d/x")
	f.Add("gateway/#", "gateway", "gateway")
	f.Fuzz(func(t *testing.T, allowed, filter, topic string) {
		if !packet.ValidFilter(allowed) || !packet.ValidFilter(filter) || !packet.ValidTopic(topic) || topic[0] == '$' {
			return
		}
		if covers(allowed, filter) && packet.Match(filter, topic) && !packet.Match(allowed, topic) {
			t.Errorf("%q is said to cover %q, but %q is beyond it", allowed, filter, topic)
		}
	})
}

// FuzzBatch: a batch is cut into items that are each a message or an error.
func FuzzBatch(f *testing.F) {
	f.Add([]byte(`[{"topic":"a","payload":1}]`))
	f.Add([]byte("{\"topic\":\"a\",\"payload_base64\":\"AA==\"}\n\n{\"topic\":\"b\",\"payload\":\"x\"}"))
	f.Add([]byte(`[[],{}]`))
	f.Fuzz(func(t *testing.T, body []byte) {
		items, err := splitBatch(body, 10)
		if err != nil {
			return
		}
		if len(items) == 0 || len(items) > 10 {
			t.Fatalf("%d items", len(items))
		}
		for _, item := range items {
			if a, err := parseItem(item); err == nil && a.Payload == nil {
				t.Errorf("%q has no payload and no error", item)
			}
		}
	})
}

// FuzzCloudEvent: a structured event is an event or an error.
func FuzzCloudEvent(f *testing.F) {
	f.Add("application/cloudevents+json", []byte(`{"specversion":"1.0","id":"1","source":"/a","type":"b","data":{"t":1}}`))
	f.Add("application/cloudevents+json", []byte(`{"specversion":"1.0","id":"1","source":"/a","type":"b","data_base64":"AA=="}`))
	f.Add("application/cloudevents+xml", []byte(`<`))
	f.Fuzz(func(t *testing.T, contentType string, body []byte) {
		var a Arrival
		if err := a.fromCloudEvent(context.Background(), http.Header{"Content-Type": {contentType}}, body); err == nil && len(a.Properties) < 4 {
			t.Errorf("an event with %v only", a.Properties)
		}
	})
}

// FuzzCommand: topics of the gateway are understood or refused.
func FuzzCommand(f *testing.F) {
	f.Add("gateway/a/methods/res/200/1")
	f.Add("gateway/a/twin/reported")
	f.Fuzz(func(t *testing.T, topic string) {
		if c, ok := parseCommand(topic); ok && (c.Identity == "" || !strings.HasPrefix(topic, "gateway/"+c.Identity+"/")) {
			t.Errorf("%+v", c)
		}
	})
}

// FuzzCredentialFiles: broken lines are errors, good ones are users and tokens.
func FuzzCredentialFiles(f *testing.F) {
	f.Add("a:" + nobodysHash + "\n# x\n\nname aaaaaaaaaaaaaaaaaaaa")
	f.Fuzz(func(t *testing.T, text string) {
		users, err := parseUsers(strings.NewReader(text))
		for name, hash := range users {
			if err == nil && (name == "" || len(hash) == 0) {
				t.Errorf("%q: %q", name, hash)
			}
		}
		if names, err := parseTokens(strings.NewReader(text)); err == nil && len(names) == 0 {
			t.Error("no token and no error")
		}
	})
}
