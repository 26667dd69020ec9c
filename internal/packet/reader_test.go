package packet

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"
)

func TestReaderCutsTheStreamWhateverItsChunks(t *testing.T) {
	var stream []byte
	var sizes []int
	for _, n := range []int{0, 1, 125, 126, 127, 128, 511, 512, 513, 16383, 16384, 70000, 3} {
		b, err := Publish{Topic: "t", Payload: bytes.Repeat([]byte{byte(n)}, n)}.Append(nil, V311)
		if err != nil {
			t.Fatal(err)
		}
		stream, sizes = append(stream, b...), append(sizes, n)
	}
	sources := map[string]func() io.Reader{
		"whole":  func() io.Reader { return bytes.NewReader(stream) },
		"bytes":  func() io.Reader { return iotest.OneByteReader(bytes.NewReader(stream)) },
		"halves": func() io.Reader { return iotest.HalfReader(bytes.NewReader(stream)) },
	}
	for name, open := range sources {
		t.Run(name, func(t *testing.T) {
			r := NewReader(open(), 100000)
			for _, n := range sizes {
				f, err := r.Next()
				if err != nil {
					t.Fatalf("packet of %d: %v", n, err)
				}
				p, err := DecodePublish(f, V311)
				if err != nil {
					t.Fatalf("packet of %d: %v", n, err)
				}
				if len(p.Payload) != n || bytes.Count(p.Payload, []byte{byte(n)}) != n {
					t.Fatalf("payload of %d bytes arrived as %d", n, len(p.Payload))
				}
			}
			if _, err := r.Next(); err != io.EOF {
				t.Fatalf("at the end: %v, want io.EOF", err)
			}
		})
	}
}

func TestReaderRefusesBeforeItAllocates(t *testing.T) {
	tests := []struct {
		name  string
		bytes []byte
		want  byte
	}{
		{"a packet past the limit", []byte{0x30, 0x81, 0x80, 0x04}, PacketTooLarge},
		{"256 MiB announced", []byte{0x30, 0xFF, 0xFF, 0xFF, 0x7F}, PacketTooLarge},
		{"a length of five bytes", []byte{0x30, 0x80, 0x80, 0x80, 0x80, 0x01}, MalformedPacket},
		{"type 0", []byte{0x00, 0x00}, MalformedPacket},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := NewReader(bytes.NewReader(tt.bytes), 65536)
			_, err := r.Next()
			var e *Error
			if !errors.As(err, &e) || e.Code != tt.want {
				t.Fatalf("got %v, want an Error with code %#x", err, tt.want)
			}
			if cap(r.buf) > idleBuffer {
				t.Fatalf("buffer grew to %d", cap(r.buf))
			}
		})
	}
}

func TestReaderGrowsOnlyWithBytesThatCame(t *testing.T) {
	// 250 KiB announced, 600 bytes sent.
	stream := append([]byte{0x30, 0x80, 0xD0, 0x0F}, make([]byte, 600)...)
	r := NewReader(bytes.NewReader(stream), 1<<20)
	if _, err := r.Next(); err != io.ErrUnexpectedEOF {
		t.Fatalf("got %v, want io.ErrUnexpectedEOF", err)
	}
	if cap(r.buf) > 4*idleBuffer {
		t.Fatalf("buffer of %d bytes for 600 received", cap(r.buf))
	}
}

func TestReaderGivesBurstBuffersBack(t *testing.T) {
	small, _ := Publish{Topic: "t"}.Append(nil, V311)
	big, _ := Publish{Topic: "t", Payload: make([]byte, 100000)}.Append(nil, V311)
	pr, pw := io.Pipe()
	go func() {
		defer pw.Close()
		for _, b := range [][]byte{big, small, small, small} {
			if _, err := pw.Write(b); err != nil {
				return
			}
		}
	}()
	r := NewReader(pr, 1<<20)
	for range 4 {
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
	}
	if cap(r.buf) != idleBuffer {
		t.Fatalf("%d bytes kept after the burst, want %d", cap(r.buf), idleBuffer)
	}
}
