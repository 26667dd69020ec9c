package hub

import (
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"gatewayd/internal/bag"
	"gatewayd/internal/packet"
	"gatewayd/internal/queue"
)

func TestPropertyBag(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	tests := []struct {
		name string
		m    queue.Message
		want string
	}{
		{"nothing", queue.Message{}, "e/"},
		{"id", queue.Message{ID: "a-1"}, "e/%24.mid=a-1"},
		{"system before user", queue.Message{ID: "a", ContentType: "application/json", ContentEncoding: "utf-8", Output: "o", Accepted: at, AcceptedTrusted: true,
			Properties: []queue.Property{{Key: "z", Value: "1"}, {Key: "a", Value: "2"}}},
			"e/%24.mid=a&%24.ctime=2026-01-02T03%3A04%3A05.000Z&%24.ct=application%2Fjson&%24.ce=utf-8&%24.on=o&z=1&a=2"},
		{"what must be escaped", queue.Message{Properties: []queue.Property{{Key: "a b", Value: "x/y+z&k=v%#$?~é"}}},
			"e/a%20b=x%2Fy%2Bz%26k%3Dv%25%23%24%3F~%C3%A9"},
		{"what a device says of its own message", queue.Message{ID: "a", Accepted: at, AcceptedTrusted: true, ContentType: "t",
			Properties: []queue.Property{{Key: "z", Value: "1"}, {Key: "$.mid", Value: "m 1"}, {Key: "$.cid", Value: "c"}, {Key: "$.ctime", Value: "2020"}}},
			"e/%24.mid=m%201&%24.ct=t&%24.cid=c&%24.ctime=2020&z=1"},
		{"empty value", queue.Message{Properties: []queue.Property{{Key: "k", Value: ""}}}, "e/k="},
		{"plausible time of an untrusted clock", queue.Message{Accepted: at}, "e/%24.ctime=2026-01-02T03%3A04%3A05.000Z"},
		{"1970", queue.Message{Accepted: time.Unix(77, 0)}, "e/"},
	}
	for _, tt := range tests {
		if got := string(appendTopic(nil, "e/", &tt.m)); got != tt.want {
			t.Errorf("%s:\n got %s\nwant %s", tt.name, got, tt.want)
		}
	}
}

func TestSizeLimitCountsWhatTheHubCounts(t *testing.T) {
	m := queue.Message{ID: "abc", Properties: []queue.Property{{Key: "kk", Value: "vv"}}}
	fixed := len(m.ID) + timeLength + 4
	m.Payload = make([]byte, maxMessage-fixed)
	if reason := undeliverable(&m, 100, false); reason != "" {
		t.Error(reason)
	}
	if undeliverable(&m, 100, true) == "" {
		t.Error("IoT Edge counts the whole packet, which is larger")
	}
	m.Payload = append(m.Payload, 0)
	if undeliverable(&m, 100, false) == "" {
		t.Error("one byte too many was let through")
	}
}

// FuzzPropertyBag: what undeliverable lets through makes a topic that MQTT takes and
// that decodes to the same properties.
func FuzzPropertyBag(f *testing.F) {
	f.Add("key", "value", "application/json")
	f.Add("a b+c", "100% /?#$&=", "")
	f.Add("é", "\x00", "x")
	f.Fuzz(func(t *testing.T, key, value, contentType string) {
		m := queue.Message{ID: "id-1", ContentType: contentType, Properties: []queue.Property{{Key: key, Value: value}}}
		topic := string(appendTopic(nil, "devices/d/messages/events/", &m))
		if undeliverable(&m, len(topic), false) != "" {
			return
		}
		if !packet.ValidTopic(topic) || !utf8.ValidString(topic) {
			t.Fatalf("topic %q", topic)
		}
		got := map[string]string{}
		for _, kv := range strings.Split(strings.TrimPrefix(topic, "devices/d/messages/events/"), "&") {
			k, v, ok := strings.Cut(kv, "=")
			dk, err1 := url.PathUnescape(k) // where a plus is a plus
			dv, err2 := url.PathUnescape(v)
			if !ok || err1 != nil || err2 != nil {
				t.Fatalf("bag element %q", kv)
			}
			if k != bag.Escape(dk) || v != bag.Escape(dv) {
				t.Fatalf("not the canonical encoding: %q", kv)
			}
			got[dk] = dv
		}
		if got[key] != value || got["$.mid"] != "id-1" || got["$.ct"] != contentType {
			t.Fatalf("%q decodes to %v", topic, got)
		}
	})
}

func TestIdentityNames(t *testing.T) {
	tests := []struct {
		id                       Identity
		client, topic, dial, sni string
		user                     string
		bad                      bool
	}{
		{id: Identity{HostName: "h.x", DeviceID: "d"}, client: "d", topic: "devices/d/messages/events/", dial: "h.x:8883", sni: "h.x", user: "h.x/d/?api-version=2021-04-12"},
		{id: Identity{HostName: "h.x", DeviceID: "d", ModuleID: "m"}, client: "d/m", topic: "devices/d/modules/m/messages/events/", dial: "h.x:8883", sni: "h.x", user: "h.x/d/m/?api-version=2021-04-12"},
		{id: Identity{HostName: "h.x", DeviceID: "d", Address: "10.0.0.1:443"}, client: "d", topic: "devices/d/messages/events/", dial: "10.0.0.1:443", sni: "h.x", user: "h.x/d/?api-version=2021-04-12"},
		{id: Identity{HostName: "h.x", DeviceID: "d", Address: "fd00::1"}, client: "d", topic: "devices/d/messages/events/", dial: "[fd00::1]:8883", sni: "h.x", user: "h.x/d/?api-version=2021-04-12"},
		{id: Identity{HostName: "h.x", DeviceID: "d", GatewayHostName: "edge"}, client: "d", topic: "devices/d/messages/events/", dial: "edge:8883", sni: "edge", user: "h.x/d/?api-version=2021-04-12"},
		{id: Identity{HostName: "h.x"}, bad: true},
		{id: Identity{DeviceID: "d"}, bad: true},
		{id: Identity{HostName: "h.x", DeviceID: "d+"}, bad: true},
		{id: Identity{HostName: "h.x", DeviceID: "d", ModuleID: "a/b"}, bad: true},
	}
	for _, tt := range tests {
		if err := tt.id.Validate(); (err != nil) != tt.bad {
			t.Errorf("%+v: %v", tt.id, err)
		}
		if tt.bad {
			continue
		}
		if tt.id.ClientID() != tt.client || tt.id.eventsTopic() != tt.topic || (&Config{Identity: tt.id}).addressOver(OverTLS) != tt.dial || tt.id.serverName() != tt.sni || tt.id.UserName("") != tt.user {
			t.Errorf("%+v: %s %s %s %s %s", tt.id, tt.id.ClientID(), tt.id.eventsTopic(), (&Config{Identity: tt.id}).addressOver(OverTLS), tt.id.serverName(), tt.id.UserName(""))
		}
	}
}
