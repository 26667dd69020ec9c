package downstream

import (
	"context"
	"crypto/tls"
	"log"
	"net"
	"net/http"
	"sync"

	"github.com/coder/websocket"
	"golang.org/x/net/netutil"
)

// subprotocol is what an MQTT client has to ask for (MQTT 5, 6).
const subprotocol = "mqtt"

// upgrading is room for connections that are not yet, or no more, MQTT.
const upgrading = 64

type socketKey struct{}

// serveWebSocket accepts connections until ctx ends. Each one runs in the
// goroutine of its HTTP request.
func (s *MQTT) serveWebSocket(ctx context.Context) error {
	server := &http.Server{
		Handler:           http.HandlerFunc(s.upgrade),
		ReadHeaderTimeout: s.cfg.ConnectTimeout,
		IdleTimeout:       s.cfg.ConnectTimeout,
		MaxHeaderBytes:    httpHeaderBytes,
		ErrorLog:          log.New(discard{}, "", 0),
		// The socket itself, for deadlines and a close that waits for nobody.
		ConnContext: func(ctx context.Context, nc net.Conn) context.Context {
			return context.WithValue(ctx, socketKey{}, nc)
		},
	}
	listener := netutil.LimitListener(s.listener, s.cfg.MaxConnections+upgrading)
	if s.secure != nil {
		listener = tls.NewListener(listener, s.secure.serverConfig("http/1.1"))
	}
	stopped := make(chan struct{})
	var stopping sync.WaitGroup
	stopping.Go(func() {
		select {
		case <-ctx.Done():
			listener.Close()
			server.Close() // only those that are still HTTP
		case <-stopped:
		}
	})
	err := server.Serve(listener)
	close(stopped)
	stopping.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (s *MQTT) upgrade(w http.ResponseWriter, r *http.Request) {
	// A page whose name was made to point to this machine; see HTTP.who.
	if s.access.anonymous && s.bind.private() && !localHost(r.Host) {
		fail(w, http.StatusForbidden, "this address answers to local names only")
		return
	}
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{
		Subprotocols: []string{subprotocol}, CompressionMode: websocket.CompressionDisabled,
	})
	if err != nil {
		return // Accept has answered
	}
	defer ws.CloseNow()
	if ws.Subprotocol() != subprotocol {
		ws.Close(websocket.StatusPolicyViolation, "subprotocol mqtt required")
		return
	}
	socket, ok := r.Context().Value(socketKey{}).(net.Conn)
	if !ok {
		return
	}
	// Packets may span messages and messages packets: the stream is what counts.
	stream := websocket.NetConn(context.Background(), ws, websocket.MessageBinary)
	c, ok := s.enter(socket, stream)
	if !ok {
		return
	}
	c.upgraded = r.TLS
	s.serve(c)
}
