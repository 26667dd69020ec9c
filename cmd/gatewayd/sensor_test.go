package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"gatewayd/internal/hub/hubtest"
	"gatewayd/internal/packet"
)

// sensor publishes numbered messages with many in flight over MQTT 3.1.1 and
// sends again, in order, what was not acknowledged when the connection broke.
type sensor struct {
	name, topic, address string
	window               int
	size                 int
	pace                 time.Duration // between messages; 0 = as fast as the acks come

	mu    sync.Mutex
	next  int
	acked int         // all below are acknowledged
	tries map[int]int // how often a number was sent, when more than once
}

// run sends until ctx ends, and then waits for what is in flight.
func (s *sensor) run(ctx context.Context) {
	for {
		err := s.session(ctx)
		s.mu.Lock()
		idle := s.acked == s.next
		s.mu.Unlock()
		if ctx.Err() != nil && (idle || err == nil) {
			return
		}
		time.Sleep(30 * time.Millisecond)
	}
}

func (s *sensor) session(ctx context.Context) error {
	c, err := dialLocal(ctx, s.address)
	if err != nil {
		return err
	}
	defer c.Close()
	hello, err := packet.Connect{Version: packet.V311, CleanStart: true, KeepAlive: 60, ClientID: s.name}.Append(nil, packet.V311)
	if err != nil {
		return err
	}
	if _, err := c.Write(hello); err != nil {
		return err
	}
	r := packet.NewReader(c, 1<<16)
	if f, err := r.Next(); err != nil || f.Type != packet.CONNACK || f.Body[1] != 0 {
		return fmt.Errorf("no CONNACK: %v", err)
	}
	slots := make(chan struct{}, s.window)
	broken := make(chan struct{})
	go func() {
		defer close(broken)
		s.readAcks(r, slots)
	}()
	err = s.send(ctx, c, slots, broken)
	if err == nil {
		s.drain(broken)
	}
	c.Close()
	<-broken
	return err
}

// dialLocal reaches a listener at host:port, /path of a socket or ws://host:port.
func dialLocal(ctx context.Context, address string) (net.Conn, error) {
	switch {
	case strings.HasPrefix(address, "/"):
		return net.Dial("unix", address)
	case strings.HasPrefix(address, "ws://"):
		ctx = context.WithoutCancel(ctx) // what is in flight is waited for
		dialing, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		c, _, err := websocket.Dial(dialing, address, &websocket.DialOptions{Subprotocols: []string{"mqtt"}})
		if err != nil {
			return nil, err
		}
		return websocket.NetConn(ctx, c, websocket.MessageBinary), nil
	}
	return net.Dial("tcp", address)
}

func (s *sensor) readAcks(r *packet.Reader, slots chan struct{}) {
	for {
		f, err := r.Next()
		if err != nil {
			return
		}
		if f.Type != packet.PUBACK {
			continue
		}
		s.mu.Lock()
		s.acked++
		s.mu.Unlock()
		<-slots
	}
}

// send starts over at the first number without acknowledgement.
func (s *sensor) send(ctx context.Context, c net.Conn, slots, broken chan struct{}) error {
	s.mu.Lock()
	n := s.acked
	s.mu.Unlock()
	for ; ; n++ {
		s.mu.Lock()
		again := n < s.next
		if again {
			s.tries[n]++
		}
		s.mu.Unlock()
		if ctx.Err() != nil && !again {
			return nil
		}
		select {
		case slots <- struct{}{}:
		case <-broken:
			return net.ErrClosed
		}
		body := fmt.Appendf(nil, "%s %d ", s.name, n)
		body = append(body, bytes.Repeat([]byte("."), max(0, s.size-len(body)))...)
		b, err := packet.Publish{Topic: s.topic, QoS: 1, ID: uint16(n%65535) + 1, Payload: body}.Append(nil, packet.V311)
		if err != nil {
			return err
		}
		s.mu.Lock()
		s.next = max(s.next, n+1)
		s.mu.Unlock()
		if _, err := c.Write(b); err != nil {
			return err
		}
		if s.pace > 0 && ctx.Err() == nil {
			time.Sleep(s.pace)
		}
	}
}

