package downstream

import (
	_ "embed"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"gatewayd/internal/queue"
)

//go:embed openapi.json
var openAPI []byte

const (
	messagesPath = "/v1/messages/"
	batchPath    = "/v1/batch"
	openAPIPath  = "/openapi.json"
)

// ServeHTTP dispatches by hand because a ServeMux would clean paths, and in a
// topic an empty level means something.
func (h *HTTP) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	topic, isMessage := strings.CutPrefix(r.URL.Path, messagesPath)
	switch {
	case isMessage:
		h.guarded(w, r, func(c *Client) { h.serveMessage(w, r, c, topic) })
	case r.URL.Path == batchPath:
		h.guarded(w, r, func(c *Client) { h.serveBatch(w, r, c) })
	case r.URL.Path == openAPIPath:
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			fail(w, http.StatusMethodNotAllowed, "only GET")
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Write(openAPI)
	case h.mounted(w, r):
	default:
		fail(w, http.StatusNotFound, "there is POST "+messagesPath+"{topic}, POST "+batchPath+" and GET "+openAPIPath)
	}
}

// guarded lets a POST through whose sender may send.
func (h *HTTP) guarded(w http.ResponseWriter, r *http.Request, serve func(*Client)) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", "POST")
		fail(w, http.StatusMethodNotAllowed, "only POST")
		return
	}
	h.authenticated(w, r, func(name string) { serve(h.source.Client(name)) })
}

// authenticated lets a request through whose sender may come in.
func (h *HTTP) authenticated(w http.ResponseWriter, r *http.Request, serve func(name string)) {
	// A web page that happens to be open on this machine is not a sensor.
	if err := h.origin.Check(r); err != nil {
		fail(w, http.StatusForbidden, "cross-origin requests from web pages are refused")
		return
	}
	name, ok := h.who(r)
	if !ok && h.cfg.Tokens == nil && h.rebound(r) {
		fail(w, http.StatusForbidden, "this listener answers this machine only: call it localhost or by its IP address, not "+strconv.Quote(clip(r.Host))+", or set token_file")
		return
	}
	if !ok {
		w.Header().Set("WWW-Authenticate", "Bearer")
		fail(w, http.StatusUnauthorized, "a valid bearer token or client certificate is required")
		h.notes.once(remoteName(r), "login", func() {
			h.log.Warn("request refused: no valid login", zap.String("remote", r.RemoteAddr))
		})
		return
	}
	serve(name)
}

// who names the sender: by certificate, by token, or by address.
func (h *HTTP) who(r *http.Request) (name string, ok bool) {
	if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		cn := r.TLS.PeerCertificates[0].Subject.CommonName
		return cn, cn != ""
	}
	if h.cfg.Tokens != nil {
		token, bearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if bearer {
			name, ok := h.cfg.Tokens.Lookup(strings.TrimSpace(token))
			if ok && name == "" {
				name = remoteName(r)
			}
			return name, ok
		}
	}
	if h.cfg.Anonymous || (h.cfg.Tokens == nil && h.cfg.TLS.ClientCA == "") {
		if h.rebound(r) {
			return "", false
		}
		return remoteName(r), true
	}
	return "", false
}

// rebound says that the name of a host that is not this one stands for an address only
// this machine can reach: perhaps a page whose name was made to point here (DNS
// rebinding).
func (h *HTTP) rebound(r *http.Request) bool {
	return h.bind.private() && h.bind.network == "tcp" && !localHost(r.Host)
}

func localHost(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	return net.ParseIP(host) != nil || !strings.Contains(host, ".")
}

func remoteName(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return "local" // a unix socket has no address
	}
	return host
}

// admit takes n messages from the client's rate; false after an answer of 429.
func (h *HTTP) admit(w http.ResponseWriter, c *Client, n int) bool {
	if h.cfg.Rate <= 0 {
		return true
	}
	h.mu.Lock()
	a := h.rated[c.name]
	if a == nil {
		if len(h.rated) >= httpRatedClients {
			clear(h.rated) // everybody starts with a second's worth again
		}
		a = new(allowance)
		h.rated[c.name] = a
	}
	before := *a
	wait := time.Duration(0)
	for range n {
		wait = a.take(h.cfg.Rate, time.Now())
	}
	// A batch larger than the bucket passes once the bucket is full.
	full := n > 1 && (before.last.IsZero() || before.tokens+time.Since(before.last).Seconds()*h.cfg.Rate >= h.cfg.Rate)
	refuse := wait > 0 && !full
	if refuse {
		*a = before
	}
	h.mu.Unlock()
	if !refuse {
		return true
	}
	c.refused("", errRate)
	w.Header().Set("Retry-After", strconv.Itoa(int(wait/time.Second)+1))
	fail(w, http.StatusTooManyRequests, "more messages than the rate limit allows")
	return false
}

// verdict is the status for a message that was not accepted.
func verdict(err error) int {
	switch reasonOf(err) {
	case ReasonNoRoute:
		return http.StatusNotFound
	case ReasonTopic, ReasonProperty:
		return http.StatusBadRequest
	case ReasonTooLarge:
		return http.StatusRequestEntityTooLarge
	case ReasonNotAllowed:
		return http.StatusForbidden
	}
	if errors.Is(err, errMalformed) {
		return http.StatusBadRequest
	}
	return http.StatusServiceUnavailable
}

// explain is the text for a message that was not accepted; what went wrong inside
// is not the sensor's business.
func explain(err error) string {
	if verdict(err) != http.StatusServiceUnavailable {
		return err.Error()
	}
	if errors.Is(err, queue.ErrFull) {
		return "queue full, try again later"
	}
	return "nothing can be stored at the moment, try again later"
}

func failFor(w http.ResponseWriter, err error) {
	code := verdict(err)
	if code == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", strconv.Itoa(retryLater))
	}
	fail(w, code, explain(err))
}

// fail answers with a problem document (RFC 9457).
func fail(w http.ResponseWriter, status int, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(problem{Title: http.StatusText(status), Status: status, Detail: detail})
}

type problem struct {
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail"`
}
