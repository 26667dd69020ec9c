package hub

import (
	"encoding/json"
	"testing"
	"time"
	"unicode/utf8"

	"gatewayd/internal/queue"
)

func TestElementSaysWhatTheReadingWas(t *testing.T) {
	at := time.UnixMilli(1767323045006)
	for _, c := range []struct {
		m    queue.Message
		want string
	}{
		{queue.Message{Accepted: at, AcceptedTrusted: true, ContentType: "application/json", ContentEncoding: "utf-8", Payload: []byte("{ \"t\" :\n 21.50 }"),
			Properties: []queue.Property{{Key: "sensor", Value: `1"7`}, {Key: "é", Value: ""}}},
			`{"time":1767323045006,"props":{"sensor":"1\"7","é":""},"body":{"t":21.50}}`},
		{queue.Message{Accepted: time.Unix(5, 0), ContentType: "application/json", Payload: []byte(`"<a>"`)}, `{"body":"<a>"}`},
		{queue.Message{ContentType: "text/plain", Payload: []byte("12\n")}, `{"text":"12\n"}`},
		{queue.Message{ContentType: "application/json", ContentEncoding: "utf-8", Payload: []byte("{")}, `{"text":"{"}`},
		{queue.Message{ContentEncoding: "gzip", Payload: []byte("1")}, `{"content_encoding":"gzip","body_base64":"MQ=="}`},
		{queue.Message{Payload: []byte("\"\xff\"")}, `{"body_base64":"Iv8i"}`},
		{queue.Message{ContentType: "text/csv", Payload: []byte("1;2")}, `{"content_type":"text/csv","text":"1;2"}`},
		{queue.Message{ContentType: "image/png", Payload: []byte{0x80}}, `{"content_type":"image/png","body_base64":"gA=="}`},
		{queue.Message{}, `{"text":""}`},
	} {
		if got := string(AppendElement(nil, &c.m)); got != c.want {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
	}
}

func FuzzElement(f *testing.F) {
	f.Add([]byte(`{"a":1}`), "application/json", "utf-8", "k", "v")
	f.Add([]byte("\xff"), "text/plain", "", "\"", "\n")
	f.Fuzz(func(t *testing.T, body []byte, ct, ce, key, value string) {
		m := queue.Message{ContentType: ct, ContentEncoding: ce, Payload: body, Properties: []queue.Property{{Key: key, Value: value}}}
		got := AppendElement([]byte("x"), &m)[1:]
		var e element
		if !json.Valid(got) || !utf8.Valid(got) {
			t.Fatalf("not JSON: %q", got)
		}
		for _, b := range got {
			if b == '\n' {
				t.Fatalf("more than one line: %q", got)
			}
		}
		if json.Unmarshal(got, &e) == nil && e.Body == nil && string(e.BodyBase64)+e.Text != string(body) {
			t.Errorf("body %q became %q", body, e.BodyBase64)
		}
	})
}

func FuzzPackRecord(f *testing.F) {
	f.Add(appendRecord(nil, &pack{class: 3, seqs: []uint64{5, 6, 9}, id: "a-1-5.3"}))
	f.Add([]byte{1, 0, 0xff, 0xff, 0xff, 0xff, 0x0f, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parseRecord(b)
		if err != nil {
			return
		}
		again, err := parseRecord(appendRecord(nil, p))
		if err != nil || again.id != p.id || len(again.seqs) != len(p.seqs) || again.class != p.class {
			t.Errorf("%v: %+v became %+v", err, p, again)
		}
		for i := 1; i < len(p.seqs); i++ {
			if p.seqs[i] <= p.seqs[i-1] {
				t.Fatalf("not ascending: %v", p.seqs)
			}
		}
	})
}
