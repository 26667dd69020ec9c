package downstream

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gatewayd/internal/packet"
)

// raw is a PUBLISH with QoS 1 whose topic is taken as it is.
func raw(topic string) []byte {
	body := binary.BigEndian.AppendUint16(nil, uint16(len(topic)))
	body = append(append(body, topic...), 0, 1)
	return append([]byte{0x32, byte(len(body))}, body...)
}

func TestBrokenPacketsEndTheConnection(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		bytes []byte
		code  byte // of the DISCONNECT in MQTT 5
	}{
		"wildcard in the topic":         {append(raw("a/+"), 0), packet.MalformedPacket},
		"reserved type":                 {[]byte{0x00, 0}, packet.MalformedPacket},
		"PUBLISH with QoS 3":            {[]byte{0x36, 2, 0, 0}, packet.MalformedPacket},
		"topic beyond the packet":       {[]byte{0x32, 4, 0xff, 0xff, 'a', 'b'}, packet.MalformedPacket},
		"packet id 0":                   {[]byte{0x32, 6, 0, 1, 'a', 0, 0, 0}, packet.ProtocolError},
		"remaining length of 5 bytes":   {[]byte{0x32, 0xff, 0xff, 0xff, 0xff, 1}, packet.MalformedPacket},
		"256 MiB announced":             {[]byte{0x32, 0xff, 0xff, 0xff, 0x7f}, packet.PacketTooLarge},
		"over the limit":                {[]byte{0x32, 0x80, 0x80, 0x11}, packet.PacketTooLarge},
		"bad UTF-8":                     {[]byte{0x32, 6, 0, 2, 0xff, 0xfe, 0, 1}, packet.MalformedPacket},
		"U+0000":                        {[]byte{0x32, 6, 0, 2, 'a', 0, 0, 1}, packet.MalformedPacket},
		"second CONNECT":                {[]byte("\x10\x0d\x00\x04MQTT\x05\x02\x00\x00\x00\x00\x00"), packet.ProtocolError},
		"SUBSCRIBE without a filter":    {[]byte{0x82, 3, 0, 1, 0}, packet.ProtocolError},
		"SUBSCRIBE without options":     {[]byte{0x82, 6, 0, 1, 0, 0, 1, 'a'}, packet.MalformedPacket},
		"SUBSCRIBE with flags 0":        {[]byte{0x80, 7, 0, 1, 0, 0, 1, 'a', 0}, packet.MalformedPacket},
		"CONNACK from a client":         {[]byte{0x20, 2, 0, 0}, packet.ProtocolError},
		"PINGREQ with a body":           {[]byte{0xc0, 1, 0}, packet.MalformedPacket},
		"AUTH out of nowhere":           {[]byte{0xf0, 0}, packet.ProtocolError},
		"property that does not belong": {[]byte{0x32, 10, 0, 1, 'a', 0, 1, 5, 17, 0, 0, 0, 1}, packet.MalformedPacket},
		"subscription id in PUBLISH":    {[]byte{0x32, 8, 0, 1, 'a', 0, 1, 2, 11, 1}, packet.ProtocolError},
	} {
		t.Run(name, func(t *testing.T) {
			b := start(t, benchOptions{})
			c := b.connect(packet.V5, "a")
			c.write(tc.bytes)
			f := c.next(packet.DISCONNECT)
			if d, _ := packet.DecodeDisconnect(f, c.v); d.Code != tc.code && tc.code != packet.MalformedPacket || d.Code < 0x80 {
				t.Errorf("DISCONNECT %#x, want %#x", d.Code, tc.code)
			}
			c.closed(0)
			old := b.connect(packet.V311, "b")
			old.write([]byte{0x32, 0xff, 0xff, 0xff, 0x7f})
			old.closed(0)
			if n := len(b.sink.messages()); n != 0 {
				t.Errorf("%d stored", n)
			}
		})
	}
}

