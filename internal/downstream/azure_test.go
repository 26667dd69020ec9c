package downstream

import (
	"context"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"gatewayd/internal/packet"
	"gatewayd/internal/queue"
)

var azureKey = []byte("0123456789abcdef0123456789abcdef")

// token is what an SDK makes of a key.
func token(key []byte, resource string, expires time.Time) string {
	sr, se := url.QueryEscape(resource), fmt.Sprint(expires.Unix())
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(sr + "\n" + se))
	return "SharedAccessSignature sr=" + sr + "&sig=" + url.QueryEscape(base64.StdEncoding.EncodeToString(mac.Sum(nil))) + "&se=" + se
}

// testClock is a clock that a test sets.
type testClock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *testClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *testClock) set(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = t
}

func keyFile(t testing.TB, keys ...[]byte) string {
	name := filepath.Join(t.TempDir(), "key")
	text := ""
	for _, k := range keys {
		text += base64.StdEncoding.EncodeToString(k) + "\n"
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// azureClients has a device press-7 under that name and its module filter under
// another.
func azureClients(t testing.TB, clock *testClock) *AzureClients {
	a, err := LoadAzureClients([]AzureClient{
		{Identity: "press-7", Host: "contoso.azure-devices.net", DeviceID: "press-7", KeyFile: keyFile(t, azureKey)},
		{Identity: "f", Host: "contoso.azure-devices.net", DeviceID: "press-7", ModuleID: "filter", KeyFile: keyFile(t, []byte("another key of 16"), azureKey)},
		{Identity: "press-8", Host: "contoso.azure-devices.net", DeviceID: "press-8"},
	}, clock.Now)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func azureConnect(id, password string) packet.Connect {
	return packet.Connect{Version: packet.V311, ClientID: id, CleanStart: true, HasUsername: true,
		Username:    "gateway.site/" + id + "/?api-version=2021-04-12&DeviceClientType=sdk%2F1",
		HasPassword: password != "", Password: []byte(password)}
}

func TestOnlyTokensForTheIdentityLetIn(t *testing.T) {
	clock := &testClock{now: time.Now()}
	soon, past := clock.now.Add(time.Hour), clock.now.Add(-time.Second)
	device, module := "gateway.site/devices/press-7", "gateway.site/devices/press-7/modules/filter"
	b := start(t, benchOptions{config: MQTTConfig{Azure: azureClients(t, clock)}})
	for _, tc := range []struct {
		name, id, token string
		change          func(*packet.Connect)
		reason          error // nil = let in
	}{
		{"device", "press-7", token(azureKey, device, soon), nil, nil},
		{"module with the secondary key", "press-7/filter", token(azureKey, module, soon), nil, nil},
		{"module with a token for its device", "press-7/filter", token(azureKey, device, soon), nil, nil},
		{"made for the hub", "press-7", token(azureKey, "Contoso.azure-devices.net/devices/press-7", soon), nil, nil},
		{"old SDK", "press-7", token(azureKey, device, soon), func(c *packet.Connect) { c.Username = "gateway.site/press-7/api-version=2016-11-14" }, nil},
		{"other host", "press-7", token(azureKey, "x.site/devices/press-7", soon), nil, errTokenResource},
		{"other device", "press-7", token(azureKey, "gateway.site/devices/press-8", soon), nil, errTokenResource},
		{"longer name", "press-7", token(azureKey, device+"0", soon), nil, errTokenResource},
		{"service token", "press-7", token(azureKey, "gateway.site", soon), nil, errTokenResource},
		{"module's for the device", "press-7", token(azureKey, module, soon), nil, errTokenResource},
		{"wrong key", "press-7", token([]byte("another key"), device, soon), nil, errTokenSignature},
		{"expired", "press-7", token(azureKey, device, past), nil, errTokenExpired},
		{"later end than signed", "press-7", strings.Replace(token(azureKey, device, past), "&se=", "&se=9", 1), nil, errTokenSignature},
		{"no token at all", "press-7", "", nil, errAzureCredential},
		{"a password", "press-7", "secret", nil, errTokenForm},
		{"endless", "press-7", token(azureKey, device, time.Unix(1<<60, 0)), nil, errTokenForm},
		{"without a key", "press-8", token(azureKey, "gateway.site/devices/press-8", soon), nil, errAzureNoKey},
		{"not configured", "press-9", token(azureKey, "gateway.site/devices/press-9", soon), nil, errAzureUnknown},
		{"other case", "Press-7", token(azureKey, device, soon), nil, errAzureUnknown},
		{"other client id", "press-7", token(azureKey, device, soon), func(c *packet.Connect) { c.ClientID = "x" }, errAzureClientID},
	} {
		p := azureConnect(tc.id, tc.token)
		if tc.change != nil {
			tc.change(&p)
		}
		c := b.dial()
		a := c.hello(p)
		want := byte(0)
		if tc.reason != nil {
			want = packet.RefusedNotAuthorized
		}
		if a.Code != want {
			t.Errorf("%s: CONNACK %d, want %d", tc.name, a.Code, want)
		}
		n, _ := parseAzureName(p.Username)
		if _, err := b.mqtt.azure.admit(p, n, nil); !errors.Is(err, tc.reason) {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.reason)
		}
	}
	c := b.dial()
	p := azureConnect("press-7", token(azureKey, device, soon))
	p.Version = packet.V5
	if a := c.hello(p); a.Code != packet.UnsupportedVersion {
		t.Errorf("MQTT 5: %#x", a.Code)
	}
	for _, l := range b.logged.All() {
		for _, f := range l.Context {
			if text := fmt.Sprint(f.String, f.Interface); strings.Contains(text, "sig=") || strings.Contains(text, "SharedAccessSignature ") {
				t.Errorf("logged: %s", text)
			}
		}
	}
}

func TestUserNamesOfSDKs(t *testing.T) {
	for name, want := range map[string]string{
		"h/d/?api-version=2021-04-12":                                     "h d  2021-04-12 ",
		"h/d/m/?api-version=2020-09-30&DeviceClientType=py%2F2":           "h d m 2020-09-30 py/2",
		"h/d/api-version=2016-11-14&DeviceClientType=x":                   "h d  2016-11-14 x",
		"h/d/?inst=1&api-version=1&DeviceClientType=a/b (x; y)&model-id=": "h d  1 a/b (x; y)",
		"h/d?/?api-version=1":                                             "h d?  1 ",
		"h/d/?api-version=":                                               "",
		"h/d/?x=1":                                                        "",
		"h/d":                                                             "",
		"h/?api-version=1":                                                "",
		"h/d/m/x/?api-version=1":                                          "",
		"api-version=1":                                                   "",
		"":                                                                "",
	} {
		n, ok := parseAzureName(name)
		got := fmt.Sprintf("%s %s %s %s %s", n.host, n.device, n.module, n.apiVersion, n.software)
		if ok != (want != "") || ok && got != want {
			t.Errorf("%q: %v %q, want %q", name, ok, got, want)
		}
	}
}

func TestARefusedAzureClientIsOneLine(t *testing.T) {
	clock := &testClock{now: time.Now()}
	b := start(t, benchOptions{config: MQTTConfig{Azure: azureClients(t, clock)}})
	for range 5 {
		b.dial().hello(azureConnect("press-9", "x"))
	}
	if n := b.logs("client refused"); n != 1 {
		t.Errorf("%d lines", n)
	}
}

// Without azure_clients the dialect is a user name like others; with them ordinary
// clients are as before.
func TestTheDialectIsKnownOnlyWhereItIsConfigured(t *testing.T) {
	b := start(t, benchOptions{})
	c := b.dial()
	if a := c.hello(azureConnect("press-7", "x")); a.Code != 0 {
		t.Errorf("CONNACK %d", a.Code)
	}
	if code := c.subscribe("devices/press-7/messages/devicebound/#", 1); code != packet.SubackFailure {
		t.Errorf("SUBACK %d", code)
	}
	clock := &testClock{now: time.Now()}
	b = start(t, benchOptions{config: MQTTConfig{Azure: azureClients(t, clock)}})
	local := b.connect(packet.V311, "press-7")
	local.send(telemetry(1, "x"))
	local.puback(1)
	azure := azureIn(t, b, "press-7", true)
	local.quiet()
	azure.quiet() // the same client id, and neither has taken the other's place
}

// azureIn is a client of the dialect that is let in.
func azureIn(t *testing.T, b *bench, id string, clean bool) *client {
	t.Helper()
	c := b.dial()
	p := azureConnect(id, token(azureKey, "gateway.site/devices/press-7", time.Now().Add(time.Hour)))
	p.CleanStart = clean
	if a := c.hello(p); a.Code != 0 {
		t.Fatalf("CONNACK %d", a.Code)
	}
	return c
}

func TestTokensEndConnections(t *testing.T) {
	clock := &testClock{now: time.Now()}
	b := start(t, benchOptions{config: MQTTConfig{Azure: azureClients(t, clock)}})
	c := azureIn(t, b, "press-7", true)
	c.quiet()
	clock.set(clock.Now().Add(2 * time.Hour))
	c.closed(0)
	// A clock that is far behind lets more in, until it is right.
	clock.set(time.Unix(0, 0))
	c = azureIn(t, b, "press-7", true)
	clock.set(time.Now().Add(2 * time.Hour))
	c.closed(0)
	clock.set(time.Now())
	c = azureIn(t, b, "press-7", true)
	if err := b.mqtt.azure.Set(nil); err != nil {
		t.Fatal(err)
	}
	c.closed(0)
}

func TestTelemetryOfAnAzureClientKeepsItsProperties(t *testing.T) {
	clock := &testClock{now: time.Now()}
	b := start(t, benchOptions{config: MQTTConfig{Azure: azureClients(t, clock)}})
	c := azureIn(t, b, "press-7/filter", true)
	publish := func(id uint16, bag string) {
		c.send(packet.Publish{Topic: "devices/press-7/modules/filter/messages/events" + bag, ID: id, QoS: 1, Payload: []byte("x"), Retain: id == 4})
		c.puback(id)
	}
	publish(1, "/%24.mid=m-1&%24.ct=text%2Fplain&%24.ce=utf-8&%24.on=out&%24.cid=c&a=1&iothub-creation-time-utc=2026&a=2")
	publish(2, "")
	publish(3, "/")
	publish(4, "/x=%20/")
	want := []queue.Message{
		{ContentType: "text/plain", ContentEncoding: "utf-8", Output: "out", Properties: []queue.Property{
			{Key: "$.mid", Value: "m-1"}, {Key: "$.cid", Value: "c"}, {Key: "a", Value: "2"}, {Key: "iothub-creation-time-utc", Value: "2026"}}},
		{}, {}, {Properties: []queue.Property{{Key: "x", Value: " "}, {Key: "mqtt-retain", Value: "true"}}},
	}
	for i, m := range b.sink.messages() {
		w := want[i]
		w.Source, w.Topic, w.Route, w.Payload = "press-7/filter", "devices/press-7/modules/filter/messages/events", "azure_clients", []byte("x")
		w.Properties = append(w.Properties, queue.Property{Key: "identity", Value: "f"})
		if !reflect.DeepEqual(m, w) {
			t.Errorf("%d:\n got %+v\nwant %+v", i, m, w)
		}
	}
}

// Like the hub, the gateway ends the connection over what it does not take; here it
// says why in the log.
func TestWhatTheHubWouldCloseForIsRefused(t *testing.T) {
	clock := &testClock{now: time.Now()}
	b := start(t, benchOptions{config: MQTTConfig{Azure: azureClients(t, clock), MaxPacket: 1 << 20}, commands: &azureCommands{}})
	many := strings.Repeat("a%d=1&", 300)
	for _, p := range []packet.Publish{
		{Topic: "sensors/a/telemetry"},
		{Topic: "gateway/press-7/twin/reported"},
		{Topic: "devices/press-8/messages/events/"},
		{Topic: "devices/press-7/messages/eventsx"},
		{Topic: "devices/press-7/modules/filter/messages/events/"},
		{Topic: "$iothub/twin/GET/"},
		{Topic: "$iothub/twin/PATCH/properties/desired/?$rid=1"},
		{Topic: "$iothub/methods/res/200/"},
		{Topic: "$iothub/methods/res/x/?$rid=1"},
		{Topic: "devices/press-7/messages/events/%24.cdid=x"},
		{Topic: "devices/press-7/messages/events/%24.new=x"},
		{Topic: "devices/press-7/messages/events/%24.mid=a%20b"},
		{Topic: "devices/press-7/messages/events/iothub-connection-device-id=x"},
		{Topic: "devices/press-7/messages/events/" + many},
		{Topic: "devices/press-7/messages/events/", Payload: make([]byte, 256<<10)},
		{Topic: "devices/press-7/messages/events/a=" + strings.Repeat("!", 30000)},
		{Topic: "devices/press-7/messages/events/", QoS: 2},
	} {
		c := azureIn(t, b, "press-7", true)
		p.ID, p.QoS = 1, max(p.QoS, 1)
		c.send(p)
		c.closed(0)
	}
	if n := len(b.sink.messages()); n != 0 {
		t.Errorf("%d messages stored", n)
	}
	if b.logs("message refused") == 0 {
		t.Error("nobody is told")
	}
}

// azureCommands plays the part that knows methods and twins.
type azureCommands struct {
	mu  sync.Mutex
	got []Command
	err error
}

func (a *azureCommands) Do(_ context.Context, c Command, done func(error)) error {
	a.mu.Lock()
	a.got = append(a.got, c)
	err := a.err
	a.mu.Unlock()
	go func() {
		if err == nil && c.Reply != nil {
			c.Reply(7, []byte(`{"desired":{}}`))
		}
		done(err)
	}()
	return nil
}

func TestTheDialectOfTheHub(t *testing.T) {
	clock := &testClock{now: time.Now()}
	commands := &azureCommands{}
	b := start(t, benchOptions{config: MQTTConfig{Azure: azureClients(t, clock)}, commands: commands})
	c := azureIn(t, b, "press-7", false)
	for filter, want := range map[string]byte{
		"devices/press-7/messages/devicebound/#": 1, "$iothub/methods/POST/#": 1, "$iothub/twin/res/#": 1,
		"$iothub/twin/PATCH/properties/desired/#": 1, "devices/press-8/messages/devicebound/#": 0x80, "gateway/#": 0x80,
		"devices/press-7/modules/filter/inputs/#": 0x80, "#": 0x80, "devices/press-7/#": 0x80,
	} {
		if got := c.subscribe(filter, 1); got != want {
			t.Errorf("%s: %#x, want %#x", filter, got, want)
		}
	}
	rows := b.mqtt.AzureClients()
	if len(rows) != 3 || !rows[0].Connected || rows[1].Connected || rows[0].Software != "sdk/1" || rows[0].Login != "token" ||
		fmt.Sprint(rows[0].Subscribed) != "[c2d desired methods twin]" {
		t.Errorf("status %+v", rows)
	}
	acked := make(chan struct{})
	down := func(m LocalMessage, want int) {
		t.Helper()
		if n, err := b.local.Publish(m); err != nil || n != want {
			t.Errorf("%s: %d takers, %v", m.Topic, n, err)
		}
	}
	other := b.connect(packet.V5, "other")
	other.subscribe("gateway/#", 1)
	down(LocalMessage{Topic: "gateway/press-7/c2d/%24.mid=m&a=b", QoS: 1, Payload: []byte("go"), Acked: func() { close(acked) }}, 2)
	down(LocalMessage{Topic: "gateway/press-7/methods/start/abc", Payload: []byte(`{}`)}, 2)
	down(LocalMessage{Topic: "gateway/press-7/twin/change/9", Payload: []byte(`{"a":1}`), Azure: true}, 1)
	down(LocalMessage{Topic: "gateway/press-7/status", Payload: []byte(`{}`)}, 1)
	down(LocalMessage{Topic: "gateway/press-8/c2d/", Payload: []byte(`{}`), QoS: 1}, 1)
	first := c.receive()
	if first.Topic != "devices/press-7/messages/devicebound/%24.mid=m&a=b" || first.QoS != 1 {
		t.Errorf("%+v", first)
	}
	c.ack(first.ID)
	<-acked
	if p := c.receive(); p.Topic != "$iothub/methods/POST/start/?$rid=abc" || p.QoS != 0 {
		t.Errorf("%+v", p)
	}
	if p := c.receive(); p.Topic != "$iothub/twin/PATCH/properties/desired/?$version=9" || string(p.Payload) != `{"a":1}` {
		t.Errorf("%+v", p)
	}
	c.send(packet.Publish{Topic: "$iothub/methods/res/207/?$rid=abc", Payload: []byte(`1`)})
	c.send(packet.Publish{Topic: "$iothub/twin/GET/?$rid=r%2F1", Payload: []byte(` `)})
	if p := c.receive(); p.Topic != "$iothub/twin/res/200/?$rid=r%2F1&$version=7" || string(p.Payload) != `{"desired":{}}` {
		t.Errorf("%+v", p)
	}
	c.send(packet.Publish{Topic: "$iothub/twin/PATCH/properties/reported/?$rid=2&$version=6", Payload: []byte(`{"x":1}`), QoS: 1, ID: 5})
	for range 2 { // in any order
		f, err := c.read()
		if err != nil {
			t.Fatal(err)
		}
		if f.Type == packet.PUBACK {
			continue
		}
		if p, err := packet.DecodePublish(f, c.v); err != nil || p.Topic != "$iothub/twin/res/204/?$rid=2&$version=7" {
			t.Errorf("%+v %v", p, err)
		}
	}
	commands.mu.Lock()
	commands.err = fmt.Errorf("%w: bad", ErrProperty)
	got := commands.got
	commands.mu.Unlock()
	if len(got) != 3 || got[0].Kind != MethodResponse || got[0].Status != 207 || got[0].RequestID != "abc" || got[1].Kind != TwinGet ||
		got[2].Kind != Reported || got[2].Base != 6 || got[2].Identity != "press-7" {
		t.Errorf("commands %+v", got)
	}
	c.send(packet.Publish{Topic: "$iothub/twin/PATCH/properties/reported/?$rid=3", Payload: []byte(`{"x":1}`)})
	if p := c.receive(); p.Topic != "$iothub/twin/res/400/?$rid=3" || !strings.Contains(string(p.Payload), "bad") {
		t.Errorf("%+v", p)
	}
	// While the client is away only what must not be lost waits for it.
	c.nc.Close()
	eventually(t, "away", func() bool { return b.local.Stats().Away == 1 })
	down(LocalMessage{Topic: "gateway/press-7/methods/start/x", Payload: []byte(`{}`)}, 1)
	down(LocalMessage{Topic: "gateway/press-7/twin/change/10", Payload: []byte(`{"a":2}`), Azure: true}, 1)
	down(LocalMessage{Topic: "gateway/press-7/c2d/", QoS: 1, Payload: []byte("again")}, 2)
	c = azureIn(t, b, "press-7", false)
	if p := c.receive(); p.Topic != "$iothub/twin/PATCH/properties/desired/?$version=10" {
		t.Errorf("%+v", p)
	}
	if p := c.receive(); string(p.Payload) != "again" {
		t.Errorf("%+v", p)
	}
	c.send(packet.Unsubscribe{ID: 3, Filters: []string{"$iothub/methods/POST/#"}})
	c.next(packet.UNSUBACK)
	down(LocalMessage{Topic: "gateway/press-7/methods/start/y"}, 1)
}

func TestAzureKeyFiles(t *testing.T) {
	dir := t.TempDir()
	good := base64.StdEncoding.EncodeToString(azureKey)
	for text, want := range map[string]string{
		good: "", good + "\n": "", "\n " + good + "\r\n\n" + good + "\n": "",
		"": "needs one key", "\n\n": "needs one key", good + "\n" + good + "\n" + good: "needs one key",
		"c2hvcnQ=": "base64 of 16 to 64", "not base64 at all!": "base64 of 16 to 64", good + strings.Repeat("\n", maxKeyFile): "needs one key",
	} {
		name := filepath.Join(dir, "key")
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		a, err := LoadAzureClients([]AzureClient{{Identity: "x", DeviceID: "x", KeyFile: name}}, nil)
		switch {
		case want == "" && (err != nil || a.entry("x") == nil):
			t.Errorf("%q: %v", text, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), "azure_clients.x: key_file: ") || !strings.Contains(err.Error(), want)):
			t.Errorf("%q: %v, want %s", text, err, want)
		}
		if err != nil && text != "" && strings.Contains(err.Error(), strings.TrimSpace(text)) && strings.TrimSpace(text) != "" {
			t.Errorf("the error shows the key: %v", err)
		}
	}
}

