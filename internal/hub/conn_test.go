package hub

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/hub/hubtest"
	"gatewayd/internal/packet"
)

// script is a connection whose other end is a test that writes bytes.
type script struct {
	t     testing.TB
	c     *conn
	far   net.Conn
	in    *packet.Reader
	acked []uint64
	mu    sync.Mutex
	wg    sync.WaitGroup

	delivered, unknown atomic.Uint64
}

func newScript(t testing.TB, change func(*settings)) *script {
	near, far := hubtest.Pipe()
	s := &script{t: t, far: far, in: packet.NewReader(far, 1<<20)}
	set := settings{id: &Identity{HostName: "h", DeviceID: "d"}, keepAlive: time.Minute, window: 8, writeTimeout: time.Minute,
		delivered: &s.delivered, unknownAcks: &s.unknown, acked: func(seq uint64) int {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.acked = append(s.acked, seq)
			return 1
		}}
	if change != nil {
		change(&set)
	}
	s.c = newConn(set, nil, &transport{nc: near, raw: near})
	s.c.start(&s.wg)
	t.Cleanup(func() {
		s.c.kill(errEnded)
		s.wg.Wait()
	})
	return s
}

func (s *script) say(b ...byte) {
	s.t.Helper()
	if _, err := s.far.Write(b); err != nil {
		s.t.Fatal(err)
	}
}

func (s *script) next(want packet.Type) packet.Frame {
	s.t.Helper()
	_ = s.far.SetReadDeadline(time.Now().Add(10 * time.Second))
	f, err := s.in.Next()
	if err != nil || f.Type != want {
		s.t.Fatalf("got %v, %v; want %v", f.Type, err, want)
	}
	return f
}

// accept lets the connection begin.
func (s *script) accept() {
	s.t.Helper()
	s.next(packet.CONNECT)
	s.say(0x20, 2, 0, 0)
	if err := s.c.await(s.t.Context(), time.Second); err != nil {
		s.t.Fatal(err)
	}
	s.c.open()
}

func (s *script) publish(seqs ...uint64) (ids []uint16) {
	s.t.Helper()
	for _, seq := range seqs {
		if err := s.c.publish(seq, "devices/d/messages/events/", []byte("x"), false); err != nil {
			s.t.Fatal(err)
		}
	}
	s.c.send()
	for range seqs {
		p, err := packet.DecodePublish(s.next(packet.PUBLISH), packet.V311)
		if err != nil {
			s.t.Fatal(err)
		}
		ids = append(ids, p.ID)
	}
	return ids
}

func (s *script) puback(ids ...uint16) {
	s.t.Helper()
	for _, id := range ids {
		s.say(0x40, 2, byte(id>>8), byte(id))
	}
}

func (s *script) seen() []uint64 {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.acked)
}

func TestConnectIsWhatTheHubExpects(t *testing.T) {
	s := newScript(t, func(set *settings) {
		set.id = &Identity{HostName: "contoso.azure-devices.net", DeviceID: "press-7", ModuleID: "filter"}
		set.product = "gatewayd/1.0 (linux; armv7)"
	})
	p, err := packet.DecodeConnect(s.next(packet.CONNECT))
	if err != nil {
		t.Fatal(err)
	}
	user := "contoso.azure-devices.net/press-7/filter/?api-version=2021-04-12&DeviceClientType=gatewayd%2F1.0%20%28linux%3B%20armv7%29"
	if p.Version != packet.V311 || p.CleanStart || p.ClientID != "press-7/filter" || p.Username != user || p.HasPassword || p.Will != nil || p.KeepAlive != 60 {
		t.Errorf("%+v", p)
	}
}

func TestAcknowledgementsTakeEffectInTheOrderOfSending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(t, nil)
		s.accept()
		ids := s.publish(11, 12, 13, 14, 15)
		s.puback(ids[2], ids[1])
		if got := s.seen(); len(got) != 0 {
			t.Errorf("the queue heard of %v before the oldest", got)
		}
		s.puback(ids[1], 0xabcd, 777) // again, of another kind, never sent
		s.puback(ids[0])
		if got := s.seen(); !slices.Equal(got, []uint64{11, 12, 13}) {
			t.Errorf("settled %v", got)
		}
		if n := s.unknown.Load(); n != 3 {
			t.Errorf("%d unknown acknowledgements counted, want 3", n)
		}
		if left := s.c.outstanding(); !slices.Equal(left, []uint64{14, 15}) {
			t.Errorf("outstanding %v", left)
		}
		s.puback(ids[4])
		s.far.Close()
		<-s.c.dead
		if left := s.c.outstanding(); !slices.Equal(left, []uint64{14}) {
			t.Errorf("in limbo %v", left)
		}
	})
}

