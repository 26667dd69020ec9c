package packet

import (
	"strings"
	"unicode/utf8"
)

// ValidTopic tells whether s is a topic name: 1 to 65,535 bytes of UTF-8 without
// U+0000 and wildcards (4.7).
func ValidTopic(s string) bool {
	return len(s) > 0 && len(s) <= MaxString && !strings.ContainsAny(s, "+#\x00") && utf8.ValidString(s)
}

// ValidFilter tells whether s is a topic filter: + alone in its level, # alone
// in the last level. The $share form of MQTT 5 is an ordinary filter here.
func ValidFilter(s string) bool {
	if len(s) == 0 || len(s) > MaxString || strings.IndexByte(s, 0) >= 0 || !utf8.ValidString(s) {
		return false
	}
	for level := range strings.SplitSeq(s, "/") {
		if len(level) > 1 && strings.ContainsAny(level, "+#") {
			return false
		}
	}
	i := strings.IndexByte(s, '#')
	return i < 0 || i == len(s)-1
}

// Match tells whether a valid filter matches a valid topic name. Filters that
// start with a wildcard do not match topics that start with $ (4.7.2).
func Match(filter, topic string) bool {
	if topic != "" && topic[0] == '$' && filter != "" && (filter[0] == '+' || filter[0] == '#') {
		return false
	}
	for {
		f, frest, fmore := strings.Cut(filter, "/")
		if f == "#" {
			return true
		}
		t, trest, tmore := strings.Cut(topic, "/")
		if f != "+" && f != t {
			return false
		}
		if !tmore {
			// "a/#" also matches "a" itself (4.7.1.2).
			return !fmore || frest == "#"
		}
		if !fmore {
			return false
		}
		filter, topic = frest, trest
	}
}
