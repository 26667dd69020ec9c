package downstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
	"go.uber.org/zap"
)

// How the MQTT library is used.
const (
	brokerAckEvery  = 5 * time.Millisecond // its default of 50 ms bounds the rate to 20 times Receive Maximum
	brokerKeepAlive = 20                   // seconds; a dead broker is found after twice that
	brokerMaxPacket = 1 << 20              // larger ones the broker does not send (MQTT 5, 3.1.2.11.4)
	brokerConnect   = 10 * time.Second
	brokerWaitMost  = 30 * time.Second // between attempts to connect
	brokerSteady    = 10 * time.Second // a connection of this age makes the next attempt an immediate one
	brokerDrain     = 5 * time.Second  // for messages that are on their way to the disk when the gateway stops
	brokerResub     = 30 * time.Second // between attempts to subscribe after a refusal
)

// BrokerConfig describes an MQTT 5 broker to take messages from. Zero values are
// the defaults.
type BrokerConfig struct {
	URL            string // mqtt://host:port or mqtts://host:port
	ClientID       string
	Subscribe      []string // filters, also $share/group/filter
	Username       string
	PasswordFile   string // its first line; read at every connect
	TLS            BrokerTLS
	ReceiveMaximum int           // default 1,000
	SessionExpiry  time.Duration // default 24h
	MaxBuffered    int           // bytes of messages that are not on disk yet; default 16 MiB
	// Local, when not nil, is published to the broker too, and clients of the broker
	// answer as local ones do.
	Local *Local
}

// BrokerTLS names PEM files, read at every connect. CA is believed instead of the
// system's roots.
type BrokerTLS struct{ CA, Cert, Key string }

// Broker takes messages from one existing broker, as a client with a session that
// the broker keeps. A message is acknowledged to the broker once it is on disk. A
// message that the gateway can never take (no route, too large) is acknowledged
// too, counted and logged: the broker would send it again for ever.
//
// What the gateway cannot take now (a full queue, a disk in trouble) is held, and
// everything behind it: MQTT wants acknowledgements in the order of the messages.
// Identities that must not wait for each other take an entry, and so a session,
// each.
//
// Goroutines, all started by Run and ended when it returns: one that hands
// messages in, one that acknowledges, those of the MQTT library, and one per
// connection until its subscription is granted; with Local one that publishes.
type Broker struct {
	cfg    BrokerConfig
	server *url.URL
	gate   *Gate
	log    *zap.Logger
	client *Client
	notes  notes
	intake brokerIntake
	mirror *mirror // nil without Local

	subscribing sync.WaitGroup

	mu    sync.Mutex
	stats BrokerStats
	up    time.Time       // when the connection came up; zero = it is down
	tries int             // to connect, since one lasted
	link  context.Context // ends with the connection
	lost  context.CancelFunc
	said  string // what is wrong, as in the log
}

// BrokerStats describe the connection to a broker.
type BrokerStats struct {
	URL       string    `json:"url"`
	ClientID  string    `json:"client_id"`
	Connected bool      `json:"connected"`
	Since     time.Time `json:"since"` // of the state
	Connects  uint64    `json:"connects"`
	Held      int       `json:"held"`       // messages that are not on disk yet
	HeldBytes int       `json:"held_bytes"` //
	Fault     string    `json:"fault"`      // "" = nothing wrong
}

// NewBroker checks the configuration, files included; nothing is started. A
// problem names the key under downstream.broker[] that it is about.
func NewBroker(cfg BrokerConfig, gate *Gate, log *zap.Logger) (*Broker, error) {
	u, err := url.Parse(cfg.URL)
	if err != nil || u.Scheme != "mqtt" && u.Scheme != "mqtts" || u.Host == "" {
		return nil, errors.New("url: is not mqtt://host:port or mqtts://host:port")
	}
	if cfg.ReceiveMaximum <= 0 || cfg.ReceiveMaximum > 65535 {
		cfg.ReceiveMaximum = 1000
	}
	if cfg.SessionExpiry <= 0 {
		cfg.SessionExpiry = 24 * time.Hour
	}
	if cfg.MaxBuffered <= 0 {
		cfg.MaxBuffered = 16 << 20
	}
	b := &Broker{
		cfg: cfg, server: u, gate: gate, log: log, client: gate.Ledger().Source("broker").Client(u.Host),
		stats: BrokerStats{URL: cfg.URL, ClientID: cfg.ClientID, Since: time.Now()},
	}
	b.intake.init(cfg.MaxBuffered)
	if _, err := b.password(); err != nil {
		return nil, err
	}
	_, err = b.tlsConfig()
	return b, err
}

// Stats may be called at any time.
func (b *Broker) Stats() BrokerStats {
	held, bytes := b.intake.size()
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.stats
	s.Held, s.HeldBytes = held, bytes
	return s
}