func TestSilentClientsAreLetGo(t *testing.T) {
	t.Parallel()
	b := start(t, benchOptions{config: MQTTConfig{ConnectTimeout: 300 * time.Millisecond}})
	hello, _ := packet.Connect{Version: packet.V311, ClientID: "a", CleanStart: true}.Append(nil, packet.V311)
	for name, sent := range map[string][]byte{"nothing": nil, "one byte": hello[:1], "half a CONNECT": hello[:9]} {
		c := b.dial()
		c.write(sent)
		begin := time.Now()
		c.closed(0)
		if took := time.Since(begin); took > 3*time.Second {
			t.Errorf("%s: after %v", name, took)
		}
	}
	t.Run("drop by drop", func(t *testing.T) {
		c := b.dial()
		begin := time.Now()
		for _, drop := range hello {
			time.Sleep(100 * time.Millisecond)
			if _, err := c.nc.Write([]byte{drop}); err != nil {
				break
			}
		}
		c.closed(0)
		if took := time.Since(begin); took > 3*time.Second {
			t.Errorf("after %v", took)
		}
	})
	t.Run("keep alive", func(t *testing.T) {
		c := b.dial()
		c.hello(packet.Connect{Version: packet.V5, ClientID: "k", CleanStart: true, KeepAlive: 1})
		begin := time.Now()
		c.closed(packet.KeepAliveTimeout)
		if took := time.Since(begin); took < 1400*time.Millisecond || took > 4*time.Second {
			t.Errorf("after %v", took)
		}
	})
	t.Run("a connected client may be silent for longer than the CONNECT may take", func(t *testing.T) {
		c := b.connect(packet.V311, "s")
		time.Sleep(1200 * time.Millisecond)
		c.quiet()
	})
}

func TestHalfAPacketIsNotWaitedForEternally(t *testing.T) {
	b := start(t, benchOptions{})
	c := b.connect(packet.V5, "a") // without a keep alive
	c.write([]byte{0x32, 100, 0})
	var conn *conn
	eventually(t, "the packet has begun", func() bool {
		conn = b.mqtt.all()[0]
		return conn.readBy.Load() != 0
	})
	if by := time.Duration(conn.readBy.Load()); by > packetTimeout+time.Second {
		t.Errorf("limit is %v", by)
	}
	conn.sweep(conn.readBy.Load() + 1)
	c.closed(packet.KeepAliveTimeout)
}

func TestConnectionsAreBounded(t *testing.T) {
	b := start(t, benchOptions{config: MQTTConfig{MaxConnections: 3}})
	for i := range 3 {
		b.connect(packet.V311, fmt.Sprint(i))
	}
	for range 3 {
		b.dial().closed(0)
	}
	if n := b.logs("connection refused: too many connections"); n != 1 {
		t.Errorf("%d log lines", n)
	}
	for _, c := range b.mqtt.all() {
		c.cut()
	}
	eventually(t, "room again", func() bool { return b.mqtt.Stats().Connections == 0 })
	b.connect(packet.V311, "a")
}

func TestConnectionsPerAddressAreBounded(t *testing.T) {
	s := &MQTT{cfg: MQTTConfig{MaxConnections: 10, MaxPerAddress: 2}, conns: map[*conn]struct{}{}, addresses: map[string]int{}}
	s.notes.due(noteKey{"", "connections"}, time.Now())
	from := func(ip string) net.Conn { return addressed{addr: &net.TCPAddr{IP: net.ParseIP(ip)}} }
	for i, tc := range []struct {
		ip string
		ok bool
	}{{"192.0.2.1", true}, {"192.0.2.1", true}, {"192.0.2.1", false}, {"192.0.2.2", true}, {"127.0.0.1", true}, {"127.0.0.1", true}, {"127.0.0.1", true}} {
		if _, ok := s.enter(from(tc.ip), nil); ok != tc.ok {
			t.Errorf("%d: %s: %v", i, tc.ip, ok)
		}
	}
}

type addressed struct {
	net.Conn
	addr net.Addr
}

func (a addressed) RemoteAddr() net.Addr { return a.addr }

func TestFloodOfSmallAnswersDoesNotGrow(t *testing.T) {
	t.Parallel()
	b := start(t, benchOptions{})
	c := b.connect(packet.V311, "a")
	pings := bytes.Repeat(packet.AppendPing(nil, packet.PINGREQ), 4096)
	c.nc.SetWriteDeadline(time.Now().Add(time.Second))
	for {
		// Never reads: in the end neither does the gateway.
		if _, err := c.nc.Write(pings); err != nil {
			break
		}
	}
	conn := b.mqtt.all()[0]
	conn.mu.Lock()
	defer conn.mu.Unlock()
	if n := len(conn.out); n > outBound+16 {
		t.Errorf("%d bytes wait", n)
	}
}

