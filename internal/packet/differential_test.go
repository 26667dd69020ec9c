package packet

import (
	"bytes"
	"testing"

	paho "github.com/eclipse/paho.golang/packets"
	mochi "github.com/mochi-mqtt/server/v2/packets"
)

// FuzzDifferential compares what this codec accepts with two others: what it
// reads from a packet they must read too. They accept more, which is why only
// packets that decode here are compared.
func FuzzDifferential(f *testing.F) {
	for _, v := range []Version{V311, V5} {
		for _, p := range samples(v) {
			b, err := p.Append(nil, v)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b, v == V5)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte, five bool) {
		v := V311
		if five {
			v = V5
		}
		frame, err := NewReader(bytes.NewReader(b), 1<<16).Next()
		if err != nil {
			return
		}
		p, err := decode(frame, v)
		if err != nil {
			return
		}
		if c, ok := p.(Connect); ok {
			v = c.Version
		}
		compareMochi(t, frame, v, p)
		if v == V5 {
			comparePaho(t, b[:packetLength(b)], p)
		}
	})
}

// packetLength is the size of the packet that b, which has been read, begins with.
func packetLength(b []byte) int {
	n := 0
	for i := 1; ; i++ {
		n |= int(b[i]&0x7f) << (7 * (i - 1))
		if b[i]&0x80 == 0 {
			return 1 + i + n
		}
	}
}

func compareMochi(t *testing.T, f Frame, v Version, p Packet) {
	t.Helper()
	m := mochi.Packet{ProtocolVersion: byte(v), FixedHeader: mochi.FixedHeader{Remaining: len(f.Body)}}
	if err := m.FixedHeader.Decode(byte(f.Type)<<4 | f.Flags); err != nil {
		t.Fatalf("the other codec refuses the first byte of %+v: %v", p, err)
	}
	body := bytes.Clone(f.Body)
	switch p := p.(type) {
	case Publish:
		if err := m.PublishDecode(body); err != nil {
			t.Fatalf("the other codec refuses %+v: %v", p, err)
		}
		if m.TopicName != p.Topic || m.PacketID != p.ID || !bytes.Equal(m.Payload, p.Payload) ||
			m.FixedHeader.Qos != p.QoS || m.FixedHeader.Retain != p.Retain || m.FixedHeader.Dup != p.Dup {
			t.Fatalf("%+v is %q %d %q to the other codec", p, m.TopicName, m.PacketID, m.Payload)
		}
		if p.Properties != nil && (m.Properties.ContentType != p.Properties.ContentType || m.Properties.TopicAlias != p.Properties.TopicAlias ||
			m.Properties.MessageExpiryInterval != p.Properties.MessageExpiry || len(m.Properties.User) != len(p.Properties.User)) {
			t.Fatalf("properties %+v are %+v to the other codec", *p.Properties, m.Properties)
		}
	case Connect:
		if err := m.ConnectDecode(body); err != nil {
			t.Fatalf("the other codec refuses %+v: %v", p, err)
		}
		if m.Connect.ClientIdentifier != p.ClientID || m.Connect.Keepalive != p.KeepAlive || m.Connect.Clean != p.CleanStart ||
			string(m.Connect.Username) != p.Username || !bytes.Equal(m.Connect.Password, p.Password) || m.Connect.WillFlag != (p.Will != nil) {
			t.Fatalf("%+v is %+v to the other codec", p, m.Connect)
		}
	case Subscribe:
		if err := m.SubscribeDecode(body); err != nil {
			t.Fatalf("the other codec refuses %+v: %v", p, err)
		}
		if len(m.Filters) != len(p.Subscriptions) || m.PacketID != p.ID {
			t.Fatalf("%+v is %+v to the other codec", p, m.Filters)
		}
		for i, s := range p.Subscriptions {
			if m.Filters[i].Filter != s.Filter || m.Filters[i].Qos != s.QoS {
				t.Fatalf("%+v is %+v to the other codec", s, m.Filters[i])
			}
		}
	case Ack:
		decoders := map[Type]func([]byte) error{PUBACK: m.PubackDecode, PUBREC: m.PubrecDecode, PUBREL: m.PubrelDecode, PUBCOMP: m.PubcompDecode}
		if err := decoders[p.Type](body); err != nil {
			t.Fatalf("the other codec refuses %+v: %v", p, err)
		}
		if m.PacketID != p.ID || m.ReasonCode != p.Code {
			t.Fatalf("%+v is %d %d to the other codec", p, m.PacketID, m.ReasonCode)
		}
	}
}

func comparePaho(t *testing.T, b []byte, p Packet) {
	t.Helper()
	want, ok := p.(Publish)
	if !ok {
		return
	}
	c, err := paho.ReadPacket(bytes.NewReader(b))
	if err != nil {
		t.Fatalf("paho refuses %+v: %v", p, err)
	}
	got := c.Content.(*paho.Publish)
	if got.Topic != want.Topic || got.PacketID != want.ID || got.QoS != want.QoS || got.Retain != want.Retain || !bytes.Equal(got.Payload, want.Payload) {
		t.Fatalf("%+v is %+v to paho", want, got)
	}
}
