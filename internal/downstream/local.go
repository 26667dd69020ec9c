package downstream

import (
	"errors"
	"strings"
	"sync"
	"time"

	"gatewayd/internal/packet"
	"gatewayd/internal/queue"
)

// LocalPrefix begins the topics that local clients may subscribe to.
const LocalPrefix = "gateway/"

func isLocalTopic(topic string) bool {
	return strings.HasPrefix(topic, LocalPrefix) || topic == "gateway"
}

// LocalConfig bounds what is kept for local clients. Zero values are the defaults.
type LocalConfig struct {
	MaxSessions   int           // sessions kept for clients that are away; default 10,000, the oldest goes first
	SessionExpiry time.Duration // the longest that one is kept; default 24h. MQTT 3.1.1 clients get this
	QueueMessages int           // waiting per session; default 1,000
	QueueBytes    int           // waiting per session; default 1 MiB
	RetainedBytes int           // of all retained values; default 16 MiB
}

func (c LocalConfig) withDefaults() LocalConfig {
	set := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	set(&c.MaxSessions, 10000)
	set(&c.QueueMessages, 1000)
	set(&c.QueueBytes, 1<<20)
	set(&c.RetainedBytes, 16<<20)
	if c.SessionExpiry <= 0 {
		c.SessionExpiry = 24 * time.Hour
	}
	return c
}

// LocalMessage is something from the cloud or from the gateway for local clients.
// It must not be changed after Publish.
type LocalMessage struct {
	Topic   string // begins with LocalPrefix
	Payload []byte
	QoS     byte // 0 or 1: the most that a subscriber gets
	// Retain keeps the message for later subscribers in place of the topic's
	// earlier one; with an empty payload it only removes that.
	Retain          bool
	Properties      []queue.Property // MQTT 5 user properties
	ContentType     string
	ResponseTopic   string
	CorrelationData []byte
	Expires         time.Time // zero = never
	// Azure keeps the message from all but Azure SDK clients. Those that are away get
	// it when they come back, also with QoS 0, which is all that they ask for.
	Azure bool
	// Offer, when not nil, keeps sessions that were given the message through it
	// from getting it again.
	Offer *Offer
	// Round, when not nil, keeps the messages with it in order for each session.
	Round *Round
	// Acked is called once, when the first subscriber has acknowledged a QoS 1
	// delivery. It must not block or call back into Local. nil is fine.
	Acked func()
}

// Local is the gateway's side of the local topics: who is there under which
// client id, what they subscribe to, what waits for them. All of it is in memory;
// a restart of the gateway forgets it. Listeners share one Local. It is used by
// any number of goroutines.
type Local struct {
	cfg      LocalConfig
	commands Commands

	mu            sync.Mutex
	sessions      map[string]*session
	subscribers   map[*session]struct{} // those with subscriptions
	away          int                   // sessions without a connection
	retained      map[string]LocalMessage
	retainedBytes int
	swept         time.Time
	lastSession   uint64 // number of the newest
	changes       uint64 // of what somebody subscribes to
	mirrors       map[*mirror]struct{}
}

var (
	errOwner    = errors.New("client id is in use by another user")
	errSubLimit = errors.New("too many subscriptions")
	// ErrLocalTopic says that a topic is not one of the gateway's.
	ErrLocalTopic = errors.New("not a topic under " + LocalPrefix)
	// ErrRetainedFull says that the retained values have reached their bound.
	ErrRetainedFull = errors.New("no room for another retained value")
)

// NewLocal makes the local side. commands may be nil: then publishing to local
// topics is refused.
func NewLocal(cfg LocalConfig, commands Commands) *Local {
	return &Local{
		cfg: cfg.withDefaults(), commands: commands, sessions: make(map[string]*session),
		subscribers: make(map[*session]struct{}), retained: make(map[string]LocalMessage),
	}
}

// Publish gives a message to everybody whose subscription matches, whether
// connected or away, and returns how many sessions took it. A session whose queue
// is full does not.
func (l *Local) Publish(m LocalMessage) (takers int, err error) {
	if !packet.ValidTopic(m.Topic) || !strings.HasPrefix(m.Topic, LocalPrefix) {
		return 0, ErrLocalTopic
	}
	once := &acknowledgement{call: m.Acked}
	var kick []*conn
	l.mu.Lock()
	if m.Retain {
		err = l.retainLocked(m)
	}
	m.Round.beginLocked(l.changes)
	if !m.Retain || len(m.Payload) > 0 {
		for s := range l.subscribers {
			d, ok := s.matchLocked(m)
			if !ok || m.Offer.hasLocked(s.number) || m.Round.closedLocked(s.number, s.since) {
				continue
			}
			d.acked = once
			switch {
			case s.box.put(d, s.conn != nil, l.cfg):
				takers++
				m.Offer.addLocked(s.number)
				if s.conn != nil {
					kick = append(kick, s.conn)
				}
			case (d.qos > 0 || s.conn != nil) && d.size() <= l.cfg.QueueBytes:
				m.Round.missLocked(s.number)
			}
		}
	}
	takers += l.mirrorLocked(m, once)
	l.mu.Unlock()
	for _, c := range kick {
		c.kick()
	}
	return takers, err
}

func (l *Local) retainLocked(m LocalMessage) error {
	size := func(m LocalMessage) int { return len(m.Topic) + len(m.Payload) + 128 }
	old, exists := l.retained[m.Topic]
	if exists {
		l.retainedBytes -= size(old)
		delete(l.retained, m.Topic)
	}
	if len(m.Payload) == 0 {
		return nil
	}
	if l.retainedBytes+size(m) > l.cfg.RetainedBytes {
		return ErrRetainedFull
	}
	m.Acked, m.Offer, m.Round = nil, nil, nil
	l.retained[m.Topic] = m
	l.retainedBytes += size(m)
	return nil
}

// LocalStats describe the local side.
type LocalStats struct {
	Sessions    int `json:"sessions"` // with and without a connection
	Away        int `json:"away"`
	Subscribers int `json:"subscribers"`
	Retained    int `json:"retained"`
}

// Stats may be called at any time.
func (l *Local) Stats() LocalStats {
	l.mu.Lock()
	defer l.mu.Unlock()
	return LocalStats{Sessions: len(l.sessions), Away: l.away, Subscribers: len(l.subscribers), Retained: len(l.retained)}
}
