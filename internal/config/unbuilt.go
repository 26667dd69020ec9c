package config

import "strings"

// unbuilt lists the keys, or key=value, whose feature this version lacks. They
// are parsed and checked like all others, and refused unless they have their
// default. Deleting a row switches a feature on. "hub." rows hold for an
// identity's own keys too.
func unbuilt(key string) bool {
	switch key {
	case "downstream.broker[].local_topics":
		return true
	}
	return false
}

// refuse reports a value that only a later version can honour. An empty
// value is one that is not to be shown.
func (o *object) refuse(key, value string) bool {
	pattern := o.child(key)
	for {
		a := strings.IndexByte(pattern, '[')
		b := strings.IndexByte(pattern, ']')
		if a < 0 || b <= a+1 {
			break
		}
		pattern = pattern[:a] + "<>" + pattern[b+1:]
	}
	pattern = strings.ReplaceAll(pattern, "<>", "[]")
	asHub := "hub." + strings.TrimPrefix(pattern, "identities[].")
	for _, p := range []string{pattern, asHub} {
		if unbuilt(p) || unbuilt(p+"="+value) {
			if value != "" {
				value = quote(value) + " "
			}
			o.d.report(o.child(key), "%sis not in this version of gatewayd; leave the key out", value)
			return true
		}
	}
	return false
}
