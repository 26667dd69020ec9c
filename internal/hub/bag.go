package hub

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"gatewayd/internal/bag"
	"gatewayd/internal/packet"
	"gatewayd/internal/queue"
)

const (
	// maxMessage is the hub's limit for one message: body, values of system
	// properties, names and values of user properties.
	maxMessage = 256 << 10
	// timeLength is that of $.ctime.
	timeLength = len("2006-01-02T15:04:05.000Z")
)

// plausibleTime separates a wall clock that may be right from the 1970 of a box
// without a battery: a message stamped before it under an untrusted clock goes
// without $.ctime, because a wrong time is worse than the hub's own.
var plausibleTime = time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)

// stamped says whether the time of a message may be told.
func stamped(m *queue.Message) bool {
	return !m.Accepted.IsZero() && (m.AcceptedTrusted || m.Accepted.After(plausibleTime))
}

// appendTopic appends the telemetry topic with its property bag: system
// properties first, then the user's in their order, names and values
// percent-encoded. "$" is escaped as all Azure SDKs escape it. A device that speaks
// for itself gives its messages system properties of its own, which are kept.
func appendTopic(dst []byte, prefix string, m *queue.Message) []byte {
	dst = append(dst, prefix...)
	start := len(dst)
	separate := func() {
		if len(dst) > start {
			dst = append(dst, '&')
		}
	}
	system := func(key, value string) {
		if value == "" {
			return
		}
		separate()
		dst = append(append(dst, key...), '=')
		dst = bag.AppendEscaped(dst, value)
	}
	id, timed, own := m.ID, false, false
	for i := range m.Properties {
		switch key := m.Properties[i].Key; {
		case !bag.IsSystem(key):
		case key == "$.mid":
			id = m.Properties[i].Value
		case key == "$.ctime":
			timed, own = true, true
		default:
			own = true
		}
	}
	system("%24.mid", id)
	if !timed && stamped(m) {
		separate()
		dst = appendTime(append(dst, "%24.ctime="...), m.Accepted)
	}
	system("%24.ct", m.ContentType)
	system("%24.ce", m.ContentEncoding)
	system("%24.on", m.Output)
	for i := range m.Properties {
		if p := &m.Properties[i]; own && bag.IsSystem(p.Key) && p.Key != "$.mid" {
			separate()
			dst = append(bag.AppendEscaped(dst, p.Key), '=')
			dst = bag.AppendEscaped(dst, p.Value)
		}
	}
	for i := range m.Properties {
		if p := &m.Properties[i]; !bag.IsSystem(p.Key) {
			separate()
			dst = append(bag.AppendEscaped(dst, p.Key), '=')
			dst = bag.AppendEscaped(dst, p.Value)
		}
	}
	return dst
}

// appendTime writes 2006-01-02T15:04:05.000Z with its colons encoded: ISO 8601 in
// UTC with the Z that the hub insists on. It stands for every message, so it is
// written out instead of formatted and then encoded.
func appendTime(dst []byte, t time.Time) []byte {
	t = t.UTC()
	year, month, day := t.Date()
	hour, minute, second := t.Clock()
	two := func(n int, after string) {
		dst = append(append(dst, byte('0'+n/10), byte('0'+n%10)), after...)
	}
	two(year/100, "")
	two(year%100, "-")
	two(int(month), "-")
	two(day, "T")
	two(hour, "%3A")
	two(minute, "%3A")
	two(second, ".")
	millis := t.Nanosecond() / 1e6
	dst = append(dst, byte('0'+millis/100))
	two(millis%100, "Z")
	return dst
}

// undeliverable says why the hub would answer the message by closing the
// connection, or "" when it would not. MQTT 3.1.1 has no other no, so such a
// message must never be sent.
func undeliverable(m *queue.Message, topic int, edge bool) string {
	size := len(m.Payload) + len(m.ID) + len(m.ContentType) + len(m.ContentEncoding) + len(m.Output) + timeLength
	for i, p := range m.Properties {
		switch {
		case p.Key == "":
			return "a property has an empty name"
		case strings.HasPrefix(p.Key, "$") && !bag.FromDevice(p.Key):
			return fmt.Sprintf("property %q: names beginning with $ are the hub's own", p.Key)
		case !utf8.ValidString(p.Key) || !utf8.ValidString(p.Value):
			return fmt.Sprintf("property %q is not UTF-8 text", p.Key)
		case duplicated(m.Properties[:i], p.Key):
			return fmt.Sprintf("property %q is given twice", p.Key)
		case p.Key == "$.mid" && !bag.ValidMessageID(p.Value):
			return "the message id is not one that the hub takes"
		}
		size += len(p.Key) + len(p.Value)
	}
	switch {
	case len(m.ID) > bag.MaxMessageID:
		return fmt.Sprintf("message id of %d characters, the hub allows %d", len(m.ID), bag.MaxMessageID)
	case !utf8.ValidString(m.ContentType) || !utf8.ValidString(m.ContentEncoding) || !utf8.ValidString(m.Output):
		return "content type, content encoding or output is not UTF-8 text"
	case size > maxMessage:
		return fmt.Sprintf("message of %d bytes with its properties, the hub allows %d", size, maxMessage)
	case topic > packet.MaxString:
		return fmt.Sprintf("topic of %d bytes with the encoded properties, MQTT allows %d", topic, packet.MaxString)
	case edge && packetSize(topic, len(m.Payload)) > maxMessage:
		// IoT Edge counts the whole packet.
		return fmt.Sprintf("packet of %d bytes, IoT Edge allows %d", packetSize(topic, len(m.Payload)), maxMessage)
	}
	return ""
}

func packetSize(topic, payload int) int { return 5 + 2 + topic + 2 + payload }

func duplicated(before []queue.Property, key string) bool {
	for i := range before {
		if before[i].Key == key {
			return true
		}
	}
	return false
}
