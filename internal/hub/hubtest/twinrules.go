package hubtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Limits of a twin section, from the hub's device twin guide.
const (
	maxSection = 32 << 10
	maxKey     = 1 << 10
	maxValue   = 4 << 10
	maxDepth   = 10
	maxInteger = 4503599627370495
	minInteger = -4503599627370496
)

var errSectionSize = errors.New("section larger than 32 KB")

func decodeObject(b []byte) (map[string]any, error) {
	v, err := decodeJSON(b)
	if err != nil {
		return nil, err
	}
	o, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New("not a JSON object")
	}
	return o, nil
}

func checkPatch(change map[string]any) error { return checkObject(change, 1) }

func checkObject(o map[string]any, depth int) error {
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
		return fmt.Errorf("key of %d bytes", len(k))
	}
	for _, r := range k {
		if r == '.' || r == '$' || r == ' ' || r < 0x20 || r >= 0x7f && r < 0xa0 {
			return fmt.Errorf("key %.80q has the forbidden character %q", k, r)
		}
	}
	return nil
}

func checkValue(v any, depth int) error {
	switch v := v.(type) {
	case map[string]any:
		return checkObject(v, depth+1)
	case []any:
		if n := len(encode(v)); n > maxValue {
			return fmt.Errorf("value of %d bytes", n)
		}
		for _, e := range v {
			if err := checkValue(e, depth); err != nil {
				return err
			}
		}
	case string:
		if len(v) > maxValue {
			return fmt.Errorf("value of %d bytes", len(v))
		}
	case json.Number:
		if _, err := v.Float64(); err != nil {
			return fmt.Errorf("number %.40s is out of range", v)
		}
		n, err := v.Int64()
		if !strings.ContainsAny(v.String(), ".eE") && (err != nil || n > maxInteger || n < minInteger) {
			return fmt.Errorf("integer %.40s is out of range", v)
		}
	}
	return nil
}

// decodeJSON reads exactly one JSON value and keeps numbers as they are written.
func decodeJSON(b []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, fmt.Errorf("not JSON: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("not JSON: something follows the value")
	}
	return v, nil
}
