package downstream

import (
	"crypto/sha1" //nolint:gosec // operators know certificates by SHA-1 thumbprints too
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"gatewayd/internal/bag"
	"gatewayd/internal/packet"
)

// AzureClient says who may speak for one identity in IoT Hub's own dialect, as
// software written with an Azure device SDK does.
type AzureClient struct {
	Identity string // its name here
	// Host is the hub's name. Tokens may be made for it, or for the name that the
	// client has in its user name.
	Host, DeviceID, ModuleID string
	KeyFile                  string   // one or two lines, each a base64 key of 16 to 64 bytes; "" = no tokens
	Thumbprints              []string // SHA-1 or SHA-256 in hex; none = any certificate of client_ca with the right CN
}

func (a *AzureClient) id() string {
	if a.ModuleID == "" {
		return a.DeviceID
	}
	return a.DeviceID + "/" + a.ModuleID
}

// AzureClients are the identities of one listener for which Azure SDK clients may
// speak. It is used by any number of goroutines.
type AzureClients struct {
	now func() time.Time

	mu   sync.Mutex
	byID map[string]*azureEntry
}

// azureEntry never changes.
type azureEntry struct {
	AzureClient
	keys   [][]byte
	events string // topic of telemetry, without the bag
	inputs string // prefix of a module's inputs; "" for a device
	c2d    string // prefix of a device's C2D messages; "" for a module
	local  string // prefix of the identity's local topics
}

// LoadAzureClients reads the key files. now tells the time that tokens are judged
// by. A clock that may be behind should tell the latest time that has surely passed:
// a token too many is let in then, and ended once the time is known.
func LoadAzureClients(all []AzureClient, now func() time.Time) (*AzureClients, error) {
	a := &AzureClients{now: now}
	return a, a.Set(all)
}

// Set takes over other clients and reads the key files again; on an error all stays
// as it was. Clients that are connected stay, but for those that are not among all
// any more. Problems name the key under azure_clients.
func (a *AzureClients) Set(all []AzureClient) error {
	byID := make(map[string]*azureEntry, len(all))
	var problems []error
	for _, c := range all {
		e, err := newAzureEntry(c)
		if err == nil && byID[c.id()] != nil {
			err = fmt.Errorf("%q has the same device and module id: a listener can tell only one of them", byID[c.id()].Identity)
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("azure_clients.%s: %w", c.Identity, err))
			continue
		}
		byID[c.id()] = e
	}
	if err := errors.Join(problems...); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.byID = byID
	return nil
}

func newAzureEntry(c AzureClient) (*azureEntry, error) {
	e := &azureEntry{AzureClient: c, local: LocalPrefix + c.Identity + "/"}
	if c.ModuleID == "" {
		e.events = "devices/" + c.DeviceID + "/messages/events"
		e.c2d = "devices/" + c.DeviceID + "/messages/devicebound/"
	} else {
		e.events = "devices/" + c.DeviceID + "/modules/" + c.ModuleID + "/messages/events"
		e.inputs = "devices/" + c.DeviceID + "/modules/" + c.ModuleID + "/"
	}
	if c.KeyFile == "" {
		return e, nil
	}
	var err error
	if e.keys, err = readKeys(c.KeyFile); err != nil {
		return nil, fmt.Errorf("key_file: %w", err)
	}
	return e, nil
}

const (
	maxKeyFile = 4 << 10
	// The bounds of IoT Hub's own symmetric keys.
	minKey, maxKey = 16, 64
)

// readKeys reads a file with a primary key and perhaps a secondary one, as IoT Hub
// has two, so that a key can be replaced while devices still use the other.
func readKeys(name string) ([][]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, err
	}
	var keys [][]byte
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		// The decoder's error would tell where in the key it stopped.
		key, err := base64.StdEncoding.DecodeString(line)
		if err != nil || len(key) < minKey || len(key) > maxKey {
			return nil, fmt.Errorf("%s: a key is base64 of %d to %d bytes, such as openssl rand -base64 32 makes", name, minKey, maxKey)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 || len(keys) > 2 || len(text) > maxKeyFile {
		return nil, fmt.Errorf("%s: needs one key, or a primary and a secondary one on a line each", name)
	}
	return keys, nil
}

func (a *AzureClients) entry(id string) *azureEntry {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.byID[id]
}

// azureLogin is a connection that speaks the dialect.
type azureLogin struct {
	*azureEntry
	name    azureName
	how     string    // token or certificate
	expires time.Time // of the token; zero = there is none
	since   time.Time
}

// azureName is what the user name of a CONNECT says.
type azureName struct {
	host, id   string // id as the client id: device or device/module
	device     string
	module     string
	apiVersion string
	software   string // DeviceClientType
}

// parseAzureName reads {host}/{device}[/{module}]/?api-version=...; older SDKs leave
// out the question mark. ok is false for a user name of another kind.
func parseAzureName(s string) (n azureName, ok bool) {
	// The query may hold slashes that an SDK did not escape.
	at := strings.LastIndex(s, "/?")
	if at < 0 {
		at = strings.LastIndex(s[:max(0, strings.Index(s, "api-version="))], "/")
	}
	if at < 0 {
		return n, false
	}
	parts := strings.Split(s[:at], "/")
	if len(parts) != 2 && len(parts) != 3 {
		return n, false
	}
	for pair := range strings.SplitSeq(strings.TrimPrefix(s[at+1:], "?"), "&") {
		switch key, value, _ := strings.Cut(pair, "="); {
		case key == "api-version" && n.apiVersion == "":
			n.apiVersion = clip(value)
		case key == "DeviceClientType" && n.software == "":
			n.software = clip(bag.Unescape(value))
		}
	}
	n.host, n.device, n.id = parts[0], parts[1], parts[1]
	if len(parts) == 3 {
		n.module = parts[2]
		n.id += "/" + n.module
	}
	return n, n.apiVersion != ""
}

