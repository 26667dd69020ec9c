package nodesdk_test

import (
	"context"
	"encoding/json"
	"slices"
	"testing"
	"time"

	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/hub/hubtest"
	"gatewayd/internal/hub/hubtest/nodesdk"
)

const device = "press-7"

// bench is a hub with one device that a CA vouches for.
func bench(t *testing.T, opt hubtest.Options) (*hubtest.Hub, *certtest.CA) {
	t.Helper()
	ca, err := certtest.NewCA("fleet")
	if err != nil {
		t.Fatal(err)
	}
	opt.ClientCAs = append(opt.ClientCAs, ca.Cert)
	h := hubtest.Start(t, opt)
	if err := h.AddDevice(hubtest.Device{DeviceID: device}); err != nil {
		t.Fatal(err)
	}
	return h, ca
}

func settings(t *testing.T, h *hubtest.Hub, ca *certtest.CA, cn string) nodesdk.Settings {
	t.Helper()
	pair, err := ca.Issue(certtest.Leaf{CN: cn})
	if err != nil {
		t.Fatal(err)
	}
	return nodesdk.Settings{
		ConnectionString: "HostName=" + h.HostName() + ";DeviceId=" + device + ";x509=true",
		Dial:             h.Addr(), CA: string(h.ServerCAPEM()), Cert: string(pair.CertPEM), Key: string(pair.KeyPEM),
	}
}

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// TestAzureSDKWorksAgainstTheStandIn takes one SDK client through everything that a device does.
func TestAzureSDKWorksAgainstTheStandIn(t *testing.T) {
	h, ca := bench(t, hubtest.Options{})
	d := nodesdk.Start(t, settings(t, h, ca, device))
	d.Do("open", nil)
	if !h.Connected(device) {
		t.Fatal("the SDK says open, the hub has no connection")
	}
	telemetry(t, h, d)
	cloudToDevice(t, h, d)
	directMethod(t, h, d)
	twin(t, h, d)
	d.Do("close", nil)
	ctx := deadline(t)
	if err := h.Wait(ctx, func() bool { return !h.Connected(device) }); err != nil {
		t.Fatalf("after close: %v", err)
	}
	if v := h.Violations(); len(v) != 0 {
		t.Errorf("the SDK broke rules %+v: the stand-in is stricter than the hub can be", v)
	}
	c := h.Connections()[0]
	if c.APIVersion != "2021-04-12" || c.CommonName != device || c.CloseReason != "client disconnected" {
		t.Errorf("connection %+v", c)
	}
}

func telemetry(t *testing.T, h *hubtest.Hub, d *nodesdk.Device) {
	d.Do("send", map[string]any{
		"body": `{"temperature":21.5}`, "id": "m-1", "contentType": "application/json", "contentEncoding": "utf-8",
		"properties": map[string]string{"sensor": "s/1 & more", "über": "ä+%"},
	})
	d.Do("send", map[string]any{"body": "bare"})
	m := h.MessagesOf(device)
	if len(m) != 2 {
		t.Fatalf("%d messages, want 2", len(m))
	}
	want := map[string]string{
		"$.mid": "m-1", "$.ct": "application/json", "$.ce": "utf-8", "sensor": "s/1 & more", "über": "ä+%",
	}
	for k, v := range want {
		if got := m[0].Properties[k]; got != v {
			t.Errorf("property %q is %q, want %q", k, got, v)
		}
	}
	if string(m[0].Body) != `{"temperature":21.5}` || string(m[1].Body) != "bare" || len(m[0].Properties) != len(want) {
		t.Errorf("messages %+v", m)
	}
}

func cloudToDevice(t *testing.T, h *hubtest.Hub, d *nodesdk.Device) {
	ctx := deadline(t)
	d.Do("c2d", nil)
	msg := hubtest.C2D{MessageID: "c-1", Body: []byte("open the valve"), Properties: map[string]string{"who": "a b/c&d=ü"}}
	if err := h.SendC2D(ctx, device, msg); err != nil {
		t.Fatal(err)
	}
	l := d.Event("c2d")
	if l.ID != "c-1" || l.Body != "open the valve" || l.Properties["who"] != "a b/c&d=ü" {
		t.Errorf("the SDK got %+v", l)
	}
	done := func() bool { s := h.C2DStates(device); return len(s) == 1 && s[0].State == hubtest.C2DCompleted }
	if err := h.Wait(ctx, done); err != nil {
		t.Errorf("not completed: %+v", h.C2DStates(device))
	}
}

// subscribed waits for a subscription that the SDK makes without telling when it is done.
func subscribed(t *testing.T, h *hubtest.Hub, what string) {
	t.Helper()
	has := func() bool { return slices.Contains(h.Subscribed(device), what) }
	if err := h.Wait(deadline(t), has); err != nil {
		t.Fatalf("waiting for the subscription to %s: %v", what, err)
	}
}

