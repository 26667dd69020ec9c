package cloud

import (
	"cmp"
	"encoding/json"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"go.uber.org/zap"

	"gatewayd/internal/hub"
)

const (
	twinTimeout  = 30 * time.Second // for the hub to answer
	twinRetryMin = time.Second
	twinRetryMax = 2 * time.Minute
	// maxPatches bounds desired changes that wait for the document they belong to.
	maxPatches = 100
)

// twin is the state of an identity's twin. One request is under way at a time, so
// that the order of what the hub is told is the order of what was asked.
type twin struct {
	link hub.Link // nil = none yet

	// The desired section, as published: raw has $version. version is 0 while nothing
	// is known.
	raw     []byte
	version int64
	early   []desiredPatch // came before the document, or over a gap
	needGet bool

	request requestKind // under way; idle = none
	rid     string
	lastRID uint64
	due     time.Time // for its answer
	retryAt time.Time
	fails   int

	asking []twinAsker // clients that wait for the document

	reported
}

type requestKind uint8

const (
	idle requestKind = iota
	getting
	patching  // the head of unsent
	reporting // the gateway's own properties
)

type desiredPatch struct {
	version int64
	change  object
}

// restoreTwin reads what an earlier run left. What cannot be read is asked for.
func (id *Identity) restoreTwin(name string) {
	t := &id.twin
	if b := id.c.files.read(name, desiredFile); b != nil {
		if o, err := decodeObject(b); err == nil {
			t.raw, t.version = b, versionOf(o)
		}
	}
	var kept reportedFileContent
	if b := id.c.files.read(name, reportedFile); b != nil && json.Unmarshal(b, &kept) == nil {
		t.restore(kept)
	}
}

const (
	desiredFile  = "desired"
	reportedFile = "reported"
)

// showDesired retains the desired document for local clients.
func (id *Identity) showDesired() {
	if len(id.twin.raw) > 0 {
		id.retain("twin/desired", id.twin.raw)
		if id.c.cfg.Desired != nil {
			id.c.cfg.Desired(id.opt().Name, id.twin.raw)
		}
	}
}

// TellDesired has Config.Desired told once more of what an identity's desired
// properties are, if they are known.
func (c *Cloud) TellDesired(name string) {
	if id, err := c.identity(name); err == nil && id.opt().Twin {
		id.post(id.showDesired)
	}
}

// ReportNow has the gateway look at what it reports on itself for an identity, and
// send it when it has changed, without waiting.
func (c *Cloud) ReportNow(name string) {
	if id, err := c.identity(name); err == nil {
		id.post(func() {
			id.twin.ownAt = time.Now()
			id.nextTwin()
		})
	}
}

// twinConnected begins anew on a link: the subscriptions hold, so that no change
// after the GET is missed.
func (id *Identity) twinConnected(link hub.Link) {
	t := &id.twin
	t.link, t.request, t.needGet, t.early = link, idle, true, nil
	t.fails, t.retryAt = 0, time.Time{}
	// A new connection may be that of a new certificate, which is proved a little
	// later.
	if settled := time.Now().Add(id.c.settle); t.ownAt.IsZero() || settled.Before(t.ownAt) {
		t.ownAt = settled
	}
	id.nextTwin()
}

// nextTwin sends what is to be sent next, if the link is there and free.
func (id *Identity) nextTwin() {
	t := &id.twin
	now := time.Now()
	if t.link == nil || t.request != idle {
		return
	}
	if ended(t.link) {
		t.link = nil
		return
	}
	if now.Before(t.retryAt) {
		id.wakeAt(t.retryAt)
		return
	}
	switch {
	case t.needGet:
		id.sendTwin(getting, twinGet, nil)
	case len(t.unsent) > 0:
		id.sendTwin(patching, twinPatch, encode(t.unsent[0]))
	case id.reports():
		if own := id.ownReport(now); own != nil {
			id.sendTwin(reporting, twinPatch, own)
		} else {
			id.wakeAt(t.ownAt)
		}
	}
}

// sendTwin sends one request, at QoS 0 as the SDKs do.
func (id *Identity) sendTwin(kind requestKind, topic string, body []byte) {
	t := &id.twin
	t.lastRID++
	rid := strconv.FormatUint(t.lastRID, 36)
	switch err := t.link.Publish(topic+rid, body, 0, nil); err {
	case nil:
		t.request, t.rid, t.due = kind, rid, time.Now().Add(twinTimeout)
		id.wakeAt(t.due)
	case hub.ErrLinkEnded:
		t.link = nil
	default:
		id.twinLater()
	}
}

