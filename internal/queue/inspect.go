package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
	"unicode/utf8"
)

// State says where a stored message stands.
type State string

// The states of Item.
const (
	Waiting  State = "waiting"
	SetAside State = "aside"
)

// Item is one stored message as inspection shows it.
type Item struct {
	Identity string
	State    State
	Reason   string // why it was set aside
	Message
}

// Summary is one line of a list of queues.
type Summary struct {
	Identity string
	Stats
}

// OpenForReading opens the journal in dir for inspection: it takes no lock and changes nothing, so it may stand beside a running daemon. It shows the
// moment it was opened; what the daemon has pruned since is left out.
func OpenForReading(dir string) (*Journal, error) {
	return Open(Options{Dir: dir, ReadOnly: true})
}

// List summarises all queues that have state on disk, by name.
func (j *Journal) List() []Summary {
	var list []Summary
	for _, n := range j.Identities() {
		j.mu.Lock()
		q := j.queues[n]
		j.mu.Unlock()
		list = append(list, Summary{n, q.Stats()})
	}
	return list
}

// Each calls visit for every stored message of an identity ("" = of all): those that wait in the order in which they would be delivered, then those that
// were set aside. It stops at the first error of visit. Acknowledged messages are not shown although their bytes may still be there.
func (j *Journal) Each(identity string, visit func(Item) error) error {
	names := j.Identities()
	if identity != "" {
		if !slices.Contains(names, identity) {
			return fmt.Errorf("queue %q: %w", identity, ErrNotFound)
		}
		names = []string{identity}
	}
	for _, n := range names {
		j.mu.Lock()
		q := j.queues[n]
		j.mu.Unlock()
		if err := q.each(visit); err != nil {
			return err
		}
	}
	return nil
}

func (q *Queue) each(visit func(Item) error) error {
	for c := int(MaxPriority); c >= 0; c-- {
		_, _, err := q.find(uint8(c), func(e entry) (bool, error) {
			var m Message
			s, err := q.j.readRecord(e, &m)
			if errors.Is(err, errDamaged) {
				return false, nil // Verify tells; a running daemon may also have pruned it
			}
			if err != nil {
				return false, err
			}
			m.Seq = e.seq
			m.Accepted, m.AcceptedTrusted = q.j.accepted(&s.base, s.dt)
			return false, visit(Item{Identity: q.name, State: Waiting, Message: m})
		})
		if err != nil {
			return err
		}
	}
	_, _, err := q.find(asideClass, func(e entry) (bool, error) {
		a, _, err := q.asideAt(e)
		if errors.Is(err, errDamaged) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		return false, visit(Item{Identity: q.name, State: SetAside, Reason: a.Reason, Message: a.Message})
	})
	return err
}

// exported is one line of an export. Exactly one of payload and payload_base64 is there.
type exported struct {
	Identity        string      `json:"identity"`
	State           State       `json:"state"`
	Reason          string      `json:"reason,omitempty"`
	Seq             uint64      `json:"seq"`
	ID              string      `json:"id"`
	Accepted        time.Time   `json:"accepted"`
	AcceptedTrusted bool        `json:"accepted_trusted"`
	Source          string      `json:"source,omitempty"`
	Topic           string      `json:"topic,omitempty"`
	Route           string      `json:"route,omitempty"`
	ContentType     string      `json:"content_type,omitempty"`
	ContentEncoding string      `json:"content_encoding,omitempty"`
	Output          string      `json:"output,omitempty"`
	Properties      [][2]string `json:"properties,omitempty"`
	Priority        uint8       `json:"priority,omitempty"`
	MaxAge          string      `json:"max_age,omitempty"`
	Payload         *string     `json:"payload,omitempty"`
	PayloadBase64   []byte      `json:"payload_base64,omitempty"`
}

// Export writes the messages of an identity ("" = of all) as JSON lines: payload is text when it is valid UTF-8, payload_base64 otherwise.
func (j *Journal) Export(w io.Writer, identity string) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return j.Each(identity, func(it Item) error { return enc.Encode(it.export()) })
}

func (it *Item) export() exported {
	x := exported{Identity: it.Identity, State: it.State, Reason: it.Reason, Seq: it.Seq, ID: it.ID, Accepted: it.Accepted, AcceptedTrusted: it.AcceptedTrusted,
		Source: it.Source, Topic: it.Topic, Route: it.Route, ContentType: it.ContentType, ContentEncoding: it.ContentEncoding, Output: it.Output, Priority: it.Priority}
	for _, p := range it.Properties {
		x.Properties = append(x.Properties, [2]string{p.Key, p.Value})
	}
	if it.MaxAge > 0 {
		x.MaxAge = it.MaxAge.String()
	}
	if utf8.Valid(it.Payload) {
		s := string(it.Payload)
		x.Payload = &s
	} else {
		x.PayloadBase64 = it.Payload
	}
	return x
}

