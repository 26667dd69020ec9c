package hub

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"strconv"
	"strings"
	"unicode/utf8"

	"gatewayd/internal/queue"
)

// AppendElement appends what a reading becomes inside a pack, a JSON object on one
// line:
//
//	{"time":1767323045006,"props":{"sensor":"17"},"body":{"t":21.5}}
//
// time is when the gateway took the reading, in Unix milliseconds; it is left out
// where $.ctime would be, because the clock was not set. props are the reading's own
// properties, left out when there are none. body is the body itself where that is
// JSON, with the space around its parts taken out. A body that is other text in UTF-8,
// or that has the content type text/*, is text instead, and any other is body_base64.
// Beside these two stand content_type and content_encoding as far as they say
// something.
func AppendElement(dst []byte, m *queue.Message) []byte {
	dst = append(dst, '{')
	if stamped(m) {
		dst = append(dst, `"time":`...)
		dst = strconv.AppendInt(dst, m.Accepted.UnixMilli(), 10)
		dst = append(dst, ',')
	}
	if len(m.Properties) > 0 {
		dst = append(dst, `"props":{`...)
		for i, p := range m.Properties {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = append(appendJSON(dst, p.Key), ':')
			dst = appendJSON(dst, p.Value)
		}
		dst = append(dst, "},"...)
	}
	return append(appendBody(dst, m), '}')
}

func appendBody(dst []byte, m *queue.Message) []byte {
	plain := (m.ContentEncoding == "" || strings.EqualFold(m.ContentEncoding, "utf-8")) && utf8.Valid(m.Payload)
	if plain && !strings.HasPrefix(m.ContentType, "text/") {
		out := bytes.NewBuffer(append(dst, `"body":`...))
		if json.Compact(out, m.Payload) == nil {
			return out.Bytes()
		}
	}
	label := func(name, value string) {
		dst = append(append(append(dst, '"'), name...), `":`...)
		dst = append(appendJSON(dst, value), ',')
	}
	// A label as JSON is only assumed of most bodies, and wrong of this one.
	if m.ContentType != "" && !(plain && (m.ContentType == "application/json" || m.ContentType == "text/plain")) {
		label("content_type", m.ContentType)
	}
	if plain {
		return appendJSON(append(dst, `"text":`...), string(m.Payload))
	}
	if m.ContentEncoding != "" {
		label("content_encoding", m.ContentEncoding)
	}
	dst = append(dst, `"body_base64":"`...)
	dst = base64.StdEncoding.AppendEncode(dst, m.Payload)
	return append(dst, '"')
}

// appendJSON appends a string as JSON. What is not UTF-8 becomes U+FFFD; of
// properties that was refused before.
func appendJSON(dst []byte, s string) []byte {
	plain := true
	for i := 0; i < len(s) && plain; i++ {
		plain = s[i] >= ' ' && s[i] != '"' && s[i] != '\\' && s[i] < utf8.RuneSelf
	}
	if plain {
		return append(append(append(dst, '"'), s...), '"')
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	if enc.Encode(s) != nil { // never of a string
		return append(dst, `""`...)
	}
	return append(dst, bytes.TrimSuffix(out.Bytes(), []byte{'\n'})...)
}