func directMethod(t *testing.T, h *hubtest.Hub, d *nodesdk.Device) {
	ctx := deadline(t)
	d.Do("method", map[string]any{"name": "reboot", "status": 207, "body": map[string]any{"ok": true}})
	subscribed(t, h, "methods")
	status, body, err := h.InvokeMethod(ctx, device, "reboot", []byte(`{"delay":5}`), 10*time.Second)
	if err != nil || status != 207 || string(body) != `{"ok":true}` {
		t.Errorf("answer %d %s %v", status, body, err)
	}
	if l := d.Event("method"); l.Name != "reboot" || string(l.Payload) != `{"delay":5}` {
		t.Errorf("the SDK got %+v", l)
	}
}

func twin(t *testing.T, h *hubtest.Hub, d *nodesdk.Device) {
	if _, err := h.PatchDesired(device, `{"interval":10,"gone":1}`); err != nil {
		t.Fatal(err)
	}
	var doc struct{ Desired, Reported map[string]any }
	if err := json.Unmarshal(d.Do("twin", nil), &doc); err != nil {
		t.Fatal(err)
	}
	if doc.Desired["interval"] != 10.0 || doc.Desired["$version"] != 2.0 {
		t.Errorf("get: %+v", doc)
	}
	d.Do("report", map[string]any{"patch": map[string]any{"firmware": "1.2", "nested": map[string]any{"a": 1}}})
	d.Do("report", map[string]any{"patch": map[string]any{"nested": map[string]any{"b": 2}}})
	if got := string(h.Twin(device).Reported); got != `{"$version":3,"firmware":"1.2","nested":{"a":1,"b":2}}` {
		t.Errorf("reported %s", got)
	}
	d.Do("desired", nil)
	d.Event("desired") // the SDK shows a new listener what it knows
	subscribed(t, h, "desired")
	if _, err := h.PatchDesired(device, `{"interval":20,"gone":null}`); err != nil {
		t.Fatal(err)
	}
	if got := string(d.Event("desired").Delta); got != `{"$version":3,"gone":null,"interval":20}` {
		t.Errorf("change %s", got)
	}
	if l := d.Try("report", map[string]any{"patch": map[string]any{"a.b": 1}}); l.Error == "" {
		t.Error("a forbidden key was accepted")
	}
}

// TestAzureSDKIsRefusedWithAWrongCertificate shows that the SDK understands every way to refuse.
func TestAzureSDKIsRefusedWithAWrongCertificate(t *testing.T) {
	for _, tt := range []struct {
		name    string
		cn      string
		foreign bool
		failure hubtest.Refusal
		error   string // the SDK's class; "" is any
	}{
		{"another device's", "press-8", false, hubtest.ConnackFive, "UnauthorizedError"},
		{"unknown CA, CONNACK 5", device, true, hubtest.ConnackFive, "UnauthorizedError"},
		{"unknown CA, TLS alert", device, true, hubtest.TLSAlert, ""},
		{"unknown CA, silent close", device, true, hubtest.CloseSilently, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, ca := bench(t, hubtest.Options{CertFailure: tt.failure})
			if tt.foreign {
				var err error
				if ca, err = certtest.NewCA("stranger"); err != nil {
					t.Fatal(err)
				}
			}
			d := nodesdk.Start(t, settings(t, h, ca, tt.cn))
			l := d.Try("open", nil)
			if l.Error == "" || tt.error != "" && l.Error != tt.error {
				t.Errorf("open: %q (%s), want %q", l.Error, l.Message, tt.error)
			}
			if h.Counters(device).Connects != 0 {
				t.Error("the hub accepted the connection")
			}
		})
	}
}

// TestAzureSDKComesBackAfterACut shows that the SDK's own reconnect works against the stand-in.
func TestAzureSDKComesBackAfterACut(t *testing.T) {
	h, ca := bench(t, hubtest.Options{})
	s := settings(t, h, ca, device)
	s.Retry = true
	d := nodesdk.Start(t, s)
	d.Do("open", nil)
	d.Do("c2d", nil)
	d.Do("send", map[string]any{"body": "one"})
	h.DropConnections(device)
	if err := h.WaitConnected(deadline(t), device); err != nil {
		t.Fatalf("waiting for the SDK to come back: %v", err)
	}
	d.Do("send", map[string]any{"body": "two"})
	if err := h.SendC2D(t.Context(), device, hubtest.C2D{Body: []byte("still here")}); err != nil {
		t.Fatal(err)
	}
	if l := d.Event("c2d"); l.Body != "still here" {
		t.Errorf("the SDK got %+v", l)
	}
}
