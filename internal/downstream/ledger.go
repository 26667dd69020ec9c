package downstream

import (
	"cmp"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

var errRate = errors.New("more messages than the rate limit allows")

// Reason names why messages are refused; the values are label values of
// gatewayd_messages_refused_total.
type Reason uint8

// The reasons.
const (
	ReasonNoRoute Reason = iota
	ReasonFull
	ReasonTooLarge
	ReasonTopic
	ReasonNotAllowed
	ReasonProperty
	ReasonRate
	ReasonUnavailable
	reasons
)

var reasonNames = [reasons]string{"no_route", "full", "too_large", "topic", "not_allowed", "property", "rate", "unavailable"}

func (r Reason) String() string { return reasonNames[r%reasons] }

// Bounds of the ledger's default size.
const (
	defaultClients  = 20000
	defaultPrefixes = 1000
	prefixLevels    = 2
)

// Others is the name under which is counted what the ledger has no room for.
const Others = "(others)"

// Ledger counts messages per kind of source, per client and per topic prefix (the
// first two levels). It remembers a bounded number of each and evicts the client
// not seen for longest; prefixes beyond the bound count as Others, because the
// first ones say what is normal. It is used by any number of goroutines.
type Ledger struct {
	maxClients, maxPrefixes int

	mu       sync.Mutex
	sources  map[string]*Source
	clients  map[clientKey]*Client
	prefixes map[string]*tally
}

type clientKey struct{ source, name string }

// NewLedger makes a ledger for at most so many clients and topic prefixes; zero
// means 20,000 and 1,000.
func NewLedger(clients, prefixes int) *Ledger {
	if clients <= 0 {
		clients = defaultClients
	}
	if prefixes <= 0 {
		prefixes = defaultPrefixes
	}
	return &Ledger{
		maxClients: clients, maxPrefixes: prefixes,
		sources: make(map[string]*Source), clients: make(map[clientKey]*Client), prefixes: make(map[string]*tally),
	}
}

// tally counts one thing. Times are Unix milliseconds.
type tally struct {
	messages, bytes, refused atomic.Uint64
	seen                     atomic.Int64
}

func (t *tally) add(bytes int, now int64) {
	t.messages.Add(1)
	t.bytes.Add(uint64(bytes))
	t.seen.Store(now)
}

func (t *tally) refuse(now int64) {
	t.refused.Add(1)
	t.seen.Store(now)
}

// Source counts what one kind of source (mqtt, http, broker, ...) received.
type Source struct {
	name     string
	ledger   *Ledger
	received atomic.Uint64
	refused  [reasons]atomic.Uint64
}

// Client is one sensor as a source knows it. It stays usable after the ledger
// has forgotten it.
type Client struct {
	source *Source
	name   string
	tally
	prefix atomic.Pointer[prefixEntry]
}

// prefixEntry remembers the latest prefix of a client, which is nearly always
// the next one too.
type prefixEntry struct {
	name string
	*tally
}

// Source returns the counters of a kind of source, made on first use.
func (l *Ledger) Source(name string) *Source {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.sources[name]
	if s == nil {
		s = &Source{name: name, ledger: l}
		l.sources[name] = s
	}
	return s
}

// Client returns the counters of a sensor, made on first use.
func (s *Source) Client(name string) *Client {
	l := s.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	key := clientKey{s.name, name}
	c := l.clients[key]
	if c == nil {
		if len(l.clients) >= l.maxClients {
			l.evictLocked()
		}
		c = &Client{source: s, name: name}
		l.clients[key] = c
	}
	c.seen.Store(nowMillis())
	return c
}

// evictLocked forgets the oldest sixteenth at once: finding them costs a walk
// over all, which a flood of new names must not repeat for each.
func (l *Ledger) evictLocked() {
	type aged struct {
		key  clientKey
		seen int64
	}
	all := make([]aged, 0, len(l.clients))
	for key, c := range l.clients {
		all = append(all, aged{key, c.seen.Load()})
	}
	slices.SortFunc(all, func(a, b aged) int { return cmp.Compare(a.seen, b.seen) })
	for _, a := range all[:len(all)/16+1] {
		delete(l.clients, a.key)
	}
}

// Name is how the sensor calls itself.
func (c *Client) Name() string { return c.name }

func (c *Client) received(topic string, bytes int) {
	now := nowMillis()
	c.source.received.Add(1)
	c.add(bytes, now)
	c.prefixOf(topic).add(bytes, now)
}

func (c *Client) refused(topic string, err error) {
	now := nowMillis()
	c.source.refused[reasonOf(err)].Add(1)
	c.refuse(now)
	c.prefixOf(topic).refuse(now)
}

func (c *Client) prefixOf(topic string) *tally {
	name := prefixOf(topic)
	if p := c.prefix.Load(); p != nil && p.name == name {
		return p.tally
	}
	// A copy, so that the tables do not hold on to whole topics.
	name = strings.Clone(name)
	t := c.source.ledger.prefix(name)
	c.prefix.Store(&prefixEntry{name, t})
	return t
}

func (l *Ledger) prefix(name string) *tally {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t := l.prefixes[name]; t != nil {
		return t
	}
	if len(l.prefixes) >= l.maxPrefixes {
		name = Others
	}
	t := l.prefixes[name]
	if t == nil {
		t = new(tally)
		l.prefixes[name] = t
	}
	return t
}

func prefixOf(topic string) string {
	levels := 0
	for i := 0; i < len(topic); i++ {
		if topic[i] == '/' {
			if levels++; levels == prefixLevels {
				return topic[:i]
			}
		}
	}
	return topic
}

// Count is a row of the ledger.
type Count struct {
	Source   string    `json:"source,omitempty"`
	Name     string    `json:"name"`
	Messages uint64    `json:"messages"`
	Bytes    uint64    `json:"bytes"`
	Refused  uint64    `json:"refused"`
	LastSeen time.Time `json:"last_seen"`
}

// SourceCount is what one kind of source received and refused since start.
type SourceCount struct {
	Source   string            `json:"source"`
	Received uint64            `json:"received"`
	Refused  map[string]uint64 `json:"refused"` // every reason, zeros too
}

// Sources lists the kinds of sources by name.
func (l *Ledger) Sources() []SourceCount {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]SourceCount, 0, len(l.sources))
	for _, s := range l.sources {
		row := SourceCount{Source: s.name, Received: s.received.Load(), Refused: make(map[string]uint64, reasons)}
		for r := range reasons {
			row.Refused[r.String()] = s.refused[r].Load()
		}
		out = append(out, row)
	}
	slices.SortFunc(out, func(a, b SourceCount) int { return strings.Compare(a.Source, b.Source) })
	return out
}

