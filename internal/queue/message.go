package queue

import "time"

// Priorities a message may have; higher is served first.
const (
	MinPriority = 0
	MaxPriority = 9
)

// MaxMessageBytes bounds one message: payload plus every string that travels with it. IoT Hub takes 256 KiB in all
// (https://learn.microsoft.com/azure/iot-hub/iot-hub-devguide-quotas-throttling); the rest is room for what the hub does not count.
const MaxMessageBytes = 320 << 10

// Property is one application property of a message. The order of properties is kept.
type Property struct{ Key, Value string }

// Message is one reading with everything needed to deliver it later.
type Message struct {
	// Seq is the position in the identity's queue, from 1, never reused. Set by Append.
	Seq uint64
	// ID is the message id that every resend carries ($.mid). Set by Append: at most 64 characters of [0-9A-Za-z-],
	// the same over resends, restarts, compaction, setting aside and putting back.
	ID string

	// Accepted is when the message was accepted, to the millisecond, in UTC. While AcceptedTrusted is false the wall clock was not
	// to be believed at that moment; the time is corrected on reading once the clock of the same boot can be believed.
	Accepted        time.Time
	AcceptedTrusted bool

	Source string // the sensor
	Topic  string // its local topic
	Route  string // the name of the route that took it

	ContentType     string
	ContentEncoding string
	Output          string // module output name
	Properties      []Property

	Priority uint8         // MinPriority to MaxPriority
	MaxAge   time.Duration // 0 = the identity's; kept to the millisecond
	Pack     Pack          // how it may travel with its neighbours

	Payload []byte
}

// Pack says that a message may be sent together with others of its route. The queue only keeps it.
type Pack struct {
	MaxBytes int           // of what is sent at once; 0 = the message travels alone and as it is
	MaxDelay time.Duration // how long it waits for others; kept to the millisecond
	Lines    bool          // one per line instead of an array
	Gzip     bool          // what is sent at once is compressed
}

func (p Pack) invalid() bool {
	return p.MaxBytes < 0 || p.MaxBytes > maxItemBytes || p.MaxDelay < 0 || p.MaxDelay > maxPackDelay
}

// size is what a message counts against MaxBytes: its payload and strings, without the journal's own overhead.
func (m *Message) size() int {
	n := len(m.Payload) + len(m.Source) + len(m.Topic) + len(m.Route) + len(m.ContentType) + len(m.ContentEncoding) + len(m.Output)
	for i := range m.Properties {
		n += len(m.Properties[i].Key) + len(m.Properties[i].Value)
	}
	return n
}

// AsideMessage is a message that was taken out of the way and kept.
type AsideMessage struct {
	Message
	Reason string
}

// Policy says what happens to a new message when a queue has reached MaxBytes.
type Policy uint8

// The policies.
const (
	Refuse     Policy = iota // Append returns ErrFull: the sensor is told
	DropOldest               // the oldest messages make room, counted under DropSize
)

// Limits bound one identity's queue. Zero values mean no limit.
type Limits struct {
	MaxBytes int64
	MaxAge   time.Duration
	WhenFull Policy
	// Always lets messages in although Options.MaxBytes is reached: for the little that is noted to empty other queues.
	Always bool
}

// Reasons under which a message may leave a queue without the hub's acknowledgement (keys of Stats.Dropped).
const (
	DropAge     = "age"     // older than MaxAge
	DropSize    = "size"    // made room under DropOldest
	DropAside   = "aside"   // set aside; kept until put back or dropped by hand
	DropDamage  = "damage"  // its checksum failed; the bytes are kept as a file for inspection
	DropRemoved = "removed" // removed on request
)

// Stats describe one queue at this moment.
type Stats struct {
	Messages     int64         // waiting, including those read and not yet acknowledged
	Bytes        int64         // their payloads and strings
	OldestAge    time.Duration // age of the oldest waiting message; 0 when empty or when the clock cannot tell
	Appended     uint64        // durable appends since the queue exists
	Acked        uint64        // acknowledged since the queue exists
	Dropped      map[string]uint64
	Aside        int64
	NextSeq      uint64
	DamagedReads uint64 // reads that failed for a reason that may pass (I/O error), since start
}