// Run takes messages until ctx ends. Then it waits a bounded time for what is on
// its way to the disk, acknowledges that and disconnects; the broker keeps the
// session and what comes meanwhile.
func (b *Broker) Run(ctx context.Context) error {
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	if b.cfg.Local != nil {
		b.mirror = b.cfg.Local.addMirror()
		defer b.cfg.Local.removeMirror(b.mirror)
	}
	var working sync.WaitGroup
	working.Go(func() { b.handIn(work) })
	working.Go(func() { b.acknowledge(work) })
	manager, err := autopaho.NewConnection(work, b.clientConfig(work))
	if err != nil {
		cancel()
		working.Wait()
		return err
	}
	if b.mirror != nil {
		working.Go(func() { b.passOn(ctx, manager) })
	}
	<-ctx.Done()
	b.intake.close()
	b.intake.settle(brokerDrain)
	// The library sends acknowledgements from a ticker, not when it disconnects.
	<-time.After(3 * brokerAckEvery)
	limited, done := context.WithTimeout(context.WithoutCancel(ctx), brokerDrain)
	defer done()
	err = manager.Disconnect(limited)
	cancel()
	working.Wait()
	b.subscribing.Wait()
	if err != nil {
		b.log.Warn("broker not left in order", zap.String("broker", b.server.Host), zap.Error(err))
	}
	b.turn(false, "")
	return nil
}

func (b *Broker) clientConfig(work context.Context) autopaho.ClientConfig {
	return autopaho.ClientConfig{
		ServerUrls:            []*url.URL{b.server},
		KeepAlive:             brokerKeepAlive,
		SessionExpiryInterval: uint32(b.cfg.SessionExpiry / time.Second),
		ReconnectBackoff:      func(int) time.Duration { return b.backoff() },
		ConnectTimeout:        brokerConnect,
		ConnectPacketBuilder:  b.connectPacket,
		AttemptConnection: func(ctx context.Context, _ autopaho.ClientConfig, _ *url.URL) (net.Conn, error) {
			return b.dial(ctx)
		},
		OnConnectionUp:   func(m *autopaho.ConnectionManager, a *paho.Connack) { b.connected(work, m, a) },
		OnConnectionDown: func() bool { b.disconnected(); return true },
		OnConnectError:   func(err error) { b.unreachable(err) },
		ClientConfig: paho.ClientConfig{
			ClientID:                   b.cfg.ClientID,
			EnableManualAcknowledgment: true,
			SendAcksInterval:           brokerAckEvery,
			OnPublishReceived: []func(paho.PublishReceived) (bool, error){
				func(r paho.PublishReceived) (bool, error) { b.intake.put(r); return true, nil },
			},
			OnClientError:      func(err error) { b.connectionLost(err.Error()) },
			OnServerDisconnect: func(d *paho.Disconnect) { b.connectionLost(disconnectText(d)) },
		},
	}
}

func (b *Broker) connectPacket(c *paho.Connect, _ *url.URL) (*paho.Connect, error) {
	receive, size := uint16(b.cfg.ReceiveMaximum), uint32(brokerMaxPacket)
	c.CleanStart = false
	if c.Properties == nil {
		c.Properties = &paho.ConnectProperties{}
	}
	c.Properties.RequestProblemInfo = true
	c.Properties.ReceiveMaximum, c.Properties.MaximumPacketSize = &receive, &size
	password, err := b.password()
	if err != nil {
		return nil, err
	}
	if b.cfg.Username != "" {
		c.UsernameFlag, c.Username = true, b.cfg.Username
		c.PasswordFlag, c.Password = password != nil, password
	}
	return c, nil
}

// password is the first line of its file; nil without one.
func (b *Broker) password() ([]byte, error) {
	if b.cfg.PasswordFile == "" {
		return nil, nil
	}
	raw, err := os.ReadFile(b.cfg.PasswordFile)
	if err != nil {
		return nil, fmt.Errorf("password_file: %w", err)
	}
	line, _, _ := strings.Cut(string(raw), "\n")
	if line = strings.TrimSuffix(line, "\r"); line == "" {
		return nil, fmt.Errorf("password_file: the first line of %s is empty", b.cfg.PasswordFile)
	}
	return []byte(line), nil
}

