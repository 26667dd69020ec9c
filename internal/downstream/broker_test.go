package downstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/listeners"
	mochipackets "github.com/mochi-mqtt/server/v2/packets"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/queue"
)

// site is a broker as it stands in a plant. It notes what clients tell it.
type site struct {
	mochi.HookBase
	t        testing.TB
	server   *mochi.Server
	listener net.Listener

	mu       sync.Mutex
	password string // wanted, of user gw; "" = anybody may come
	connects []mochipackets.Packet
	acked    []uint16
	goodbye  []bool // by expiry or takeover, not by DISCONNECT
	clients  []*mochi.Client
}

func (s *site) ID() string { return "site" }

func (s *site) Provides(b byte) bool {
	return slices.Contains([]byte{mochi.OnPacketRead, mochi.OnConnectAuthenticate, mochi.OnACLCheck, mochi.OnDisconnect, mochi.OnSessionEstablished}, b)
}

func (s *site) OnACLCheck(_ *mochi.Client, topic string, _ bool) bool {
	return !strings.HasPrefix(topic, "secret/")
}

func (s *site) OnConnectAuthenticate(c *mochi.Client, p mochipackets.Packet) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.connects = append(s.connects, p)
	return s.password == "" || string(p.Connect.Username) == "gw" && string(p.Connect.Password) == s.password
}

func (s *site) OnSessionEstablished(c *mochi.Client, _ mochipackets.Packet) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clients = append(s.clients, c)
}

func (s *site) OnPacketRead(_ *mochi.Client, p mochipackets.Packet) (mochipackets.Packet, error) {
	if p.FixedHeader.Type == mochipackets.Puback {
		s.mu.Lock()
		s.acked = append(s.acked, p.PacketID)
		s.mu.Unlock()
	}
	return p, nil
}

func (s *site) OnDisconnect(_ *mochi.Client, err error, _ bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.goodbye = append(s.goodbye, err == nil || errors.Is(err, mochipackets.CodeDisconnect))
}

func (s *site) acks() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.acked)
}

func (s *site) connected() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.clients)
}

// cut ends the newest connection as a network does.
func (s *site) cut() {
	s.mu.Lock()
	c := s.clients[len(s.clients)-1]
	s.mu.Unlock()
	c.Net.Conn.Close()
}

func (s *site) publish(topic, payload string, qos byte) {
	s.t.Helper()
	if err := s.server.Publish(topic, []byte(payload), false, qos); err != nil {
		s.t.Fatal(err)
	}
}

