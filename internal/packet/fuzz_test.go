package packet

import (
	"bytes"
	"testing"
)

// FuzzDecode feeds foreign bytes to every decoder. What decodes must encode
// again, and the encoding must be stable from there on.
func FuzzDecode(f *testing.F) {
	for _, v := range []Version{V311, V5} {
		for _, p := range samples(v) {
			b, err := p.Append(nil, v)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b, v == V5)
		}
	}
	f.Add([]byte{0x82, 0x06, 0, 1, 0, 0, 1, 'a'}, true)
	f.Fuzz(func(t *testing.T, b []byte, five bool) {
		v := V311
		if five {
			v = V5
		}
		r := NewReader(bytes.NewReader(b), 1<<16)
		for range 64 {
			frame, err := r.Next()
			if err != nil {
				return
			}
			p, err := decode(frame, v)
			if err != nil || p == nil {
				continue
			}
			w := v
			if c, ok := p.(Connect); ok {
				w = c.Version
			}
			once, err := p.Append(nil, w)
			if err != nil {
				t.Fatalf("%+v decoded but does not encode: %v", p, err)
			}
			frame, err = NewReader(bytes.NewReader(once), 0).Next()
			if err != nil {
				t.Fatalf("%+v: own encoding does not read: %v", p, err)
			}
			q, err := decode(frame, w)
			if err != nil {
				t.Fatalf("%+v: own encoding does not decode: %v", p, err)
			}
			twice, err := q.Append(nil, w)
			if err != nil || !bytes.Equal(once, twice) {
				t.Fatalf("encoding is not stable: %x, then %x", once, twice)
			}
		}
	})
}

func BenchmarkPublish(b *testing.B) {
	p := Publish{Topic: "devices/press-7/messages/events/%24.mid=abc", QoS: 1, ID: 7, Payload: make([]byte, 256)}
	b.ReportAllocs()
	var buf []byte
	for b.Loop() {
		buf, _ = p.Append(buf[:0], V311)
		f, err := NewReader(bytes.NewReader(buf), 1<<18).Next()
		if err != nil {
			b.Fatal(err)
		}
		if _, err := DecodePublish(f, V311); err != nil {
			b.Fatal(err)
		}
	}
}