// TestWhatNoHubSendsEndsTheConnection: bytes after an accepted CONNECT that must end
// it, and what they cost.
func TestWhatNoHubSendsEndsTheConnection(t *testing.T) {
	huge := []byte{0x30, 0xff, 0xff, 0xff, 0x7f} // announces 256 MB
	tests := map[string][]byte{
		"second CONNACK":             {0x20, 2, 0, 0},
		"PUBACK 0":                   {0x40, 2, 0, 0},
		"SUBACK to nothing":          {0x90, 3, 0, 1, 0},
		"PINGREQ":                    {0xc0, 0},
		"PUBLISH with QoS 2":         {0x34, 5, 0, 1, 'a', 0, 1},
		"PUBLISH with a wildcard":    {0x30, 3, 0, 1, '#'},
		"packet past the limit":      huge,
		"reserved type":              {0x00, 0},
		"DISCONNECT":                 {0xe0, 0},
		"overlong length":            {0x30, 0xff, 0xff, 0xff, 0xff, 1},
		"PUBLISH with invalid UTF-8": {0x30, 3, 0, 1, 0xff},
	}
	for name, b := range tests {
		t.Run(name, func(t *testing.T) {
			s := newScript(t, nil)
			s.accept()
			s.say(b...)
			select {
			case <-s.c.dead:
			case <-time.After(10 * time.Second):
				t.Fatal("still alive")
			}
			var e *packet.Error
			if !errors.As(s.c.err, &e) {
				t.Errorf("ended with %v", s.c.err)
			}
			if f := classify(s.c.err, StepSession, true); f.Kind != Violation {
				t.Errorf("named %s", f.Kind)
			}
		})
	}
}

func TestSlowBytesAreNoSignOfLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(t, nil)
		s.accept()
		begin := time.Now()
		var wg sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() {
			b := append([]byte{0x30, 0xff, 0x7f}, make([]byte, 16383)...)
			for _, c := range b {
				if _, err := s.far.Write([]byte{c}); err != nil {
					return
				}
				time.Sleep(time.Second)
			}
		})
		wg.Go(func() { _, _ = io.Copy(io.Discard, s.far) })
		for alive := true; alive; {
			select {
			case <-s.c.wake:
				s.c.send()
			case <-s.c.dead:
				alive = false
			}
		}
		if took := time.Since(begin); took > 90*time.Second {
			t.Errorf("given up after %s", took)
		}
		if !errors.Is(s.c.err, errHalfOpen) {
			t.Error(s.c.err)
		}
		s.far.Close()
	})
}

func TestDeadPeerIsNoticedWhilePublishing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScript(t, func(set *settings) { set.window, set.writeTimeout = 1000, 10*time.Minute })
		s.accept()
		begin := time.Now()
		for i := range 500 { // more than the peer's buffer, so that the write blocks
			_ = s.c.publish(uint64(i+1), "devices/d/messages/events/", make([]byte, 1000), false)
		}
		s.c.send() // returns because the watch closes the connection under it
		<-s.c.dead
		if took := time.Since(begin); took > 90*time.Second {
			t.Errorf("noticed after %s", took)
		}
		if !errors.Is(s.c.err, errHalfOpen) {
			t.Error(s.c.err)
		}
	})
}

func TestManyPublishesShareOneTLSRecord(t *testing.T) {
	ca := must(certtest.NewCA("x"))
	pair := must(ca.Issue(certtest.Leaf{CN: "h", DNS: []string{"h"}}))
	near, far := hubtest.Pipe()
	counted := &recordCounter{Conn: near}
	server := tls.Server(far, &tls.Config{Certificates: []tls.Certificate{pair.TLS()}})
	go func() { _, _ = io.Copy(io.Discard, server) }()
	client := tls.Client(counted, &tls.Config{RootCAs: ca.Pool(), ServerName: "h", DynamicRecordSizingDisabled: true})
	if err := client.Handshake(); err != nil {
		t.Fatal(err)
	}
	var n atomic.Uint64
	c := newConn(settings{window: 100, writeTimeout: time.Minute, delivered: &n, unknownAcks: &n}, nil, &transport{nc: client, raw: counted})
	counted.records.Store(0)
	for i := range 50 {
		_ = c.publish(uint64(i+1), "devices/d/messages/events/", make([]byte, 200), false)
	}
	c.send()
	if got := counted.records.Load(); got != 1 {
		t.Errorf("%d writes for 50 messages of 200 bytes", got)
	}
	far.Close()
}

