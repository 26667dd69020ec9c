// Package bag reads and writes IoT Hub's property bag: k=v pairs joined by &,
// names and values percent-encoded. It is the end of a telemetry or C2D topic.
// The form is that of https://learn.microsoft.com/azure/iot/iot-mqtt-connect-to-iot-hub.
// Names that begin with $. are the hub's system properties; both sides of the
// gateway meet them, so what they share of them is here, and so is the query behind
// the topics of methods and twins.
package bag

import (
	"net/url"
	"strconv"
	"strings"

	"gatewayd/internal/queue"
)

// Most bounds the properties of one bag. The hub has no such bound, but its topics
// have 64 KB.
const Most = 1000

// MaxMessageID is the hub's limit for $.mid, in characters.
const MaxMessageID = 128

// Parse reads a bag, with or without a slash behind it. What is not a proper escape
// stands for itself: a message is not lost over a stray percent sign. Pairs beyond
// Most and those without a name are left out.
func Parse(s string) []queue.Property {
	s = strings.TrimSuffix(s, "/")
	if s == "" {
		return nil
	}
	var all []queue.Property
	for part := range strings.SplitSeq(s, "&") {
		key, value, _ := strings.Cut(part, "=")
		if key == "" || len(all) == Most {
			continue
		}
		all = append(all, queue.Property{Key: Unescape(key), Value: Unescape(value)})
	}
	return all
}

// Append writes a bag behind dst in the hub's own form.
func Append(dst []byte, all []queue.Property) []byte {
	for i := range all {
		if i > 0 {
			dst = append(dst, '&')
		}
		dst = AppendEscaped(append(AppendEscaped(dst, all[i].Key), '='), all[i].Value)
	}
	return dst
}

// Lookup is the value of a property, "" without it.
func Lookup(all []queue.Property, key string) string {
	for i := range all {
		if all[i].Key == key {
			return all[i].Value
		}
	}
	return ""
}

const upperHex = "0123456789ABCDEF"

// AppendEscaped percent-encodes everything but unreserved characters, behind dst. A
// space becomes %20 and a plus sign %2B: in a bag a plus sign is a plus sign, and a
// topic name cannot carry it.
func AppendEscaped(dst []byte, s string) []byte {
	for i := range len(s) {
		c := s[i]
		if unreserved(c) {
			dst = append(dst, c)
		} else {
			dst = append(dst, '%', upperHex[c>>4], upperHex[c&15])
		}
	}
	return dst
}

// EscapedLen is how many bytes AppendEscaped appends.
func EscapedLen(s string) int {
	n := len(s)
	for i := range len(s) {
		if !unreserved(s[i]) {
			n += 2
		}
	}
	return n
}

// Escape is AppendEscaped for a text.
func Escape(s string) string { return string(AppendEscaped(nil, s)) }

func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
		c == '-' || c == '_' || c == '.' || c == '~'
}

// Unescape is the reverse. What MQTT text cannot carry becomes U+FFFD.
func Unescape(s string) string {
	if !strings.Contains(s, "%") {
		return s
	}
	if d, err := url.PathUnescape(s); err == nil {
		return strings.ReplaceAll(strings.ToValidUTF8(d, "\uFFFD"), "\x00", "\uFFFD")
	}
	return s
}

// Query reads ?$rid={rid}&$version={n}, in any order, either left out, as it stands
// behind the topics of methods and twins. rid is given as it stands, because it is
// echoed so; version is 0 when it is not a positive number.
func Query(query string) (rid string, version int64) {
	query, ok := strings.CutPrefix(query, "?")
	if !ok {
		return "", 0
	}
	for part := range strings.SplitSeq(query, "&") {
		key, value, _ := strings.Cut(part, "=")
		switch Unescape(key) {
		case "$rid":
			rid = value
		case "$version":
			if n, err := strconv.ParseInt(value, 10, 64); err == nil && n > 0 {
				version = n
			}
		}
	}
	return rid, version
}

// IsSystem tells whether a name is that of a system property, known or not.
func IsSystem(key string) bool { return strings.HasPrefix(key, "$.") }

// FromDevice tells whether a name is that of a system property which a device may
// give a message of its own: the list of iot-hub-devguide-messages-construct and of
// the Azure SDKs, without those that say on whose behalf something was sent.
func FromDevice(key string) bool {
	switch key {
	case "$.mid", "$.cid", "$.uid", "$.to", "$.exp", "$.ct", "$.ce", "$.on", "$.ctime", "$.sub", "$.ifid", "$.schema", "$.diagid", "$.diagctx":
		return true
	}
	return false
}

// ValidMessageID tells whether the hub takes a text for $.mid.
func ValidMessageID(s string) bool {
	if s == "" || len(s) > MaxMessageID {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !unreserved(c) && !strings.Contains(":+%#*?!(),=@;$'", string(rune(c))) || c == '~' {
			return false
		}
	}
	return true
}
