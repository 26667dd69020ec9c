package main

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/hub/hubtest"
	"gatewayd/internal/hub/hubtest/nodesdk"
)

// azurePlant is a plant whose gateway lets Azure SDK clients in. The gateway's own
// twin report is off, so that the twin is the device's alone.
type azurePlant struct {
	*plant
	listen string
	keys   map[string]string // base64, by identity
}

const gatewayName = "gateway.site.example"

func newAzurePlant(t *testing.T, names ...string) *azurePlant {
	t.Helper()
	s := &azurePlant{plant: newPlant(t, hubtest.Options{}, names...), listen: freeAddress(t), keys: map[string]string{}}
	pair := must(s.ca.Issue(certtest.Leaf{CN: gatewayName, DNS: []string{gatewayName}}))(t)
	check(t, pair.Write(s.path("gateway.pem"), s.path("gateway.key")))
	s.write("devices-ca.pem", string(s.ca.PEM()))
	for _, name := range names {
		s.newKey(name)
	}
	s.configure("")
	return s
}

func (s *azurePlant) newKey(name string) {
	key := make([]byte, 32)
	rand.Read(key)
	s.keys[name] = base64.StdEncoding.EncodeToString(key)
	s.write(name+".azurekey", s.keys[name]+"\n")
}

// configure writes config.yaml with an Azure listener for all identities.
func (s *azurePlant) configure(more string) {
	s.writeConfig(more)
	text := string(must(os.ReadFile(s.path("config.yaml")))(s.t))
	var clients []string
	for _, name := range s.names {
		clients = append(clients, fmt.Sprintf("%q: {key_file: %s.azurekey}", name, name))
	}
	text = strings.ReplaceAll(text, "    certificate: ", "    twin_report: {key: ''}\n    certificate: ")
	s.write("config.yaml", text)
	s.plant.listen(fmt.Sprintf("{listen: %q, tls: {cert: gateway.pem, key: gateway.key, client_ca: devices-ca.pem}, azure_clients: {%s}}",
		"tls://"+s.listen, strings.Join(clients, ", ")))
}

// withKey are the settings of a device that holds the identity's local key.
func (s *azurePlant) withKey(name string) nodesdk.Settings {
	return nodesdk.Settings{
		ConnectionString: fmt.Sprintf("HostName=%s;DeviceId=%s;SharedAccessKey=%s", gatewayName, name, s.keys[name]),
		Dial:             s.listen, CA: string(s.ca.PEM()),
	}
}

// withCertificate are those of a device with a certificate for the gateway.
func (s *azurePlant) withCertificate(name, cn string) nodesdk.Settings {
	pair := must(s.ca.Issue(certtest.Leaf{CN: cn}))(s.t)
	return nodesdk.Settings{
		ConnectionString: fmt.Sprintf("HostName=%s;DeviceId=%s;x509=true", gatewayName, name),
		Dial:             s.listen, CA: string(s.ca.PEM()), Cert: string(pair.CertPEM), Key: string(pair.KeyPEM),
	}
}

// client is what the gateway says of an identity's Azure SDK client.
func (s *azurePlant) client(name string) azureReport {
	r, err := s.status()
	if err != nil {
		return azureReport{}
	}
	for _, c := range r.AzureClients {
		if c.Identity == name {
			return c
		}
	}
	return azureReport{}
}

func (s *azurePlant) place(name string) nodesdk.Place {
	return nodesdk.Place{
		Hub: s.hub, Identity: name, Relayed: true,
		Subscribed: func() []string { return s.client(name).Subscribed },
		Knows: func(version int64) bool {
			_, body := s.ask("GET", "/v1/twin/"+name, "")
			var doc struct {
				Desired struct {
					Version int64 `json:"$version"`
				}
			}
			return json.Unmarshal([]byte(body), &doc) == nil && doc.Desired.Version >= version
		},
	}
}

func (s *azurePlant) online(names ...string) {
	s.t.Helper()
	for _, name := range names {
		eventually(s.t, 20*time.Second, name+" is subscribed at the hub", func() bool {
			return s.hub.Connected(name) && len(s.hub.Subscribed(name)) == 4
		})
	}
}