type recordCounter struct {
	net.Conn
	records atomic.Int64
}

func (r *recordCounter) Write(b []byte) (int, error) {
	r.records.Add(1)
	return r.Conn.Write(b)
}

// commander is a Commands that notes what it is told.
type commander struct {
	mu       sync.Mutex
	filters  []packet.Subscription
	unwanted []string
	links    []Link
	refused  []string
	received []Inbound
	acks     []func()
	leaving  func(Link, func()) // nil: nothing waits
}

func (c *commander) Filters(Identity) ([]packet.Subscription, []string) { return c.filters, c.unwanted }

func (c *commander) Connected(l Link, refused []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.links, c.refused = append(c.links, l), refused
}

func (c *commander) Leaving(l Link, _ time.Duration, done func()) {
	c.mu.Lock()
	answer := c.leaving
	c.mu.Unlock()
	if answer == nil {
		done()
		return
	}
	answer(l, done)
}

func (c *commander) Received(_ Link, m Inbound, ack func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.received, c.acks = append(c.received, m), append(c.acks, ack)
}

func TestSubscriptionsComeFirstAndCommandsAreAcknowledgedWhenTakenCareOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cmd := &commander{filters: []packet.Subscription{{Filter: "devices/d/messages/devicebound/#", QoS: 1}, {Filter: "no/such", QoS: 0}}}
		s := newScript(t, func(set *settings) { set.commands = cmd })
		s.accept()
		_ = s.c.publish(1, "devices/d/messages/events/", []byte("telemetry"), false)
		s.c.send()
		sub, err := packet.DecodeSubscribe(s.next(packet.SUBSCRIBE), packet.V311)
		if err != nil || len(sub.Subscriptions) != 2 {
			t.Fatal(sub, err)
		}
		s.next(packet.PUBLISH)
		s.say(0x90, 4, byte(sub.ID>>8), byte(sub.ID), 1, 0x80)
		s.say(append([]byte{0x32, 8, 0, 1, 't', 0, 9}, "abc"...)...)
		synctest.Wait()
		if len(cmd.links) != 1 || !slices.Equal(cmd.refused, []string{"no/such"}) || string(cmd.received[0].Payload) != "abc" {
			t.Fatalf("%+v", cmd)
		}
		var results []error
		link := cmd.links[0]
		if err := link.Publish("$iothub/methods/res/200/?$rid=1", []byte("{}"), 1, func(err error) { results = append(results, err) }); err != nil {
			t.Fatal(err)
		}
		if err := link.Publish("$iothub/twin/GET/?$rid=2", nil, 0, func(err error) { results = append(results, err) }); err != nil {
			t.Fatal(err)
		}
		cmd.acks[0]()
		cmd.acks[0]() // once is enough
		s.c.send()
		p, _ := packet.DecodePublish(s.next(packet.PUBLISH), packet.V311)
		if p.ID <= telemetryIDs || p.QoS != 1 {
			t.Errorf("control message %+v", p)
		}
		s.next(packet.PUBLISH)
		a, _ := packet.DecodeAck(s.next(packet.PUBACK), packet.V311)
		if a.ID != 9 {
			t.Errorf("acknowledged %d", a.ID)
		}
		s.puback(p.ID)
		synctest.Wait()
		if len(results) != 2 || results[0] != nil || results[1] != nil {
			t.Errorf("results %v", results)
		}
		// What is on its way at the end is told that it did not arrive.
		if err := link.Publish("t", nil, 1, func(err error) { results = append(results, err) }); err != nil {
			t.Fatal(err)
		}
		s.far.Close()
		<-link.Done()
		if len(results) != 3 || !errors.Is(results[2], ErrLinkEnded) {
			t.Errorf("results %v", results)
		}
		if err := link.Publish("t", nil, 0, nil); !errors.Is(err, ErrLinkEnded) {
			t.Error(err)
		}
		cmd.acks[0]()
	})
}

