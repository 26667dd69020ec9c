package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"gatewayd/internal/config"
)

// adminServer answers operators: the status page, /status, /metrics, /healthz,
// /readyz. It shows no secret: keys, passphrases and tokens are in no report. Only
// with admin.token_file can something be changed over it.
type adminServer struct {
	listener net.Listener
	server   *http.Server
}

// openAdmin binds admin.listen; without one there is no admin server.
func (g *gateway) openAdmin(now *arrangement) error {
	a := now.cfg.Admin.Listen
	if !a.Enabled() {
		return nil
	}
	if err := g.newPage(now); err != nil {
		return err
	}
	l, err := listenAdmin(a)
	if err != nil {
		return fmt.Errorf("admin.listen: %w", err)
	}
	g.admin = &adminServer{listener: l, server: &http.Server{
		Handler:           g.adminRoutes(),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          quiet(),
	}}
	return nil
}

func listenAdmin(a config.Address) (net.Listener, error) {
	if a.Network == "unix" {
		// A socket that a killed process left would be a busy address for ever. The
		// state folder's lock, taken before, says that the process is gone.
		if info, err := os.Lstat(a.Address); err == nil && info.Mode().Type() == os.ModeSocket {
			if err := os.Remove(a.Address); err != nil {
				return nil, err
			}
		}
	}
	l, err := net.Listen(a.Network, a.Address)
	if err == nil && a.Network == "unix" {
		err = os.Chmod(a.Address, 0o660)
	}
	return l, err
}

// adminRoutes is everything at admin.listen. Probes are asked by machines that hold
// no token, and tell nothing.
func (g *gateway) adminRoutes() http.Handler {
	mux := http.NewServeMux()
	g.page.Register(mux)
	mux.Handle("GET /status", g.guard.Read(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, g.report()) })))
	mux.Handle("GET /metrics", g.guard.Read(promhttp.HandlerFor(g.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 20 * time.Second})))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { answerProbe(w, "ok", g.roll.stalled()) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { answerProbe(w, "ready", g.notReady()) })
	for path, h := range map[string]http.HandlerFunc{"": pprof.Index, "profile": pprof.Profile, "trace": pprof.Trace, "symbol": pprof.Symbol, "cmdline": http.NotFound} {
		mux.Handle("GET /debug/pprof/"+path, g.guard.Token(longer(h)))
	}
	return g.guard.Local(machineName(), mux)
}

// profileLimit bounds one request for a profile, which takes as many seconds as it
// is asked for: more than this server gives others.
const profileLimit = 5 * time.Minute

func longer(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rc, end := http.NewResponseController(w), time.Now().Add(profileLimit)
		if rc.SetWriteDeadline(end) != nil || rc.SetReadDeadline(end) != nil {
			return
		}
		// Without a server in the context net/http/pprof does not compare with its limits.
		h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), http.ServerContextKey, nil)))
	})
}

func answerProbe(w http.ResponseWriter, good, wrong string) {
	if wrong != "" {
		http.Error(w, wrong, http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, good)
}

// notReady says why readings are not accepted, or "": the queue cannot store, or a
// listener is not open. A hub that cannot be reached is a status, because storing is
// this program's work too.
func (g *gateway) notReady() string {
	if t := g.journal.Stats().Trouble; t != "" {
		return "disk: " + t
	}
	if !g.accepting.Load() {
		return "starting or stopping"
	}
	a := g.now.Load()
	for _, c := range a.cfg.Downstream.MQTT {
		if !slices.ContainsFunc(a.mqtt, func(m *mqttListener) bool { return m.cfg.Listen == c.Listen }) {
			return fmt.Sprintf("mqtt listener %s is not open", c.Listen)
		}
	}
	for _, c := range a.cfg.Downstream.HTTP {
		if !slices.ContainsFunc(a.http, func(h *httpListener) bool { return h.cfg.Listen == c.Listen }) {
			return fmt.Sprintf("http listener %s is not open", c.Listen)
		}
	}
	for _, c := range a.cfg.Downstream.Socket {
		if !slices.ContainsFunc(a.sources.sockets, func(s *socketSource) bool { return s.cfg.Listen == c.Listen }) {
			return fmt.Sprintf("socket %s is not open", c.Listen)
		}
	}
	return ""
}

func writeJSON(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	// The reader may be gone; there is nobody to tell.
	_ = enc.Encode(v)
}

func (a *adminServer) addr() net.Addr { return a.listener.Addr() }

func (a *adminServer) close() { a.listener.Close() }

// Run serves until ctx ends; requests under way get a second.
func (a *adminServer) Run(ctx context.Context) error {
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		last, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if a.server.Shutdown(last) != nil {
			a.server.Close()
		}
	})
	defer stop()
	err := a.server.Serve(a.listener)
	if errors.Is(err, http.ErrServerClosed) {
		<-stopped
		return nil
	}
	return err
}
