package downstream

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/itchyny/gojq"

	"gatewayd/internal/queue"
)

// Bounds of the programs of a route, for one message. The time is looked at
// between the steps of a program: a single step, such as repeating a string, ends
// by itself.
const (
	programTime     = 250 * time.Millisecond // for all programs of the route together
	programProperty = 4096                   // bytes of a property's value
)

// gzipLeast is the size below which compressing is not tried: the header and
// trailer alone take 18 bytes.
const gzipLeast = 64

// OnError says what becomes of a message for which a route's program fails.
type OnError uint8

// The choices. All acknowledge the message to the sensor, because sending it
// again would fail again.
const (
	ErrorSetAside OnError = iota // kept in the identity's queue, out of the way
	ErrorDrop
	ErrorPass // sent as it came, without what the programs would have changed
)

// errProgram is a program that failed for a message.
var errProgram = errors.New("program failed")

// programs is what a route does with a message after its identity is known.
type programs struct {
	filter    *gojq.Code
	transform *gojq.Code
	set       []propertyProgram
	onError   OnError
	gzip      bool
	writers   sync.Pool // of *gzip.Writer, which are large
	changes   *changes  // nil = every message passes
	counts    routeCounts

	labelType, labelEncoding bool // a new body is labelled as JSON, because nobody wrote a label down
}

type propertyProgram struct {
	key  string
	code *gojq.Code
}

// compilePrograms returns nil for a route that leaves messages as they are.
func compilePrograms(r Route) (*programs, []error) {
	if r.Filter == "" && r.Transform == "" && len(r.Set) == 0 && !r.Gzip && !r.OnlyChanges.wanted() {
		return nil, nil
	}
	var problems []error
	code := func(key, text string) *gojq.Code {
		if text == "" {
			return nil
		}
		c, err := compileProgram(text)
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", key, err))
		}
		return c
	}
	p := &programs{
		onError: r.OnError, gzip: r.Gzip, changes: newChanges(r.OnlyChanges),
		labelType: r.TypeAssumed, labelEncoding: r.EncodingAssumed,
	}
	p.filter = code("filter", r.Filter)
	p.transform = code("transform", r.Transform)
	for key, text := range r.Set {
		if err := CheckProperty(key); err != nil {
			problems = append(problems, fmt.Errorf("set: %w", err))
		}
		p.set = append(p.set, propertyProgram{key, code("set."+key, text)})
	}
	slices.SortFunc(p.set, func(a, b propertyProgram) int { return cmp.Compare(a.key, b.key) })
	p.writers.New = func() any { return gzip.NewWriter(io.Discard) }
	return p, problems
}

// programVariables are what a program knows beside the body.
func programVariables() []string { return []string{"$topic", "$properties"} }

// compileProgram admits no modules, no files and no environment: a program sees
// the message only.
func compileProgram(text string) (*gojq.Code, error) {
	q, err := gojq.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("not a jq program: %w", err)
	}
	if err := bound(q); err != nil {
		return nil, fmt.Errorf("not a jq program: %w", err)
	}
	prelude, err := gojq.Parse(boundPrelude() + ".")
	if err != nil {
		return nil, err
	}
	q.FuncDefs = append(prelude.FuncDefs, q.FuncDefs...)
	c, err := gojq.Compile(q, append(boundFunctions(), gojq.WithVariables(programVariables()))...)
	if err != nil {
		return nil, fmt.Errorf("not a jq program: %w", err)
	}
	return c, nil
}

// fate is what the programs decided about a message.
type fate uint8

const (
	fateSend      fate = iota
	fateUnwanted       // the filter said no
	fateUnchanged      // only_changes said no
	fateFailed
)

// outcome is what a message became.
type outcome struct {
	fate   fate
	m      queue.Message // for fateSend
	mark   mark          // for only_changes, once m is stored
	reason error         // for fateFailed
}

// apply runs the programs over a message whose route has described it. The error
// is ctx's; a program that fails is an outcome.
func (p *programs) apply(ctx context.Context, m queue.Message, most int) (outcome, error) {
	body := value{raw: m.Payload}
	if p.filter != nil || p.transform != nil || len(p.set) > 0 {
		limited, cancel := context.WithTimeout(ctx, programTime)
		f, err := p.run(limited, &m, &body, most)
		cancel()
		switch {
		case err != nil && ctx.Err() != nil:
			return outcome{}, ctx.Err()
		case err != nil:
			return outcome{fate: fateFailed, reason: err}, nil
		case f != fateSend:
			return outcome{fate: f}, nil
		}
	}
	out := outcome{m: m}
	if p.changes != nil {
		var pass bool
		if out.mark, pass = p.changes.look(m.Topic, &body, time.Now()); !pass {
			return outcome{fate: fateUnchanged}, nil
		}
	}
	if p.gzip {
		p.compress(&out.m)
	}
	return out, nil
}