// tlsConfig reads the files; nil for mqtt://.
func (b *Broker) tlsConfig() (*tls.Config, error) {
	if b.server.Scheme != "mqtts" {
		return nil, nil
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: b.server.Hostname()}
	if file := b.cfg.TLS.CA; file != "" {
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("tls.ca: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("tls.ca: no certificate in %s", file)
		}
	}
	if b.cfg.TLS.Cert != "" {
		pair, err := tls.LoadX509KeyPair(b.cfg.TLS.Cert, b.cfg.TLS.Key)
		if err != nil {
			return nil, fmt.Errorf("tls.cert: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

func (b *Broker) dial(ctx context.Context) (net.Conn, error) {
	secure, err := b.tlsConfig()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, brokerConnect)
	defer cancel()
	var c net.Conn
	if secure != nil {
		c, err = (&tls.Dialer{Config: secure}).DialContext(ctx, "tcp", b.server.Host)
	} else {
		c, err = (&net.Dialer{}).DialContext(ctx, "tcp", b.server.Host)
	}
	if err != nil {
		return nil, err
	}
	return packets.NewThreadSafeConn(newHeldConn(c, &b.intake)), nil
}

// backoff is how long to wait before the next attempt. The library asks before
// the first one too, and its own counter starts over with every connection, even
// one that the broker ends at once.
func (b *Broker) backoff() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := b.tries
	b.tries++
	if n == 0 {
		return 0
	}
	most := min(brokerWaitMost, 500*time.Millisecond<<min(n-1, 10))
	return most/2 + rand.N(most/2)
}

func (b *Broker) connected(work context.Context, m *autopaho.ConnectionManager, a *paho.Connack) {
	ctx, cancel := context.WithCancel(work)
	b.mu.Lock()
	b.link, b.lost = ctx, cancel
	b.up = time.Now()
	b.stats.Connects++
	first := b.stats.Connects == 1
	b.said = ""
	b.mu.Unlock()
	b.turn(true, "")
	b.log.Info("broker connected", zap.String("broker", b.server.Host), zap.Bool("session_present", a.SessionPresent))
	if !first && !a.SessionPresent {
		b.log.Warn("the broker has forgotten the session: what came while it was away is lost", zap.String("broker", b.server.Host))
	}
	b.subscribing.Go(func() { b.subscribe(ctx, m) })
}

func (b *Broker) disconnected() {
	if b.mirror != nil {
		b.mirror.down()
	}
	b.mu.Lock()
	if b.lost != nil {
		b.lost()
		b.lost = nil
	}
	if time.Since(b.up) >= brokerSteady {
		b.tries = 0
	}
	b.up = time.Time{}
	b.mu.Unlock()
}

func disconnectText(d *paho.Disconnect) string {
	text := fmt.Sprintf("the broker ended the connection with reason %#x", d.ReasonCode)
	if d.Properties != nil && d.Properties.ReasonString != "" {
		text += ": " + clip(d.Properties.ReasonString)
	}
	return text
}

// connectionLost is told of an end, sometimes more than once for the same.
func (b *Broker) connectionLost(reason string) {
	if b.fault(reason) {
		b.log.Warn("broker connection lost", zap.String("broker", b.server.Host), zap.String("reason", reason))
	}
}

// unreachable is told of every attempt that fails.
func (b *Broker) unreachable(err error) {
	if b.fault(err.Error()) {
		b.log.Warn("broker not reached, trying again", zap.String("broker", b.server.Host), zap.Error(err))
	}
}

// fault notes what is wrong and tells whether that is news.
func (b *Broker) fault(reason string) (news bool) {
	b.mu.Lock()
	news = b.said != reason
	b.said = reason
	b.mu.Unlock()
	b.turn(false, reason)
	return news
}

// turn changes the state that Stats tells.
func (b *Broker) turn(connected bool, fault string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stats.Connected != connected {
		b.stats.Since = time.Now()
	}
	b.stats.Connected, b.stats.Fault = connected, fault
}

// subscribe asks for the filters, again and again while the broker refuses.
// Retained messages are wanted once, not with every connection.
func (b *Broker) subscribe(ctx context.Context, m *autopaho.ConnectionManager) {
	s := &paho.Subscribe{}
	filters := b.cfg.Subscribe
	if b.mirror != nil {
		filters = append(localFilters(), filters...)
	}
	for _, f := range filters {
		s.Subscriptions = append(s.Subscriptions, paho.SubscribeOptions{
			Topic: f, QoS: 1, RetainHandling: 1, RetainAsPublished: true,
			NoLocal: !strings.HasPrefix(f, "$share/"), // forbidden there (MQTT 5, 3.8.3.1)
		})
	}
	for {
		ack, err := m.Subscribe(ctx, s)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			b.granted()
			if b.mirror != nil { // not before: answers would be missed
				b.mirror.up()
			}
			return
		}
		text := err.Error()
		if ack != nil {
			text = fmt.Sprintf("the broker refuses to subscribe, reasons %#x", ack.Reasons)
		}
		b.mu.Lock()
		news := b.said != text
		b.said = text
		b.stats.Fault = text
		b.mu.Unlock()
		if news {
			b.log.Warn("broker subscription refused, trying again", zap.String("broker", b.server.Host), zap.String("reason", text))
		}
		select {
		case <-time.After(brokerResub):
		case <-ctx.Done():
			return
		}
	}
}

func (b *Broker) granted() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.said, b.stats.Fault = "", ""
}
