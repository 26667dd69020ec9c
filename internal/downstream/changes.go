package downstream

import (
	"cmp"
	"encoding/json"
	"hash/maphash"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/itchyny/gojq"
)

// OnlyChanges lets a message of a topic pass when it differs from the last one
// that passed, or when that is MaxInterval ago. With the zero value all pass.
type OnlyChanges struct {
	// Deadband is how far any number may move without being a change. With
	// Deadbands only the fields named there, by path, are looked at.
	Deadband    float64
	Deadbands   map[string]float64
	MinInterval time.Duration // changes pass at most this often
	MaxInterval time.Duration // 0 = only changes pass
}

func (c OnlyChanges) wanted() bool {
	return c.Deadband > 0 || len(c.Deadbands) > 0 || c.MinInterval > 0 || c.MaxInterval > 0
}

// Bounds of what is remembered: a topic that was forgotten passes once more.
const (
	changeTopics = 10000
	changeLeaves = 64 // values of one body; further ones count together
)

// changes remembers what passed last, per topic. It is used by any number of
// goroutines.
type changes struct {
	cfg   OnlyChanges
	paths [][]string // of cfg.Deadbands
	bands []float64
	seed  maphash.Seed

	mu   sync.Mutex
	last map[string]passed
}

// passed is a message that is on disk.
type passed struct {
	at     time.Time
	leaves []leaf
}

// leaf is one value of a body, by a hash of its path.
type leaf struct {
	path   uint64
	hash   uint64
	number float64 // NaN = not a number
}

// mark is what to remember once the message is stored. The zero value is nothing.
type mark struct {
	topic string
	passed
}

func newChanges(cfg OnlyChanges) *changes {
	if !cfg.wanted() {
		return nil
	}
	c := &changes{cfg: cfg, seed: maphash.MakeSeed(), last: make(map[string]passed)}
	for path, band := range cfg.Deadbands {
		c.paths, c.bands = append(c.paths, strings.Split(path, ".")), append(c.bands, band)
	}
	return c
}

// look tells whether a message passes. What it is compared with changes only by
// keep: a message that is not stored after all must not make the next one, which
// may be its repetition, look unchanged.
func (c *changes) look(topic string, body *value, now time.Time) (mark, bool) {
	m := mark{topic: topic, passed: passed{at: now, leaves: c.leaves(body)}}
	c.mu.Lock()
	last, known := c.last[topic]
	c.mu.Unlock()
	if !known {
		return m, true
	}
	age := now.Sub(last.at)
	due := c.cfg.MaxInterval > 0 && age >= c.cfg.MaxInterval
	return m, due || age >= c.cfg.MinInterval && c.differ(last.leaves, m.leaves)
}

// keep remembers a message that is stored.
func (c *changes) keep(m mark) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, known := c.last[m.topic]; !known && len(c.last) >= changeTopics {
		c.forgetLocked()
	}
	c.last[strings.Clone(m.topic)] = m.passed
}

// forgetLocked makes room for a sixteenth at once: finding the oldest costs a
// walk over all, which a flood of new topics must not repeat for each.
func (c *changes) forgetLocked() {
	type aged struct {
		topic string
		at    time.Time
	}
	all := make([]aged, 0, len(c.last))
	for topic, p := range c.last {
		all = append(all, aged{topic, p.at})
	}
	slices.SortFunc(all, func(a, b aged) int { return a.at.Compare(b.at) })
	for _, a := range all[:len(all)/16+1] {
		delete(c.last, a.topic)
	}
}

func (c *changes) differ(a, b []leaf) bool {
	if len(a) != len(b) {
		return true
	}
	for i := range a {
		band := c.cfg.Deadband
		if c.bands != nil {
			band = c.bands[i]
		}
		if a[i].path != b[i].path || a[i].differs(b[i], band) {
			return true
		}
	}
	return false
}

func (l leaf) differs(m leaf, band float64) bool {
	if l.hash == m.hash {
		return false
	}
	distance := math.Abs(l.number - m.number)
	return math.IsNaN(distance) || band == 0 || distance > band
}

// leaves lists the values that count, always in the same order.
func (c *changes) leaves(body *value) []leaf {
	v, err := body.json()
	switch {
	case err != nil:
		return []leaf{{hash: maphash.Bytes(c.seed, body.raw), number: math.NaN()}}
	case c.paths == nil:
		w := walker{seed: c.seed}
		w.walk(v, 0)
		return w.leaves
	}
	out := make([]leaf, len(c.paths))
	for i, path := range c.paths {
		out[i] = newLeaf(c.seed, uint64(i), at(v, path))
	}
	return out
}

// at follows a path into objects; what is not there is null.
func at(v any, path []string) any {
	for _, key := range path {
		object, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = object[key]
	}
	return v
}

type walker struct {
	seed   maphash.Seed
	leaves []leaf
}

func (w *walker) walk(v any, path uint64) {
	switch v := v.(type) {
	case map[string]any:
		keys := make([]string, 0, len(v))
		for key := range v {
			keys = append(keys, key)
		}
		slices.SortFunc(keys, cmp.Compare)
		for _, key := range keys {
			w.walk(v[key], mix(path, maphash.String(w.seed, key)))
		}
	case []any:
		for i, item := range v {
			w.walk(item, mix(path, uint64(i)+1))
		}
	default:
		l := newLeaf(w.seed, path, v)
		if len(w.leaves) < changeLeaves {
			w.leaves = append(w.leaves, l)
			return
		}
		rest := &w.leaves[changeLeaves-1]
		rest.path, rest.hash, rest.number = mix(rest.path, l.path), mix(rest.hash, l.hash), math.NaN()
	}
}

func mix(a, b uint64) uint64 { return (a ^ b>>29 ^ b) * 0x9E3779B97F4A7C15 }

func newLeaf(seed maphash.Seed, path uint64, v any) leaf {
	l := leaf{path: path, number: math.NaN()}
	switch v := v.(type) {
	case json.Number:
		l.hash = maphash.String(seed, string(v))
		if f, err := strconv.ParseFloat(string(v), 64); err == nil {
			l.number = f
		}
		return l
	case int, float64, *big.Int:
		l.number, _ = gojq.ToFloat64(v)
	}
	raw, err := gojq.Marshal(v)
	if err == nil {
		l.hash = maphash.Bytes(seed, raw)
	}
	return l
}
