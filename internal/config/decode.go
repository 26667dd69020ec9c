package config

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

// maxValues bounds what is looked at after aliases are followed: a small file
// can name the same list a million times.
const maxValues = 100_000

// decoder walks the tree of one file and collects what is wrong with it.
// The walk follows the schema, never the file, so its depth is fixed.
type decoder struct {
	file, dir string
	problems  []Problem
	warnings  []Problem
	lines     map[string]int // key path → line of its value
	files     []named
	visited   int
}

// object is one mapping while it is read: each key is taken by its reader, and
// finish reports what nobody took.
type object struct {
	d      *decoder
	path   string
	values map[string]*yaml.Node
	keys   []*yaml.Node
	known  []string
	broken bool // not a mapping at all: say nothing about what is missing
}

// resolve follows an alias, notes the line and counts. nil stays nil.
func (d *decoder) resolve(n *yaml.Node, path string) *yaml.Node {
	if n == nil {
		return nil
	}
	d.lines[path] = n.Line
	d.visited++
	if d.visited > maxValues {
		if d.visited == maxValues+1 {
			d.reportLine(n.Line, path, "the file has more than %d values", maxValues)
		}
		return nil
	}
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n.Style&yaml.TaggedStyle != 0 {
		d.report(path, "has a YAML tag; write the plain value")
		return nil
	}
	return n
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// kind names what stands in the file, for "is X where Y is needed".
func kind(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.ShortTag() {
	case "!!null":
		return "empty"
	case "!!bool":
		return "true or false"
	case "!!int", "!!float":
		return "a number"
	}
	return "text"
}

// object opens a mapping. An absent or empty one is an object without keys.
func (d *decoder) object(n *yaml.Node, path string) *object {
	o := &object{d: d, path: path, values: map[string]*yaml.Node{}}
	if n = d.resolve(n, path); n == nil || isNull(n) {
		return o
	}
	if n.Kind != yaml.MappingNode {
		d.report(path, "is %s where a mapping (key: value) is needed", kind(n))
		o.broken = true
		return o
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		switch first, twice := o.values[k.Value]; {
		case k.ShortTag() == "!!merge":
			d.reportLine(k.Line, path, "merge keys (<<) are not understood; what all identities share goes under hub:")
		case k.Kind != yaml.ScalarNode:
			d.reportLine(k.Line, path, "has a key that is not a plain word")
		case twice:
			d.reportLine(k.Line, o.child(k.Value), "duplicate key; the first is on line %d", first.Line)
		default:
			o.values[k.Value] = n.Content[i+1]
			o.keys = append(o.keys, k)
		}
	}
	return o
}

func (o *object) child(key string) string {
	if o.path == "" {
		return keyText(key)
	}
	return o.path + "." + keyText(key)
}

func (o *object) has(key string) bool { return o.values[key] != nil }

func (o *object) take(key string) *yaml.Node {
	o.known = append(o.known, key)
	return o.d.resolve(o.values[key], o.child(key))
}

func (o *object) object(key string) *object {
	o.known = append(o.known, key)
	return o.d.object(o.values[key], o.child(key))
}

// finish reports the keys that no reader took.
func (o *object) finish() {
	for _, k := range o.keys {
		if slices.Contains(o.known, k.Value) {
			continue
		}
		hint := ""
		if s := suggest(k.Value, o.known); s != "" {
			hint = fmt.Sprintf("; did you mean %q?", s)
		}
		o.d.reportLine(k.Line, o.child(k.Value), "unknown key%s", hint)
	}
}

// list calls each for every item of a list, with its key path.
func (o *object) list(key string, each func(n *yaml.Node, path string)) {
	n := o.take(key)
	if n == nil || isNull(n) {
		return
	}
	path := o.child(key)
	if n.Kind != yaml.SequenceNode {
		o.d.report(path, "is %s where a list is needed", kind(n))
		return
	}
	for i, item := range n.Content {
		each(item, path+"["+strconv.Itoa(i)+"]")
	}
}

// text is a scalar's own words: 007 stays 007. Values that YAML reads as
// true, false or nothing need quotes, because the writer may have meant those.
func (d *decoder) text(n *yaml.Node, path string) (string, bool) {
	if n == nil {
		return "", false
	}
	if n.Kind != yaml.ScalarNode || n.ShortTag() == "!!null" || n.ShortTag() == "!!bool" {
		hint := ""
		if n.Kind != yaml.SequenceNode && !isNull(n) {
			hint = " (put it in quotes)"
		}
		d.report(path, "is %s where text is needed%s", kind(n), hint)
		return "", false
	}
	return n.Value, true
}

// scalar takes a value that must have one of the given tags.
func (o *object) scalar(key, what string, tags ...string) (string, bool) {
	n := o.take(key)
	if n == nil {
		return "", false
	}
	switch {
	case n.Kind != yaml.ScalarNode || isNull(n):
		o.d.report(o.child(key), "is %s where %s is needed", kind(n), what)
		return "", false
	case n.ShortTag() == "!!str":
		o.d.report(o.child(key), "%s is text where %s is needed", quote(n.Value), what)
		return "", false
	case !slices.Contains(tags, n.ShortTag()):
		o.d.report(o.child(key), "%s is not %s", n.Value, what)
		return "", false
	}
	return n.Value, true
}

func (o *object) text(key string, into *string) {
	if s, ok := o.d.text(o.take(key), o.child(key)); ok {
		*into = s
	}
}

// choice is a text out of a few.
func (o *object) choice(key string, into *string, allowed ...string) {
	s, ok := o.d.text(o.take(key), o.child(key))
	if !ok {
		return
	}
	if !slices.Contains(allowed, s) {
		o.d.report(o.child(key), "%s is none of %s", quote(s), strings.Join(allowed, ", "))
		return
	}
	*into = s
}

// file is a path; what names the severity when nothing is there.
func (o *object) file(key string, into *string, missing func(path, format string, args ...any)) {
	s, ok := o.d.text(o.take(key), o.child(key))
	if !ok {
		return
	}
	*into = o.d.absolute(s)
	o.d.exists(o.child(key), *into, missing)
}

func (o *object) boolean(key string, into *bool) {
	if s, ok := o.scalar(key, "true or false", "!!bool"); ok {
		*into = strings.EqualFold(s, "true")
	}
}

func (o *object) whole(key string, into *int, least, most int) {
	s, ok := o.scalar(key, "a whole number", "!!int")
	if !ok {
		return
	}
	v, err := strconv.Atoi(s)
	if err != nil || v < least || v > most {
		o.d.report(o.child(key), "%s is not a whole number from %d to %d", s, least, most)
		return
	}
	*into = v
}

// rate is a number per second.
func (o *object) rate(key string, into *float64, zero string) {
	s, ok := o.scalar(key, "a number", "!!int", "!!float")
	if !ok {
		return
	}
	v, err := strconv.ParseFloat(s, 64)
	switch {
	case err != nil || math.IsNaN(v) || math.IsInf(v, 0) || v < 0 || v > 1e6:
		o.d.report(o.child(key), "%s is not a number per second from 0 to 1000000", s)
	case v == 0 && zero != "":
		o.d.report(o.child(key), "%s", zero)
	default:
		*into = v
	}
}

// size is bytes.
func (o *object) size(key string, into *int64, least, most int64) {
	v, ok := o.bytes(key)
	switch {
	case !ok:
	case v < least || v > most:
		o.d.report(o.child(key), "%s is not %s", sizeString(v), sizeRange(least, most))
	default:
		*into = v
	}
}

// sizeOrOff is a size for which 0 means "none".
func (o *object) sizeOrOff(key string, into *int64, least, most int64) {
	v, ok := o.bytes(key)
	switch {
	case !ok:
	case v != 0 && (v < least || v > most):
		o.d.report(o.child(key), "%s is neither 0 nor %s", sizeString(v), sizeRange(least, most))
	default:
		*into = v
	}
}

func (o *object) bytes(key string) (int64, bool) {
	s, ok := o.d.text(o.take(key), o.child(key))
	if !ok {
		return 0, false
	}
	v, err := parseSize(s)
	if err != nil {
		o.d.report(o.child(key), "%v", err)
	}
	return v, err == nil
}

func parseSize(s string) (int64, error) {
	digits, shift := s, uint(0)
	for i, unit := range []string{"KiB", "MiB", "GiB"} {
		if before, ok := strings.CutSuffix(s, unit); ok {
			digits, shift = before, uint(i+1)*10
		}
	}
	if digits == "" || strings.Trim(digits, "0123456789") != "" {
		return 0, fmt.Errorf("%s is not a size (use KiB, MiB, GiB)", quote(s))
	}
	v, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || v > math.MaxInt64>>shift {
		return 0, fmt.Errorf("%s is too large a size", quote(s))
	}
	return v << shift, nil
}

func sizeRange(least, most int64) string {
	if most == math.MaxInt64 {
		return "at least " + sizeString(least)
	}
	return "from " + sizeString(least) + " to " + sizeString(most)
}

func sizeString(v int64) string {
	for _, u := range []struct {
		shift uint
		name  string
	}{{30, "GiB"}, {20, "MiB"}, {10, "KiB"}} {
		if v >= 1<<u.shift && v&(1<<u.shift-1) == 0 {
			return strconv.FormatInt(v>>u.shift, 10) + u.name
		}
	}
	return strconv.FormatInt(v, 10)
}

func (o *object) duration(key string, into *time.Duration, least, most time.Duration) {
	s, ok := o.d.text(o.take(key), o.child(key))
	if !ok {
		return
	}
	v, err := time.ParseDuration(s)
	switch {
	case err != nil:
		o.d.report(o.child(key), "%s is not a duration (such as 15s, 30m, 168h)", quote(s))
	case v < least || v > most:
		o.d.report(o.child(key), "%s is not from %s to %s", s, durationString(least), durationString(most))
	default:
		*into = v
	}
}

// durationString is what a person writes: 1177s, 168h.
func durationString(v time.Duration) string {
	switch {
	case v == 0 || v%time.Second != 0:
		return v.String()
	case v%time.Hour == 0:
		return strconv.FormatInt(int64(v/time.Hour), 10) + "h"
	case v%time.Minute == 0:
		return strconv.FormatInt(int64(v/time.Minute), 10) + "m"
	}
	return strconv.FormatInt(int64(v/time.Second), 10) + "s"
}
