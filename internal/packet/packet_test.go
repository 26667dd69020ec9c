package packet

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
)

func decode(f Frame, v Version) (Packet, error) {
	switch f.Type {
	case CONNECT:
		return DecodeConnect(f)
	case CONNACK:
		return DecodeConnack(f, v)
	case PUBLISH:
		return DecodePublish(f, v)
	case PUBACK, PUBREC, PUBREL, PUBCOMP:
		return DecodeAck(f, v)
	case SUBSCRIBE:
		return DecodeSubscribe(f, v)
	case SUBACK, UNSUBACK:
		return DecodeSuback(f, v)
	case UNSUBSCRIBE:
		return DecodeUnsubscribe(f, v)
	case DISCONNECT:
		return DecodeDisconnect(f, v)
	case AUTH:
		return DecodeAuth(f, v)
	}
	return nil, DecodePing(f)
}

func samples(v Version) []Packet {
	var pub, will, con *Properties
	if v == V5 {
		pub = &Properties{ContentType: "application/json", MessageExpiry: 7, TopicAlias: 3, CorrelationData: []byte{0, 1},
			ResponseTopic: "r/t", User: []UserProperty{{"a", "1"}, {"a", "2"}}}
		will = &Properties{WillDelay: 9}
		con = &Properties{SessionExpiry: 60, ReceiveMaximum: 20, MaximumPacketSize: 1 << 20}
	}
	return []Packet{
		Connect{Version: v, CleanStart: true, KeepAlive: 60, ClientID: "c"},
		Connect{Version: v, ClientID: "", HasUsername: true, Username: "ü", HasPassword: true, Password: []byte{0, 255}, Properties: con,
			Will: &Will{Topic: "w", Payload: []byte("gone"), QoS: 1, Retain: true, Properties: will}},
		Connack{SessionPresent: true, Code: 0},
		Publish{Topic: "a/b", Payload: []byte("x")},
		Publish{Topic: "a/b", QoS: 1, ID: 65535, Dup: true, Retain: true, Payload: bytes.Repeat([]byte("y"), 20000), Properties: pub},
		Ack{Type: PUBACK, ID: 1}, Ack{Type: PUBREC, ID: 2}, Ack{Type: PUBREL, ID: 3}, Ack{Type: PUBCOMP, ID: 4},
		Subscribe{ID: 9, Subscriptions: []Subscription{{Filter: "a/#", QoS: 1}, {Filter: "+", QoS: 0}}},
		Suback{Type: SUBACK, ID: 9, Codes: []byte{1, 0x80}},
		Unsubscribe{ID: 10, Filters: []string{"a/#", "+"}},
		Disconnect{},
	}
}

func TestEveryPacketComesBackAsItWas(t *testing.T) {
	for _, v := range []Version{V311, V5} {
		all := samples(v)
		if v == V5 {
			all = append(all, Ack{Type: PUBACK, ID: 5, Code: QuotaExceeded, Properties: &Properties{ReasonString: "full"}},
				Disconnect{Code: ServerShuttingDown}, Suback{Type: UNSUBACK, ID: 10, Codes: []byte{0, 0x11}},
				Auth{Code: ContinueAuth, Properties: &Properties{AuthMethod: "m", AuthData: []byte{1}}},
				Subscribe{ID: 1, Properties: &Properties{SubscriptionIDs: []uint32{268435455}}, Subscriptions: []Subscription{{Filter: "x", NoLocal: true, RetainAsPublished: true, RetainHandling: 2}}})
		} else {
			all = append(all, Suback{Type: UNSUBACK, ID: 10})
		}
		for _, want := range all {
			b, err := want.Append([]byte("before"), v)
			if err != nil {
				t.Fatalf("v%d %+v: %v", v, want, err)
			}
			f, err := NewReader(bytes.NewReader(b[6:]), 0).Next()
			if err != nil {
				t.Fatalf("v%d %+v: %v", v, want, err)
			}
			got, err := decode(f, v)
			if err != nil {
				t.Fatalf("v%d %+v: %v", v, want, err)
			}
			again, err := got.Append(nil, v)
			if err != nil || !bytes.Equal(again, b[6:]) {
				t.Errorf("v%d: %+v came back as %+v", v, want, got)
			}
			if v == V311 && !reflect.DeepEqual(got, want) {
				t.Errorf("v%d: got %+v, want %+v", v, got, want)
			}
		}
	}
}

