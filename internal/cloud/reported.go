package cloud

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"

	"gatewayd/internal/downstream"
	"gatewayd/internal/queue"
)

const (
	// maxUnsent bounds patches that cannot be joined and wait for the hub.
	maxUnsent = 16
	// writeAgain is the wait after the disk took nothing.
	writeAgain = 30 * time.Second
)

// reported is the reported section: what the hub has, and what it is still to be
// told.
type reported struct {
	known  []byte   // as the hub last said, and what it has confirmed since; JSON, which is small
	unsent []object // durable; the head may be under way
	// edition is the section's version as local clients see it: the hub's, and one more
	// with every change that it does not know yet. It never goes back.
	edition int64

	// next is unsent with the changes of this step, which are not durable yet.
	next    []object
	changed bool
	waiting []func(int64, error) // who is told when it is

	diskBad bool // said already

	// The gateway's report on itself: the next look at it, the next one that is due
	// in any case, the last one that was sent.
	ownAt, ownDue time.Time
	own           []byte // under way; nil = none
	ownSteady     string // of the last one
}

type reportedFileContent struct {
	Unsent   []json.RawMessage `json:"unsent"`
	Reported json.RawMessage   `json:"reported"`
	Edition  int64             `json:"edition,omitempty"`
}

func (r *reported) restore(f reportedFileContent) {
	for _, b := range f.Unsent {
		if o, err := decodeObject(b); err == nil {
			r.unsent = append(r.unsent, o)
		}
	}
	r.next = slices.Clone(r.unsent)
	if _, err := decodeObject(f.Reported); err == nil {
		r.known = f.Reported
	}
	r.edition = f.Edition
}

// learn merges a confirmed patch into what the hub has.
func (r *reported) learn(patch object) {
	r.known = encode(merge(r.hubs(), patch))
}

// hubs is what the hub has.
func (r *reported) hubs() object {
	o, err := decodeObject(r.known)
	if err != nil {
		return object{} // nothing is known yet
	}
	return o
}

// document is the section as it will be once the hub knows everything.
func (r *reported) document() object {
	doc := r.hubs()
	for _, p := range r.next {
		doc = merge(doc, p)
	}
	return doc
}

// errPatch wraps what is wrong with a patch.
var errPatch = fmt.Errorf("%w: reported properties", downstream.ErrProperty)

// patch takes a patch of reported properties from a local client; done is called
// with their new version after it is synced, or with the reason why it is refused.
// base is the version that it is meant for, 0 = any.
func (id *Identity) patch(body []byte, base int64, done func(int64, error)) {
	t := &id.twin
	if len(body) > maxSection {
		done(0, fmt.Errorf("%w: a patch of %d bytes, the hub allows %d", errPatch, len(body), maxSection))
		return
	}
	if base != 0 && base != t.edition {
		done(0, fmt.Errorf("%w: %d", downstream.ErrVersion, t.edition))
		return
	}
	change, err := decodeObject(body)
	if err == nil {
		err = checkPatch(change)
	}
	if err == nil && id.reports() {
		for _, key := range []string{id.opt().ReportKey, certificateKey} {
			if _, own := change[key]; own {
				err = fmt.Errorf("%q is the gateway's own", key)
			}
		}
	}
	if err == nil {
		if n := len(encode(merge(t.document(), change))); n > maxSection {
			err = fmt.Errorf("they would have %d bytes, the hub allows %d", n, maxSection)
		}
	}
	if err != nil {
		done(0, fmt.Errorf("%w: %w", errPatch, err))
		return
	}
	if !t.add(change) {
		done(0, fmt.Errorf("reported properties: too many changes wait for the hub: %w", queue.ErrFull))
		return
	}
	t.edition++
	edition := t.edition
	t.waiting = append(t.waiting, func(_ int64, err error) { done(edition, err) })
}

// add puts a patch behind those that wait, joined with the last one where that is
// exact. The head stays as it is, because it may be under way.
func (r *reported) add(patch object) bool {
	if n := len(r.next); n > 1 {
		if joined, ok := join(r.next[n-1], patch); ok && len(encode(joined)) <= maxSection {
			r.next = slices.Clone(r.next) // unsent may share its memory
			r.next[n-1] = joined
			r.changed = true
			return true
		}
	}
	if len(r.next) >= maxUnsent {
		return false
	}
	r.next = append(slices.Clone(r.next), patch)
	r.changed = true
	return true
}

