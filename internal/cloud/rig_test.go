package cloud

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"gatewayd/internal/certstore"
	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/downstream"
	"gatewayd/internal/hub"
	"gatewayd/internal/hub/hubtest"
	"gatewayd/internal/packet"
	"gatewayd/internal/queue"
)

// asProgram makes the test binary run a gateway of its own, so that tests can
// kill it. The value is its setup as JSON.
const asProgram = "GATEWAYD_CLOUD_TEST_SETUP"

func TestMain(m *testing.M) {
	text := os.Getenv(asProgram)
	if text == "" {
		os.Exit(m.Run())
	}
	var s setup
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		panic(err)
	}
	g, err := s.open(zap.NewNop())
	if err != nil {
		panic(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	g.run(ctx)
}

// setup is what a gateway under test is made from; it can cross to another process.
type setup struct {
	Dir, HubAddress, HubCA string
	MQTT, HTTP             string // where to listen
	Identities             []Options
}

// plantGateway has the real parts around a Cloud: journal, sessions, listeners.
type plantGateway struct {
	cloud    *Cloud
	journal  *queue.Journal
	local    *downstream.Local
	mqtt     *downstream.MQTT
	http     *downstream.HTTP
	sessions map[string]*hub.Session
	creds    map[string]*memoryStore
}

// builtins of the gateway under test.
var testBuiltins = map[string]Builtin{
	"echo": func(_ context.Context, identity string, payload []byte) (any, error) {
		return map[string]any{"identity": identity, "payload": json.RawMessage(payload)}, nil
	},
	"refuse": func(context.Context, string, []byte) (any, error) { return nil, &MethodError{418, "not today"} },
}

func (s *setup) open(log *zap.Logger) (*plantGateway, error) {
	g := &plantGateway{sessions: map[string]*hub.Session{}, creds: map[string]*memoryStore{}}
	var err error
	if g.journal, err = queue.Open(queue.Options{Dir: filepath.Join(s.Dir, "queue"), SegmentBytes: 1 << 20}); err != nil {
		return nil, err
	}
	g.cloud = New(Config{Journal: g.journal, StateDir: s.Dir, Builtins: testBuiltins, Log: log,
		State: func(name string) State {
			st := g.sessions[name].Status()
			return State{Connected: st.State == hub.StateConnected, State: st.State}
		},
		Report: func(name string) map[string]any {
			return map[string]any{"version": "test", "certificate": map[string]any{"fingerprint": g.creds[name].fingerprint()}}
		},
	})
	g.cloud.settle = testSettle
	ca, err := os.ReadFile(s.HubCA)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	pacer := hub.NewPacer(hub.Pace{Connects: 1000})
	var names []string
	for _, o := range s.Identities {
		if _, err := g.cloud.Add(o); err != nil {
			return nil, err
		}
		cred, err := loadPair(s.Dir, o.Name)
		if err != nil {
			return nil, err
		}
		q, err := g.journal.Queue(o.Name, queue.Limits{})
		if err != nil {
			return nil, err
		}
		g.creds[o.Name] = newMemoryStore(cred)
		g.sessions[o.Name] = hub.NewSession(hub.Config{
			Identity: hub.Identity{Name: o.Name, HostName: hubtest.DefaultHostName, DeviceID: o.Name, Address: s.HubAddress},
			Product:  "gatewayd test", Roots: func() *x509.CertPool { return roots }, Commands: latest{g.cloud, o.Name},
			Timing: hub.Timing{RetryMin: 20 * time.Millisecond, RetryMax: 200 * time.Millisecond, ProofIdle: 50 * time.Millisecond, Stable: time.Millisecond},
		}, q, g.creds[o.Name], pacer, log)
		names = append(names, o.Name)
	}
	router, err := downstream.NewRouter([]downstream.Route{{Name: "all", Match: "sensors/#", To: names[0]}}, names)
	if err != nil {
		return nil, err
	}
	gate := downstream.NewGate(router, noSink{}, downstream.NewLedger(0, 0), downstream.GateLimits{}, zap.NewNop())
	g.local = downstream.NewLocal(downstream.LocalConfig{}, g.cloud)
	g.cloud.Attach(g.local)
	if g.mqtt, err = downstream.NewMQTT(downstream.MQTTConfig{Listen: s.MQTT}, gate, g.local, log); err != nil {
		return nil, err
	}
	if g.http, err = downstream.NewHTTP(downstream.HTTPConfig{Listen: s.HTTP}, gate, log); err != nil {
		return nil, err
	}
	g.http.Mount(C2DPath, g.cloud)
	g.http.Mount(TwinPath, g.cloud)
	return g, errors.Join(g.mqtt.Listen(), g.http.Listen())
}

// latest calls the part that an identity has now: a test may replace it.
type latest struct {
	c    *Cloud
	name string
}

func (l latest) Filters(h hub.Identity) (wanted []packet.Subscription, unwanted []string) {
	if id, err := l.c.identity(l.name); err == nil {
		return id.Filters(h)
	}
	return nil, nil
}

func (l latest) Connected(link hub.Link, refused []string) {
	if id, err := l.c.identity(l.name); err == nil {
		id.Connected(link, refused)
	}
}

func (l latest) Leaving(link hub.Link, wait time.Duration, done func()) {
	if id, err := l.c.identity(l.name); err == nil {
		id.Leaving(link, wait, done)
	}
}

func (l latest) Received(link hub.Link, m hub.Inbound, ack func()) {
	if id, err := l.c.identity(l.name); err == nil {
		id.Received(link, m, ack)
	}
}

// noSink is never asked: no sensor is in these tests.
type noSink struct{ downstream.Sink }

// run serves until ctx ends and stops in the order of the real gateway.
func (g *plantGateway) run(ctx context.Context) {
	var stops []func()
	start := func(run ...func(context.Context) error) {
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		for _, f := range run {
			wg.Go(func() {
				if err := f(ctx); err != nil {
					panic(err)
				}
			})
		}
		stops = append(stops, func() { cancel(); wg.Wait() })
	}
	start(g.journal.Run)
	start(g.cloud.Run)
	var sessions []func(context.Context) error
	for _, s := range g.sessions {
		sessions = append(sessions, s.Run)
	}
	start(sessions...)
	start(g.mqtt.Run, g.http.Run)
	<-ctx.Done()
	for _, stop := range slices.Backward(stops) {
		stop()
	}
	if err := g.journal.Close(); err != nil {
		panic(err)
	}
}

// memoryStore is a certificate store without files.
type memoryStore struct {
	changed chan struct{}

	mu                 sync.Mutex
	current, candidate *certstore.Credential
}

func newMemoryStore(c *certstore.Credential) *memoryStore {
	return &memoryStore{changed: make(chan struct{}, 1), current: c}
}

func (s *memoryStore) Changed() <-chan struct{} { return s.changed }

func (s *memoryStore) Current() *certstore.Credential {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current
}

func (s *memoryStore) fingerprint() string { return s.Current().Fingerprint() }

func (s *memoryStore) Candidate() *certstore.Credential {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.candidate
}

func (s *memoryStore) Commit(c *certstore.Credential, _ time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.candidate == c {
		s.current, s.candidate = c, nil
	}
}

func (s *memoryStore) Miss(*certstore.Credential, string)      {}
func (s *memoryStore) NoVerdict(*certstore.Credential, string) {}

func (s *memoryStore) offer(c *certstore.Credential) {
	s.mu.Lock()
	s.candidate = c
	s.mu.Unlock()
	poke(s.changed)
}

func loadPair(dir, name string) (*certstore.Credential, error) {
	return certstore.Load(certstore.Source{Cert: filepath.Join(dir, name+".pem"), Key: filepath.Join(dir, name+".key")})
}

// site is a stand-in hub and a folder, beside which gateways are started.
type site struct {
	*testing.T
	ca    *certtest.CA
	hub   *hubtest.Hub
	setup setup
	g     *plantGateway
	logs  *observer.ObservedLogs
	stop  func()
}

// everything is brought down for an identity.
func everything(name string) Options {
	return Options{Name: name, C2D: true, Methods: true, Twin: true, MaxAge: time.Hour}
}

func newSite(t *testing.T, opt hubtest.Options, identities ...Options) *site {
	t.Helper()
	s := &site{T: t, ca: must(certtest.NewCA("plant"))(t), stop: func() {}}
	opt.ClientCAs = []*x509.Certificate{s.ca.Cert}
	s.hub = hubtest.Start(t, opt)
	dir := t.TempDir()
	s.setup = setup{Dir: dir, HubAddress: s.hub.Addr(), HubCA: filepath.Join(dir, "hub.pem"), MQTT: freeAddress(t), HTTP: freeAddress(t), Identities: identities}
	check(t, os.WriteFile(s.setup.HubCA, s.hub.ServerCAPEM(), 0o600))
	for _, o := range identities {
		check(t, s.hub.AddDevice(hubtest.Device{DeviceID: o.Name}))
		s.issue(o.Name)
	}
	return s
}

func (s *site) issue(name string) {
	s.Helper()
	pair := must(s.ca.Issue(certtest.Leaf{CN: name}))(s.T)
	check(s.T, pair.Write(filepath.Join(s.setup.Dir, name+".pem"), filepath.Join(s.setup.Dir, name+".key")))
}

// rotate gives an identity a new certificate.
func (s *site) rotate(name string) {
	s.Helper()
	s.issue(name)
	s.g.creds[name].offer(must(loadPair(s.setup.Dir, name))(s.T))
}

// start runs a gateway in this process until stop or the end of the test.
func (s *site) start() {
	s.Helper()
	s.startOffline()
	s.online()
}

// startOffline is start without waiting for the hub.
func (s *site) startOffline() {
	s.Helper()
	core, logs := observer.New(zap.InfoLevel)
	s.logs = logs
	s.g = must(s.setup.open(zap.New(core)))(s.T)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); s.g.run(ctx) }()
	s.stop = sync.OnceFunc(func() { cancel(); <-done })
	s.Cleanup(s.stop)
}