func TestIllFormedPacketsAreRefused(t *testing.T) {
	tests := []struct {
		name string
		v    Version
		f    Frame
		code byte
	}{
		{"publish with QoS 3", V311, Frame{PUBLISH, 6, []byte{0, 1, 'a', 0, 1}}, MalformedPacket},
		{"publish with packet id 0", V311, Frame{PUBLISH, 2, []byte{0, 1, 'a', 0, 0}}, ProtocolError},
		{"publish to a wildcard", V311, Frame{PUBLISH, 0, []byte{0, 1, '#'}}, TopicNameInvalid},
		{"publish without a topic", V311, Frame{PUBLISH, 0, []byte{0, 0}}, ProtocolError},
		{"publish without a topic or alias", V5, Frame{PUBLISH, 0, []byte{0, 0, 0}}, ProtocolError},
		{"topic alias 0", V5, Frame{PUBLISH, 0, []byte{0, 1, 'a', 3, 35, 0, 0}}, TopicAliasInvalid},
		{"bad UTF-8", V311, Frame{PUBLISH, 0, []byte{0, 1, 0xFF}}, MalformedPacket},
		{"NUL in a topic", V311, Frame{PUBLISH, 0, []byte{0, 1, 0}}, MalformedPacket},
		{"surrogate in a topic", V311, Frame{PUBLISH, 0, []byte{0, 3, 0xED, 0xA0, 0x80}}, MalformedPacket},
		{"topic longer than the packet", V311, Frame{PUBLISH, 0, []byte{0, 9, 'a'}}, MalformedPacket},
		{"property that does not belong", V5, Frame{PUBLISH, 0, []byte{0, 1, 'a', 2, 36, 1}}, ProtocolError},
		{"property given twice", V5, Frame{PUBLISH, 0, []byte{0, 1, 'a', 4, 1, 1, 1, 1}}, ProtocolError},
		{"unknown property", V5, Frame{PUBLISH, 0, []byte{0, 1, 'a', 2, 99, 1}}, MalformedPacket},
		{"property block longer than the packet", V5, Frame{PUBLISH, 0, []byte{0, 1, 'a', 9, 1, 1}}, MalformedPacket},
		{"length not in its shortest form", V5, Frame{PUBLISH, 0, []byte{0, 1, 'a', 0x80, 0}}, MalformedPacket},
		{"subscribe without options", V5, Frame{SUBSCRIBE, 2, []byte{0, 1, 0, 0, 1, 'a'}}, MalformedPacket},
		{"subscribe with wrong flags", V5, Frame{SUBSCRIBE, 0, []byte{0, 1, 0, 0, 1, 'a', 0}}, MalformedPacket},
		{"subscribe with nothing", V311, Frame{SUBSCRIBE, 2, []byte{0, 1}}, ProtocolError},
		{"subscribe with QoS 3", V311, Frame{SUBSCRIBE, 2, []byte{0, 1, 0, 1, 'a', 3}}, MalformedPacket},
		{"ack with packet id 0", V311, Frame{PUBACK, 0, []byte{0, 0}}, ProtocolError},
		{"ack with more bytes", V311, Frame{PUBACK, 0, []byte{0, 1, 0}}, MalformedPacket},
		{"ping with a body", V311, Frame{PINGREQ, 0, []byte{1}}, MalformedPacket},
		{"connect with the reserved flag", V311, Frame{CONNECT, 0, []byte{0, 4, 'M', 'Q', 'T', 'T', 4, 1, 0, 0, 0, 0}}, MalformedPacket},
		{"connect with a password alone", V311, Frame{CONNECT, 0, []byte{0, 4, 'M', 'Q', 'T', 'T', 4, 0x40, 0, 0, 0, 0, 0, 0}}, MalformedPacket},
		{"connect with trailing bytes", V311, Frame{CONNECT, 0, []byte{0, 4, 'M', 'Q', 'T', 'T', 4, 0, 0, 0, 0, 0, 9}}, MalformedPacket},
		{"auth in 3.1.1", V311, Frame{AUTH, 0, nil}, MalformedPacket},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := decode(tt.f, tt.v)
			var e *Error
			if !errors.As(err, &e) || e.Code != tt.code {
				t.Fatalf("got %v, want an Error with code %#x", err, tt.code)
			}
		})
	}
}