var (
	errAzureVersion    = errors.New("an Azure SDK client has to use MQTT 3.1.1")
	errAzureClientID   = errors.New("client id differs from the identity in the user name")
	errAzureUnknown    = errors.New("azure_clients has no such identity")
	errAzureCredential = errors.New("neither a token nor a certificate")
	errAzureNoKey      = errors.New("a token, but the identity has no key_file")
	errAzureCN         = errors.New("the certificate's CN is not the identity")
	errAzureThumbprint = errors.New("the certificate has none of the thumbprints")
)

// loginAzure lets a client of the dialect in. Every no is CONNACK 5, the only one
// that the hub has and SDKs understand.
func (c *conn) loginAzure(p packet.Connect, n azureName) error {
	l, err := c.server.azure.admit(p, n, c.certificate())
	if err != nil {
		code := packet.NotAuthorized
		if errors.Is(err, errAzureVersion) {
			code = packet.UnsupportedVersion
		}
		return &refusal{v5: code, v311: packet.RefusedNotAuthorized, err: fmt.Errorf("azure sdk: %w", err)}
	}
	// Whatever ordinary clients call themselves, the session is another one: no client
	// id can begin with this.
	c.azure, c.user, c.key = l, l.Identity, "\x00"+l.Identity
	return nil
}

func (a *AzureClients) admit(p packet.Connect, n azureName, cert *x509.Certificate) (*azureLogin, error) {
	e := a.entry(n.id)
	switch {
	case p.Version != packet.V311:
		return nil, errAzureVersion
	case p.ClientID != n.id:
		return nil, errAzureClientID
	case e == nil:
		return nil, errAzureUnknown
	}
	l := &azureLogin{azureEntry: e, name: n, since: time.Now()}
	switch {
	case len(p.Password) > 0:
		var err error
		l.how = "token"
		l.expires, err = e.checkToken(string(p.Password), n, a.now())
		return l, err
	case cert == nil:
		return nil, errAzureCredential
	}
	l.how = "certificate"
	return l, e.checkCertificate(cert)
}

// checkCertificate judges a certificate that the listener's client_ca vouches for.
func (e *azureEntry) checkCertificate(cert *x509.Certificate) error {
	if cn := cert.Subject.CommonName; cn != e.id() && cn != e.Identity {
		return errAzureCN
	}
	if len(e.Thumbprints) == 0 {
		return nil
	}
	first, second := sha1.Sum(cert.Raw), sha256.Sum256(cert.Raw) //nolint:gosec // see the import
	for _, t := range e.Thumbprints {
		if strings.EqualFold(t, hex.EncodeToString(first[:])) || strings.EqualFold(t, hex.EncodeToString(second[:])) {
			return nil
		}
	}
	return errAzureThumbprint
}

// lapsed tells whether a connection has to end: its token is too old, as the hub
// ends it then, or the identity is configured no more.
func (a *AzureClients) lapsed(l *azureLogin) bool {
	if e := a.entry(l.id()); e == nil || e.Identity != l.Identity {
		return true
	}
	return !l.expires.IsZero() && !a.now().Before(l.expires)
}

// AzureStatus is an identity for which a client may speak, and the client that does.
type AzureStatus struct {
	Identity   string     `json:"identity"`
	ClientID   string     `json:"client_id"`
	Connected  bool       `json:"connected"`
	Remote     string     `json:"remote,omitempty"`
	Since      *time.Time `json:"since,omitempty"`
	Login      string     `json:"login,omitempty"` // token or certificate
	Expires    *time.Time `json:"token_expires,omitempty"`
	APIVersion string     `json:"api_version,omitempty"`
	Software   string     `json:"software,omitempty"` // what the SDK calls itself
	Subscribed []string   `json:"subscribed,omitempty"`
}

// AzureClients lists the identities of the listener for which Azure SDK clients may
// speak, by client id; nil when there are none.
func (s *MQTT) AzureClients() []AzureStatus {
	if s.azure == nil {
		return nil
	}
	connected := make(map[string]*conn)
	for _, c := range s.all() {
		c.mu.Lock()
		in := c.greeted && c.state == open && c.azure != nil
		c.mu.Unlock()
		if in {
			connected[c.azure.Identity] = c
		}
	}
	s.azure.mu.Lock()
	rows := make([]AzureStatus, 0, len(s.azure.byID))
	for id, e := range s.azure.byID {
		rows = append(rows, AzureStatus{Identity: e.Identity, ClientID: id})
	}
	s.azure.mu.Unlock()
	for i := range rows {
		if c := connected[rows[i].Identity]; c != nil {
			c.describeAzure(&rows[i])
		}
	}
	sortAzure(rows)
	return rows
}

func (c *conn) describeAzure(row *AzureStatus) {
	l := c.azure
	row.Connected, row.Remote, row.Login = true, remoteText(c.raw), l.how
	row.APIVersion, row.Software = l.name.apiVersion, l.name.software
	since := l.since.UTC()
	row.Since = &since
	if !l.expires.IsZero() {
		expires := l.expires.UTC()
		row.Expires = &expires
	}
	row.Subscribed = c.server.local.azureSubscriptions(c.session, l.azureEntry)
}