// The suite that the stand-in hub passes, with the gateway in the hub's place.
func TestAzureSDKWorksAgainstTheGateway(t *testing.T) {
	s := newAzurePlant(t, "press-7", "press-8")
	p := s.run()
	s.online("press-7", "press-8")
	for name, settings := range map[string]nodesdk.Settings{"press-7": s.withKey("press-7"), "press-8": s.withCertificate("press-8", "press-8")} {
		t.Run(name, func(t *testing.T) {
			d := nodesdk.Start(t, settings)
			d.Do("open", nil)
			nodesdk.Everything(t, d, s.place(name))
			if c := s.client(name); !c.Connected || !strings.HasPrefix(c.Software, "azure-iot-device/") || c.APIVersion == "" {
				t.Errorf("status %+v", c)
			}
			d.Do("close", nil)
			eventually(t, 5*time.Second, "the client has left", func() bool { return !s.client(name).Connected })
		})
	}
	if v := s.hub.Violations(); len(v) != 0 {
		t.Errorf("the gateway broke rules of the hub: %+v", v)
	}
	for _, secret := range []string{s.keys["press-7"], "SharedAccessSignature", "sig="} {
		if strings.Contains(p.log.String(), secret) {
			t.Errorf("the log has %q", secret)
		}
	}
}

// delivered waits until the hub has messages with all these bodies, and counts the
// others of the identity.
func (s *azurePlant) delivered(name string, bodies map[string]bool) {
	s.t.Helper()
	missing := func() (left []string) {
		got := map[string]bool{}
		for _, m := range s.hub.MessagesOf(name) {
			got[string(m.Body)] = true
		}
		for b := range bodies {
			if !got[b] {
				left = append(left, b)
			}
		}
		return left
	}
	for end := time.Now().Add(30 * time.Second); len(missing()) > 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatalf("acknowledged and not delivered: %v", missing())
		}
	}
}

// While the uplink is down an SDK client connects, sends, reads its twin and reports;
// what the hub has for it comes when the uplink is back, on the same connection.
func TestAzureSDKWorksWhileTheUplinkIsDown(t *testing.T) {
	t.Parallel()
	s := newAzurePlant(t, "press-7", "press-8")
	must(s.hub.PatchDesired("press-7", `{"interval":10,"old":{"a":1,"b":2}}`))(t)
	p := s.run()
	s.online("press-7")
	eventually(t, 10*time.Second, "the twin is known", func() bool { return s.place("press-7").Knows(2) })
	p.kill()
	s.hub.StopListening()
	p = s.run() // without ever reaching the hub
	settings := s.withKey("press-7")
	settings.Retry = true
	d := nodesdk.Start(t, settings)
	d.Do("open", nil)
	d.Do("c2d", nil)
	d.Do("method", map[string]any{"name": "reboot", "status": 200, "body": map[string]any{"ok": true}})
	d.Do("send", map[string]any{"body": "offline", "id": "m-1"})
	var doc struct{ Desired, Reported map[string]any }
	check(t, json.Unmarshal(d.Do("twin", nil), &doc))
	if doc.Desired["interval"] != 10.0 || doc.Desired["$version"] != 2.0 {
		t.Errorf("twin while offline: %+v", doc)
	}
	d.Do("desired", nil)
	d.Event("desired")
	d.Do("report", map[string]any{"patch": map[string]any{"a": 1, "gone": 1}})
	d.Do("report", map[string]any{"patch": map[string]any{"gone": nil, "b": 2}})
	check(t, json.Unmarshal(d.Do("twin", nil), &doc))
	if doc.Reported["a"] != 1.0 || doc.Reported["b"] != 2.0 {
		t.Errorf("reported while offline: %+v", doc.Reported)
	}
	check(t, s.hub.SendC2D(t.Context(), "press-7", hubtest.C2D{MessageID: "c-1", Body: []byte("later")}))
	must(s.hub.PatchDesired("press-7", `{"interval":20,"old":{"a":null}}`))(t)
	must(s.hub.PatchDesired("press-7", `{"new":true}`))(t)
	check(t, s.hub.Resume())
	s.online("press-7")
	if l := d.Event("c2d"); l.Body != "later" {
		t.Errorf("C2D %+v", l)
	}
	for got := ""; got != `{"$version":4,"interval":20,"new":true,"old":{"a":null}}`; {
		if got = string(d.Event("desired").Delta); strings.Contains(got, `"$version":3`) {
			t.Errorf("desired after the outage: %s", got)
		}
	}
	s.delivered("press-7", map[string]bool{"offline": true})
	eventually(t, 10*time.Second, "reported properties", func() bool {
		return strings.Contains(string(s.hub.Twin("press-7").Reported), `"a":1,"b":2`)
	})
	status, body, err := s.hub.InvokeMethod(t.Context(), "press-7", "reboot", []byte(`{}`), 10*time.Second)
	if err != nil || status != 200 || string(body) != `{"ok":true}` {
		t.Errorf("method after the outage: %d %s %v", status, body, err)
	}
	if n := s.client("press-7"); !n.Connected || !strings.Contains(p.log.String(), "connected to the hub") {
		t.Errorf("the client was cut off: %+v", n)
	}
	s.online("press-8") // for which nobody speaks
	status, body, err = s.hub.InvokeMethod(t.Context(), "press-8", "reboot", nil, 10*time.Second)
	if err != nil || status != 404 || !strings.Contains(string(body), "no local client") {
		t.Errorf("method without a client: %d %s %v", status, body, err)
	}
}

