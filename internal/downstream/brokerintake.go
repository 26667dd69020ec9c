package downstream

import (
	"context"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/paho"
	"go.uber.org/zap"

	"gatewayd/internal/queue"
)

// brokerItem is a message from a broker that is not on disk yet.
type brokerItem struct {
	from *paho.Client // the connection that it came on
	p    *paho.Publish
	cost int
}

// brokerIntake holds messages between the MQTT library, which must not be made to
// wait, and the queue.
type brokerIntake struct {
	most  int
	ready chan struct{} // one-slot: something to hand in
	acks  chan struct{} // one-slot: something to acknowledge
	room  chan struct{} // one-slot: memory was given back
	idle  chan struct{} // one-slot: something was settled

	mu      sync.Mutex
	waiting []brokerItem // as they came
	failed  []brokerItem // taken by the queue and not stored; go first
	settled []brokerItem // to be acknowledged
	held    int          // all that are not settled
	bytes   int          // of those, and of settled ones
	coming  []int        // sizes of PUBLISH packets that were read and not put yet
	unput   int          // their sum
	closed  bool
}

func (i *brokerIntake) init(most int) {
	i.most = most
	for _, c := range []*chan struct{}{&i.ready, &i.acks, &i.room, &i.idle} {
		*c = make(chan struct{}, 1)
	}
}

// put takes a message from the library. While the gateway stops it takes none:
// the broker sends what is not acknowledged to the next connection.
func (i *brokerIntake) put(r paho.PublishReceived) {
	cost := len(r.Packet.Payload) + len(r.Packet.Topic) + 512
	if r.Packet.Properties != nil {
		for _, u := range r.Packet.Properties.User {
			cost += len(u.Key) + len(u.Value) + 32
		}
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.coming) > 0 {
		i.unput -= i.coming[0]
		i.coming = i.coming[1:]
	}
	if i.closed {
		return
	}
	i.waiting = append(i.waiting, brokerItem{r.Client, r.Packet, cost})
	i.held++
	i.bytes += cost
	wake(i.ready)
}

// next is the message to hand in now.
func (i *brokerIntake) next(ctx context.Context) (brokerItem, bool) {
	for {
		i.mu.Lock()
		from := &i.failed
		if len(*from) == 0 {
			from = &i.waiting
		}
		if len(*from) > 0 {
			item := (*from)[0]
			(*from)[0] = brokerItem{}
			*from = (*from)[1:]
			i.mu.Unlock()
			return item, true
		}
		i.waiting, i.failed = nil, nil
		i.mu.Unlock()
		select {
		case <-i.ready:
		case <-ctx.Done():
			return brokerItem{}, false
		}
	}
}

// done notes that a message is on disk, or never will be.
func (i *brokerIntake) done(item brokerItem) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.held--
	i.settled = append(i.settled, item)
	wake(i.acks)
}

// again notes that the queue took a message and could not store it.
func (i *brokerIntake) again(item brokerItem) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.failed = append(i.failed, item)
	wake(i.ready)
}

// takeSettled gives the memory of what is settled back.
func (i *brokerIntake) takeSettled() []brokerItem {
	i.mu.Lock()
	defer i.mu.Unlock()
	all := i.settled
	i.settled = nil
	for _, item := range all {
		i.bytes -= item.cost
	}
	wake(i.room)
	wake(i.idle)
	return all
}

// awaitRoom blocks while the memory is used up.
func (i *brokerIntake) awaitRoom(closed <-chan struct{}) {
	for {
		i.mu.Lock()
		room := i.bytes+i.unput < i.most || i.closed
		i.mu.Unlock()
		if room {
			return
		}
		select {
		case <-i.room:
		case <-closed:
			return
		}
	}
}

// begin forgets what an earlier connection read and never put.
func (i *brokerIntake) begin() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.coming, i.unput = nil, 0
}

// comes notes that a PUBLISH is being read.
func (i *brokerIntake) comes(size int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.coming = append(i.coming, size)
	i.unput += size
}

