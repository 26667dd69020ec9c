package statuspage

import (
	"bytes"
	"context"
	"encoding/json"
	"time"
)

// How often there is something new.
const (
	feedEvery   = 2 * time.Second
	sampleEvery = time.Minute
)

// MaxReaders bounds the pages that are open at the same time.
const MaxReaders = 32

// snapshot is one View, encoded piece by piece, so that the next one knows what has
// changed. It is immutable.
type snapshot struct {
	seq        uint64
	now        time.Time
	head       []byte
	identities []row
	others     []byte // routes, sources, listeners
	lastEvent  uint64
	rolled     bool // a minute of the charts has just ended

	full  []byte // everything, with charts
	delta []byte // what has changed since the snapshot before
}

// row is an encoded object of a list, with its key.
type row struct {
	key  string
	json []byte
}

// message is what the page gets, whole or in part. What is left out has not changed.
type message struct {
	Head       json.RawMessage   `json:"head"`
	Identities []json.RawMessage `json:"identities,omitempty"`
	Order      []string          `json:"order,omitempty"` // names of all identities, when one has come or gone
	Charts     map[string]*chart `json:"charts,omitempty"`
	Others     json.RawMessage   `json:"others,omitempty"`
	Events     []Event           `json:"events,omitempty"`
}

// others are lists that rarely change, and are short.
type others struct {
	Routes    []Route    `json:"routes"`
	Sources   []Source   `json:"sources"`
	Listeners []Listener `json:"listeners"`
}

// Run samples and feeds the readers until ctx ends.
func (p *Page) Run(ctx context.Context) error {
	defer close(p.ended)
	sample := time.NewTicker(sampleEvery)
	defer sample.Stop()
	feed := time.NewTicker(feedEvery)
	defer feed.Stop()
	feed.Stop() // until somebody reads
	p.sample()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-sample.C:
			p.sample()
			p.publish(true, true)
		case <-p.joined:
			// Whoever is new gets the whole at once, also the one who is not the first.
			p.publish(true, false)
			feed.Reset(feedEvery)
		case <-feed.C:
			if !p.publish(false, false) {
				feed.Stop()
			}
		}
	}
}

// sample closes a minute of the charts.
func (p *Page) sample() {
	v := p.o.Gateway.View()
	names := make(map[string]bool, len(v.Identities))
	for i := range v.Identities {
		names[v.Identities[i].Name] = true
	}
	p.o.Events.keep(names)
	p.chartsMu.Lock()
	defer p.chartsMu.Unlock()
	p.charts.minute(v.Identities)
}

// publish takes one view for all readers; false: there are none.
func (p *Page) publish(whole, rolled bool) bool {
	if p.readers() == 0 {
		p.latest = nil
		return false
	}
	s := p.encode(p.latest, whole)
	s.rolled = rolled
	p.latest = s
	p.mu.Lock()
	defer p.mu.Unlock()
	for r := range p.subs {
		select {
		case <-r.next: // a reader that is slow misses what is not the latest
		default:
		}
		r.next <- s
	}
	return true
}

// encode makes the snapshot that follows prev. The whole is encoded only when it
// is going to be needed, which readers that have missed one wait for.
func (p *Page) encode(prev *snapshot, whole bool) *snapshot {
	v := p.o.Gateway.View()
	s := &snapshot{seq: 1, now: v.Now, head: encode(v.Head)}
	for i := range v.Identities {
		s.identities = append(s.identities, row{v.Identities[i].Name, encode(v.Identities[i])})
	}
	s.others = encode(others{v.Routes, v.Sources, v.Listeners})
	var known uint64
	if prev != nil {
		s.seq, known = prev.seq+1, prev.lastEvent
	}
	news := dated(p.o.Events.since(known), v.Now)
	s.lastEvent = known
	if len(news) > 0 {
		s.lastEvent = news[len(news)-1].Seq
	}
	if prev == nil || whole || s.seq%wholeEvery == 0 {
		s.full = encode(p.whole(s))
	}
	if prev != nil {
		s.delta = encode(changes(prev, s, news))
	}
	return s
}

// wholeEvery is how many snapshots a reader that has missed one waits at most.
const wholeEvery = 8

func (p *Page) whole(s *snapshot) message {
	m := message{Head: s.head, Others: s.others, Events: dated(p.o.Events.since(0), s.now), Charts: make(map[string]*chart, len(s.identities)),
		Order: keys(s.identities)}
	p.chartsMu.Lock()
	for _, r := range s.identities {
		if c := p.charts.chart(r.key); c != nil {
			m.Charts[r.key] = c
		}
	}
	p.chartsMu.Unlock()
	for _, r := range s.identities {
		m.Identities = append(m.Identities, r.json)
	}
	return m
}

func changes(prev, s *snapshot, news []Event) message {
	m := message{Head: s.head, Events: news}
	m.Identities, m.Order = changed(prev.identities, s.identities)
	if !bytes.Equal(prev.others, s.others) {
		m.Others = s.others
	}
	return m
}

// changed lists the rows that are new or different, and all keys when the set of
// rows or the order is another one.
func changed(before, now []row) (rows []json.RawMessage, all []string) {
	had := make(map[string][]byte, len(before))
	same := len(before) == len(now)
	for i, r := range before {
		had[r.key] = r.json
		same = same && now[i].key == r.key
	}
	for _, r := range now {
		if !bytes.Equal(had[r.key], r.json) {
			rows = append(rows, r.json)
		}
	}
	if !same {
		all = keys(now)
	}
	return rows, all
}

func keys(rows []row) []string {
	all := make([]string, len(rows))
	for i, r := range rows {
		all[i] = r.key
	}
	return all
}

// dated gives events the times that the gateway's clock has for them now.
func dated(all []Event, now time.Time) []Event {
	for i := range all {
		all[i].At = now.Add(-time.Since(all[i].At)).Truncate(time.Second)
	}
	return all
}

// encode never fails for what this package encodes. HTML's characters are escaped,
// as json.Marshal does.
func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		return []byte("null")
	}
	return b
}