// A device and its module at the same time, each as itself.
func TestAzureSDKDeviceAndModule(t *testing.T) {
	t.Parallel()
	s := newAzurePlant(t, "press-7")
	check(t, s.hub.AddDevice(hubtest.Device{DeviceID: "press-7", ModuleID: "filter"}))
	s.issue("filter", certtest.Leaf{CN: "press-7/filter"})
	s.newKey("filter")
	text := string(must(os.ReadFile(s.path("config.yaml")))(t))
	text = strings.Replace(text, "downstream:", fmt.Sprintf("  - {name: filter, host_name: %s, device_id: press-7, module_id: filter, address: %q, twin_report: {key: ''}, certificate: {cert: filter.pem, key: filter.key}}\ndownstream:", s.hub.HostName(), s.hub.Addr()), 1)
	text = strings.Replace(text, "azure_clients: {", "azure_clients: {filter: {key_file: filter.azurekey}, ", 1)
	s.write("config.yaml", text)
	s.run()
	s.online("press-7")
	eventually(t, 20*time.Second, "the module is subscribed", func() bool { return len(s.hub.Subscribed("press-7/filter")) == 3 })
	device := nodesdk.Start(t, s.withKey("press-7"))
	settings := s.withKey("filter")
	settings.ConnectionString = strings.Replace(settings.ConnectionString, "DeviceId=filter", "DeviceId=press-7;ModuleId=filter", 1)
	module := nodesdk.Start(t, settings)
	device.Do("open", nil)
	module.Do("open", nil)
	place := s.place("filter")
	place.Identity = "press-7/filter"
	nodesdk.Everything(t, module, place)
	nodesdk.Everything(t, device, s.place("press-7"))
	code, text := s.exitCode("status", "-c", "config.yaml")
	if code != 0 || !strings.Contains(text, "AZURE SDK CLIENT") || strings.Count(text, "desired methods twin") != 2 {
		t.Errorf("status: %d\n%s", code, text)
	}
}

func TestAzureSDKIsRefusedByTheGateway(t *testing.T) {
	t.Parallel()
	s := newAzurePlant(t, "press-7")
	p := s.run()
	wrongKey := s.withKey("press-7")
	wrongKey.ConnectionString = strings.Replace(wrongKey.ConnectionString, s.keys["press-7"], "AAAA"+s.keys["press-7"][4:], 1)
	nobody := s.withKey("press-7")
	nobody.ConnectionString = strings.Replace(nobody.ConnectionString, "DeviceId=press-7", "DeviceId=press-9", 1)
	expired := s.withKey("press-7")
	expired.Token = sharedAccessSignature(t, s.keys["press-7"], gatewayName+"/devices/press-7", time.Now().Add(-time.Minute))
	reasons := map[string]nodesdk.Settings{
		"the token is not signed with the identity's key": wrongKey,
		"azure_clients has no such identity":              nobody,
		"the token has expired":                           expired,
		"the certificate's CN is not the identity":        s.withCertificate("press-7", "press-8"),
	}
	for reason, settings := range reasons {
		if l := nodesdk.Start(t, settings).Try("open", nil); l.Error != "UnauthorizedError" {
			t.Errorf("%s: %q %s", reason, l.Error, l.Message)
		}
	}
	// One line a minute for each client id, with the reason of its first refusal. A
	// line may be written after its client was answered.
	refused := func() int { return strings.Count(p.log.String(), "client refused") }
	eventually(t, 10*time.Second, "two refusals are logged", func() bool { return refused() >= 2 })
	var told []string
	for reason := range reasons {
		if strings.Contains(p.log.String(), reason) {
			told = append(told, reason)
		}
	}
	if n := refused(); n != 2 || len(told) != 2 || !slices.Contains(told, "azure_clients has no such identity") {
		t.Errorf("%d lines: %q", n, told)
	}
}

// sharedAccessSignature is a token as devices make it.
func sharedAccessSignature(t *testing.T, key, resource string, expires time.Time) string {
	t.Helper()
	raw := must(base64.StdEncoding.DecodeString(key))(t)
	sr := url.QueryEscape(resource)
	mac := hmac.New(sha256.New, raw)
	fmt.Fprintf(mac, "%s\n%d", sr, expires.Unix())
	return fmt.Sprintf("SharedAccessSignature sr=%s&sig=%s&se=%d", sr, url.QueryEscape(base64.StdEncoding.EncodeToString(mac.Sum(nil))), expires.Unix())
}

