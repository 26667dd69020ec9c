package hubtest

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/packet"
)

// patience is how long a client of these tests waits; virtual time in a bubble.
const patience = 5 * time.Second

// rig is a hub over in-memory connections with one identity of every kind.
type rig struct {
	*testing.T
	hub   *Hub
	ca    *certtest.CA
	pipes *PipeListener
	stop  context.CancelFunc
	ended chan struct{}
	conns []net.Conn
}

func newRig(t *testing.T, opt Options) *rig {
	t.Helper()
	r := &rig{T: t, ended: make(chan struct{})}
	r.ca = must(certtest.NewCA("fleet"))(t)
	if opt.Listener == nil && opt.Listen == "" {
		r.pipes = NewPipeListener()
		opt.Listener = r.pipes
	}
	if opt.ClientCAs == nil {
		opt.ClientCAs = append(opt.ClientCAs, r.ca.Cert)
	}
	r.hub = must(New(opt))(t)
	r.add(Device{DeviceID: "press-7"})
	r.add(Device{DeviceID: "press-8"})
	r.add(Device{DeviceID: "press-7", ModuleID: "agent"})
	r.add(Device{DeviceID: "keyed", Key: []byte("secret")})
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	go func() {
		defer close(r.ended)
		if err := r.hub.Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	return r
}

func (r *rig) close() {
	for _, c := range r.conns {
		_ = c.Close()
	}
	r.stop()
	<-r.ended
}

func must[V any](v V, err error) func(testing.TB) V {
	return func(t testing.TB) V {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func (r *rig) add(d Device) {
	r.Helper()
	if err := r.hub.AddDevice(d); err != nil {
		r.Fatal(err)
	}
}

func (r *rig) issue(l certtest.Leaf) *certtest.Pair { return must(r.ca.Issue(l))(r) }

// raw opens a connection below TLS.
func (r *rig) raw() net.Conn {
	r.Helper()
	var c net.Conn
	if r.pipes != nil {
		c = must(r.pipes.DialContext(r.Context(), "", ""))(r)
	} else {
		c = must(net.Dial("tcp", r.hub.Addr()))(r)
	}
	r.conns = append(r.conns, c)
	return c
}

func (r *rig) tlsConfig(certs ...tls.Certificate) *tls.Config {
	return &tls.Config{RootCAs: r.hub.ServerPool(), ServerName: r.hub.HostName(), Certificates: certs}
}

// client is a device that sends whatever the test wants.
type client struct {
	*rig
	nc  net.Conn
	in  *packet.Reader
	err error // of the handshake
}

// dial finishes TLS with the given certificate, none for a nil pair.
func (r *rig) dial(pair *certtest.Pair) *client {
	r.Helper()
	conf := r.tlsConfig()
	if pair != nil {
		conf.Certificates = append(conf.Certificates, pair.TLS())
	}
	return r.dialWith(conf)
}

func (r *rig) dialWith(conf *tls.Config) *client {
	r.Helper()
	tc := tls.Client(r.raw(), conf)
	c := &client{rig: r, nc: tc, in: packet.NewReader(tc, 0)}
	_ = tc.SetDeadline(time.Now().Add(patience))
	c.err = tc.Handshake()
	_ = tc.SetDeadline(time.Time{})
	return c
}

func connectPacket(identity string) packet.Connect {
	return packet.Connect{
		Version: packet.V311, KeepAlive: 60, ClientID: identity, HasUsername: true,
		Username: DefaultHostName + "/" + identity + "/?api-version=2021-04-12",
	}
}

// online is an accepted connection of an identity with a proper certificate.
func (r *rig) online(identity string) *client {
	r.Helper()
	c := r.dial(r.issue(certtest.Leaf{CN: identity}))
	c.send(connectPacket(identity))
	c.wantConnack(packet.Accepted)
	return c
}

func (c *client) send(p packet.Packet) {
	c.Helper()
	c.write(must(p.Append(nil, packet.V311))(c))
}

func (c *client) write(b []byte) {
	c.Helper()
	if _, err := c.nc.Write(b); err != nil {
		c.Logf("write: %v", err) // the reading side of the test decides
	}
}

// next returns a copy of the next packet.
func (c *client) next(wait time.Duration) (packet.Frame, error) {
	_ = c.nc.SetReadDeadline(time.Now().Add(wait))
	f, err := c.in.Next()
	f.Body = bytes.Clone(f.Body)
	return f, err
}

func (c *client) wantConnack(code byte) packet.Connack {
	c.Helper()
	f, err := c.next(patience)
	if err != nil {
		c.Fatalf("waiting for CONNACK %d: %v", code, err)
	}
	a, err := packet.DecodeConnack(f, packet.V311)
	if err != nil || a.Code != code {
		c.Fatalf("got CONNACK %d (%v), want %d", a.Code, err, code)
	}
	if code != packet.Accepted {
		c.wantClosed()
	}
	return a
}

// wantClosed wants the end of the connection without any packet before it.
func (c *client) wantClosed() { c.Helper(); c.wantClosedWithin(patience) }

func (c *client) wantClosedWithin(d time.Duration) {
	c.Helper()
	f, err := c.next(d)
	switch {
	case err == nil:
		c.Fatalf("got %v, want a closed connection", f.Type)
	case isTimeout(err):
		c.Fatalf("connection still open after %v", d)
	}
}

// wantQuiet wants an open connection on which nothing comes.
func (c *client) wantQuiet(d time.Duration) {
	c.Helper()
	if f, err := c.next(d); err == nil {
		c.Fatalf("got %v, want nothing", f.Type)
	} else if !isTimeout(err) {
		c.Fatalf("connection ended: %v", err)
	}
	// A TLS connection cannot be read after a timeout unless it was between records, which holds here.
}

func (c *client) wantPuback(id uint16) {
	c.Helper()
	f, err := c.next(patience)
	if err != nil {
		c.Fatalf("waiting for PUBACK %d: %v", id, err)
	}
	a, err := packet.DecodeAck(f, packet.V311)
	if err != nil || a.ID != id || a.Type != packet.PUBACK {
		c.Fatalf("got %v %d (%v), want PUBACK %d", f.Type, a.ID, err, id)
	}
}

func (c *client) wantPublish() packet.Publish {
	c.Helper()
	f, err := c.next(patience)
	if err != nil {
		c.Fatalf("waiting for PUBLISH: %v", err)
	}
	p, err := packet.DecodePublish(f, packet.V311)
	if err != nil {
		c.Fatal(err)
	}
	return p
}

// alive proves that the connection still works.
func (c *client) alive() {
	c.Helper()
	c.write(packet.AppendPing(nil, packet.PINGREQ))
	f, err := c.next(patience)
	if err != nil || f.Type != packet.PINGRESP {
		c.Fatalf("got %v (%v), want PINGRESP", f.Type, err)
	}
}

func events(identity, bag string) string { return "devices/" + identity + "/messages/events/" + bag }

func (c *client) publish(id uint16, topic, body string) {
	c.Helper()
	p := packet.Publish{Topic: topic, Payload: []byte(body), ID: id}
	if id > 0 {
		p.QoS = 1
	}
	c.send(p)
}

func (c *client) subscribe(filters ...string) []byte {
	c.Helper()
	s := packet.Subscribe{ID: 9}
	for _, f := range filters {
		s.Subscriptions = append(s.Subscriptions, packet.Subscription{Filter: f, QoS: 1})
	}
	c.send(s)
	f, err := c.next(patience)
	if err != nil {
		c.Fatalf("waiting for SUBACK: %v", err)
	}
	a, err := packet.DecodeSuback(f, packet.V311)
	if err != nil {
		c.Fatal(err)
	}
	return a.Codes
}

// wantRow wants exactly one violation, of this row.
func (r *rig) wantRow(row int) {
	r.Helper()
	v := r.hub.Violations()
	if len(v) != 1 || v[0].Row != row {
		r.Fatalf("violations %+v, want one of row %d", v, row)
	}
}

// wantClosedRow wants the latest connection to have ended for this row.
func (r *rig) wantClosedRow(row int) {
	r.Helper()
	time.Sleep(2 * linger)
	all := r.hub.Connections()
	if c := all[len(all)-1]; c.Row != row || c.Closed.IsZero() {
		r.Fatalf("connection %+v, want an end for row %d", c, row)
	}
}

// handshakeRefused tells whether the server ended TLS, at once or at the first read as TLS 1.3 does.
func (c *client) handshakeRefused() bool {
	if c.err != nil {
		return true
	}
	_ = c.nc.SetReadDeadline(time.Now().Add(patience))
	_, err := c.nc.Read(make([]byte, 1))
	var remote *net.OpError
	return errors.As(err, &remote) && remote.Op == "remote error" || errors.Is(err, io.EOF)
}

func leaf(identity string) certtest.Leaf { return certtest.Leaf{CN: identity} }
