package hubtest

import (
	"crypto/tls"
	"io"
	"strings"
	"testing"
	"testing/synctest"
)

func TestListeningStopsAndResumesOnTheSameAddress(t *testing.T) {
	r := newRig(t, Options{Listen: "127.0.0.1:0"})
	defer r.close()
	c := r.online("press-7")
	addr := r.hub.Addr()
	r.hub.StopListening()
	if conn, err := tls.Dial("tcp", addr, r.tlsConfig()); err == nil {
		_ = conn.Close()
		t.Fatal("still listening")
	}
	c.alive()
	if err := r.hub.Resume(); err != nil {
		t.Fatal(err)
	}
	if r.hub.Addr() != addr {
		t.Errorf("address %s, want %s", r.hub.Addr(), addr)
	}
	r.online("press-8").alive()
	c.alive()
}

func TestRegistryRefusesBadDevices(t *testing.T) {
	h := must(New(Options{Listener: NewPipeListener()}))(t)
	defer h.Close()
	for _, d := range []Device{
		{}, {DeviceID: "a b"}, {DeviceID: "a/b"}, {DeviceID: strings.Repeat("x", 129)}, {DeviceID: "ä"},
		{DeviceID: "a", ModuleID: "b/c"}, {DeviceID: "a", Thumbprints: []string{"12"}},
		{DeviceID: "a", Thumbprints: []string{strings.Repeat("g", 40)}},
		{DeviceID: "a", Thumbprints: []string{strings.Repeat("0", 40), strings.Repeat("1", 40), strings.Repeat("2", 40)}},
		{DeviceID: "a", Thumbprints: []string{strings.Repeat("0", 40)}, Key: []byte("k")},
	} {
		if err := h.AddDevice(d); err == nil {
			t.Errorf("%+v was accepted", d)
		}
	}
	if err := h.AddDevice(Device{DeviceID: "a-.+%_#*?!(),:=@$'Z9"}); err != nil {
		t.Error(err)
	}
	if got := h.Identities(); len(got) != 1 {
		t.Errorf("identities %v", got)
	}
}

func TestRunEndsEveryConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Options{})
		c := r.online("press-7")
		pending := r.dial(nil)
		half := r.raw()
		r.stop()
		<-r.ended // and the bubble fails if any goroutine is left
		c.wantClosed()
		pending.wantClosed()
		if _, err := io.ReadAll(half); err != nil {
			t.Errorf("a connection before TLS ended with %v", err)
		}
		if _, err := r.pipes.DialContext(t.Context(), "", ""); err == nil {
			t.Error("still listening")
		}
	})
}
