package cloud

import (
	"bytes"
	"strings"
	"testing"
	"unicode/utf8"

	"gatewayd/internal/bag"
	"gatewayd/internal/packet"
)

func TestTopicsOfTheHub(t *testing.T) {
	for _, tc := range []struct {
		topic string
		want  topic
	}{
		{"$iothub/methods/POST/start/?$rid=1", topic{kind: topicMethod, name: "start", rid: "1"}},
		{"$iothub/methods/POST/a%20b/?$rid=x%2Fy", topic{kind: topicMethod, name: "a b", rid: "x%2Fy"}},
		{"$iothub/methods/POST/start/?%24rid=1", topic{kind: topicMethod, name: "start", rid: "1"}},
		{"$iothub/methods/POST/start/", topic{}},
		{"$iothub/methods/POST//?$rid=1", topic{}},
		{"$iothub/twin/res/200/?$rid=g1", topic{kind: topicTwinAnswer, status: 200, rid: "g1"}},
		{"$iothub/twin/res/204/?$rid=g1&$version=7", topic{kind: topicTwinAnswer, status: 204, rid: "g1", version: 7}},
		{"$iothub/twin/res/x/?$rid=g1", topic{}},
		{"$iothub/twin/res/200/", topic{}},
		{"$iothub/twin/PATCH/properties/desired/?$version=12", topic{kind: topicDesired, version: 12}},
		{"$iothub/twin/PATCH/properties/desired/?$version=-1", topic{kind: topicDesired}},
		{"devices/d/messages/devicebound/", topic{kind: topicC2D}},
		{"devices/d/messages/events/", topic{}},
		{"", topic{}},
	} {
		if got := parseTopic(tc.topic); got.kind != tc.want.kind || got.name != tc.want.name || got.rid != tc.want.rid ||
			got.status != tc.want.status || got.version != tc.want.version || len(got.bag) != 0 {
			t.Errorf("%s: %+v", tc.topic, got)
		}
	}
}

func FuzzTopic(f *testing.F) {
	for _, s := range []string{
		"devices/d/messages/devicebound/%24.mid=1&a=b%zz&c&=d&%00=%ff", "$iothub/methods/POST/x/?$rid=1",
		"$iothub/twin/res/204/?$rid=1&$version=2", "$iothub/twin/PATCH/properties/desired/?$version=3",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := parseTopic(s)
		for _, p := range got.bag {
			if strings.ContainsRune(p.Key+p.Value, 0) && utf8.ValidString(s) && !strings.ContainsRune(s, 0) {
				t.Errorf("%q gives %q, which MQTT cannot carry", s, p)
			}
		}
		if !packet.ValidTopic(s) {
			return // the codec lets no other in
		}
		local := string(bag.Append([]byte("gateway/d/c2d/"), got.bag))
		if len(local) <= packet.MaxString && !packet.ValidTopic(local) {
			t.Errorf("%q becomes %q, which is no topic", s, local)
		}
		if again := bag.Parse(string(bag.Append(nil, got.bag))); len(again) > len(got.bag) {
			t.Errorf("%q: %q becomes %q", s, got.bag, again)
		}
	})
}

// Joined or one after the other, patches have the same effect on any document.
func FuzzMergePatch(f *testing.F) {
	f.Add([]byte(`{"a":{"b":1}}`), []byte(`{"a":null}`), []byte(`{"a":{"c":2}}`))
	f.Add([]byte(`{}`), []byte(`{"a":{"x":null,"y":{"z":1}}}`), []byte(`{"a":{"x":{"n":1},"y":{"z":null}}}`))
	f.Add([]byte(`{"a":{"k":1}}`), []byte(`{"a":{}}`), []byte(`{"a":[1]}`))
	f.Fuzz(func(t *testing.T, base, first, second []byte) {
		b, err0 := decodeObject(base)
		p, err1 := decodeObject(first)
		q, err2 := decodeObject(second)
		if err0 != nil || err1 != nil || err2 != nil {
			return
		}
		_ = checkPatch(p) // any object may be looked at
		b = merge(nil, b) // a document has no nulls
		both := encode(merge(merge(b, p), q))
		joined, ok := join(p, q)
		if ok && !bytes.Equal(encode(merge(b, joined)), both) {
			t.Errorf("%s, then %s on %s: joined %s gives %s, want %s", p, q, base, encode(joined), encode(merge(b, joined)), both)
		}
	})
}

func FuzzDesired(f *testing.F) {
	f.Add([]byte(`{"desired":{"a":1,"$version":3},"reported":{"$version":1}}`), []byte(`{"a":null,"$version":4}`))
	f.Add([]byte(`{"desired":[]}`), []byte(`{"$version":1e9}`))
	f.Fuzz(func(t *testing.T, document, change []byte) {
		c := New(Config{StateDir: t.TempDir()})
		id, err := c.Add(Options{Name: "d", Twin: true})
		if err != nil {
			t.Fatal(err)
		}
		l := &fakeLink{done: make(chan struct{})}
		id.twinConnected(l)
		id.twinAnswered(l, topic{rid: id.twin.rid, status: 200}, document)
		before := id.twin.version
		id.desiredChanged(l, topic{}, change)
		if len(id.twin.raw) > 0 {
			if o, err := decodeObject(id.twin.raw); err != nil || versionOf(o) != id.twin.version {
				t.Errorf("retained %s with version %d, %v", id.twin.raw, id.twin.version, err)
			}
		}
		if v := id.twin.version; v != before && v != before+1 {
			t.Errorf("version went from %d to %d", before, v)
		}
		id.stopAlarm()
	})
}