func TestManyHalfPacketsStayWithinTheMemory(t *testing.T) {
	t.Parallel()
	const clients = 200
	b := start(t, benchOptions{config: MQTTConfig{MaxBuffered: 2 << 20}})
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	packetHead := []byte{0x32, 0x80, 0x80, 0x0f} // 240 KiB follow, but not to the end
	body := make([]byte, 200<<10)
	binary.BigEndian.PutUint16(body, 1)
	body[2] = 'a'
	var group sync.WaitGroup
	for i := range clients {
		c := b.connect(packet.V5, fmt.Sprint(i))
		group.Go(func() {
			c.nc.SetWriteDeadline(time.Now().Add(2 * time.Second))
			c.nc.Write(append(slices.Clone(packetHead), body...))
		})
	}
	group.Wait()
	time.Sleep(300 * time.Millisecond)
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 24<<20 {
		t.Errorf("the heap grew by %d KiB for %d half packets", grown>>10, clients)
	}
	// Small packets of others pass meanwhile.
	good := b.connect(packet.V311, "good")
	good.send(telemetry(1, "x"))
	good.puback(1)
}

func TestStalledReaderDoesNotHoldOthersUp(t *testing.T) {
	t.Parallel()
	b := start(t, benchOptions{})
	stalled := b.connect(packet.V311, "stalled")
	stalled.subscribe("gateway/#", 1)
	for range 900 {
		b.local.Publish(LocalMessage{Topic: "gateway/a", Payload: make([]byte, 1000), QoS: 1})
	}
	good := b.connect(packet.V311, "good")
	begin := time.Now()
	for id := uint16(1); id <= 100; id++ {
		good.send(telemetry(id, "x"))
		good.puback(id)
	}
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("100 messages took %v", took)
	}
}

func TestRateIsHeldByReadingSlower(t *testing.T) {
	t.Parallel()
	b := start(t, benchOptions{config: MQTTConfig{Rate: 50}})
	c := b.connect(packet.V311, "a")
	begin := time.Now()
	for id := uint16(1); id <= 75; id++ {
		c.send(telemetry(id, "x"))
	}
	for id := uint16(1); id <= 75; id++ {
		c.puback(id)
	}
	if took := time.Since(begin); took < 400*time.Millisecond || took > 5*time.Second {
		t.Errorf("75 messages at 50 a second after a burst of 50 took %v", took)
	}
}

func TestTopicFloodIsBounded(t *testing.T) {
	l := NewLedger(100, 10)
	s := l.Source("mqtt")
	for i := range 1000 {
		s.Client(fmt.Sprint("c", i)).received(fmt.Sprintf("a%d/b/c", i), 1)
	}
	if n := len(l.Clients(1000)); n > 100 {
		t.Errorf("%d clients", n)
	}
	prefixes := l.Prefixes(1000)
	if len(prefixes) != 11 {
		t.Errorf("%d prefixes", len(prefixes))
	}
	var total uint64
	for _, p := range prefixes {
		total += p.Messages
	}
	if total != 1000 {
		t.Errorf("%d of 1000 messages counted", total)
	}
	if latest := l.Clients(1)[0].Name; latest == "c0" {
		t.Error("the oldest client was kept")
	}
}

// TestOthersKeepTheirLatency compares one sensor's round trips alone and beside
// hostile clients. Client, gateway and attackers share the machine with whatever
// else runs, so the bound only catches somebody being held up for the length of a
// time limit; BenchmarkBesideHostileClients has the figures.
func TestOthersKeepTheirLatency(t *testing.T) {
	b := start(t, benchOptions{commit: time.Millisecond, config: MQTTConfig{MaxBuffered: 1 << 20}})
	c := b.connect(packet.V311, "good")
	alone := roundTrips(c, 200)
	stop := make(chan struct{})
	attacked := make(chan struct{})
	go func() {
		defer close(attacked)
		attack(b.mqtt.Addr().String(), 8, stop)
	}()
	beside := roundTrips(c, 200)
	close(stop)
	<-attacked
	if got, bound := quantile(beside, 0.5), quantile(alone, 0.5)+200*time.Millisecond; got > bound {
		t.Errorf("median beside hostile clients %v, alone %v", got, quantile(alone, 0.5))
	}
}

