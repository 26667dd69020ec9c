package cloud

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
)

// Limits of a section of the twin, from
// https://learn.microsoft.com/azure/iot-hub/iot-hub-devguide-device-twins.
const (
	maxSection = 32 << 10
	maxKey     = 1 << 10
	maxValue   = 4 << 10
	maxDepth   = 10
	maxInteger = 4503599627370495
	minInteger = -4503599627370496
)

// object is a JSON object, with numbers as they are written.
type object = map[string]any

// decodeObject reads exactly one JSON object.
func decodeObject(b []byte) (object, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, fmt.Errorf("not JSON: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("not JSON: something follows the value")
	}
	o, ok := v.(object)
	if !ok {
		return nil, errors.New("not a JSON object")
	}
	return o, nil
}

// encode writes compact JSON of what decodeObject read, which cannot fail.
func encode(v any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(v)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// merge applies a JSON merge patch (RFC 7396) without changing its arguments.
func merge(base, patch object) object {
	out := make(object, len(base)+len(patch))
	maps.Copy(out, base)
	for k, v := range patch {
		switch v := v.(type) {
		case nil:
			delete(out, k)
		case object:
			old, _ := out[k].(object)
			out[k] = merge(old, v)
		default:
			out[k] = v
		}
	}
	return out
}

// difference is the merge patch that makes after of before.
func difference(before, after object) object {
	out := object{}
	for k, v := range after {
		old, had := before[k]
		next, isObject := v.(object)
		last, wasObject := old.(object)
		switch {
		case had && isObject && wasObject:
			if d := difference(last, next); len(d) > 0 {
				out[k] = d
			}
		case had && bytes.Equal(encode(old), encode(v)):
		default:
			out[k] = v
		}
	}
	for k := range before {
		if _, still := after[k]; !still {
			out[k] = nil
		}
	}
	return out
}

// join makes one patch of two, to be applied one after the other; ok is false when
// no single patch has their effect: an object over something that was first set to
// another thing or removed would keep members that it should not.
func join(first, second object) (out object, ok bool) {
	out = make(object, len(first)+len(second))
	maps.Copy(out, first)
	for k, v := range second {
		old, had := out[k]
		change, isObject := v.(object)
		if !had || !isObject {
			out[k] = v
			continue
		}
		before, wasObject := old.(object)
		if !wasObject {
			return nil, false
		}
		joined, ok := join(before, change)
		if !ok {
			return nil, false
		}
		out[k] = joined
	}
	return out, true
}

// checkPatch says what the hub would refuse in a patch of reported properties.
func checkPatch(o object) error { return checkObject(o, 1) }

func checkObject(o object, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("nested deeper than %d levels", maxDepth)
	}
	for k, v := range o {
		if err := checkKey(k); err != nil {
			return err
		}
		if err := checkValue(v, depth); err != nil {
			return fmt.Errorf("%.80s: %w", k, err)
		}
	}
	return nil
}

func checkKey(k string) error {
	if k == "" || len(k) > maxKey {
		return fmt.Errorf("a name of %d bytes; 1 to %d are allowed", len(k), maxKey)
	}
	for _, r := range k {
		if r == '.' || r == '$' || r == ' ' || r < 0x20 || r >= 0x7f && r < 0xa0 {
			return fmt.Errorf("name %.80q: %q is not allowed in names", k, r)
		}
	}
	return nil
}

func checkValue(v any, depth int) error {
	switch v := v.(type) {
	case object:
		return checkObject(v, depth+1)
	case []any:
		if n := len(encode(v)); n > maxValue {
			return fmt.Errorf("a value of %d bytes; %d are allowed", n, maxValue)
		}
		for _, e := range v {
			if err := checkValue(e, depth); err != nil {
				return err
			}
		}
	case string:
		if len(v) > maxValue {
			return fmt.Errorf("a value of %d bytes; %d are allowed", len(v), maxValue)
		}
	case json.Number:
		return checkNumber(v)
	}
	return nil
}

func checkNumber(n json.Number) error {
	if _, err := n.Float64(); err != nil {
		return fmt.Errorf("number %.40s is out of range", n)
	}
	i, err := n.Int64()
	if !strings.ContainsAny(n.String(), ".eE") && (err != nil || i > maxInteger || i < minInteger) {
		return fmt.Errorf("whole number %.40s is out of range: from %d to %d", n, int64(minInteger), int64(maxInteger))
	}
	return nil
}

// versionOf takes $version out of a section.
func versionOf(section object) int64 {
	n, ok := section["$version"].(json.Number)
	if !ok {
		return 0
	}
	v, err := n.Int64()
	if err != nil {
		return 0
	}
	return v
}

// withoutOwn is a section without the names that are the hub's own.
func withoutOwn(section object) object {
	out := make(object, len(section))
	for k, v := range section {
		if !strings.HasPrefix(k, "$") {
			out[k] = v
		}
	}
	return out
}