func (s *sensor) drain(broken chan struct{}) {
	for {
		s.mu.Lock()
		idle := s.acked == s.next
		s.mu.Unlock()
		if idle {
			return
		}
		select {
		case <-broken:
			return
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// fleet is a number of sensors over the identities of a site.
type fleet struct {
	sensors []*sensor
	stop    context.CancelFunc
	running sync.WaitGroup
}

func (s *plant) fleet(sensors, window, size int, pace time.Duration) *fleet {
	return s.fleetAt(s.mqtt, sensors, window, size, pace)
}

func (s *plant) fleetAt(address string, sensors, window, size int, pace time.Duration) *fleet {
	ctx, stop := context.WithCancel(context.Background())
	f := &fleet{stop: stop}
	for i := range sensors {
		name := fmt.Sprintf("s%d", i)
		f.sensors = append(f.sensors, &sensor{name: name, topic: "sensors/" + s.names[i%len(s.names)] + "/" + name,
			address: address, window: window, size: size, pace: pace, tries: make(map[int]int)})
	}
	for _, one := range f.sensors {
		f.running.Go(func() { one.run(ctx) })
	}
	s.t.Cleanup(stop)
	return f
}

// end stops sending and waits until everything is acknowledged.
func (f *fleet) end() {
	f.stop()
	f.running.Wait()
}

func (f *fleet) acked() int {
	n := 0
	for _, s := range f.sensors {
		s.mu.Lock()
		n += s.acked
		s.mu.Unlock()
	}
	return n
}

// arrivals is what one sensor's messages became at the hub.
type arrivals struct {
	firsts []int                       // numbers in the order of their first arrival
	ids    map[int]map[string]struct{} // message ids per number
	resent int                         // arrivals beyond the first with a known id
}

func bySensor(messages []hubtest.Message) map[string]*arrivals {
	all := make(map[string]*arrivals)
	for _, m := range messages {
		var name string
		var n int
		if _, err := fmt.Sscanf(string(m.Body), "%s %d", &name, &n); err != nil {
			continue
		}
		a := all[name]
		if a == nil {
			a = &arrivals{ids: make(map[int]map[string]struct{})}
			all[name] = a
		}
		mid := m.Properties["$.mid"]
		if a.ids[n] == nil {
			a.ids[n] = make(map[string]struct{})
			a.firsts = append(a.firsts, n)
		} else if _, known := a.ids[n][mid]; known {
			a.resent++
		}
		a.ids[n][mid] = struct{}{}
	}
	return all
}

// account checks the three promises over everything that the hub got: nothing
// acknowledged is missing, first arrivals of a sensor are in order, and a message
// that arrives twice has the same id, unless its sensor sent it twice. It returns
// how many arrivals were resends.
func (f *fleet) account(t *testing.T, messages []hubtest.Message) (resent int) {
	t.Helper()
	all := bySensor(messages)
	for _, s := range f.sensors {
		a := all[s.name]
		if a == nil {
			a = &arrivals{}
		}
		var missing []int
		for n := range s.acked {
			if a.ids[n] == nil {
				missing = append(missing, n)
			}
		}
		if len(missing) > 0 {
			t.Errorf("%s: %d of %d acknowledged messages are missing, from %d to %d", s.name, len(missing), s.acked, missing[0], missing[len(missing)-1])
		}
		for i, n := range a.firsts {
			if i > 0 && n < a.firsts[i-1] {
				t.Errorf("%s: message %d arrived first after %d", s.name, n, a.firsts[i-1])
				break
			}
		}
		for n, ids := range a.ids {
			if len(ids) > 1+s.tries[n] {
				t.Errorf("%s: message %d arrived under %d ids, the sensor sent it %d times", s.name, n, len(ids), 1+s.tries[n])
			}
		}
		resent += a.resent
	}
	return resent
}
