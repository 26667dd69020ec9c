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

// webSocket is the second listener: MQTT in binary frames over HTTPS.
type webSocket struct {
	h    *Hub
	addr string
	ln   net.Listener
	srv  *http.Server
}

func newWebSocket(h *Hub) (*webSocket, error) {
	ln, err := net.Listen("tcp", h.opt.WebSocket)
	if err != nil {
		return nil, fmt.Errorf("listen for WebSocket: %w", err)
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

func (w *webSocket) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	if r.URL.Path != webSocketPath {
		http.NotFound(rw, r)
		return
	}
	if !offers(r, webSocketMQTT) {
		http.Error(rw, "subprotocol mqtt is missing", http.StatusBadRequest)
		return
	}
	ws, err := websocket.Accept(rw, r, &websocket.AcceptOptions{
		Subprotocols: []string{webSocketMQTT}, InsecureSkipVerify: true, CompressionMode: websocket.CompressionDisabled,
	})
	if err != nil {
		return // Accept has answered
	}
	ws.SetReadLimit(maxPacket)
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
