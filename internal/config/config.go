package config

import "time"

// Config is one loaded file. Load is the only source of sound values.
type Config struct {
	File       string // absolute path
	StateDir   string
	Hub        Hub     // as under hub:; what an identity uses is Identity.Hub
	Desired    Desired // hub.desired_config
	Identities []Identity
	Downstream Downstream
	Routes     []Route // first match wins
	Queue      Journal
	Admin      Admin
	Log        Log

	// Warnings are worth one log line each at start; none prevents running.
	Warnings []Problem
}

// Names lists the identities in the order of the file.
func (c *Config) Names() []string {
	names := make([]string, len(c.Identities))
	for i := range c.Identities {
		names[i] = c.Identities[i].Name
	}
	return names
}

// Transports to the hub.
const (
	TransportMQTT   = "mqtt"    // port 8883
	TransportMQTTWS = "mqtt-ws" // port 443
	TransportAuto   = "auto"    // mqtt, then mqtt-ws when 8883 is blocked
)

// Hub says how to reach IoT Hub.
type Hub struct {
	Trust         []string // PEM files with extra roots; absolute, existed at load
	SystemRoots   bool
	Transport     string
	Proxy         Proxy
	KeepAlive     time.Duration // whole seconds, 1 s to 1177 s
	KeepAliveAuto bool          // grow KeepAlive while the link holds
	Window        int           // unacknowledged publishes per identity, 1 to 30000

	// Per second, over all identities; an identity has none of its own.
	ConnectRate float64 // above 0
	SendRate    float64 // 0 = no limit
}

// Identity is one device or module of a hub.
type Identity struct {
	Name     string // unique; one topic level: no / + #
	HostName string // of the hub: TLS name and user name
	DeviceID string
	ModuleID string // "" for a device
	// GatewayHostName is the host to dial instead of HostName, without a port;
	// only a connection string has it. Address goes before it.
	GatewayHostName string
	Address         string // host:port to dial, or ""
	// WebSocketAddress is the same for MQTT over WebSocket; "" = Address with
	// TransportMQTTWS, port 443 of its host with TransportAuto.
	WebSocketAddress string
	Hub              Hub // Config.Hub with this identity's own keys on top

	Certificate Certificate
	// AllowCNMismatch admits a certificate whose CN is another than the
	// identity, as the hub does where it compares thumbprints.
	AllowCNMismatch bool
	KeepLastGood    string // KeepInMemory or KeepOnDisk
	Commands        Commands
	Methods         map[string]Method // those that go elsewhere than to the local topics, by name
	AllowMethods    []string          // answered besides Methods; nil = all
	TwinReport      TwinReport
	Queue           Limits
}

// HubID is what the hub calls the identity, and the CN its certificate has:
// deviceId or deviceId/moduleId.
func (id *Identity) HubID() string {
	if id.ModuleID == "" {
		return id.DeviceID
	}
	return id.DeviceID + "/" + id.ModuleID
}

// Where the last good credential is kept.
const (
	KeepInMemory = "memory"
	KeepOnDisk   = "disk"
)

// Certificate names the files of one credential, absolute: either Cert and Key
// or PKCS12. They may be missing.
type Certificate struct {
	Cert, Key, PKCS12, PassphraseFile string
}

// Commands says what is brought down from the hub.
type Commands struct {
	C2D, Methods, Twin bool
}

// What happens to a reading when an identity's queue is full.
const (
	WhenFullRefuse     = "refuse"
	WhenFullDropOldest = "drop-oldest"
)

// Limits bound one identity's queue.
type Limits struct {
	MaxBytes int64
	MaxAge   time.Duration // 0 = kept until delivered
	WhenFull string        // WhenFullRefuse or WhenFullDropOldest
}

// Journal bounds the one journal of all identities.
type Journal struct {
	SyncInterval  time.Duration // 0 = every group is synced at once
	MaxBytes      int64         // for the whole state directory; 0 = no bound
	SegmentBytes  int64
	SetAsideAfter int // connections one message may kill, at least 1
}

// Downstream is the local side.
type Downstream struct {
	MQTT   []MQTT
	HTTP   []HTTP
	Broker []Broker
	Exec   []Exec
	Socket []Socket
	Local  Local
	// MaxTopic bounds the local topic of a message from any source, in bytes.
	MaxTopic int
}

// AzureClient says how software made with an Azure device SDK logs in as an
// identity: with tokens of a key, or with a certificate of the listener's client_ca.
type AzureClient struct {
	KeyFile     string   // absolute, existed at load; "" = no tokens
	Thumbprints []string // SHA-1 or SHA-256, lower-case hex; none = any certificate with the right CN
}