// online waits until every identity has its subscriptions.
func (s *site) online() {
	s.Helper()
	for _, o := range s.setup.Identities {
		s.eventually(o.Name+" is subscribed", func() bool { return s.hub.Connected(o.Name) && len(s.hub.Subscribed(o.Name)) == filters(o) })
	}
}

func filters(o Options) (n int) {
	for _, f := range []struct {
		on bool
		n  int
	}{{o.C2D, 1}, {o.Methods, 1}, {o.Twin, 2}} {
		if f.on {
			n += f.n
		}
	}
	return n
}

func (s *site) eventually(what string, ok func() bool) { s.Helper(); eventually(s.T, what, ok) }

// reconnect drops the link and waits for the next one.
func (s *site) reconnect(name string) {
	s.Helper()
	before := s.hub.Counters(name).Connects
	s.hub.DropConnections(name)
	s.eventually("connected again", func() bool { return s.hub.Counters(name).Connects > before })
	s.online()
}

// strict fails the test if the hub saw anything that the real one forbids.
func (s *site) strict() {
	s.Helper()
	if v := s.hub.Violations(); len(v) > 0 {
		s.Errorf("the hub saw %d violations, first %+v", len(v), v[0])
	}
}

func (s *site) send(name, mid, body string) {
	s.Helper()
	check(s.T, s.hub.SendC2D(s.Context(), name, hubtest.C2D{MessageID: mid, Body: []byte(body), Properties: map[string]string{"k": "v w+x/y"}}))
}

