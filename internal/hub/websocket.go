package hub

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"runtime"
	"sync"

	"github.com/coder/websocket"
)

// Where IoT Hub answers MQTT over WebSocket, and as what
// (https://learn.microsoft.com/azure/iot/iot-mqtt-connect-to-iot-hub). Only clients
// with a token add ?iothub-no-client-cert=true.
const (
	webSocketPath     = "/$iothub/websocket"
	webSocketProtocol = "mqtt"
)

// upgrade turns a TLS connection into one that carries MQTT in binary messages.
func upgrade(ctx context.Context, nc *tls.Conn, tr *transport, cfg *Config) (*stream, *Fault) {
	w := &wire{Conn: nc}
	release := bind(ctx, tr.raw)
	ws, resp, err := websocket.Dial(ctx, "wss://"+cfg.serverName()+webSocketPath, &websocket.DialOptions{
		Subprotocols:    []string{webSocketProtocol},
		CompressionMode: websocket.CompressionDisabled,
		HTTPHeader:      http.Header{"User-Agent": {cfg.Product}},
		HTTPClient: &http.Client{Transport: w, CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		}},
	})
	late := release()
	switch {
	case late != nil:
		err = late
	case err == nil && ws.Subprotocol() != webSocketProtocol:
		err = errors.New("the answer does not name the subprotocol mqtt")
	case err != nil && resp != nil && resp.StatusCode != http.StatusSwitchingProtocols:
		err = statusError(resp.StatusCode)
	}
	if err != nil {
		return nil, classifyUpgrade(err, tr.presented.Load())
	}
	// A connection that is given up is closed below the library, whose finalizer would
	// keep it for ever then: its parts point at each other.
	runtime.SetFinalizer(ws, nil)
	// Packets are bounded one by one as they are read; how many share a message is the
	// hub's choice.
	ws.SetReadLimit(-1)
	return &stream{wire: w, ws: ws}, nil
}

// wire is the TLS connection below a WebSocket. The library writes a message in
// pieces of 4 KiB; they are gathered into one write. It answers pings from the reader's
// goroutine and gives the connection up when that takes 5 s, as it may behind a large
// write on a slow link: so they wait apart, for whoever writes.
type wire struct {
	*tls.Conn
	head *bytes.Reader // read beyond the answer's head; nil: nothing

	writing sync.Mutex // held during writes, by the session's goroutine for as long as they take

	mu      sync.Mutex // guards what follows
	holding bool       // a message is being gathered
	message []byte
	pongs   []byte // and other control frames
}

// maxPongs bounds answers to pings that wait.
const maxPongs = 4 << 10

// RoundTrip sends the one request that there is.
func (w *wire) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := req.Write(w.Conn); err != nil {
		return nil, err
	}
	in := bufio.NewReader(io.LimitReader(w.Conn, maxAnswer))
	resp, err := http.ReadResponse(in, req)
	if err != nil {
		return nil, err
	}
	resp.Body = http.NoBody
	if resp.StatusCode == http.StatusSwitchingProtocols {
		if early, _ := in.Peek(in.Buffered()); len(early) > 0 {
			w.head = bytes.NewReader(early)
		}
		resp.Body = w
	}
	return resp, nil
}

func (w *wire) Read(p []byte) (int, error) {
	if w.head != nil {
		if n, _ := w.head.Read(p); n > 0 {
			return n, nil
		}
		w.head = nil
	}
	return w.Conn.Read(p)
}

// Write takes a piece of a message that is being gathered, or a whole control frame.
func (w *wire) Write(p []byte) (int, error) {
	w.mu.Lock()
	if w.holding {
		w.message = append(w.message, p...)
		w.mu.Unlock()
		return len(p), nil
	}
	if len(w.pongs) < maxPongs { // whoever pings faster than that has had an answer
		w.pongs = append(w.pongs, p...)
	}
	w.mu.Unlock()
	return len(p), w.sendPongs()
}

// sendPongs does nothing while another goroutine writes, which will do it.
func (w *wire) sendPongs() error {
	for {
		w.mu.Lock()
		none := len(w.pongs) == 0
		w.mu.Unlock()
		if none || !w.writing.TryLock() {
			return nil
		}
		w.mu.Lock()
		data := w.pongs
		w.pongs = nil
		w.mu.Unlock()
		var err error
		if len(data) > 0 {
			_, err = w.Conn.Write(data)
		}
		w.writing.Unlock()
		if err != nil {
			return err
		}
	}
}

func (w *wire) hold() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.holding = true
}

// letGo writes the message that was gathered.
func (w *wire) letGo() error {
	w.mu.Lock()
	data := w.message
	w.holding, w.message = false, nil
	w.mu.Unlock()
	w.writing.Lock()
	_, err := w.Conn.Write(data)
	w.writing.Unlock()
	if err != nil {
		return err
	}
	return w.sendPongs()
}

// stream is MQTT over WebSocket as a connection: what is written at once is one
// message, and where messages end is of no matter to who reads. Deadlines, address
// and the hub's certificate are those of TLS.
type stream struct {
	*wire
	ws *websocket.Conn
	r  io.Reader // of the message that is being read; nil: between messages
}

// Read also answers the hub's pings.
func (s *stream) Read(p []byte) (int, error) {
	for {
		if s.r == nil {
			kind, r, err := s.ws.Reader(context.Background())
			if err != nil {
				return 0, ended(err)
			}
			if kind != websocket.MessageBinary {
				return 0, errors.New("a WebSocket message of text where MQTT is binary")
			}
			s.r = r
		}
		n, err := s.r.Read(p)
		if errors.Is(err, io.EOF) {
			s.r, err = nil, nil
			if n == 0 {
				continue
			}
		}
		return n, err
	}
}

func (s *stream) Write(p []byte) (int, error) {
	s.hold()
	err := s.ws.Write(context.Background(), websocket.MessageBinary, p)
	if e := s.letGo(); err == nil {
		err = e
	}
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// Close ends TLS; the closing handshake of WebSocket says nothing that DISCONNECT
// has not said.
func (s *stream) Close() error { return s.wire.Conn.Close() }

// ended takes the closing handshake for what it is to MQTT: the end of the stream.
func ended(err error) error {
	var closed websocket.CloseError
	if errors.As(err, &closed) {
		return fmt.Errorf("%w (WebSocket %v)", io.EOF, closed.Code)
	}
	return err
}

// classifyUpgrade says what came instead of a WebSocket.
func classifyUpgrade(err error, presented bool) *Fault {
	var status statusError
	var request *url.Error
	if errors.As(err, &request) {
		err = request.Err // around it is only what was asked for
	}
	if !errors.As(err, &status) {
		f := classify(err, StepWebSocket, presented)
		f.blocked = f.Kind == Unreachable || f.Kind == Closed && !presented
		return f
	}
	f := &Fault{Kind: Unavailable, Step: StepWebSocket, Text: "the request for a WebSocket was " + status.Error(), Err: err, presented: presented}
	switch {
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		f.Kind = Refused
		f.Hint = "is the device known to this hub and enabled, and its thumbprint or issuing CA registered?"
	case status == http.StatusTooManyRequests, status >= http.StatusInternalServerError:
		f.Hint = "the hub, or a proxy before it, cannot serve now"
	default:
		f.Kind, f.blocked = Violation, true
		f.Hint = "look at host_name and address: an IoT Hub answers at " + webSocketPath + "; a proxy that intercepts does not"
	}
	return f
}
