package hubtest

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/coder/websocket"
)

const (
	webSocketPath  = "/$iothub/websocket"
	webSocketMQTT  = "mqtt"
	noCertificate  = "iothub-no-client-cert" // a token client's wish not to be asked; a certificate is then not looked at
	shutdownPeriod = time.Second
)

// webSocket is the second listener: MQTT in binary frames over HTTPS. The client certificate is asked for in the
// first handshake: the classic endpoint's way, a renegotiation of TLS 1.2 after the request, is none that a Go
// server can go.
type webSocket struct {
	h    *Hub
	addr string
	ln   net.Listener
	srv  *http.Server
}

func newWebSocket(h *Hub) (*webSocket, error) {
	ln := h.opt.WebSocketListener
	if ln == nil {
		var err error
		if ln, err = net.Listen("tcp", h.opt.WebSocket); err != nil {
			return nil, fmt.Errorf("listen for WebSocket: %w", err)
		}
	}
	conf := h.tls.Clone()
	conf.NextProtos = []string{"http/1.1"}
	w := &webSocket{h: h, addr: ln.Addr().String(), ln: tls.NewListener(ln, conf)}
	w.srv = &http.Server{
		Handler:           w,
		ReadHeaderTimeout: h.opt.ConnectTimeout,
		ErrorLog:          log.New(io.Discard, "", 0), // refused handshakes are in the hub's own records
	}
	return w, nil
}

// serve answers HTTP until close.
func (w *webSocket) serve(ctx context.Context) {
	_ = w.srv.Serve(w.ln) // always an error, and after close the expected one
	// Handlers of upgraded connections are not waited for by Shutdown; the hub waits for them itself.
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownPeriod)
	defer cancel()
	if w.srv.Shutdown(bounded) != nil {
		_ = w.srv.Close()
	}
}

func (w *webSocket) close() { _ = w.ln.Close() }

// FailUpgrades answers requests for a WebSocket with an HTTP status, such as 503; 0 ends it.
func (h *Hub) FailUpgrades(status int) { h.hooks.upgrade.Store(int32(status)) }

// PingWebSockets sends a WebSocket ping on the live connection of an identity, or of all for "", and returns how many
// answered within limit.
func (h *Hub) PingWebSockets(identity string, limit time.Duration) int {
	var live []*websocket.Conn
	h.each(identity, func(c *conn) {
		if r, ok := c.raw.(rawWebSocket); ok {
			live = append(live, r.ws)
		}
	})
	answered := 0
	for _, ws := range live {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		if ws.Ping(ctx) == nil {
			answered++
		}
		cancel()
	}
	return answered
}

func (w *webSocket) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	if status := int(w.h.hooks.upgrade.Load()); status != 0 {
		http.Error(rw, http.StatusText(status), status)
		return
	}
	if status, reason := w.unfit(r); status != 0 {
		http.Error(rw, reason, status)
		return
	}
	ws, err := websocket.Accept(rw, r, &websocket.AcceptOptions{
		Subprotocols: []string{webSocketMQTT}, InsecureSkipVerify: true, CompressionMode: websocket.CompressionDisabled,
	})
	if err != nil {
		return // Accept has answered
	}
	ws.SetReadLimit(-1) // packets are bounded as they are read; how many share a message is the client's choice
	nc := websocket.NetConn(context.WithoutCancel(r.Context()), ws, websocket.MessageBinary)
	c := newConn(w.h, rawWebSocket{nc, ws, r.RemoteAddr}, true)
	if !w.h.track(c) {
		_ = ws.CloseNow()
		return
	}
	defer w.h.untrack(c)
	cs := *r.TLS
	if r.URL.Query().Has(noCertificate) {
		cs.PeerCertificates = nil
	}
	c.proved(cs)
	_ = c.raw.SetDeadline(time.Now().Add(w.h.opt.ConnectTimeout)) // a dead connection shows at the next read
	c.serve()
}

// unfit says what is wrong with a request, which is then noted as a violation too; 0: nothing.
func (w *webSocket) unfit(r *http.Request) (status int, reason string) {
	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		host = r.Host
	}
	switch {
	case r.URL.Path != webSocketPath:
		status, reason = http.StatusNotFound, "no such resource"
	case r.Method != http.MethodGet:
		status, reason = http.StatusMethodNotAllowed, "GET is needed"
	case !w.h.opt.Edge && !w.h.opt.AnyHost && net.ParseIP(host) == nil && !strings.EqualFold(host, w.h.opt.HostName):
		status, reason = http.StatusNotFound, "the Host header names another hub"
	case !offers(r, webSocketMQTT):
		status, reason = http.StatusBadRequest, "subprotocol mqtt is missing"
	case r.Header.Get("Authorization") != "":
		status, reason = http.StatusBadRequest, "credentials belong into CONNECT or the certificate"
	case r.URL.RawQuery != "" && r.URL.RawQuery != noCertificate+"=true":
		status, reason = http.StatusBadRequest, "unknown query"
	default:
		return 0, ""
	}
	w.h.ledger.breach(Violation{Row: 59, Detail: reason, Closed: true, Time: time.Now()})
	return status, reason
}

func offers(r *http.Request, protocol string) bool {
	for _, header := range r.Header.Values("Sec-WebSocket-Protocol") {
		for p := range strings.SplitSeq(header, ",") {
			if strings.TrimSpace(p) == protocol {
				return true
			}
		}
	}
	return false
}

// rawWebSocket closes without the closing handshake, which would wait for the client.
type rawWebSocket struct {
	net.Conn
	ws     *websocket.Conn
	remote string
}

func (r rawWebSocket) Close() error { return r.ws.CloseNow() }

func (r rawWebSocket) RemoteAddr() net.Addr { return remoteAddr(r.remote) }

type remoteAddr string

func (remoteAddr) Network() string  { return "websocket" }
func (a remoteAddr) String() string { return string(a) }