// completed counts what the hub knows to be taken care of.
func (s *site) completed(name string) (n int) {
	for _, m := range s.hub.C2DStates(name) {
		if m.State == hubtest.C2DCompleted {
			n++
		}
	}
	return n
}

func (s *site) invoke(name, method, payload string, timeout time.Duration) (int, string, error) {
	status, body, err := s.hub.InvokeMethod(s.Context(), name, method, []byte(payload), timeout)
	return status, string(body), err
}

// client is a local MQTT client that does just what it is told.
type client struct {
	t  testing.TB
	nc net.Conn
	r  *packet.Reader
	v  packet.Version

	resumed bool // the gateway has kept its session
}

// connect logs a client in; clean says whether it starts anew.
func (s *site) connect(v packet.Version, id string, clean bool) *client {
	s.Helper()
	nc := must(net.Dial("tcp", s.setup.MQTT))(s.T)
	s.Cleanup(func() { nc.Close() })
	c := &client{t: s.T, nc: nc, r: packet.NewReader(nc, 0), v: v}
	c.send(packet.Connect{Version: v, ClientID: id, CleanStart: clean})
	a, err := packet.DecodeConnack(c.next(packet.CONNACK), v)
	if err != nil || a.Code != 0 {
		s.Fatalf("CONNACK %+v, %v", a, err)
	}
	c.resumed = a.SessionPresent
	return c
}