// twinLater backs off after a refusal that may pass.
func (id *Identity) twinLater() {
	t := &id.twin
	t.request = idle
	wait := min(twinRetryMin<<min(t.fails, 10), twinRetryMax)
	t.fails++
	t.retryAt = time.Now().Add(wait/2 + rand.N(wait))
	id.wakeAt(t.retryAt)
}

func (id *Identity) tickTwin(now time.Time) {
	t := &id.twin
	id.answerAskers(now)
	if t.request != idle && !now.Before(t.due) {
		id.twinLater() // QoS 0: the request or its answer may be lost
	} else if t.request != idle {
		id.wakeAt(t.due)
	}
	id.nextTwin()
}

// twinAnswered takes the answer to the request under way; others are late.
func (id *Identity) twinAnswered(link hub.Link, a topic, body []byte) {
	t := &id.twin
	if link != t.link || t.request == idle || a.rid != t.rid {
		return
	}
	kind := t.request
	switch {
	case a.status == 200 && kind == getting:
		id.gotTwin(body)
	case a.status == 200 || a.status == 204:
		t.request, t.fails = idle, 0
		if kind == patching {
			t.confirmed(a.version)
		} else {
			t.ownConfirmed(a.version, time.Now().Add(id.opt().ReportEvery))
		}
	case a.status == 429 || a.status >= 500 || kind == getting:
		if t.fails == 0 {
			id.log().Info("the hub defers a twin request", zap.Int("status", a.status))
		}
		id.twinLater()
		return
	default:
		t.request, t.fails = idle, 0
		id.patchRefused(kind, a.status, body)
	}
	id.nextTwin()
}

// gotTwin takes the whole document. Its version counts even when it is lower than
// what is known: the identity may have been made anew.
func (id *Identity) gotTwin(body []byte) {
	t := &id.twin
	doc, err := decodeObject(body)
	desired, _ := doc["desired"].(object)
	if err != nil || desired == nil {
		id.log().Warn("the hub's twin cannot be read", zap.Error(err))
		id.twinLater()
		return
	}
	t.request, t.fails, t.needGet = idle, 0, false
	if r, ok := doc["reported"].(object); ok {
		t.known = encode(withoutOwn(r))
		// What waits comes on top of the hub's version.
		t.edition = max(t.edition, versionOf(r)+int64(len(t.unsent)))
	}
	early := t.early
	t.early = nil
	id.setDesired(desired, nil)
	slices.SortStableFunc(early, func(a, b desiredPatch) int { return cmp.Compare(a.version, b.version) })
	for _, p := range early {
		id.applyDesired(p)
	}
	id.answerAskers(time.Now())
}

// desiredChanged takes a change of the desired properties.
func (id *Identity) desiredChanged(link hub.Link, at topic, body []byte) {
	t := &id.twin
	change, err := decodeObject(body)
	if err != nil {
		id.log().Warn("a change of desired properties cannot be read", zap.Error(err))
		change = nil
	}
	p := desiredPatch{versionOf(change), change}
	if p.version == 0 {
		p.version = at.version
	}
	if t.link != nil && link != t.link {
		return // of a link that a newer one has replaced; its GET covers the change
	}
	if change == nil || p.version == 0 {
		t.needGet = true
		id.nextTwin()
		return
	}
	id.applyDesired(p)
	id.nextTwin()
}

// applyDesired applies a change that is the next one, forgets an old one, and asks
// for the document again when one is missing in between.
func (id *Identity) applyDesired(p desiredPatch) {
	t := &id.twin
	switch {
	case t.needGet || t.link == nil:
		if len(t.early) < maxPatches {
			t.early = append(t.early, p)
		}
	case p.version <= t.version:
	case p.version > t.version+1:
		t.needGet = true
		t.early = append(t.early, p)
	default:
		base, err := decodeObject(t.raw)
		if err != nil {
			t.needGet = true
			return
		}
		next := merge(base, p.change)
		next["$version"] = json.Number(strconv.FormatInt(p.version, 10))
		id.setDesired(next, p.change)
	}
}

// setDesired makes a document the desired one: on disk, then for local clients. A
// disk that takes nothing keeps nobody from what the hub wants. change is the hub's
// patch that led to it, nil when it came as a whole.
func (id *Identity) setDesired(section, change object) {
	t := &id.twin
	delete(section, "$metadata")
	raw := encode(section)
	t.version = versionOf(section)
	if string(raw) == string(t.raw) {
		return
	}
	err := id.c.files.write(id.opt().Name, desiredFile, raw)
	if err != nil && !t.diskBad {
		id.log().Warn("desired properties not kept on disk", zap.Error(err))
	}
	t.diskBad = err != nil
	if change == nil {
		before, err := decodeObject(t.raw)
		if err != nil {
			before = object{} // nothing was known
		}
		change = difference(before, section)
	}
	t.raw = raw
	id.showDesired()
	id.tellChange(change)
}
