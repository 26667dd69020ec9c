package hubtest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// pair is one decoded property. A key without = has no value at all, which is different from an empty one.
type pair struct {
	key, value []byte
	null       bool
}

// bag is a parsed property bag. It is reused from message to message so that counting allocates nothing; the
// pairs are valid until the next parse.
type bag struct {
	pairs   []pair
	scratch []byte
}

// bagError says which rule a bag breaks, by its number in Violation.Row.
type bagError struct {
	row int
	msg string
}

func (e *bagError) Error() string { return e.msg }

// parse reads k=v&k=v. Every pair that can be read is kept, whatever error is returned for the others. A plus
// is a plus: only %20 is a space.
func (b *bag) parse(s []byte) error {
	b.pairs, b.scratch = b.pairs[:0], b.scratch[:0]
	var first error
	note := func(row int, format string, args ...any) {
		if first == nil {
			first = &bagError{row: row, msg: fmt.Sprintf(format, args...)}
		}
	}
	if i := bytes.IndexAny(s, "/?"); i >= 0 {
		note(35, "property bag has an unescaped %q", s[i])
	}
	for len(s) > 0 {
		var part []byte
		part, s, _ = bytes.Cut(s, []byte{'&'})
		p, err := b.pair(part)
		if err != nil {
			note(35, "property %q: %v", part, err)
			continue
		}
		b.pairs = append(b.pairs, p)
	}
	if key, dup := b.duplicate(); dup {
		note(35, "property %q is given twice", key)
	}
	return first
}

func (b *bag) pair(part []byte) (pair, error) {
	rawKey, rawValue, hasValue := bytes.Cut(part, []byte{'='})
	key, err := b.decode(rawKey)
	if err != nil {
		return pair{}, err
	}
	if len(key) == 0 {
		return pair{}, errors.New("no key")
	}
	value, err := b.decode(rawValue)
	if err != nil {
		return pair{}, err
	}
	if bytes.IndexByte(rawValue, '=') >= 0 {
		return pair{}, errors.New("unescaped = in the value")
	}
	return pair{key: key, value: value, null: !hasValue}, nil
}

func (b *bag) decode(raw []byte) ([]byte, error) {
	if bytes.IndexByte(raw, '%') < 0 {
		return raw, nil
	}
	start := len(b.scratch)
	out, err := unescape(b.scratch, raw)
	if err != nil {
		return nil, err
	}
	b.scratch = out
	if !utf8.Valid(out[start:]) {
		return nil, errors.New("decodes to something that is not UTF-8")
	}
	return out[start:len(out):len(out)], nil
}

// duplicate sorts nothing for the usual handful of properties, and does not fall to quadratic time for a bag
// made to hurt.
func (b *bag) duplicate() (string, bool) {
	if len(b.pairs) <= 16 {
		for i, p := range b.pairs {
			for _, q := range b.pairs[:i] {
				if bytes.Equal(p.key, q.key) {
					return string(p.key), true
				}
			}
		}
		return "", false
	}
	seen := make(map[string]bool, len(b.pairs))
	for _, p := range b.pairs {
		if seen[string(p.key)] {
			return string(p.key), true
		}
		seen[string(p.key)] = true
	}
	return "", false
}

// size is what the bag adds to the size of a message: the values of system properties, names and values of
// the others.
func (b *bag) size() int {
	n := 0
	for _, p := range b.pairs {
		n += len(p.value)
		if !bytes.HasPrefix(p.key, []byte("$.")) {
			n += len(p.key)
		}
	}
	return n
}

func (b *bag) toMap() map[string]string {
	m := make(map[string]string, len(b.pairs)+1)
	for _, p := range b.pairs {
		m[string(p.key)] = string(p.value)
	}
	return m
}

// checkSystem looks at the keys that the hub itself gives a meaning.
func (b *bag) checkSystem() error {
	for _, p := range b.pairs {
		if !bytes.HasPrefix(p.key, []byte("$.")) {
			continue
		}
		if !knownSystemKey(p.key[2:]) {
			return &bagError{row: 37, msg: fmt.Sprintf("unknown system property %q", p.key)}
		}
		if string(p.key) == "$.mid" && !validMessageID(p.value) {
			return &bagError{row: 38, msg: fmt.Sprintf("message id %.140q is too long or has foreign characters", p.value)}
		}
	}
	return nil
}

func knownSystemKey(k []byte) bool {
	switch string(k) {
	case "mid", "cid", "uid", "to", "exp", "ct", "ce", "on", "ctime", "sub", "ifid", "schema", "cdid", "cmid",
		"diagid", "diagctx":
		return true
	}
	return false
}

func validMessageID(id []byte) bool {
	if len(id) > 128 {
		return false
	}
	for _, c := range id {
		if !idByte(c, "-:.+%_#*?!(),=@;$'") {
			return false
		}
	}
	return true
}

// idByte tells whether c is an ASCII letter or digit or one of the extra characters.
func idByte(c byte, extra string) bool {
	return c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || strings.IndexByte(extra, c) >= 0
}

// unescape appends the percent-decoded form of raw to dst.
func unescape[T string | []byte](dst []byte, raw T) ([]byte, error) {
	dst = slices.Grow(dst, len(raw))
	for i := 0; i < len(raw); i++ {
		if raw[i] != '%' {
			dst = append(dst, raw[i])
			continue
		}
		if i+2 >= len(raw) {
			return nil, errors.New("percent escape is cut off")
		}
		hi, lo := unhex(raw[i+1]), unhex(raw[i+2])
		if hi > 15 || lo > 15 {
			return nil, fmt.Errorf("percent escape %q is not hexadecimal", string(raw[i:i+3]))
		}
		dst = append(dst, hi<<4|lo)
		i += 2
	}
	return dst, nil
}

func unhex(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10
	}
	return 0xff
}

// escape appends s percent-encoded for a bag, as the hub writes bags: everything but unreserved characters of
// RFC 3986, hence $ as %24.
func escape(dst []byte, s string) []byte {
	const digits = "0123456789ABCDEF"
	for i := range len(s) {
		if c := s[i]; idByte(c, "-._~") {
			dst = append(dst, c)
		} else {
			dst = append(dst, '%', digits[c>>4], digits[c&15])
		}
	}
	return dst
}