// The gateway is killed while the SDK sends: whatever the SDK was told was accepted
// arrives, and so does what came down. The SDK takes a connection refused for a
// refusal and gives up; then the program is started anew, as its supervisor would.
func TestNothingThatTheAzureSDKWasToldIsLostOverKills(t *testing.T) {
	t.Parallel()
	s := newAzurePlant(t, "press-7")
	p := s.run()
	s.online("press-7")
	settings := s.withKey("press-7")
	settings.Retry = true
	const count, messages = 1200, 20
	acked, seen := map[string]bool{}, map[string]bool{}
	var d *nodesdk.Device
	starts := 0
	start := func() {
		if d != nil {
			d.Kill()
		}
		starts++
		d = nodesdk.Start(t, settings)
		d.Do("open", nil)
		d.Do("c2d", nil)
		var ids []string
		for i := range count {
			if id := fmt.Sprint(i); !acked[id] {
				ids = append(ids, id)
			}
		}
		d.Do("flood", map[string]any{"ids": ids})
	}
	start()
	down := 0
	for len(acked) < count || len(seen) < messages {
		switch l := d.Next(); l.Event {
		case "acked":
			acked[l.ID] = true
			if len(acked)%400 == 200 {
				p.kill()
				p = s.run()
			}
		case "c2d":
			seen[l.Body] = true
		case "failed", "disconnect":
			start()
		}
		for down < messages && down <= len(acked)*messages/count {
			err := s.hub.SendC2D(t.Context(), "press-7", hubtest.C2D{MessageID: fmt.Sprint("c-", down), Body: fmt.Append(nil, down)})
			check(t, err)
			down++
		}
	}
	s.delivered("press-7", acked)
	t.Logf("%d starts of the program", starts)
}

// A renewed token is a new connection; a renewed certificate is one on the other side.
// Neither loses a message in either direction.
func TestAzureSDKLosesNothingOverTokensAndRotations(t *testing.T) {
	t.Parallel()
	s := newAzurePlant(t, "press-7")
	s.run()
	s.online("press-7")
	settings := s.withKey("press-7")
	settings.Retry, settings.TokenSeconds = true, 4
	d := nodesdk.Start(t, settings)
	d.Do("open", nil)
	d.Do("c2d", nil)
	d.Do("method", map[string]any{"name": "reboot", "status": 200})
	began, logins := time.Now(), map[time.Time]bool{}
	sent := map[string]bool{}
	down := 0
	for n := 0; time.Since(began) < 9*time.Second; n++ {
		body := fmt.Sprint("b-", n)
		d.Do("send", map[string]any{"body": body})
		sent[body] = true
		if n%10 == 0 {
			check(t, s.hub.SendC2D(t.Context(), "press-7", hubtest.C2D{MessageID: fmt.Sprint("c-", down), Body: fmt.Append(nil, down)}))
			down++
			if c := s.client("press-7"); c.Since != nil {
				logins[c.Since.Truncate(100*time.Millisecond)] = true
			}
		}
		if n == 100 {
			s.issue("press-7", certtest.Leaf{CN: "press-7", NotAfter: time.Now().Add(99 * time.Hour)})
		}
		time.Sleep(10 * time.Millisecond) // the pace of a device
	}
	if len(logins) < 3 {
		t.Errorf("%d logins in 9 s with tokens for 4 s", len(logins))
	}
	for i := range down {
		if l := d.Event("arrived"); l.Body != fmt.Sprint(i) {
			t.Fatalf("C2D %s, want %d", l.Body, i)
		}
	}
	s.delivered("press-7", sent)
	if n := len(s.hub.MessagesOf("press-7")); n != len(sent) {
		t.Errorf("%d messages, %d were sent", n, len(sent))
	}
	eventually(t, 10*time.Second, "all C2D messages are completed", func() bool {
		for _, c := range s.hub.C2DStates("press-7") {
			if c.State != hubtest.C2DCompleted {
				return false
			}
		}
		return true
	})
	eventually(t, 10*time.Second, "rotated", func() bool { r, err := s.status(); return err == nil && r.Identities[0].Rotations > 0 })
	status, _, err := s.hub.InvokeMethod(t.Context(), "press-7", "reboot", []byte(`1`), 10*time.Second)
	if err != nil || status != 200 {
		t.Errorf("method: %d %v", status, err)
	}
}
