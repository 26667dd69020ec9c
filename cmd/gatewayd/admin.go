package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"gatewayd/internal/config"
)

// adminServer answers operators: /status, /metrics, /healthz, /readyz. It only
// reads, and it shows no secret: keys, passphrases and tokens are in no report.
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

func (g *gateway) adminRoutes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, g.report()) })
	mux.Handle("GET /metrics", promhttp.HandlerFor(newRegistry(g), promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 20 * time.Second}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if what := g.stalled(); what != "" {
			http.Error(w, what, http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	// Ready means that readings are accepted; a hub that cannot be reached is a
	// status, because storing is this program's work too.
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if t := g.journal.Stats().Trouble; t != "" {
			http.Error(w, "disk: "+t, http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "gatewayd %s\n%s\n\n/status\n/metrics\n/healthz\n/readyz\n", readBuild().Version, g.statusLine())
	})
	return mux
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
