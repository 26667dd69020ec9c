package hubtest

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/packet"
)

// BenchmarkSink is what one connection can bring into the ledger: 256 B messages with five properties, 1,000 in
// flight, written in batches, over real TLS on loopback.
func BenchmarkSink(b *testing.B) {
	for _, tt := range []struct {
		name string
		mode LedgerMode
	}{{"count", CountOnly}, {"keep", KeepAll}} {
		b.Run(tt.name, func(b *testing.B) {
			ca := must(certtest.NewCA("fleet"))(b)
			h := Start(b, Options{ClientCAs: nil, Ledger: tt.mode})
			h.AddCA(ca.Cert)
			if err := h.AddDevice(Device{DeviceID: "press-7"}); err != nil {
				b.Fatal(err)
			}
			conn := dialOnline(b, h, ca, "press-7")
			b.SetBytes(256)
			b.ReportAllocs()
			b.ResetTimer()
			start := time.Now()
			pump(b, conn, b.N)
			b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "msg/s")
			if got := h.Counters("press-7").Messages; got != uint64(b.N) {
				b.Fatalf("%d messages counted, want %d", got, b.N)
			}
		})
	}
}

// dialOnline opens an accepted connection over real sockets.
func dialOnline(t testing.TB, h *Hub, ca *certtest.CA, identity string) *tls.Conn {
	t.Helper()
	pair := must(ca.Issue(certtest.Leaf{CN: identity}))(t)
	conn := must(tls.Dial("tcp", h.Addr(), &tls.Config{
		RootCAs: h.ServerPool(), ServerName: h.HostName(), Certificates: []tls.Certificate{pair.TLS()},
	}))(t)
	t.Cleanup(func() { _ = conn.Close() })
	if _, err := conn.Write(must(connectPacket(identity).Append(nil, packet.V311))(t)); err != nil {
		t.Fatal(err)
	}
	ack := make([]byte, 4)
	if _, err := io.ReadFull(conn, ack); err != nil || ack[3] != packet.Accepted {
		t.Fatalf("CONNACK %x (%v)", ack, err)
	}
	return conn
}

// pump publishes n messages with up to 1,000 in flight and waits for every PUBACK.
func pump(t testing.TB, conn net.Conn, n int) {
	const window, batch = 1000, 50
	var acked atomic.Int64
	room := make(chan struct{}, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		buf := make([]byte, 1<<14)
		for total := 0; total < 4*n; {
			k, err := conn.Read(buf)
			if err != nil {
				t.Error(err)
				return
			}
			total += k
			acked.Store(int64(total / 4))
			poke(room)
		}
	})
	one := make([][]byte, 65535)
	body := make([]byte, 256)
	var out []byte
	for i := range n {
		if id := i % 65535; one[id] == nil {
			topic := events("press-7", fmt.Sprintf("%%24.mid=0b1946a7-%d&%%24.ctime=2026-11-23T16%%3A00%%3A00Z&%%24.ct=application%%2Fjson&%%24.ce=utf-8&sensor=s%d", i, i%50))
			one[id] = must(packet.Publish{Topic: topic, QoS: 1, ID: uint16(id + 1), Payload: body}.Append(nil, packet.V311))(t)
		}
		out = append(out, one[i%65535]...)
		if (i+1)%batch == 0 || i == n-1 {
			for int64(i)-acked.Load() > window {
				<-room
			}
			if _, err := conn.Write(out); err != nil {
				t.Fatal(err)
			}
			out = out[:0]
		}
	}
	wg.Wait()
}

// TestHoldsManyConnections goes to the size that tests of many identities need: 2,000 with GATEWAYD_LONG=1.
func TestHoldsManyConnections(t *testing.T) {
	n := 300
	if os.Getenv("GATEWAYD_LONG") != "" {
		n = 2000
	}
	ca := must(certtest.NewCA("fleet"))(t)
	h := Start(t, Options{})
	h.AddCA(ca.Cert)
	shared := must(ca.Issue(certtest.Leaf{CN: "any"}))(t)
	start := time.Now()
	var wg sync.WaitGroup
	slots := make(chan struct{}, 16)
	conns := make([]*tls.Conn, n)
	for i := range n {
		name := fmt.Sprintf("d%d", i)
		// One certificate for all, by thumbprint, spares the test two thousand keys.
		if err := h.AddDevice(Device{DeviceID: name, Thumbprints: []string{shared.SHA256()}}); err != nil {
			t.Fatal(err)
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			conn, err := tls.Dial("tcp", h.Addr(), &tls.Config{
				RootCAs: h.ServerPool(), ServerName: h.HostName(), Certificates: []tls.Certificate{shared.TLS()},
			})
			if err != nil {
				t.Error(err)
				return
			}
			conns[i] = conn
			b, _ := connectPacket(name).Append(nil, packet.V311)
			b, _ = packet.Publish{Topic: events(name, ""), QoS: 1, ID: 1}.Append(b, packet.V311)
			if _, err := conn.Write(b); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := h.WaitMessages(ctx, "", n); err != nil {
		t.Fatalf("%d messages of %d: %v", h.Counters("").Messages, n, err)
	}
	t.Logf("%d identities online with a message each after %v", h.Live(), time.Since(start))
	if got := h.Live(); got != n {
		t.Errorf("%d live connections, want %d", got, n)
	}
	for _, c := range conns {
		if c != nil {
			_ = c.NetConn().Close()
		}
	}
}
