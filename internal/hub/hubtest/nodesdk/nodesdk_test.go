package nodesdk_test

import (
	"context"
	"testing"
	"time"

	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/hub/hubtest"
	"gatewayd/internal/hub/hubtest/nodesdk"
)

const device = "press-7"

// bench is a hub with one device that a CA vouches for.
func bench(t *testing.T, opt hubtest.Options) (*hubtest.Hub, *certtest.CA) {
	t.Helper()
	ca, err := certtest.NewCA("fleet")
	if err != nil {
		t.Fatal(err)
	}
	opt.ClientCAs = append(opt.ClientCAs, ca.Cert)
	h := hubtest.Start(t, opt)
	if err := h.AddDevice(hubtest.Device{DeviceID: device}); err != nil {
		t.Fatal(err)
	}
	return h, ca
}

func settings(t *testing.T, h *hubtest.Hub, ca *certtest.CA, cn string) nodesdk.Settings {
	t.Helper()
	pair, err := ca.Issue(certtest.Leaf{CN: cn})
	if err != nil {
		t.Fatal(err)
	}
	return nodesdk.Settings{
		ConnectionString: "HostName=" + h.HostName() + ";DeviceId=" + device + ";x509=true",
		Dial:             h.Addr(), CA: string(h.ServerCAPEM()), Cert: string(pair.CertPEM), Key: string(pair.KeyPEM),
	}
}

func deadline(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// TestAzureSDKWorksAgainstTheStandIn takes one SDK client through everything that a device does.
func TestAzureSDKWorksAgainstTheStandIn(t *testing.T) {
	h, ca := bench(t, hubtest.Options{})
	d := nodesdk.Start(t, settings(t, h, ca, device))
	d.Do("open", nil)
	if !h.Connected(device) {
		t.Fatal("the SDK says open, the hub has no connection")
	}
	nodesdk.Everything(t, d, nodesdk.Place{Hub: h, Identity: device})
	d.Do("close", nil)
	ctx := deadline(t)
	if err := h.Wait(ctx, func() bool { return !h.Connected(device) }); err != nil {
		t.Fatalf("after close: %v", err)
	}
	if v := h.Violations(); len(v) != 0 {
		t.Errorf("the SDK broke rules %+v: the stand-in is stricter than the hub can be", v)
	}
	c := h.Connections()[0]
	if c.APIVersion != "2021-04-12" || c.CommonName != device || c.CloseReason != "client disconnected" {
		t.Errorf("connection %+v", c)
	}
}

// TestAzureSDKIsRefusedWithAWrongCertificate shows that the SDK understands every way to refuse.
func TestAzureSDKIsRefusedWithAWrongCertificate(t *testing.T) {
	for _, tt := range []struct {
		name    string
		cn      string
		foreign bool
		failure hubtest.Refusal
		error   string // the SDK's class; "" is any
	}{
		{"another device's", "press-8", false, hubtest.ConnackFive, "UnauthorizedError"},
		{"unknown CA, CONNACK 5", device, true, hubtest.ConnackFive, "UnauthorizedError"},
		{"unknown CA, TLS alert", device, true, hubtest.TLSAlert, ""},
		{"unknown CA, silent close", device, true, hubtest.CloseSilently, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, ca := bench(t, hubtest.Options{CertFailure: tt.failure})
			if tt.foreign {
				var err error
				if ca, err = certtest.NewCA("stranger"); err != nil {
					t.Fatal(err)
				}
			}
			d := nodesdk.Start(t, settings(t, h, ca, tt.cn))
			l := d.Try("open", nil)
			if l.Error == "" || tt.error != "" && l.Error != tt.error {
				t.Errorf("open: %q (%s), want %q", l.Error, l.Message, tt.error)
			}
			if h.Counters(device).Connects != 0 {
				t.Error("the hub accepted the connection")
			}
		})
	}
}

// TestAzureSDKComesBackAfterACut shows that the SDK's own reconnect works against the stand-in.
func TestAzureSDKComesBackAfterACut(t *testing.T) {
	h, ca := bench(t, hubtest.Options{})
	s := settings(t, h, ca, device)
	s.Retry = true
	d := nodesdk.Start(t, s)
	d.Do("open", nil)
	d.Do("c2d", nil)
	d.Do("send", map[string]any{"body": "one"})
	h.DropConnections(device)
	if err := h.WaitConnected(deadline(t), device); err != nil {
		t.Fatalf("waiting for the SDK to come back: %v", err)
	}
	d.Do("send", map[string]any{"body": "two"})
	if err := h.SendC2D(t.Context(), device, hubtest.C2D{Body: []byte("still here")}); err != nil {
		t.Fatal(err)
	}
	if l := d.Event("c2d"); l.Body != "still here" {
		t.Errorf("the SDK got %+v", l)
	}
}