// MarshalJSON is the form of an export line.
func (it Item) MarshalJSON() ([]byte, error) { return json.Marshal(it.export()) }

// Fault is something that does not check.
type Fault struct {
	File   string
	Offset int64
	What   string
}

func (f Fault) String() string { return fmt.Sprintf("%s at %d: %s", f.File, f.Offset, f.What) }

// Report is the outcome of Verify.
type Report struct {
	Segments int
	Records  uint64 // message records that check, delivered ones that were not pruned yet included
	Messages int64  // of which wait or are kept aside
	Bytes    int64  // checked
	Torn     bool   // the newest segment ends in bytes that were never acknowledged; no fault
	Faults   []Fault
}

// Verify reads every byte of every segment and checks every checksum. It changes nothing.
func (j *Journal) Verify(ctx context.Context) (Report, error) {
	j.mu.Lock()
	segs := slices.Clone(j.segments)
	torn := j.stats.Torn > 0
	j.mu.Unlock()
	r := Report{Segments: len(segs), Torn: torn}
	for _, g := range segs {
		if err := ctx.Err(); err != nil {
			return r, err
		}
		if err := j.verifySegment(g, &r); err != nil {
			return r, err
		}
	}
	for _, s := range j.List() {
		r.Messages += s.Messages + s.Aside
	}
	return r, nil
}

func (j *Journal) verifySegment(g *segment, r *Report) error {
	if g.absent {
		r.Faults = append(r.Faults, Fault{g.slot.name, 0, "may not be read"})
		return nil
	}
	f, release, err := j.files.get(g.slot)
	if err != nil {
		return err
	}
	defer release()
	fault := func(off int64, what string) { r.Faults = append(r.Faults, Fault{g.slot.name, off, what}) }
	b := make([]byte, blockBytes)
	n, err := f.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	switch h, ok := parseSegBlock(b[:n]); {
	case !ok:
		fault(0, "segment header")
	case h.id != g.id:
		return nil // the daemon has used the file again since
	default:
		for _, off := range [...]int{0, segHeaderCopy} {
			if _, ok := parseSegHeader(b[off:n]); !ok {
				fault(int64(off), "one copy of the segment header")
			}
		}
	}
	s := scanner{f: f, salt: g.salt, size: g.slot.size, end: g.end.Load()}
	s.damage = func(off, end int64) { fault(off, fmt.Sprintf("%d bytes of records", end-off)) }
	s.visit = func(it *scanned) {
		if it.kind == itemMessage {
			r.Records++
		}
	}
	end, err := s.run()
	if err != nil {
		return err
	}
	r.Bytes += end
	if place := g.footer.Load(); place != 0 {
		return j.verifyIndex(g, f, place, fault)
	}
	return nil
}

func (j *Journal) verifyIndex(g *segment, f file, place int64, fault func(int64, string)) error {
	b := make([]byte, g.slot.size-place)
	n, err := f.ReadAt(b, place)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	b = b[:n]
	dir, total, ok := footerSize(b, g.end.Load())
	if !ok || total > len(b) {
		fault(place, "index")
		return nil
	}
	if !parseFooter(b[:dir], g.salt, total, func(r footerRun) {
		if _, ok := parseList(b[r.list:r.list+r.listLen], g.salt, int(r.count), nil); !ok {
			fault(place+int64(r.list), "list of the index")
		}
	}) {
		fault(place, "index")
	}
	return nil
}

// Offline opens the journal of a stopped gateway, lets change work on it with the writer running, and closes it again. It returns ErrLocked while the
// gateway runs. It is how commands put messages back or drop a queue:
//
//	queue.Offline(ctx, queue.Options{Dir: dir}, func(j *queue.Journal) error { return j.Drop("press-7") })
func Offline(ctx context.Context, o Options, change func(*Journal) error) error {
	j, err := Open(o)
	if err != nil {
		return err
	}
	run, stop := context.WithCancel(ctx)
	defer stop()
	ran := make(chan error, 1)
	go func() { ran <- j.Run(run) }()
	err = change(j)
	stop()
	return errors.Join(err, <-ran, j.Close())
}

// Requeue puts messages that were set aside back into the queue of an identity: those of seqs, or all when there are none. It returns how many.
func (j *Journal) Requeue(identity string, seqs ...uint64) (int, error) {
	j.mu.Lock()
	q := j.queues[identity]
	j.mu.Unlock()
	if q == nil {
		return 0, fmt.Errorf("queue %q: %w", identity, ErrNotFound)
	}
	if len(seqs) == 0 {
		list, err := q.Aside()
		if err != nil {
			return 0, err
		}
		for i := range list {
			seqs = append(seqs, list[i].Seq)
		}
	}
	for n, s := range seqs {
		if err := q.Requeue(s); err != nil {
			return n, err
		}
	}
	return len(seqs), nil
}