// run executes the jq programs, all over the body as it came.
func (p *programs) run(ctx context.Context, m *queue.Message, body *value, most int) (fate, error) {
	v, err := body.json()
	if err != nil {
		return fateFailed, fmt.Errorf("%w: the body is not JSON", errProgram)
	}
	vars := []any{m.Topic, propertyObject(m.Properties)}
	if p.filter != nil {
		switch got, some, err := first(ctx, p.filter, v, vars); {
		case err != nil:
			return fateFailed, fmt.Errorf("filter: %w", err)
		case !some || got == nil || got == false:
			return fateUnwanted, nil
		}
	}
	var set []queue.Property
	for _, s := range p.set {
		got, some, err := first(ctx, s.code, v, vars)
		if err != nil {
			return fateFailed, fmt.Errorf("set.%s: %w", s.key, err)
		}
		if !some || got == nil {
			continue
		}
		text := ""
		fits := left(programProperty+2, got) >= 0 // a string stands there without quotes
		if fits {
			text = propertyText(got)
		}
		if !fits || len(text) > programProperty {
			return fateFailed, fmt.Errorf("set.%s: %w: the result is longer than %d bytes", s.key, errProgram, programProperty)
		}
		set = append(set, queue.Property{Key: s.key, Value: text})
	}
	if p.transform != nil {
		got, some, err := only(ctx, p.transform, v, vars)
		if err != nil {
			return fateFailed, fmt.Errorf("transform: %w", err)
		}
		if !some {
			return fateUnwanted, nil
		}
		var raw []byte
		if left(most, got) >= 0 {
			raw, err = gojq.Marshal(got)
		}
		if err != nil || raw == nil || len(raw) > most {
			return fateFailed, fmt.Errorf("transform: %w: the result is larger than %d bytes", errProgram, most)
		}
		*body = value{raw: raw, decoded: got, ready: true}
		m.Payload = raw
		// Whatever the sensor said of its own body, this is another one.
		if p.labelType {
			m.ContentType = "application/json"
		}
		if p.labelEncoding {
			m.ContentEncoding = "utf-8"
		}
	}
	m.Properties = overlay(m.Properties, set)
	return fateSend, nil
}

// first is the first result of a program, if there is one.
func first(ctx context.Context, code *gojq.Code, v any, vars []any) (got any, some bool, err error) {
	return results(ctx, code, v, vars, 1)
}

// only is the single result of a program: a message becomes one message.
func only(ctx context.Context, code *gojq.Code, v any, vars []any) (got any, some bool, err error) {
	return results(ctx, code, v, vars, 2)
}

// results takes up to most results and returns the first; a second one is a fault.
func results(ctx context.Context, code *gojq.Code, v any, vars []any, most int) (got any, some bool, err error) {
	// What the library does not expect in a sensor's body must not end the process.
	defer func() {
		if r := recover(); r != nil {
			got, some, err = nil, false, fmt.Errorf("%w: %v", errProgram, r)
		}
	}()
	iter := code.RunWithContext(ctx, v, vars...)
	for n := range most {
		next, ok := iter.Next()
		if !ok {
			break
		}
		if err, failed := next.(error); failed {
			return nil, false, explainProgram(err)
		}
		if n == 1 {
			return nil, false, fmt.Errorf("%w: more than one result, a message becomes one message", errProgram)
		}
		got, some = next, true
	}
	return got, some, nil
}

func explainProgram(err error) error {
	var halt *gojq.HaltError
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%w: it takes longer than %v", errProgram, programTime)
	case errors.As(err, &halt) && halt.Value() == nil:
		return fmt.Errorf("%w: halted", errProgram)
	}
	return fmt.Errorf("%w: %s", errProgram, clip(err.Error()))
}

// propertyText is a string as it is and everything else as JSON.
func propertyText(v any) string {
	if s, ok := v.(string); ok {
		return strings.ToValidUTF8(s, "\uFFFD")
	}
	raw, err := gojq.Marshal(v)
	if err != nil {
		return ""
	}
	return string(raw)
}

func propertyObject(all []queue.Property) map[string]any {
	object := make(map[string]any, len(all))
	for _, p := range all {
		object[p.Key] = p.Value
	}
	return object
}

// overlay puts properties over others of the same name. base is shared.
func overlay(base, over []queue.Property) []queue.Property {
	if len(over) == 0 {
		return base
	}
	merged := slices.Clone(base)
	for _, p := range over {
		i := slices.IndexFunc(merged, func(q queue.Property) bool { return q.Key == p.Key })
		if i >= 0 {
			merged[i].Value = p.Value
		} else {
			merged = append(merged, p)
		}
	}
	return merged
}

// value is a body that is decoded at most once.
type value struct {
	raw     []byte
	decoded any
	ready   bool
	err     error
}

// json keeps numbers as they are written, so that a body which only passes
// through a program loses no digits.
func (v *value) json() (any, error) {
	if !v.ready {
		v.ready = true
		d := json.NewDecoder(bytes.NewReader(v.raw))
		d.UseNumber()
		if v.err = d.Decode(&v.decoded); v.err == nil {
			if _, err := d.Token(); err != io.EOF {
				v.decoded, v.err = nil, errors.New("more than one JSON value")
			}
		}
	}
	return v.decoded, v.err
}

// compress replaces the payload where that saves something. The encoding says so.
func (p *programs) compress(m *queue.Message) {
	if len(m.Payload) < gzipLeast || m.ContentEncoding == "gzip" {
		return
	}
	var out bytes.Buffer
	w := p.writers.Get().(*gzip.Writer)
	w.Reset(&out)
	_, err := w.Write(m.Payload)
	if err == nil {
		err = w.Close()
	}
	w.Reset(io.Discard)
	p.writers.Put(w)
	if err != nil || out.Len() >= len(m.Payload) {
		return
	}
	m.Payload, m.ContentEncoding = out.Bytes(), "gzip"
}