// MQTT is one MQTT listener.
type MQTT struct {
	Listen         Address
	TLS            ListenTLS
	UsersFile      string // absolute, existed at load; "" = none
	Anonymous      bool   // clients without a user are let in; never true by default beyond loopback and sockets
	ACL            []ACLRule
	AzureClients   map[string]AzureClient // by identity; nil = the listener does not speak IoT Hub's dialect
	MaxConnections int
	MaxPerAddress  int           // connections of one remote address
	ConnectTimeout time.Duration // from accept to a complete CONNECT
	MaxPacket      int           // bytes of one packet
	// Per client.
	MaxSubscriptions int
	InFlight         int     // unacknowledged messages
	Rate             float64 // messages per second; 0 = no limit
}

// ACLRule allows topics where clients log in; what no rule allows is refused. In
// the filters %u is the user name and %c the client id.
type ACLRule struct {
	User      string // a user name or certificate CN; "*" = all who logged in, "" = anonymous clients too
	Publish   []string
	Subscribe []string
}

// HTTP is one HTTP listener. With neither TokenFile nor TLS.ClientCA nor Anonymous
// it is on loopback or a socket.
type HTTP struct {
	Listen         Address
	TLS            ListenTLS
	TokenFile      string // absolute, existed at load; "" = none
	Anonymous      bool   // as for MQTT
	MaxConnections int
	MaxBody        int     // bytes of one message's body
	MaxBatch       int     // bytes of one batch
	Rate           float64 // messages per second and client; 0 = no limit
}

// Local bounds what is kept in memory for MQTT clients that subscribe, over all
// listeners.
type Local struct {
	MaxSessions   int           // of clients that are away
	SessionExpiry time.Duration // the longest that one is kept; whole seconds
	MaxMessages   int           // waiting per session
	MaxBytes      int           // waiting per session
	MaxRetained   int           // bytes of all retained values
}

// ListenTLS holds absolute paths that existed at load. Cert and Key are both
// set or both empty; ClientCA only with them.
type ListenTLS struct {
	Cert, Key, ClientCA string
}

// Enabled tells whether the listener speaks TLS.
func (t ListenTLS) Enabled() bool { return t.Cert != "" }

// Broker is an MQTT 5 broker that gatewayd subscribes to.
type Broker struct {
	URL            string // mqtt:// or mqtts://, with port
	ClientID       string
	Subscribe      []string // topic filters, also $share/group/filter
	Username       string   // "" = none
	PasswordFile   string   // absolute, existed at load; "" = none
	TLS            BrokerTLS
	ReceiveMaximum int           // unacknowledged messages, 1 to 10000
	SessionExpiry  time.Duration // how long the broker keeps messages while gatewayd is away; whole seconds
	LocalTopics    bool          // what comes from the cloud is published to this broker too
}

// BrokerTLS holds absolute paths that existed at load. CA is believed instead
// of the system's roots. Cert and Key are both set or both empty.
type BrokerTLS struct {
	CA, Cert, Key string
}

// Exec is a program that gatewayd starts and reads messages from.
type Exec struct {
	Name     string            // unique among programs and sockets
	Command  []string          // the program, absolute or a name to look up in PATH, and its arguments
	Dir      string            // absolute; where it runs
	Env      map[string]string // beside PATH, HOME, LANG, TZ, TMPDIR and USER
	MaxLine  int               // bytes of one line
	InFlight int               // messages without an answer
}

// Socket is a unix socket on which programs hand in messages.
type Socket struct {
	Name           string
	Listen         Address // of network unix
	MaxConnections int
	MaxLine        int
	InFlight       int // per connection
}

// Route decides over readings whose local topic matches.
type Route struct {
	Name            string            // as in messages: routes[0]
	Match           string            // MQTT topic filter
	To              string            // identity, or a text with {n}: what the n-th wildcard matched
	Properties      map[string]string // values may hold {n}
	ContentType     string            // "" = none
	ContentEncoding string            // "" = none
	// The two labels that the file does not write out are only assumed: they are
	// left off where they would be wrong.
	TypeAssumed, EncodingAssumed bool
	Output                       string            // module output; "" = none
	Filter                       string            // jq program: false or null = the reading is not wanted; "" = none
	Transform                    string            // jq program: its result becomes the body; "" = none
	Set                          map[string]string // jq programs by the property that they give
	OnError                      string            // what becomes of a reading for which a program fails: OnErrorSetAside, ...
	Compress                     string            // "" or "gzip"
	OnlyChanges                  OnlyChanges
	Pack                         Pack
	MaxAge                       time.Duration // 0 = the identity's
	Priority                     int           // 0 to 9, higher first
}