func TestForeignProtocolsAreNamed(t *testing.T) {
	for _, body := range [][]byte{
		{0, 6, 'M', 'Q', 'I', 's', 'd', 'p', 3, 2, 0, 0, 0, 1, 'c'},
		{0, 4, 'M', 'Q', 'T', 'T', 6, 2, 0, 0, 0, 1, 'c'},
	} {
		_, err := DecodeConnect(Frame{CONNECT, 0, body})
		var e *VersionError
		if !errors.As(err, &e) {
			t.Errorf("got %v, want a VersionError", err)
		}
	}
}

func TestWhatDoesNotFitIsNotEncoded(t *testing.T) {
	long := strings.Repeat("x", MaxString+1)
	for _, p := range []Packet{
		Publish{Topic: long}, Publish{Topic: "t", Properties: &Properties{ContentType: long}},
		Publish{Topic: "t", Properties: &Properties{User: []UserProperty{{"k", long}}}},
		Connect{Version: V5, ClientID: long}, Connect{Version: V5, Will: &Will{Topic: "t", Payload: []byte(long)}},
		Subscribe{ID: 1, Subscriptions: []Subscription{{Filter: long}}}, Unsubscribe{ID: 1, Filters: []string{long}},
		Disconnect{Code: 1, Properties: &Properties{ReasonString: long}},
	} {
		b, err := p.Append([]byte("kept"), V5)
		if !errors.Is(err, ErrTooLong) || string(b) != "kept" {
			t.Errorf("%T: got %d bytes and %v, want the old bytes and ErrTooLong", p, len(b), err)
		}
	}
}

func TestMatch(t *testing.T) {
	tests := []struct {
		filter, topic string
		want          bool
	}{
		{"a/b", "a/b", true}, {"a/b", "a/c", false}, {"a/b", "a/b/c", false}, {"a/b/c", "a/b", false},
		{"a/+", "a/b", true}, {"a/+", "a", false}, {"a/+", "a/", true}, {"a/+", "a/b/c", false}, {"+", "a", true}, {"+/+", "/a", true}, {"/+", "/a", true}, {"+", "/a", false},
		{"#", "a/b", true}, {"a/#", "a", true}, {"a/#", "a/b/c", true}, {"a/#", "ab", false}, {"a/b/#", "a", false}, {"+/#", "a", true},
		{"#", "$SYS/x", false}, {"+/x", "$SYS/x", false}, {"$SYS/#", "$SYS/x", true}, {"a/+/c", "a//c", true}, {"A", "a", false},
	}
	for _, tt := range tests {
		if got := Match(tt.filter, tt.topic); got != tt.want {
			t.Errorf("Match(%q, %q) = %v, want %v", tt.filter, tt.topic, got, tt.want)
		}
	}
}

func TestFiltersAndTopics(t *testing.T) {
	for filter, want := range map[string]bool{"a": true, "#": true, "+": true, "a/#": true, "+/b/#": true, "/": true,
		"": false, "a#": false, "a/#/b": false, "#/a": false, "a+": false, "a/b+/c": false, "a\x00": false, "\xff": false} {
		if got := ValidFilter(filter); got != want {
			t.Errorf("ValidFilter(%q) = %v, want %v", filter, got, want)
		}
	}
	for topic, want := range map[string]bool{"a": true, "/": true, "a//b": true, "$x": true, "": false, "a/+": false, "#": false, "a\x00": false, "\xff": false} {
		if got := ValidTopic(topic); got != want {
			t.Errorf("ValidTopic(%q) = %v, want %v", topic, got, want)
		}
	}
}