// Clients lists at most limit clients, the latest seen first.
func (l *Ledger) Clients(limit int) []Count {
	l.mu.Lock()
	rows := make([]Count, 0, len(l.clients))
	for key, c := range l.clients {
		rows = append(rows, c.row(key.source, key.name))
	}
	l.mu.Unlock()
	return latest(rows, limit)
}

// Size is how many clients are remembered.
func (l *Ledger) Size() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.clients)
}

// Prefixes lists at most limit topic prefixes, the latest seen first.
func (l *Ledger) Prefixes(limit int) []Count {
	l.mu.Lock()
	rows := make([]Count, 0, len(l.prefixes))
	for name, t := range l.prefixes {
		rows = append(rows, t.row("", name))
	}
	l.mu.Unlock()
	return latest(rows, limit)
}

func (t *tally) row(source, name string) Count {
	return Count{
		Source: source, Name: name, Messages: t.messages.Load(), Bytes: t.bytes.Load(),
		Refused: t.refused.Load(), LastSeen: time.UnixMilli(t.seen.Load()).UTC(),
	}
}

func latest(rows []Count, limit int) []Count {
	slices.SortFunc(rows, func(a, b Count) int {
		return cmp.Or(b.LastSeen.Compare(a.LastSeen), strings.Compare(a.Name, b.Name))
	})
	return rows[:min(limit, len(rows))]
}

func nowMillis() int64 { return time.Now().UnixMilli() }
