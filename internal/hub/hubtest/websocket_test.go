package hubtest

import (
	"context"
	"crypto/tls"
	"net/http"
	"testing"
	"time"

	"github.com/coder/websocket"

	"gatewayd/internal/packet"
)

// webSocketClient dials the second listener; path and subprotocol are the test's choice.
func (r *rig) webSocketClient(target, protocol string, certs ...tls.Certificate) (*client, *http.Response, error) {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	ws, resp, err := websocket.Dial(ctx, "wss://"+r.hub.WebSocketAddr()+target, &websocket.DialOptions{
		HTTPClient:   &http.Client{Transport: &http.Transport{TLSClientConfig: r.tlsConfig(certs...), DisableKeepAlives: true}},
		Subprotocols: []string{protocol},
	})
	if err != nil {
		return nil, resp, err
	}
	nc := websocket.NetConn(r.Context(), ws, websocket.MessageBinary)
	r.conns = append(r.conns, rawWebSocket{nc, ws, ""})
	return &client{rig: r, nc: nc, in: packet.NewReader(nc, 0)}, resp, nil
}

func TestWebSocketCarriesMQTT(t *testing.T) {
	r := newRig(t, Options{WebSocket: "127.0.0.1:0"})
	defer r.close()
	pair := r.issue(leaf("press-7"))
	c, resp, err := r.webSocketClient("/$iothub/websocket", "mqtt", pair.TLS())
	if err != nil {
		t.Fatal(err)
	}
	if got := resp.Header.Get("Sec-WebSocket-Protocol"); got != "mqtt" {
		t.Errorf("subprotocol %q, want mqtt", got)
	}
	c.send(connectPacket("press-7"))
	c.wantConnack(packet.Accepted)
	c.publish(1, events("press-7", "a=b"), "over HTTPS")
	c.wantPuback(1)
	m := r.hub.Messages()
	if len(m) != 1 || m[0].Fingerprint != pair.SHA256() || string(m[0].Body) != "over HTTPS" {
		t.Errorf("ledger %+v", m)
	}
	if got := r.hub.Connections()[0]; !got.WebSocket || got.Outcome != OutcomeAccepted {
		t.Errorf("connection %+v", got)
	}
	// The two listeners share the rule of one connection per identity.
	direct := must(tls.Dial("tcp", r.hub.ws.addr, r.tlsConfig(pair.TLS())))(t)
	_ = direct.Close()
	other, _, err := r.webSocketClient("/$iothub/websocket", "mqtt", pair.TLS())
	if err != nil {
		t.Fatal(err)
	}
	other.send(connectPacket("press-7"))
	other.wantConnack(packet.Accepted)
	c.wantClosed()
	other.alive()
}

func TestWebSocketRefusesOtherRequests(t *testing.T) {
	r := newRig(t, Options{WebSocket: "127.0.0.1:0", Listen: "127.0.0.1:0"})
	defer r.close()
	for _, tt := range []struct {
		name, path, protocol string
		status               int
	}{
		{"path", "/mqtt", "mqtt", http.StatusNotFound},
		{"subprotocol", "/$iothub/websocket", "AMQPWSB10", http.StatusBadRequest},
		{"query", "/$iothub/websocket?api-version=2021-04-12", "mqtt", http.StatusBadRequest},
		{"case", "/$IoTHub/websocket", "mqtt", http.StatusNotFound},
	} {
		_, resp, err := r.webSocketClient(tt.path, tt.protocol)
		if err == nil || resp == nil || resp.StatusCode != tt.status {
			t.Errorf("%s: %v %+v, want status %d", tt.name, err, resp, tt.status)
		}
	}
	for _, v := range r.hub.Violations() {
		if v.Row != 59 {
			t.Errorf("violation %+v", v)
		}
	}
	r.hub.FailUpgrades(http.StatusServiceUnavailable)
	if _, resp, err := r.webSocketClient("/$iothub/websocket", "mqtt"); err == nil || resp == nil || resp.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("a failing upgrade: %v %+v", err, resp)
	}
	r.hub.FailUpgrades(0)
	c, _, err := r.webSocketClient("/$iothub/websocket?iothub-no-client-cert=true", "mqtt", r.issue(leaf("press-7")).TLS())
	if err != nil {
		t.Fatal(err)
	}
	c.send(connectPacket("press-7"))
	c.wantConnack(packet.RefusedNotAuthorized)
	bad := r.issue(leaf("press-7"))
	r.hub.RefuseFingerprint(bad.SHA256(), TLSAlert)
	if _, _, err := r.webSocketClient("/$iothub/websocket", "mqtt", bad.TLS()); err == nil {
		t.Error("a fingerprint refused in TLS came through")
	}
}

func TestWebSocketIsForThisHubAndWithoutOtherCredentials(t *testing.T) {
	r := newRig(t, Options{WebSocket: "127.0.0.1:0"})
	defer r.close()
	for _, tt := range []struct{ host, authorization string }{{"fabrikam.azure-devices.net", ""}, {"", "SharedAccessSignature sr=x"}} {
		header := http.Header{}
		if tt.authorization != "" {
			header.Set("Authorization", tt.authorization)
		}
		_, resp, err := websocket.Dial(t.Context(), "wss://"+r.hub.WebSocketAddr()+webSocketPath, &websocket.DialOptions{
			HTTPClient:   &http.Client{Transport: &http.Transport{TLSClientConfig: r.tlsConfig(r.issue(leaf("press-7")).TLS()), DisableKeepAlives: true}},
			Subprotocols: []string{webSocketMQTT}, Host: tt.host, HTTPHeader: header,
		})
		if err == nil || resp == nil || resp.StatusCode < 400 {
			t.Errorf("%+v: %v", tt, err)
		}
	}
	if v := r.hub.Violations(); len(v) != 2 || v[0].Row != 59 || v[1].Row != 59 {
		t.Errorf("violations %+v", v)
	}
}

func TestWebSocketEndsWithTheHub(t *testing.T) {
	r := newRig(t, Options{WebSocket: "127.0.0.1:0"})
	c, _, err := r.webSocketClient("/$iothub/websocket", "mqtt", r.issue(leaf("press-7")).TLS())
	if err != nil {
		t.Fatal(err)
	}
	c.send(connectPacket("press-7"))
	c.wantConnack(packet.Accepted)
	start := time.Now()
	r.stop()
	<-r.ended
	if took := time.Since(start); took > 2*shutdownPeriod {
		t.Errorf("the hub took %v to stop", took)
	}
	c.wantClosed()
}
