package cloud

import (
	"strconv"
	"strings"
	"time"

	"gatewayd/internal/bag"
	"gatewayd/internal/queue"
)

// The topics of IoT Hub, from
// https://learn.microsoft.com/azure/iot/iot-mqtt-connect-to-iot-hub.
const (
	c2dLevels        = "/messages/devicebound/"
	methodPrefix     = "$iothub/methods/POST/"
	methodAnswer     = "$iothub/methods/res/"
	twinAnswerPrefix = "$iothub/twin/res/"
	desiredPrefix    = "$iothub/twin/PATCH/properties/desired/"
	twinGet          = "$iothub/twin/GET/?$rid="
	twinPatch        = "$iothub/twin/PATCH/properties/reported/?$rid="
)

type topicKind uint8

const (
	topicOther topicKind = iota
	topicC2D
	topicMethod
	topicTwinAnswer
	topicDesired
)

// topic is what the hub says in the topic of a message.
type topic struct {
	kind    topicKind
	bag     []queue.Property // of a C2D message, decoded
	name    string           // of a method, decoded
	rid     string           // of a method or a twin answer, as it stands: it is echoed so
	status  int              // of a twin answer
	version int64            // of a desired change, and of the answer to a patch; 0 = not said
}

// parseTopic reads a topic of the hub; what it cannot read is topicOther.
func parseTopic(s string) topic {
	if rest, ok := strings.CutPrefix(s, methodPrefix); ok {
		name, query, ok := strings.Cut(rest, "/")
		t := topic{kind: topicMethod, name: bag.Unescape(name)}
		if t.rid, _ = bag.Query(query); !ok || t.rid == "" || t.name == "" {
			return topic{}
		}
		return t
	}
	if rest, ok := strings.CutPrefix(s, twinAnswerPrefix); ok {
		status, query, _ := strings.Cut(rest, "/")
		n, err := strconv.ParseUint(status, 10, 16)
		t := topic{kind: topicTwinAnswer, status: int(n)}
		if t.rid, t.version = bag.Query(query); err != nil || t.rid == "" {
			return topic{}
		}
		return t
	}
	if query, ok := strings.CutPrefix(s, desiredPrefix); ok {
		_, v := bag.Query(query)
		return topic{kind: topicDesired, version: v}
	}
	// An id has no slash, so these levels are where they first appear.
	if rest, ok := strings.CutPrefix(s, "devices/"); ok {
		if _, pairs, ok := strings.Cut(rest, c2dLevels); ok {
			return topic{kind: topicC2D, bag: bag.Parse(pairs)}
		}
	}
	return topic{}
}

// expiry reads $.exp, ISO 8601 in UTC; zero when there is none, or none that can be
// read.
func expiry(all []queue.Property) time.Time {
	s := bag.Lookup(all, "$.exp")
	if s == "" {
		return time.Time{}
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999"} {
		if t, err := time.Parse(layout, s); err == nil {
			return t.UTC()
		}
	}
	return time.Time{}
}
