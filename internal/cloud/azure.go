package cloud

import (
	"encoding/json"
	"errors"
	"strconv"
	"time"

	"go.uber.org/zap"

	"gatewayd/internal/downstream"
)

// What Azure SDK clients are served besides what local clients get anyway: the twin
// on request, and changes of desired properties as patches.

const (
	// freshTwin is how long a request for the twin waits for the hub's answer on a new
	// connection before it is answered from the copy.
	freshTwin = 5 * time.Second
	// firstTwin is how long it waits while there is no copy.
	firstTwin = 30 * time.Second
	// maxAskers bounds the requests that wait.
	maxAskers = 16
)

// twinAsker is a client that waits for the twin.
type twinAsker struct {
	reply func(version int64, body []byte)
	done  func(error)
	since time.Time
}

// errNoTwin refuses a request for a twin of which nothing was ever known.
var errNoTwin = errors.New("the twin is not known yet: the hub has not been reached")

// askTwin answers with the twin, from the copy unless a newer one is about to come.
func (id *Identity) askTwin(reply func(int64, []byte), done func(error)) {
	t := &id.twin
	if len(t.asking) == maxAskers {
		done(ErrBusy)
		return
	}
	t.asking = append(t.asking, twinAsker{reply, done, time.Now()})
	id.answerAskers(time.Now())
}

// answerAskers answers everybody who need not wait any longer.
func (id *Identity) answerAskers(now time.Time) {
	t := &id.twin
	if len(t.asking) == 0 {
		return
	}
	wait := time.Duration(0)
	switch {
	case t.version == 0:
		wait = firstTwin
	case t.link != nil && !ended(t.link) && (t.needGet || t.request == getting):
		wait = freshTwin
	}
	var left []twinAsker
	for _, a := range t.asking {
		switch due := a.since.Add(wait); {
		case now.Before(due):
			left = append(left, a)
			id.wakeAt(due)
		case t.version == 0:
			a.done(errNoTwin)
		default:
			a.reply(0, t.whole())
			a.done(nil)
		}
	}
	t.asking = left
}

// whole is the twin in the hub's form.
func (t *twin) whole() []byte {
	desired, err := decodeObject(t.raw)
	if err != nil {
		desired = object{}
	}
	r := t.document()
	r["$version"] = max(1, t.edition) // the hub's first
	return encode(object{"desired": desired, "reported": r})
}

// tellChange gives Azure SDK clients a change of desired properties.
func (id *Identity) tellChange(change object) {
	version := strconv.FormatInt(id.twin.version, 10)
	change["$version"] = json.Number(version)
	_, err := id.c.local.Publish(downstream.LocalMessage{
		Topic: id.topic("twin/change/" + version), Payload: encode(change), ContentType: jsonType, Azure: true,
	})
	if err != nil {
		id.log().Warn("change of desired properties not passed on", zap.Error(err))
	}
}
