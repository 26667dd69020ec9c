package hubtest

import (
	"bytes"
	"crypto/tls"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"gatewayd/internal/packet"
)

// FuzzUsername holds the parser to what it can be sure of: what it accepts can be put together again.
func FuzzUsername(f *testing.F) {
	for _, s := range []string{
		"contoso.azure-devices.net/press-7/?api-version=2021-04-12",
		"h/d/m/?api-version=2021-04-12&DeviceClientType=py-azure-iot-device%2F2.12%20%28x%3By%29",
		"h/d/api-version=2019-10-01", "h/d/?", "h//?api-version=1", "h/d?api-version=1", "", "////", "h/d/?api-version=%zz",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := parseUsername(s)
		if err != nil {
			return
		}
		if u.host == "" || u.device == "" || u.apiVersion == "" {
			t.Errorf("accepted %q as %+v", s, u)
		}
		if !strings.HasPrefix(s, u.host+"/"+u.name()+"/") {
			t.Errorf("%q read as host %q and identity %q", s, u.host, u.name())
		}
	})
}

// FuzzBag checks that a sound bag survives being written and read again, and that size and duplicates add up.
func FuzzBag(f *testing.F) {
	for _, s := range []string{
		"", "a=b", "a=b&c", "a=&b=c", "%24.mid=1&x=%20", "a=%zz", "a=%2", "a=b&a=c", "a=b/c", "?a=b", "=x", "a=b+c", "&&", "%ff=1",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var b bag
		err := b.parse(raw)
		_ = b.checkSystem()
		if err != nil {
			return
		}
		var again []byte
		seen := map[string]string{}
		for i, p := range b.pairs {
			if !utf8.Valid(raw) {
				return // the packet decoder refuses such a topic before the bag is looked at
			}
			if _, dup := seen[string(p.key)]; dup {
				t.Fatalf("%q: %q accepted twice", raw, p.key)
			}
			seen[string(p.key)] = string(p.value)
			if i > 0 {
				again = append(again, '&')
			}
			again = escape(again, string(p.key))
			if !p.null {
				again = escape(append(again, '='), string(p.value))
			}
		}
		var c bag
		if err := c.parse(again); err != nil {
			t.Fatalf("%q written as %q: %v", raw, again, err)
		}
		if len(c.pairs) != len(b.pairs) || c.size() != b.size() {
			t.Fatalf("%q written as %q has other properties", raw, again)
		}
		for _, p := range c.pairs {
			if seen[string(p.key)] != string(p.value) {
				t.Fatalf("%q written as %q changed %q", raw, again, p.key)
			}
		}
	})
}

// FuzzTopics sends arbitrary publishes and subscriptions through a connection's judgement; nothing may panic,
// and what is accepted as telemetry must be this identity's.
func FuzzTopics(f *testing.F) {
	for _, s := range []string{
		"devices/press-7/messages/events/", "devices/press-7/messages/events", "devices/press-7/messages/eventsx",
		"$iothub/twin/GET/?$rid=1", "$iothub/twin/PATCH/properties/reported/?$rid=1&$version=3", "$iothub/methods/res/200/?$rid=1",
		"$iothub/methods/res/", "$iothub/twin/GET/", "$iothub/credentials/POST/issueCertificate/?$rid=1", "devices/press-7/messages/devicebound/#",
	} {
		f.Add(byte(0x32), s, []byte(`{"a":1}`))
	}
	unused := tls.Certificate{Certificate: [][]byte{nil}} // spares every try the making of keys
	f.Fuzz(func(t *testing.T, flags byte, topic string, body []byte) {
		if len(topic) > packet.MaxString {
			return
		}
		h, err := New(Options{Listener: NewPipeListener(), ServerCert: unused})
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		if err := h.AddDevice(Device{DeviceID: "press-7"}); err != nil {
			t.Fatal(err)
		}
		near, far := Pipe()
		defer near.Close()
		c := newConn(h, far, false)
		c.id, c.events = must(h.identity("press-7"))(t), "devices/press-7/messages/events"
		c.user = username{device: "press-7"}
		c.id.conn = c
		raw := append([]byte{byte(len(topic) >> 8), byte(len(topic))}, topic...)
		if flags>>1&3 > 0 {
			raw = append(raw, 0, 1)
		}
		_ = c.handle(packet.Frame{Type: packet.PUBLISH, Flags: flags & 15, Body: append(raw, body...)})
		_, _ = c.filterOf(topic)
		_, _, _ = requestID(topic)
		for _, m := range h.Messages() {
			if !strings.HasPrefix(m.Topic, c.events) || m.Topic != topic || !bytes.Equal(m.Body, body) {
				t.Fatalf("%q became %+v", topic, m)
			}
		}
	})
}

// FuzzTwinPatch checks that an accepted patch leaves a document within the limits.
func FuzzTwinPatch(f *testing.F) {
	for _, s := range []string{`{}`, `{"a":{"b":null}}`, `{"a":[1,{"b":2}]}`, `null`, `{"a":1e400}`, `{"$v":1}`, nested(12)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		tw := newTwin()
		for range 2 {
			a := tw.patchReported(body, "", Options{}.withDefaults())
			if a.status == 204 && (checkPatch(tw.reported) != nil || len(encode(tw.reported)) > maxSection) {
				t.Fatalf("%q left %s", body, encode(tw.reported))
			}
		}
	})
}

// FuzzToken checks that no arbitrary password passes as a signature.
func FuzzToken(f *testing.F) {
	f.Add("SharedAccessSignature sr=h%2Fdevices%2Fd&sig=AAAA&se=1700000000")
	f.Add("SharedAccessSignature sig=%3D&&se=&sr=%")
	f.Fuzz(func(t *testing.T, s string) {
		key := []byte("a key that nobody guesses")
		if _, err := checkToken(s, key, "h", username{device: "d"}, time.Unix(1.6e9, 0)); err == nil {
			t.Fatalf("accepted %q", s)
		}
	})
}