func (c *client) send(p packet.Packet) {
	c.t.Helper()
	b, err := p.Append(nil, c.v)
	if err == nil {
		_, err = c.nc.Write(b)
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) next(want packet.Type) packet.Frame {
	c.t.Helper()
	check(c.t, c.nc.SetReadDeadline(time.Now().Add(patience)))
	f, err := c.r.Next()
	if err != nil || f.Type != want {
		c.t.Fatalf("waiting for %v: got %v %.80q, %v", want, f.Type, f.Body, err)
	}
	return f
}

func (c *client) subscribe(filters ...string) {
	c.t.Helper()
	p := packet.Subscribe{ID: 7}
	for _, f := range filters {
		p.Subscriptions = append(p.Subscriptions, packet.Subscription{Filter: f, QoS: 1})
	}
	c.send(p)
	a, err := packet.DecodeSuback(c.next(packet.SUBACK), c.v)
	if err != nil || slices.Max(a.Codes) > 1 {
		c.t.Fatalf("SUBACK %+v, %v", a, err)
	}
}

func (c *client) receive() packet.Publish {
	c.t.Helper()
	p, err := packet.DecodePublish(c.next(packet.PUBLISH), c.v)
	if err != nil {
		c.t.Fatal(err)
	}
	p.Payload = slices.Clone(p.Payload)
	return p
}

// take receives and acknowledges.
func (c *client) take() packet.Publish {
	c.t.Helper()
	p := c.receive()
	if p.QoS > 0 {
		c.send(packet.Ack{Type: packet.PUBACK, ID: p.ID})
	}
	return p
}

// quiet expects that nothing comes for a while.
func (c *client) quiet() {
	c.t.Helper()
	check(c.t, c.nc.SetReadDeadline(time.Now().Add(150*time.Millisecond)))
	f, err := c.r.Next()
	var timeout net.Error
	if err == nil || !errors.As(err, &timeout) || !timeout.Timeout() {
		c.t.Fatalf("got %v %.80q, %v; want nothing", f.Type, f.Body, err)
	}
}

// publish sends at QoS 1 and returns the code of the PUBACK.
func (c *client) publish(topic, payload string) byte {
	c.t.Helper()
	c.send(packet.Publish{Topic: topic, QoS: 1, ID: 9, Payload: []byte(payload)})
	a, err := packet.DecodeAck(c.next(packet.PUBACK), c.v)
	if err != nil || a.ID != 9 {
		c.t.Fatalf("PUBACK %+v, %v", a, err)
	}
	return a.Code
}

// http asks the gateway's HTTP listener.
func (s *site) url(path string) string { return "http://" + s.setup.HTTP + path }

func (s *site) get(path string) (int, string) {
	s.Helper()
	resp := must(http.Get(s.url(path)))(s.T)
	return resp.StatusCode, text(s.T, resp)
}

// testSettle is above the time that a certificate takes to be proved here.
const testSettle = 300 * time.Millisecond

const patience = 10 * time.Second

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		check(t, err)
		return v
	}
}

// nextPort counts through ports below those that the kernel gives to outgoing
// connections, so that none is given twice or taken by a client in between.
var nextPort atomic.Int32

func freeAddress(t testing.TB) string {
	t.Helper()
	for range 1000 {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 10000+(os.Getpid()%10*200+int(nextPort.Add(1)))%2000))
		if err == nil {
			defer l.Close()
			return l.Addr().String()
		}
	}
	t.Fatal("no free port")
	return ""
}

func text(t testing.TB, resp *http.Response) string {
	t.Helper()
	defer resp.Body.Close()
	var b []byte
	buf := make([]byte, 4096)
	for {
		n, err := resp.Body.Read(buf)
		if b = append(b, buf[:n]...); err != nil {
			return string(b)
		}
	}
}

func numbered(prefix string, n int) (all []string) {
	for i := range n {
		all = append(all, fmt.Sprint(prefix, i))
	}
	return all
}