// What becomes of a reading for which a route's program fails.
const (
	OnErrorSetAside = "set-aside" // kept in the queue, out of the way
	OnErrorDrop     = "drop"
	OnErrorPass     = "pass" // sent as it came
)

// OnlyChanges lets a reading pass only when it differs from the last one of its
// topic that passed.
type OnlyChanges struct {
	// Deadband is how far a number may move without being a change, in every
	// field. With Deadbands only the fields named there count.
	Deadband    float64
	Deadbands   map[string]float64 // by the path of the field: temperature, motor.speed
	MinInterval time.Duration      // changes are sent at most this often
	MaxInterval time.Duration      // without a change a reading is sent this often; 0 = never
}

// Pack says how several readings become one hub message.
type Pack struct {
	MaxBytes int64         // of the hub message; 0 = off
	MaxDelay time.Duration // how long a reading waits for others
	Format   string        // PackJSON or PackNDJSON
}

// What the body of a pack is.
const (
	PackJSON   = "json"   // an array
	PackNDJSON = "ndjson" // one object per line
)

// Admin is the operator's listener.
type Admin struct {
	Listen    Address // not Enabled = none
	TokenFile string  // absolute, existed at load; "" = the page only reads
	OTLP      OTLP
}

// OTLP sends the metrics to a collector.
type OTLP struct {
	Endpoint string        // http:// or https:// with path, such as http://127.0.0.1:4318/v1/metrics; "" = off
	Interval time.Duration // 1 s to 1 h
	Timeout  time.Duration // of one export; at most Interval
	CA       string        // absolute, existed at load; believed instead of the system's roots; "" = those
	// HeadersFile holds "name: value" lines, one or more of them secrets; absolute,
	// existed at load; "" = none.
	HeadersFile string
	Attributes  map[string]string // of the resource, beside service.name, service.version and host.name
}

// Log says what the log looks like.
type Log struct {
	Level  string // debug, info, warn, error
	Format string // auto, console, json
}

// Defaults is a configuration with every default and nothing that has none:
// no identities, listeners or routes. StateDir is absolute.
func Defaults() Config {
	admin, _ := ParseAddress(defaultAdmin)
	return Config{
		StateDir: "/var/lib/gatewayd",
		Desired:  defaultDesired(),
		Hub: Hub{
			SystemRoots: true,
			Transport:   TransportMQTT,
			KeepAlive:   4 * time.Minute,
			Window:      16,
			ConnectRate: 10,
		},
		Downstream: Downstream{
			Local:    Local{MaxSessions: 10_000, SessionExpiry: 24 * time.Hour, MaxMessages: 1000, MaxBytes: 1 << 20, MaxRetained: 16 << 20},
			MaxTopic: 1 << 10,
		},
		Queue: Journal{SegmentBytes: 16 << 20, SetAsideAfter: 5},
		Admin: Admin{Listen: admin, OTLP: OTLP{Interval: time.Minute, Timeout: 10 * time.Second}},
		Log:   Log{Level: "info", Format: "auto"},
	}
}

const (
	defaultAdmin = "127.0.0.1:9180"
	defaultMQTT  = "127.0.0.1:1883"
	defaultHTTP  = "127.0.0.1:8080"
)

// defaultIdentity has every default of one identity below the given hub: keys.
func defaultIdentity(hub Hub) Identity {
	return Identity{
		Hub:          hub,
		KeepLastGood: KeepInMemory,
		Commands:     Commands{C2D: true, Methods: true, Twin: true},
		TwinReport:   defaultTwinReport(),
		Queue:        Limits{MaxBytes: 1 << 30, MaxAge: 168 * time.Hour, WhenFull: WhenFullRefuse},
	}
}

func defaultMQTTListener() MQTT {
	a, _ := ParseAddress(defaultMQTT)
	return MQTT{
		Listen: a, MaxConnections: 10_000, MaxPerAddress: 1000, ConnectTimeout: 10 * time.Second,
		MaxPacket: 256 << 10, MaxSubscriptions: 100, InFlight: 1024,
	}
}

func defaultHTTPListener() HTTP {
	a, _ := ParseAddress(defaultHTTP)
	return HTTP{Listen: a, MaxConnections: 1000, MaxBody: 256 << 10, MaxBatch: 4 << 20}
}

// defaultRoute labels readings as JSON because the hub treats a body without
// both labels as opaque: it cannot be routed on.
func defaultRoute() Route {
	return Route{
		ContentType:     "application/json",
		ContentEncoding: "utf-8",
		TypeAssumed:     true,
		EncodingAssumed: true,
		OnError:         OnErrorSetAside,
		Pack:            Pack{MaxDelay: time.Second, Format: PackJSON},
	}
}