func TestSubscriptionsThatTheHubRemembersAreTakenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cmd := &commander{filters: []packet.Subscription{{Filter: "a/#"}}, unwanted: []string{"b/#", "c/#"}}
		s := newScript(t, func(set *settings) { set.commands = cmd })
		s.accept()
		s.c.send()
		s.next(packet.SUBSCRIBE)
		u, err := packet.DecodeUnsubscribe(s.next(packet.UNSUBSCRIBE), packet.V311)
		if err != nil || !slices.Equal(u.Filters, cmd.unwanted) {
			t.Fatal(u, err)
		}
		s.say(0xb0, 2, byte(u.ID>>8), byte(u.ID))
		synctest.Wait()
		if s.c.rounds.Load() != 1 {
			t.Error("the answer counts for nothing")
		}
		s.say(0xb0, 2, byte(u.ID>>8), byte(u.ID))
		<-s.c.dead
		if !strings.Contains(s.c.err.Error(), "UNSUBACK") {
			t.Error(s.c.err)
		}
	})
}

func TestCommandsArriveAfterARotationToo(t *testing.T) {
	r := newRig(t, false, hubtest.Options{})
	cmd := &commander{filters: []packet.Subscription{{Filter: "devices/dev-1/messages/devicebound/#", QoS: 1}}}
	r.cfg.Commands = cmd
	r.cfg.Timing.ProofIdle = 10 * time.Millisecond
	r.start()
	r.connected()
	for i := range 3 {
		if err := r.hub.SendC2D(t.Context(), "dev-1", hubtest.C2D{Body: []byte{byte('a' + i)}}); err != nil {
			t.Fatal(err)
		}
		r.await("received", 10*time.Second, func() bool {
			cmd.mu.Lock()
			defer cmd.mu.Unlock()
			for _, ack := range cmd.acks[min(i, len(cmd.acks)):] {
				ack()
			}
			return len(cmd.received) > i
		})
		c := r.issue(certtest.Leaf{})
		r.store.offer(c)
		r.await("committed", 10*time.Second, func() bool { return same(r.store.Current(), c) })
	}
	var bodies bytes.Buffer
	cmd.mu.Lock()
	defer cmd.mu.Unlock()
	for _, m := range cmd.received {
		bodies.Write(m.Payload)
	}
	if got := bodies.String(); !strings.Contains(got, "a") || !strings.Contains(got, "b") || !strings.Contains(got, "c") {
		t.Errorf("received %q", got)
	}
	if len(cmd.links) != 4 {
		t.Errorf("%d links", len(cmd.links))
	}
	r.strict()
}

// FuzzFromTheHub feeds a connection with arbitrary bytes after CONNACK: it must end
// or go on, and acknowledge only what was sent.
func FuzzFromTheHub(f *testing.F) {
	f.Add([]byte{0x40, 2, 0, 1})
	f.Add([]byte{0x40, 2, 0, 2, 0x40, 2, 0, 1, 0xd0, 0})
	f.Add([]byte{0x32, 8, 0, 1, 't', 0, 9, 'a', 'b', 'c'})
	f.Add([]byte{0x90, 4, 0xea, 0x61, 1, 0x80})
	f.Fuzz(func(t *testing.T, b []byte) {
		cmd := &commander{filters: []packet.Subscription{{Filter: "a/#", QoS: 1}, {Filter: "b/#"}}}
		s := newScript(t, func(set *settings) { set.commands = cmd })
		s.say(0x20, 2, 0, 0)
		if err := s.c.await(t.Context(), time.Second); err != nil {
			t.Fatal(err)
		}
		s.c.open()
		for seq := range uint64(5) {
			_ = s.c.publish(seq+1, "t", nil, false)
		}
		s.c.send()
		_, _ = s.far.Write(b)
		s.far.Close()
		<-s.c.dead
		s.mu.Lock()
		defer s.mu.Unlock()
		for i, seq := range s.acked {
			if seq != uint64(i+1) {
				t.Fatalf("acknowledged %v", s.acked)
			}
		}
		if len(s.acked)+len(s.c.outstanding()) > 5 {
			t.Fatal("more than was sent")
		}
	})
}
