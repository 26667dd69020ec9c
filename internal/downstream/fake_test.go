package downstream

import (
	"bytes"
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"gatewayd/internal/packet"
	"gatewayd/internal/queue"
)

// fakeSink keeps messages in memory and answers like a queue with group commit:
// all that waits is answered together, a commit time later.
type fakeSink struct {
	commit time.Duration
	wake   chan struct{}

	mu      sync.Mutex
	refuse  error // what Append returns
	failing error // what done gets
	held    bool  // nothing is answered
	waiting []fakeAppend
	stored  []queue.Message
	counts  bool // count only
	count   int
	seq     uint64
	syncs   int
}

type fakeAppend struct {
	m    queue.Message
	seq  uint64
	done func(uint64, error)
}

func newFakeSink(t testing.TB, commit time.Duration) *fakeSink {
	s := &fakeSink{commit: commit, wake: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { s.run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	return s
}

func (s *fakeSink) Append(_ context.Context, identity string, m queue.Message, done func(uint64, error)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuse != nil {
		return s.refuse
	}
	s.seq++
	if !s.counts {
		m.Payload = bytes.Clone(m.Payload)
		m.Properties = append(slices.Clone(m.Properties), queue.Property{Key: "identity", Value: identity})
	}
	s.waiting = append(s.waiting, fakeAppend{m, s.seq, done})
	wake(s.wake)
	return nil
}

func (s *fakeSink) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		}
		s.mu.Lock()
		group := s.waiting
		err := s.failing
		if s.held {
			group = nil
		} else {
			s.waiting = nil
		}
		s.mu.Unlock()
		if len(group) == 0 {
			continue
		}
		time.Sleep(s.commit)
		s.mu.Lock()
		s.syncs++
		s.count += len(group)
		if err == nil && !s.counts {
			for _, a := range group {
				s.stored = append(s.stored, a.m)
			}
		}
		s.mu.Unlock()
		for _, a := range group {
			a.done(a.seq, err)
		}
	}
}

func (s *fakeSink) set(change func()) {
	s.mu.Lock()
	change()
	s.mu.Unlock()
	wake(s.wake)
}

func (s *fakeSink) messages() []queue.Message {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.stored)
}

// bench is a listener under test with everything around it.
type bench struct {
	t      testing.TB
	sink   *fakeSink
	gate   *Gate
	local  *Local
	mqtt   *MQTT
	logged *observer.ObservedLogs
	stop   func() // ends Run and waits for it
}

type benchOptions struct {
	routes   []Route
	config   MQTTConfig
	local    LocalConfig
	commands Commands
	commit   time.Duration
	sink     Sink
}

func defaultRoutes() []Route {
	return []Route{{Name: "telemetry", Match: "sensors/+/telemetry", To: "press-7", Properties: map[string]string{"sensor": "{1}"},
		ContentType: "application/json", ContentEncoding: "utf-8"}}
}

// start runs a listener on a free port of the loopback address.
func start(t testing.TB, o benchOptions) *bench {
	t.Helper()
	b := &bench{t: t}
	if o.routes == nil {
		o.routes = defaultRoutes()
	}
	router, err := NewRouter(o.routes, []string{"press-7", "press-8"})
	if err != nil {
		t.Fatal(err)
	}
	sink := o.sink
	if sink == nil {
		b.sink = newFakeSink(t, o.commit)
		sink = b.sink
	}
	if o.config.Listen == "" {
		o.config.Listen = "127.0.0.1:0"
	}
	core, logged := observer.New(zap.InfoLevel)
	b.logged = logged
	b.gate = NewGate(router, sink, NewLedger(0, 0), GateLimits{}, zap.NewNop())
	b.local = NewLocal(o.local, o.commands)
	b.mqtt, err = NewMQTT(o.config, b.gate, b.local, zap.New(core))
	if err != nil {
		t.Fatal(err)
	}
	if err := b.mqtt.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := b.mqtt.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	b.stop = func() { cancel(); running.Wait() }
	t.Cleanup(b.stop)
	return b
}

// logs counts the lines with a message.
func (b *bench) logs(message string) int { return b.logged.FilterMessage(message).Len() }

// eventually waits for something that happens soon on its own.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		if ok() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

// client is a test client that does just what it is told.
type client struct {
	t  testing.TB
	nc net.Conn
	r  *packet.Reader
	v  packet.Version
}

func (b *bench) dial() *client {
	b.t.Helper()
	nc, err := net.Dial(b.mqtt.Addr().Network(), b.mqtt.Addr().String())
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { nc.Close() })
	return &client{t: b.t, nc: nc, r: packet.NewReader(nc, 0), v: packet.V311}
}

// connect dials and expects to be let in.
func (b *bench) connect(v packet.Version, id string) *client {
	b.t.Helper()
	c := b.dial()
	a := c.hello(packet.Connect{Version: v, ClientID: id, CleanStart: true})
	if a.Code != 0 {
		b.t.Fatalf("CONNACK code %#x", a.Code)
	}
	return c
}

func (c *client) hello(p packet.Connect) packet.Connack {
	c.t.Helper()
	c.v = p.Version
	c.send(p)
	a, err := packet.DecodeConnack(c.next(packet.CONNACK), c.v)
	if err != nil {
		c.t.Fatal(err)
	}
	return a
}

func (c *client) send(p packet.Packet) {
	c.t.Helper()
	b, err := p.Append(nil, c.v)
	if err != nil {
		c.t.Fatal(err)
	}
	c.write(b)
}

func (c *client) write(b []byte) {
	c.t.Helper()
	c.nc.SetWriteDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.nc.Write(b); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) read() (packet.Frame, error) {
	c.nc.SetReadDeadline(time.Now().Add(10 * time.Second))
	return c.r.Next()
}

func (c *client) next(want packet.Type) packet.Frame {
	c.t.Helper()
	f, err := c.read()
	if err != nil {
		c.t.Fatalf("waiting for %v: %v", want, err)
	}
	if f.Type != want {
		c.t.Fatalf("got %v %x, want %v", f.Type, f.Body, want)
	}
	return f
}

// puback expects a PUBACK for the id and returns its code.
func (c *client) puback(id uint16) byte {
	c.t.Helper()
	a, err := packet.DecodeAck(c.next(packet.PUBACK), c.v)
	if err != nil {
		c.t.Fatal(err)
	}
	if a.ID != id {
		c.t.Fatalf("PUBACK for %d, want %d", a.ID, id)
	}
	return a.Code
}

// closed expects the connection to end without another packet; with MQTT 5 after
// a DISCONNECT with the code, unless that is 0.
func (c *client) closed(code byte) {
	c.t.Helper()
	if c.v == packet.V5 && code != 0 {
		d, err := packet.DecodeDisconnect(c.next(packet.DISCONNECT), c.v)
		if err != nil {
			c.t.Fatal(err)
		}
		if d.Code != code {
			c.t.Errorf("DISCONNECT with %#x, want %#x", d.Code, code)
		}
	}
	f, err := c.read()
	var timeout net.Error
	if err == nil {
		c.t.Fatalf("got %v, want the end", f.Type)
	} else if errors.As(err, &timeout) && timeout.Timeout() {
		c.t.Fatal("connection still open")
	}
}

func telemetry(id uint16, body string) packet.Publish {
	p := packet.Publish{Topic: "sensors/a/telemetry", ID: id, Payload: []byte(body)}
	if id > 0 {
		p.QoS = 1
	}
	return p
}
