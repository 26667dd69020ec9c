package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
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
	for try := 1; ; try++ {
		j, err := Open(Options{Dir: dir, ReadOnly: true})
		again := errors.Is(err, fs.ErrNotExist) // the daemon removed a file after it was listed
		if err == nil {
			again = j.overtaken()
		} else if _, gone := os.Stat(dir); gone != nil {
			again = false
		}
		if !again || try == lookTries {
			return j, err
		}
		if err == nil {
			j.Close()
		}
		time.Sleep(time.Duration(try) * time.Millisecond)
	}
}

// lookTries is how often a look at a running journal is begun anew when the daemon went on meanwhile.
const lookTries = 10

// overtaken says whether the daemon began a segment while the folder was read, or used a file again that was.
func (j *Journal) overtaken() bool {
	if j.rolling {
		return true
	}
	for _, g := range j.segments {
		if g.absent {
			continue
		}
		f, release, err := j.files.get(g.slot)
		if err != nil {
			return true
		}
		again := usedAgain(f, g)
		release()
		if again {
			return true
		}
	}
	return false
}

// pruned: the running daemon has removed a file since the journal was opened for inspection.
func (j *Journal) pruned(err error) bool { return j.o.ReadOnly && errors.Is(err, fs.ErrNotExist) }

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
		var m Message
		err := q.scan(uint8(c), func(e entry) error {
			s, err := q.j.readRecord(e, &m)
			if err != nil {
				return err
			}
			it := Item{Identity: q.name, State: Waiting, Message: m}
			it.Seq = e.seq
			it.Accepted, it.AcceptedTrusted = q.j.accepted(&s.base, s.dt)
			return visit(it)
		})
		if err != nil {
			return err
		}
	}
	return q.scan(asideClass, func(e entry) error {
		a, _, err := q.asideAt(e)
		if err != nil {
			return err
		}
		return visit(Item{Identity: q.name, State: SetAside, Reason: a.Reason, Message: a.Message})
	})
}

// scan visits what waits in a lane without taking it into the window: a run of records at a time. What turns out damaged (Verify tells) or was pruned by a
// running daemon is left out.
func (q *Queue) scan(class uint8, visit func(entry) error) error {
	var after uint64
	for {
		q.mu.Lock()
		l := q.lanes[class]
		var x *extent
		if l != nil {
			x = l.after(max(after, l.water))
		}
		if x == nil {
			q.mu.Unlock()
			return nil
		}
		e := *x
		e.seg.pins.Add(1)
		q.mu.Unlock()
		err := q.scanExtent(l, &e, after, visit)
		e.seg.unpin()
		if err != nil && !q.j.pruned(err) {
			return err
		}
		after = e.last()
	}
}

func (q *Queue) scanExtent(l *lane, e *extent, after uint64, visit func(entry) error) error {
	q.mu.Lock()
	var recs []rec
	if e.run != nil {
		recs = e.run.all(e.count) // as of now: it may grow
	}
	q.mu.Unlock()
	if e.run == nil {
		var err error
		if recs, err = q.j.readList(q, l.class, e); err != nil {
			return err
		}
	}
	for i, r := range recs {
		seq := e.first + uint64(r.seq)
		q.mu.Lock()
		waits := seq > after && l.waits(seq)
		q.mu.Unlock()
		if !waits {
			continue
		}
		alone := (i == 0 || recs[i-1].frame != r.frame) && (i+1 == len(recs) || recs[i+1].frame != r.frame)
		err := visit(entry{seq: seq, seg: e.seg, frame: r.frame, item: r.item, size: r.size, alone: alone})
		if err != nil && !errors.Is(err, errDamaged) && !q.j.pruned(err) {
			return err
		}
	}
	return nil
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
	return j.eachAside(identity, seqs, (*Queue).Requeue)
}

// DropAside forgets messages that were set aside: those of seqs, or all when there are none. It returns how many. They count as dropped (removed);
// a crash right after may bring them back.
func (j *Journal) DropAside(identity string, seqs ...uint64) (int, error) {
	if j.o.ReadOnly {
		return 0, ErrReadOnly
	}
	return j.eachAside(identity, seqs, (*Queue).dropAside)
}

func (j *Journal) eachAside(identity string, seqs []uint64, do func(*Queue, uint64) error) (int, error) {
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
		if err := do(q, s); err != nil {
			return n, err
		}
	}
	return len(seqs), nil
}
