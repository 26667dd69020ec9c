package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/paho"

	"gatewayd/internal/hub/hubtest"
)

// demoReading is what a simulated sensor sends.
type demoReading struct {
	Sensor string  `json:"sensor"`
	N      int     `json:"n"`
	Value  float64 `json:"value"`
}

// demoSensor publishes over MQTT 5, one message after the other, each repeated
// until the gateway has acknowledged it.
type demoSensor struct {
	identity, name, address string
	rate                    float64
	tally                   *demoTally
}

func (s *demoSensor) run(ctx context.Context) error {
	topic := fmt.Sprintf("sensors/%s/%s/telemetry", s.identity, s.name)
	id := s.identity + "-" + s.name
	n := 0
	for ctx.Err() == nil {
		c, err := s.connect(ctx, id)
		if err != nil {
			pause(ctx, 200*time.Millisecond)
			continue
		}
		for ctx.Err() == nil {
			body, err := json.Marshal(demoReading{Sensor: id, N: n, Value: math.Round(1000*math.Sin(float64(n)/20)) / 1000})
			if err != nil {
				return err
			}
			// Not ctx: a message that is under way is finished, so that sent and
			// acknowledged agree at the end.
			sending, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			s.tally.sent(s.identity, id, n)
			_, err = c.Publish(sending, &paho.Publish{QoS: 1, Topic: topic, Payload: body})
			cancel()
			if err != nil {
				break
			}
			s.tally.acked(id, n)
			n++
			pause(ctx, time.Duration(float64(time.Second)/s.rate*(0.5+rand.Float64())))
		}
		// The gateway drops the connection or answers; neither concerns the sensor.
		_ = c.Disconnect(&paho.Disconnect{})
	}
	return nil
}

func (s *demoSensor) connect(ctx context.Context, id string) (*paho.Client, error) {
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", s.address)
	if err != nil {
		return nil, err
	}
	c := paho.NewClient(paho.ClientConfig{Conn: raw})
	if _, err := c.Connect(ctx, &paho.Connect{ClientID: id, KeepAlive: 30, CleanStart: true}); err != nil {
		raw.Close()
		return nil, err
	}
	return c, nil
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// demoTally compares what sensors sent with what arrived at the hub. It is used
// by many goroutines.
type demoTally struct {
	mu       sync.Mutex
	readings map[string]*demoCount // by sensor
	foreign  int                   // messages of other senders
}

type demoCount struct {
	identity string
	sent     int // the numbers 0 to sent-1 were given to the gateway
	acked    int
	seen     map[int]string // number to message id
	again    int            // arrived again with the same message id
	doubled  int            // arrived again with another message id
	disorder int            // first arrivals behind a later one
	last     int
}

func newDemoTally() *demoTally { return &demoTally{readings: make(map[string]*demoCount)} }

func (t *demoTally) of(sensor string) *demoCount {
	c := t.readings[sensor]
	if c == nil {
		c = &demoCount{seen: make(map[int]string), last: -1}
		t.readings[sensor] = c
	}
	return c
}

func (t *demoTally) sent(identity, sensor string, n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.of(sensor)
	c.identity = identity
	c.sent = n + 1
}

func (t *demoTally) acked(sensor string, n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.of(sensor).acked = n + 1
}

func (t *demoTally) arrived(m hubtest.Message) {
	var r demoReading
	t.mu.Lock()
	defer t.mu.Unlock()
	if json.Unmarshal(m.Body, &r) != nil || t.readings[r.Sensor] == nil {
		t.foreign++
		return
	}
	c := t.readings[r.Sensor]
	id, again := c.seen[r.N]
	switch {
	case again && id == m.Properties["$.mid"]:
		c.again++
	case again:
		c.doubled++
	default:
		c.seen[r.N] = m.Properties["$.mid"]
		if r.N < c.last {
			c.disorder++
		}
		c.last = r.N
	}
}

// complete tells whether everything that was sent has arrived.
func (t *demoTally) complete() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range t.readings {
		if len(c.seen) < c.sent {
			return false
		}
	}
	return true
}

// summary writes the account and fails when something is missing or out of order.
func (t *demoTally) summary(out io.Writer, g *gateway) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all demoCount
	arrived := 0
	for _, c := range t.readings {
		all.sent += c.sent
		all.acked += c.acked
		all.again += c.again
		all.doubled += c.doubled
		all.disorder += c.disorder
		arrived += len(c.seen)
	}
	rotations := uint64(0)
	for _, id := range g.now.Load().identities {
		rotations += id.session.Status().Rotations
	}
	fmt.Fprintf(out, "\nsent %d, acknowledged to sensors %d, arrived at the hub %d, missing %d\n", all.sent, all.acked, arrived, all.sent-arrived)
	fmt.Fprintf(out, "sent again with the same id %d, doubled under another id %d, out of order %d, certificates changed while sending %d\n",
		all.again, all.doubled, all.disorder, rotations)
	if t.foreign > 0 {
		fmt.Fprintf(out, "other messages %d\n", t.foreign)
	}
	if arrived < all.sent || arrived == 0 || all.disorder > 0 {
		return fmt.Errorf("demo: %d of %d messages are missing, %d out of order", all.sent-arrived, all.sent, all.disorder)
	}
	return nil
}
