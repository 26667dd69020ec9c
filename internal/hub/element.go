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
//	{"time":1767323045006,"properties":{"sensor":"17"},"body":{"t":21.5}}
//
// time is when the gateway took the reading, in Unix milliseconds; it is left out
// where $.ctime would be, because the clock was not set. properties are the
// reading's own, left out when there are none. body is the body itself where that is
// JSON in UTF-8, with the space around its parts taken out, and a string where the
// content type is text/*; any other body is body_base64 instead, with content_type
// and content_encoding beside it as far as they are known.
func AppendElement(dst []byte, m *queue.Message) []byte {
	dst = append(dst, '{')
	if stamped(m) {
		dst = append(dst, `"time":`...)
		dst = strconv.AppendInt(dst, m.Accepted.UnixMilli(), 10)
		dst = append(dst, ',')
	}
	if len(m.Properties) > 0 {
		dst = append(dst, `"properties":{`...)
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
	plain := m.ContentEncoding == "" || strings.EqualFold(m.ContentEncoding, "utf-8")
	if plain && utf8.Valid(m.Payload) {
		if strings.HasPrefix(m.ContentType, "text/") {
			return appendJSON(append(dst, `"body":`...), string(m.Payload))
		}
		out := bytes.NewBuffer(append(dst, `"body":`...))
		if json.Compact(out, m.Payload) == nil {
			return out.Bytes()
		}
	}
	label := func(name, value string) {
		if value != "" {
			dst = append(append(append(dst, '"'), name...), `":`...)
			dst = append(appendJSON(dst, value), ',')
		}
	}
	label("content_type", m.ContentType)
	label("content_encoding", m.ContentEncoding)
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