func newSite(t testing.TB, secure *tls.Config) *site {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if secure != nil {
		l = tls.NewListener(l, secure)
	}
	s := &site{t: t, listener: l}
	s.server = mochi.New(&mochi.Options{InlineClient: true, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err := s.server.AddHook(s, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.server.AddListener(listeners.NewNet("n", l)); err != nil {
		t.Fatal(err)
	}
	if err := s.server.Serve(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.server.Close() })
	return s
}

// brokerBench is a Broker under test.
type brokerBench struct {
	sink   *fakeSink
	gate   *Gate
	broker *Broker
	logged *observer.ObservedLogs
	stop   func()
}

func startBroker(t testing.TB, s *site, sink *fakeSink, change func(*BrokerConfig)) *brokerBench {
	t.Helper()
	router, err := NewRouter([]Route{{Match: "factory/#", To: "press-7"}}, []string{"press-7"})
	if err != nil {
		t.Fatal(err)
	}
	core, logged := observer.New(zap.InfoLevel)
	b := &brokerBench{sink: sink, gate: NewGate(router, sink, NewLedger(0, 0), GateLimits{}, zap.NewNop()), logged: logged}
	cfg := BrokerConfig{URL: "mqtt://" + s.listener.Addr().String(), ClientID: "gatewayd", Subscribe: []string{"factory/#", "other/#"}}
	if change != nil {
		change(&cfg)
	}
	if b.broker, err = NewBroker(cfg, b.gate, zap.New(core)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := b.broker.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	b.stop = func() { cancel(); running.Wait() }
	t.Cleanup(b.stop)
	return b
}

// subscribed waits until what is published reaches the gateway.
func (b *brokerBench) subscribed(t testing.TB, s *site) {
	t.Helper()
	eventually(t, "the gateway has subscribed", func() bool {
		c, ok := s.server.Clients.Get(b.broker.cfg.ClientID)
		return ok && len(c.State.Subscriptions.GetAll()) > 0
	})
}

func TestBrokerIsAcknowledgedAfterTheSync(t *testing.T) {
	t.Parallel()
	s, sink := newSite(t, nil), newFakeSink(t, time.Millisecond)
	b := startBroker(t, s, sink, nil)
	b.subscribed(t, s)
	sink.set(func() { sink.held = true })
	for i := range 10 {
		s.publish("factory/a", fmt.Sprint(i), 1)
	}
	eventually(t, "all are handed in", func() (all bool) { sink.set(func() { all = len(sink.waiting) == 10 }); return all })
	time.Sleep(20 * brokerAckEvery)
	if n := s.acks(); n != 0 {
		t.Fatalf("%d acknowledged before the sync", n)
	}
	if st := b.broker.Stats(); !st.Connected || st.Held != 10 || st.Fault != "" {
		t.Errorf("%+v", st)
	}
	sink.set(func() { sink.held = false })
	eventually(t, "all are acknowledged", func() bool { return s.acks() == 10 })
	for i, m := range sink.messages() {
		if string(m.Payload) != fmt.Sprint(i) || m.Topic != "factory/a" {
			t.Errorf("message %d is %s", i, m.Payload)
		}
	}
	b.stop()
	if st := b.broker.Stats(); st.Connected || st.Held != 0 || st.HeldBytes != 0 {
		t.Errorf("after the stop: %+v", st)
	}
	eventually(t, "the broker saw the end", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.goodbye) == 1 })
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.connects[0]
	if p.Connect.Clean || p.Properties.SessionExpiryInterval != 86400 || p.Properties.ReceiveMaximum != 1000 || p.Properties.MaximumPacketSize != brokerMaxPacket {
		t.Errorf("CONNECT %+v %+v", p.Connect, p.Properties)
	}
	if !s.goodbye[0] {
		t.Errorf("goodbye %v", s.goodbye)
	}
}

func TestBrokerKeepsWhatWasNotStored(t *testing.T) {
	t.Parallel()
	s, sink := newSite(t, nil), newFakeSink(t, time.Millisecond)
	b := startBroker(t, s, sink, nil)
	b.subscribed(t, s)
	sink.set(func() { sink.held = true })
	s.publish("factory/a", "1", 1)
	eventually(t, "it is handed in", func() (some bool) { sink.set(func() { some = len(sink.waiting) == 1 }); return some })
	s.cut()
	eventually(t, "the gateway is back", func() bool { return s.connected() == 2 && b.broker.Stats().Connected })
	eventually(t, "the broker sends it again", func() (again bool) { sink.set(func() { again = len(sink.waiting) == 2 }); return again })
	// The gateway is away for good before anything is stored, then another one comes.
	b.stop()
	if n := s.acks(); n != 0 {
		t.Fatalf("%d acknowledged", n)
	}
	s.publish("factory/a", "2", 1)
	fresh := newFakeSink(t, time.Millisecond)
	c := startBroker(t, s, fresh, nil)
	eventually(t, "both arrive", func() bool { return len(fresh.messages()) == 2 && s.acks() == 2 })
	if first := c.logged.FilterMessage("broker connected").All()[0]; first.ContextMap()["session_present"] != true {
		t.Errorf("%v", first.ContextMap())
	}
}

func TestBrokerHoldsWhatTheQueueCannotTake(t *testing.T) {
	t.Parallel()
	s, sink := newSite(t, nil), newFakeSink(t, time.Millisecond)
	b := startBroker(t, s, sink, nil)
	b.subscribed(t, s)
	sink.set(func() { sink.refuse = queue.ErrFull })
	for i := range 5 {
		s.publish("factory/a", fmt.Sprint(i), 1)
	}
	eventually(t, "the status says so", func() bool { return strings.Contains(b.broker.Stats().Fault, "messages are held: ") })
	sink.set(func() { sink.refuse, sink.failing = nil, queue.ErrDisk })
	time.Sleep(50 * time.Millisecond)
	if n := s.acks(); n != 0 {
		t.Fatalf("%d acknowledged", n)
	}
	sink.set(func() { sink.failing = nil })
	eventually(t, "all are acknowledged", func() bool { return s.acks() == 5 })
	if n := len(sink.messages()); n != 5 {
		t.Errorf("%d stored", n)
	}
	if n := b.logged.FilterMessage("messages of the broker are held").Len(); n < 1 || n > 2 || b.broker.Stats().Fault != "" {
		t.Errorf("%d lines, %+v", n, b.broker.Stats())
	}
}

// The broker would send them for ever.
func TestBrokerIsRidOfWhatCanNeverBeTaken(t *testing.T) {
	t.Parallel()
	s, sink := newSite(t, nil), newFakeSink(t, time.Millisecond)
	b := startBroker(t, s, sink, nil)
	b.subscribed(t, s)
	for range 3 {
		s.publish("other/a", "x", 1)
	}
	s.publish("factory/a", strings.Repeat("x", 300<<10), 1)
	s.publish("factory/a", "good", 1)
	eventually(t, "all are acknowledged", func() bool { return s.acks() == 5 })
	if all := sink.messages(); len(all) != 1 || string(all[0].Payload) != "good" {
		t.Errorf("stored %d", len(all))
	}
	row := b.gate.Ledger().Sources()[0]
	if row.Source != "broker" || row.Received != 1 || row.Refused["no_route"] != 3 || row.Refused["too_large"] != 1 {
		t.Errorf("%+v", row)
	}
	if n := b.logged.FilterMessage("message refused").Len(); n != 2 {
		t.Errorf("%d lines", n)
	}
}

// Brokers exist that ignore Receive Maximum.
func TestBrokerMemoryIsBounded(t *testing.T) {
	t.Parallel()
	s, sink := newSite(t, nil), newFakeSink(t, time.Millisecond)
	const most = 256 << 10
	b := startBroker(t, s, sink, func(c *BrokerConfig) { c.MaxBuffered, c.ReceiveMaximum = most, 1000 })
	b.subscribed(t, s)
	sink.set(func() { sink.held = true })
	payload := strings.Repeat("x", 16<<10)
	for range 100 {
		s.publish("factory/a", payload, 1)
	}
	eventually(t, "the memory is used up", func() bool { return b.broker.Stats().HeldBytes >= most })
	time.Sleep(50 * time.Millisecond)
	if st := b.broker.Stats(); st.HeldBytes > most+2*len(payload) {
		t.Errorf("%d bytes are held", st.HeldBytes)
	}
	sink.set(func() { sink.held = false })
	eventually(t, "all are acknowledged", func() bool { return s.acks() == 100 })
}

func TestBrokerMessageKeepsItsProperties(t *testing.T) {
	t.Parallel()
	s, sink := newSite(t, nil), newFakeSink(t, time.Millisecond)
	b := startBroker(t, s, sink, nil)
	b.subscribed(t, s)
	inline, _ := s.server.Clients.Get(mochi.InlineClientId)
	err := s.server.InjectPacket(inline, mochipackets.Packet{
		FixedHeader: mochipackets.FixedHeader{Type: mochipackets.Publish, Qos: 1, Retain: true}, TopicName: "factory/b", Payload: []byte("x"), PacketID: 7,
		ProtocolVersion: 5, Properties: mochipackets.Properties{
			ContentType: "text/plain", PayloadFormat: 1, PayloadFormatFlag: true, MessageExpiryInterval: 60, User: []mochipackets.UserProperty{{Key: "k", Val: "v"}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is stored", func() bool { return len(sink.messages()) == 1 })
	m := sink.messages()[0]
	if m.ContentType != "text/plain" || m.ContentEncoding != "utf-8" || m.MaxAge <= 50*time.Second || m.MaxAge > time.Minute || fmt.Sprint(m.Properties) != "[{k v} {mqtt-retain true} {identity press-7}]" {
		t.Errorf("%+v", m)
	}
}

func TestTwoGatewaysShareTheLoad(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	var both []*brokerBench
	for _, name := range []string{"a", "b"} {
		b := startBroker(t, s, newFakeSink(t, time.Millisecond), func(c *BrokerConfig) { c.ClientID, c.Subscribe = name, []string{"$share/gateways/factory/#"} })
		b.subscribed(t, s)
		both = append(both, b)
	}
	for i := range 200 {
		s.publish("factory/a", fmt.Sprint(i), 1)
	}
	eventually(t, "each message arrives once", func() bool {
		return len(both[0].sink.messages())+len(both[1].sink.messages()) == 200 && s.acks() == 200
	})
	if len(both[0].sink.messages()) == 0 || len(both[1].sink.messages()) == 0 {
		t.Error("one of them got everything")
	}
}

func TestBrokerWithPasswordAndTLS(t *testing.T) {
	t.Parallel()
	ca, err := certtest.NewCA("plant")
	if err != nil {
		t.Fatal(err)
	}
	server, err := ca.Issue(certtest.Leaf{CN: "broker", DNS: []string{"localhost"}})
	if err != nil {
		t.Fatal(err)
	}
	own, err := ca.Issue(certtest.Leaf{CN: "gw"})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	write := func(name, text string) {
		if err := os.WriteFile(file(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("ca.pem", string(ca.PEM()))
	write("password", "wrong\n")
	if err := own.Write(file("gw.pem"), file("gw.key")); err != nil {
		t.Fatal(err)
	}
	s := newSite(t, &tls.Config{Certificates: []tls.Certificate{server.TLS()}, ClientCAs: ca.Pool(), ClientAuth: tls.RequireAndVerifyClientCert})
	s.mu.Lock()
	s.password = "hunter2"
	s.mu.Unlock()
	_, port, _ := net.SplitHostPort(s.listener.Addr().String())
	b := startBroker(t, s, newFakeSink(t, time.Millisecond), func(c *BrokerConfig) {
		c.URL, c.Username, c.PasswordFile = "mqtts://localhost:"+port, "gw", file("password")
		c.TLS = BrokerTLS{CA: file("ca.pem"), Cert: file("gw.pem"), Key: file("gw.key")}
	})
	eventually(t, "the refusal is told", func() bool { return strings.Contains(b.broker.Stats().Fault, "denied") })
	// A new password needs no restart.
	write("password", "hunter2\nrest")
	eventually(t, "the broker lets it in", func() bool { return b.broker.Stats().Connected })
	b.subscribed(t, s)
	s.publish("factory/a", "x", 1)
	eventually(t, "a message comes through", func() bool { return len(b.sink.messages()) == 1 })
	for _, e := range b.logged.All() {
		if text := fmt.Sprint(e.Message, e.ContextMap()); strings.Contains(text, "hunter2") || strings.Contains(text, "wrong\n") {
			t.Errorf("a password shows: %s", text)
		}
	}
	if n := b.logged.FilterMessage("broker not reached, trying again").Len(); n != 1 {
		t.Errorf("%d lines about the same refusal", n)
	}
}

func TestARefusedSubscriptionIsTold(t *testing.T) {
	t.Parallel()
	s := newSite(t, nil)
	b := startBroker(t, s, newFakeSink(t, time.Millisecond), func(c *BrokerConfig) { c.Subscribe = []string{"secret/#"} })
	eventually(t, "the status says so", func() bool { return strings.Contains(b.broker.Stats().Fault, "refuses to subscribe") })
	if st := b.broker.Stats(); !st.Connected {
		t.Errorf("%+v", st)
	}
}

func TestBadBrokerConfigurationsAreNamed(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	gate := NewGate(nil, nil, NewLedger(0, 0), GateLimits{}, zap.NewNop())
	for _, tt := range []struct {
		cfg  BrokerConfig
		want string
	}{
		{BrokerConfig{URL: "tcp://a:1"}, "url: "},
		{BrokerConfig{URL: "mqtt://a:1", PasswordFile: filepath.Join(dir, "none")}, "password_file: "},
		{BrokerConfig{URL: "mqtt://a:1", PasswordFile: empty}, "password_file: the first line"},
		{BrokerConfig{URL: "mqtts://a:1", TLS: BrokerTLS{CA: empty}}, "tls.ca: no certificate"},
		{BrokerConfig{URL: "mqtts://a:1", TLS: BrokerTLS{Cert: empty, Key: empty}}, "tls.cert: "},
	} {
		if _, err := NewBroker(tt.cfg, gate, zap.NewNop()); err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("got %v, want %s", err, tt.want)
		}
	}
}

// What is read in pieces of any size is followed alike, and a length that lies is
// found before anything is made of that size.
func FuzzFollow(f *testing.F) {
	publish := append([]byte{0x32, 0x88, 0x01}, make([]byte, 136)...)
	f.Add(append(append([]byte{0xD0, 0}, publish...), 0x90, 1, 0), uint8(3))
	f.Add([]byte{0x30, 0xFF, 0xFF, 0xFF, 0x7F}, uint8(1))
	f.Add([]byte{0x30, 0xFF, 0xFF, 0xFF, 0xFF}, uint8(1))
	f.Fuzz(func(t *testing.T, stream []byte, piece uint8) {
		follow := func(step int) (c *heldConn, err error) {
			var i brokerIntake
			i.init(1)
			c = newHeldConn(nil, &i)
			for part := range slices.Chunk(stream, step) {
				if err = c.follow(part); err != nil {
					break
				}
			}
			return c, err
		}
		a, errA := follow(1)
		b, errB := follow(int(piece) + 1)
		if (errA == nil) != (errB == nil) || errA == nil && (a.part != b.part || a.length != b.length || a.intake.unput != b.intake.unput) {
			t.Errorf("%+v %v, %+v %v", a, errA, b, errB)
		}
		for _, size := range a.intake.coming {
			if size > brokerMaxPacket {
				t.Errorf("a packet of %d bytes is let in", size)
			}
		}
	})
}