// FuzzAzureLogin: no user name and password that nobody made with the key gets in.
func FuzzAzureLogin(f *testing.F) {
	good := token(azureKey, "h/devices/press-7", time.Now().Add(time.Hour))
	f.Add("h/press-7/?api-version=1", good)
	f.Add("h/press-7/filter/api-version=1&DeviceClientType=%zz", strings.Replace(good, "sig=", "sig=%", 1))
	f.Add("///?api-version=", "SharedAccessSignature sr=&sig=&se=")
	clients := azureClients(f, &testClock{now: time.Now()})
	other := token([]byte("another key"), "h/devices/press-7", time.Now().Add(time.Hour))
	f.Add("h/press-7/?api-version=1", other)
	f.Fuzz(func(t *testing.T, name, password string) {
		n, ok := parseAzureName(name)
		if !ok {
			return
		}
		p := packet.Connect{Version: packet.V311, ClientID: n.id, Username: name, Password: []byte(password)}
		if _, err := clients.admit(p, n, nil); err == nil && !strings.Contains(password, "sig=") {
			t.Errorf("%q got in with %q", name, password)
		}
	})
}

// FuzzAzureTopic: what a client may write becomes a message that the queue takes.
func FuzzAzureTopic(f *testing.F) {
	f.Add("/%24.mid=m&a=b", []byte("x"))
	f.Add("/%24.ct=&%24.on=x&=", []byte{})
	e, err := newAzureEntry(AzureClient{Identity: "p", DeviceID: "p"})
	if err != nil {
		f.Fatal(err)
	}
	c := &conn{azure: &azureLogin{azureEntry: e}}
	f.Fuzz(func(t *testing.T, pairs string, payload []byte) {
		topic := e.events + pairs
		if !packet.ValidTopic(topic) {
			return
		}
		a, d, err := c.azureArrival(pairs, packet.Publish{Topic: topic, Payload: payload})
		if err != nil {
			return
		}
		n := len(a.Payload) + len(a.ContentType) + len(a.ContentEncoding) + len(d.Output)
		for i, p := range a.own {
			if n += len(p.Key) + len(p.Value); p.Key == "" || i >= maxAzureProperties {
				t.Errorf("%q gives %q", pairs, a.own)
			}
		}
		if n > maxAzureMessage {
			t.Errorf("%d bytes", n)
		}
	})
}