// flushTwin makes the changes of a step durable, all with one sync, and then tells
// those who wait. When the disk does not take them they have not happened.
func (id *Identity) flushTwin() {
	t := &id.twin
	if !t.changed {
		return
	}
	err := id.c.files.write(id.opt().Name, reportedFile, t.content())
	if err == nil {
		t.unsent, t.changed, t.diskBad = t.next, false, false
	} else {
		if !t.diskBad {
			t.diskBad = true
			id.log().Warn("reported properties not kept on disk", zap.Error(err))
		}
		// What the hub has confirmed stays confirmed: to tell it again would be harmless.
		t.next = t.unsent
		t.changed = len(t.waiting) == 0
		id.wakeAt(time.Now().Add(writeAgain))
		err = fmt.Errorf("reported properties: %w", queue.ErrDisk)
	}
	waiting := t.waiting
	t.waiting = nil
	for _, done := range waiting {
		done(0, err)
	}
	id.nextTwin()
}

func (r *reported) content() []byte {
	f := reportedFileContent{Unsent: []json.RawMessage{}, Reported: encode(r.hubs()), Edition: r.edition}
	for _, p := range r.next {
		f.Unsent = append(f.Unsent, encode(p))
	}
	return encode(f)
}

// confirmed follows the hub's yes to the head of unsent; version is the hub's, 0 =
// not said.
func (r *reported) confirmed(version int64) {
	r.learn(r.unsent[0])
	r.edition = max(r.edition, version)
	r.dropHead()
}

func (r *reported) dropHead() {
	r.unsent = r.unsent[1:]
	r.next = r.next[1:]
	r.changed = true
}

// patchRefused follows a no that will not change.
func (id *Identity) patchRefused(kind requestKind, status int, body []byte) {
	t := &id.twin
	reason := struct {
		Message string `json:"message"`
	}{}
	_ = json.Unmarshal(body, &reason) // an explanation is welcome and not needed
	if kind == reporting {
		t.own = nil // nor is it tried again before it is due
		t.ownAt = time.Now().Add(id.opt().ReportEvery)
		t.ownDue = t.ownAt
	} else {
		t.dropHead()
	}
	id.log().Warn("the hub refuses reported properties", zap.Int("status", status), zap.String("reason", clip(reason.Message)))
}

func clip(s string) string {
	const most = 200
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}

// ownSettle is how long after a connect the gateway looks whether what it reports on
// itself has changed.
const ownSettle = 5 * time.Second

// certificateKey is the property in which a fleet's operators look for the validity of
// a device's certificate: an object with validFrom and validUntil, as the hub's
// documentation of certificate renewal recommends. It stands beside ReportKey.
const certificateKey = "certificate"

// configKey is the member of a report that says what became of the configuration in
// the desired properties.
const configKey = "config"

// reports says whether the gateway reports on itself.
func (id *Identity) reports() bool { return id.opt().ReportKey != "" && id.c.cfg.Report != nil }

// ownReport is the patch with which the gateway reports on itself; nil when it is
// not due. Between reports only another version, certificate or configuration is worth one: the
// hub bills them.
func (id *Identity) ownReport(now time.Time) []byte {
	t := &id.twin
	if now.Before(t.ownAt) {
		return nil
	}
	report := id.c.cfg.Report(id.opt().Name)
	steady := string(encode([]any{report["version"], report[certificateKey], report[configKey]}))
	if report == nil || now.Before(t.ownDue) && steady == t.ownSteady {
		t.ownAt = now.Add(id.opt().ReportEvery)
		if report != nil {
			t.ownAt = t.ownDue
		}
		return nil
	}
	own := object{id.opt().ReportKey: report}
	if c, ok := report[certificateKey]; ok {
		own[certificateKey] = c
	}
	t.own, t.ownSteady = encode(own), steady
	return t.own
}

func (r *reported) ownConfirmed(version int64, next time.Time) {
	r.edition = max(r.edition, version)
	if own, err := decodeObject(r.own); err == nil {
		r.learn(own)
	}
	r.own, r.ownAt, r.ownDue = nil, next, next
}