func (i *brokerIntake) close() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.closed = true
	wake(i.room)
}

// settle waits until everything is on disk and acknowledged, within a limit.
func (i *brokerIntake) settle(limit time.Duration) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		if held, bytes := i.size(); held == 0 && bytes == 0 {
			return
		}
		select {
		case <-i.idle:
		case <-timer.C:
			return
		}
	}
}

func (i *brokerIntake) size() (held, bytes int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.held, i.bytes
}

// handIn gives messages to the gate in their order until ctx ends.
func (b *Broker) handIn(ctx context.Context) {
	for {
		item, ok := b.intake.next(ctx)
		if !ok {
			return
		}
		b.offer(ctx, item)
	}
}

// offer hands one message in and, where it is wanted, waits until that is possible.
func (b *Broker) offer(ctx context.Context, item brokerItem) {
	if b.takeCommand(ctx, item) {
		return
	}
	a := b.arrival(item.p)
	wait, holding := 50*time.Millisecond, false
	var err error
	for {
		var decision Decision
		if decision, err = b.gate.Decide(a.Topic); err == nil {
			err = b.gate.accept(ctx, a, decision, func(_ uint64, err error) { b.stored(item, err) })
		}
		if ctx.Err() != nil && err != nil {
			return // not acknowledged, the broker keeps it
		}
		if holding && (err == nil || !temporary(err)) {
			b.holding(nil)
		}
		if err == nil {
			return
		}
		if !temporary(err) || item.p.QoS == 0 {
			break
		}
		if !holding {
			holding = true
			b.holding(err)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		wait = min(2*wait, time.Second)
	}
	b.client.refused(a.Topic, err)
	b.notes.once(a.Topic, err.Error(), func() {
		b.log.Warn("message refused", zap.String("broker", b.server.Host), zap.String("topic", clip(a.Topic)), zap.Error(err))
	})
	b.intake.done(item)
}

// stored is called by the queue.
func (b *Broker) stored(item brokerItem, err error) {
	if err != nil && temporary(err) && item.p.QoS > 0 {
		b.intake.again(item)
		return
	}
	b.intake.done(item)
}

// holding tells that messages are held, and when that is over.
func (b *Broker) holding(why error) {
	b.mu.Lock()
	if why != nil {
		b.stats.Fault = "messages are held: " + why.Error()
	} else {
		b.stats.Fault = b.said
	}
	b.mu.Unlock()
	if why != nil {
		b.log.Warn("messages of the broker are held", zap.String("broker", b.server.Host), zap.Error(why))
	} else {
		b.log.Info("messages of the broker flow again", zap.String("broker", b.server.Host))
	}
}

func (b *Broker) arrival(p *paho.Publish) Arrival {
	a := Arrival{Client: b.client, Topic: p.Topic, Payload: p.Payload}
	if props := p.Properties; props != nil {
		a.ContentType = props.ContentType
		if props.PayloadFormat != nil && *props.PayloadFormat == 1 {
			a.ContentEncoding = "utf-8"
		}
		if props.MessageExpiry != nil {
			a.MaxAge = max(time.Duration(*props.MessageExpiry)*time.Second, time.Millisecond)
		}
		for _, u := range props.User {
			a.Properties = append(a.Properties, queue.Property{Key: u.Key, Value: u.Value})
		}
	}
	if p.Retain {
		a.mark(PropertyRetain)
	}
	return a
}

// acknowledge tells the broker what is settled. It has a goroutine of its own
// because the library writes to the network under the lock that this needs. The
// connection that a message came on may be gone: then the broker sends the
// message again, and there is nothing to acknowledge.
func (b *Broker) acknowledge(ctx context.Context) {
	for {
		for _, item := range b.intake.takeSettled() {
			_ = item.from.Ack(item.p) // only ever "packet not found": see above
		}
		select {
		case <-b.intake.acks:
		case <-ctx.Done():
			return
		}
	}
}