func TestCertificatesForTheIdentityLetIn(t *testing.T) {
	certificate := func(cn string) *x509.Certificate {
		return &x509.Certificate{Subject: pkix.Name{CommonName: cn}, Raw: []byte(cn)}
	}
	good := certificate("press-7")
	first, second := sha1.Sum(good.Raw), sha256.Sum256(good.Raw)
	for _, tc := range []struct {
		name        string
		cert        *x509.Certificate
		thumbprints []string
		reason      error
	}{
		{"CN is the client id", good, nil, nil},
		{"CN is the identity's name", certificate("press"), nil, nil},
		{"SHA-1", good, []string{hex.EncodeToString(first[:])}, nil},
		{"SHA-256, secondary", good, []string{strings.Repeat("0", 40), strings.ToUpper(hex.EncodeToString(second[:]))}, nil},
		{"other thumbprint", good, []string{strings.Repeat("0", 64)}, errAzureThumbprint},
		{"other CN", certificate("press-8"), nil, errAzureCN},
		{"other case", certificate("Press-7"), nil, errAzureCN},
		{"no CN", certificate(""), nil, errAzureCN},
		{"none", nil, nil, errAzureCredential},
	} {
		a, err := LoadAzureClients([]AzureClient{{Identity: "press", DeviceID: "press-7", Thumbprints: tc.thumbprints}}, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		p := azureConnect("press-7", "")
		n, _ := parseAzureName(p.Username)
		if _, err := a.admit(p, n, tc.cert); !errors.Is(err, tc.reason) {
			t.Errorf("%s: %v, want %v", tc.name, err, tc.reason)
		}
	}
}