// BenchmarkBesideHostileClients reports round trips of one sensor: alone, beside
// attackers in a process of their own, and beside the same process attacking a
// listener that only hangs up. The last is what the machine costs, since attackers,
// sensor and gateway share its cores; the difference is what the gateway costs.
func BenchmarkBesideHostileClients(b *testing.B) {
	s := start(b, benchOptions{commit: time.Millisecond, config: MQTTConfig{MaxBuffered: 1 << 20}})
	c := s.connect(packet.V311, "good")
	const rounds, trips = 8, 1000
	var alone, beside, control []time.Duration
	deaf := hangUp(b)
	for range rounds { // in turns, so that what else runs here falls on all alike
		alone = append(alone, roundTrips(c, trips)...)
		for address, into := range map[string]*[]time.Duration{s.mqtt.Addr().String(): &beside, deaf: &control} {
			stop := startAttackers(b, address)
			*into = append(*into, roundTrips(c, trips)...)
			stop()
		}
	}
	for name, took := range map[string][]time.Duration{"alone": alone, "beside": beside, "control": control} {
		b.ReportMetric(ms(quantile(took, 0.5)), "ms-p50-"+name)
		b.ReportMetric(ms(quantile(took, 0.99)), "ms-p99-"+name)
	}
	b.ReportMetric(float64(s.mqtt.Stats().Accepted), "connections")
	b.ReportMetric(0, "ns/op")
}

// hangUp is a listener that closes each connection at once.
func hangUp(t testing.TB) (address string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			nc.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}

// attackers is what the process of attackers is told by its environment.
const attackersEnv = "DOWNSTREAM_TEST_ATTACK"

func startAttackers(t testing.TB, address string) (stop func()) {
	t.Helper()
	p, stop := startSelf(t, attackersEnv+"="+address)
	if _, err := p.out.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	return stop
}

// beAttackers attacks until standard input ends.
func beAttackers(address string) {
	stop := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(stop)
	}()
	fmt.Println("attacking")
	attack(address, 8, stop)
}

func attack(address string, attackers int, stop chan struct{}) {
	var group sync.WaitGroup
	for i := range attackers {
		group.Go(func() { beHostile(address, i, stop) })
	}
	group.Wait()
}

func roundTrips(c *client, trips int) (took []time.Duration) {
	for i := range trips {
		begin := time.Now()
		c.send(telemetry(uint16(i+1), "x"))
		c.puback(uint16(i + 1))
		took = append(took, time.Since(begin))
	}
	return took
}

func beHostile(address string, seed int, stop chan struct{}) {
	random := rand.New(rand.NewPCG(uint64(seed), 0))
	attacks := []func(net.Conn){
		func(nc net.Conn) { nc.Write([]byte{0x10}); time.Sleep(20 * time.Millisecond) },
		func(nc net.Conn) { nc.Write([]byte{0x10, 0xff, 0xff, 0xff, 0x7f}) },
		func(nc net.Conn) { nc.Write(bytes.Repeat([]byte{0xff}, 1000)) },
		func(nc net.Conn) {
			hello, _ := packet.Connect{Version: packet.V5, ClientID: fmt.Sprint("h", seed), CleanStart: true}.Append(nil, packet.V5)
			flood, _ := packet.Publish{Topic: fmt.Sprint("nowhere/", random.Int()), QoS: 1, ID: 1}.Append(nil, packet.V5)
			nc.Write(append(hello, bytes.Repeat(flood, 50)...))
			time.Sleep(5 * time.Millisecond)
		},
		func(nc net.Conn) {
			hello, _ := packet.Connect{Version: packet.V5, ClientID: fmt.Sprint("h", seed), CleanStart: true}.Append(nil, packet.V5)
			nc.Write(append(hello, 0x32, 0x80, 0x80, 0x0f, 0, 1, 'a'))
			nc.Write(make([]byte, 20<<10))
		},
		func(nc net.Conn) { nc.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")) },
	}
	for {
		select {
		case <-stop:
			return
		case <-time.After(2 * time.Millisecond):
		}
		nc, err := net.Dial("tcp", address)
		if err != nil {
			continue
		}
		nc.SetDeadline(time.Now().Add(time.Second))
		attacks[random.IntN(len(attacks))](nc)
		nc.Close()
	}
}

func TestLogLinesStayShort(t *testing.T) {
	b := start(t, benchOptions{})
	c := b.connect(packet.V5, "a")
	c.send(packet.Publish{Topic: strings.Repeat("x", 60000), QoS: 1, ID: 1})
	c.puback(1)
	for _, line := range b.logged.All() {
		for _, f := range line.Context {
			if len(f.String) > 200 {
				t.Errorf("%d bytes in %s", len(f.String), f.Key)
			}
		}
	}
}
