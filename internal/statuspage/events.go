package statuspage

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap/zapcore"
)

// Bounds of what is remembered.
const (
	MaxEvents         = 200
	MaxIdentityEvents = 32

	maxEventFields = 12
	maxEventText   = 300 // bytes of a field's value
)

// Event is a line of the log.
type Event struct {
	Seq      uint64    `json:"seq"`
	At       time.Time `json:"at"`
	Level    string    `json:"level"`
	Part     string    `json:"part"`
	Text     string    `json:"text"`
	Identity string    `json:"identity"`
	Fields   []Field   `json:"fields"`
}

// Field is more about an event.
type Field struct {
	Key   string `json:"k"`
	Value string `json:"v"`
}

// Recorder remembers the latest lines of the log from level info on, whatever level
// is written: the log has one line per change of state, which makes it the history
// of the gateway. It is used by any number of goroutines.
type Recorder struct {
	mu         sync.Mutex
	seq        uint64
	all        ring
	identities map[string]*ring
}

// NewRecorder remembers nothing yet.
func NewRecorder() *Recorder {
	return &Recorder{all: ring{most: MaxEvents}, identities: make(map[string]*ring)}
}

// Core is what a logger writes to as well.
func (r *Recorder) Core() zapcore.Core { return &recorderCore{r: r} }

type recorderCore struct {
	r    *Recorder
	with []zapcore.Field
}

func (c *recorderCore) Enabled(l zapcore.Level) bool { return l >= zapcore.InfoLevel }

func (c *recorderCore) With(fields []zapcore.Field) zapcore.Core {
	return &recorderCore{r: c.r, with: append(c.with[:len(c.with):len(c.with)], fields...)}
}

func (c *recorderCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c *recorderCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	ev := Event{At: e.Time, Level: e.Level.String(), Part: e.LoggerName, Text: e.Message, Fields: []Field{}}
	for _, some := range [][]zapcore.Field{c.with, fields} {
		for _, f := range some {
			if v := fieldText(f); f.Key == "identity" {
				ev.Identity = v
			} else if len(ev.Fields) < maxEventFields {
				ev.Fields = append(ev.Fields, Field{f.Key, v})
			}
		}
	}
	c.r.add(ev)
	return nil
}

func (c *recorderCore) Sync() error { return nil }

func fieldText(f zapcore.Field) string {
	enc := zapcore.NewMapObjectEncoder()
	f.AddTo(enc)
	text := ""
	switch v := enc.Fields[f.Key].(type) {
	case time.Duration:
		text = v.String()
	case time.Time:
		text = v.UTC().Format(time.RFC3339)
	default:
		text = fmt.Sprint(v)
	}
	if len(text) > maxEventText {
		text = strings.ToValidUTF8(text[:maxEventText], "") + "…"
	}
	return text
}

func (r *Recorder) add(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seq++
	e.Seq = r.seq
	r.all.add(e)
	if e.Identity == "" {
		return
	}
	own := r.identities[e.Identity]
	if own == nil {
		own = &ring{most: MaxIdentityEvents}
		r.identities[e.Identity] = own
	}
	own.add(e)
}

// keep forgets the identities that are not among those given.
func (r *Recorder) keep(names map[string]bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name := range r.identities {
		if !names[name] {
			delete(r.identities, name)
		}
	}
}

// since lists the events after seq, the oldest first.
func (r *Recorder) since(seq uint64) []Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.all.since(seq)
}

// of lists the events of one identity, the oldest first.
func (r *Recorder) of(identity string) []Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	if own := r.identities[identity]; own != nil {
		return own.since(0)
	}
	return []Event{}
}

// ring is the latest of many events. It grows to its bound as they come.
type ring struct {
	most   int
	events []Event
	oldest int
}

func (r *ring) add(e Event) {
	if len(r.events) < r.most {
		r.events = append(r.events, e)
		return
	}
	r.events[r.oldest] = e
	r.oldest = (r.oldest + 1) % r.most
}

func (r *ring) since(seq uint64) []Event {
	out := []Event{}
	for i := range r.events {
		if e := r.events[(r.oldest+i)%len(r.events)]; e.Seq > seq {
			out = append(out, e)
		}
	}
	return out
}
