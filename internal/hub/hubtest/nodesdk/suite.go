package nodesdk

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"gatewayd/internal/hub/hubtest"
)

// Place is where a device is: connected to a hub, or to something that claims to be one before it. The
// functions have defaults for a hub.
type Place struct {
	Hub      *hubtest.Hub
	Identity string // device or device/module
	// Relayed says that there is something between, which may answer before the hub has seen anything, and may
	// give messages an id and a time of its own where the device gives none.
	Relayed    bool
	Subscribed func() []string          // what the device listens to: c2d, methods, desired
	Knows      func(desired int64) bool // whether this version of the desired properties has come so far
}

func (p Place) wait(t TB, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("never: %s", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// subscribed waits for a subscription that the SDK makes without telling when it is done.
func (p Place) subscribed(t TB, what string) {
	t.Helper()
	list := p.Subscribed
	if list == nil {
		list = func() []string { return p.Hub.Subscribed(p.Identity) }
	}
	p.wait(t, "subscription to "+what, func() bool { return slices.Contains(list(), what) })
}

func (p Place) knows(t TB, version int64) {
	t.Helper()
	if p.Knows != nil {
		p.wait(t, "the desired properties arrive", func() bool { return p.Knows(version) })
	}
}

// Everything takes an open SDK client through all that an identity does: telemetry, C2D messages (devices
// only), direct methods and the twin. It wants an identity that has not done anything yet.
func Everything(t TB, d *Device, p Place) {
	t.Helper()
	Telemetry(t, d, p)
	if !strings.Contains(p.Identity, "/") {
		CloudToDevice(t, d, p)
	}
	DirectMethod(t, d, p)
	Twin(t, d, p)
}

// Telemetry wants properties and bodies to arrive as they were.
func Telemetry(t TB, d *Device, p Place) {
	t.Helper()
	before := len(p.Hub.MessagesOf(p.Identity))
	d.Do("send", map[string]any{
		"body": `{"temperature":21.5}`, "id": "m-1", "contentType": "application/json", "contentEncoding": "utf-8",
		"properties": map[string]string{"sensor": "s/1 & more", "über": "ä+%"},
	})
	d.Do("send", map[string]any{"body": "bare"})
	if p.Relayed {
		p.wait(t, "two messages at the hub", func() bool { return len(p.Hub.MessagesOf(p.Identity)) >= before+2 })
	}
	m := p.Hub.MessagesOf(p.Identity)[before:]
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
	for i, most := range []int{len(want), 0} {
		got := m[i].Properties
		if p.Relayed {
			delete(got, "$.ctime")
			if i == 1 {
				delete(got, "$.mid")
			}
		}
		if len(got) != most {
			t.Errorf("message %d has properties %v", i, got)
		}
	}
	if string(m[0].Body) != `{"temperature":21.5}` || string(m[1].Body) != "bare" {
		t.Errorf("messages %+v", m)
	}
}

// CloudToDevice wants a message with its properties, and its acknowledgement to reach the hub.
func CloudToDevice(t TB, d *Device, p Place) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	d.Do("c2d", nil)
	before := len(p.Hub.C2DStates(p.Identity))
	msg := hubtest.C2D{MessageID: "c-1", Body: []byte("open the valve"), Properties: map[string]string{"who": "a b/c&d=ü"}}
	if err := p.Hub.SendC2D(ctx, p.Identity, msg); err != nil {
		t.Fatalf("send: %v", err)
	}
	l := d.Event("c2d")
	if l.ID != "c-1" || l.Body != "open the valve" || l.Properties["who"] != "a b/c&d=ü" {
		t.Errorf("the SDK got %+v", l)
	}
	p.wait(t, "the message is completed", func() bool {
		s := p.Hub.C2DStates(p.Identity)
		return len(s) > before && s[before].State == hubtest.C2DCompleted
	})
}

// DirectMethod wants a call answered with the SDK's status and body.
func DirectMethod(t TB, d *Device, p Place) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	d.Do("method", map[string]any{"name": "reboot", "status": 207, "body": map[string]any{"ok": true}})
	p.subscribed(t, "methods")
	status, body, err := p.Hub.InvokeMethod(ctx, p.Identity, "reboot", []byte(`{"delay":5}`), 10*time.Second)
	if err != nil || status != 207 || string(body) != `{"ok":true}` {
		t.Errorf("answer %d %s %v", status, body, err)
	}
	if l := d.Event("method"); l.Name != "reboot" || string(l.Payload) != `{"delay":5}` {
		t.Errorf("the SDK got %+v", l)
	}
}

// Twin wants the document, changes in both directions, and a refusal.
func Twin(t TB, d *Device, p Place) {
	t.Helper()
	if _, err := p.Hub.PatchDesired(p.Identity, `{"interval":10,"gone":1}`); err != nil {
		t.Fatalf("patch: %v", err)
	}
	p.knows(t, 2)
	var doc struct{ Desired, Reported map[string]any }
	if err := json.Unmarshal(d.Do("twin", nil), &doc); err != nil {
		t.Fatalf("twin: %v", err)
	}
	if doc.Desired["interval"] != 10.0 || doc.Desired["$version"] != 2.0 || doc.Reported["$version"] != 1.0 {
		t.Errorf("get: %+v", doc)
	}
	d.Do("report", map[string]any{"patch": map[string]any{"firmware": "1.2", "nested": map[string]any{"a": 1}}})
	d.Do("report", map[string]any{"patch": map[string]any{"nested": map[string]any{"b": 2}}})
	reported := func() string { return string(p.Hub.Twin(p.Identity).Reported) }
	want := `{"$version":3,"firmware":"1.2","nested":{"a":1,"b":2}}`
	if p.Relayed {
		p.wait(t, "reported properties at the hub", func() bool { return reported() == want })
	}
	if got := reported(); got != want {
		t.Errorf("reported %s", got)
	}
	d.Do("desired", nil)
	d.Event("desired") // the SDK shows a new listener what it knows
	p.subscribed(t, "desired")
	if _, err := p.Hub.PatchDesired(p.Identity, `{"interval":20,"gone":null}`); err != nil {
		t.Fatalf("patch: %v", err)
	}
	if got := string(d.Event("desired").Delta); got != `{"$version":3,"gone":null,"interval":20}` {
		t.Errorf("change %s", got)
	}
	if l := d.Try("report", map[string]any{"patch": map[string]any{"a.b": 1}}); l.Error == "" {
		t.Errorf("a forbidden key was accepted")
	}
}
