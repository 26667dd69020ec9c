package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"gatewayd/internal/cloud"
	"gatewayd/internal/config"
	"gatewayd/internal/queue"
)

// controlSocket is how commands change a running gateway. It is in the state
// folder with mode 0600: who may write there may change the queue anyway. The
// admin address, which others may reach, only shows.
const controlSocket = "control.sock"

// maxControl bounds a request: a list of sequence numbers.
const maxControl = 1 << 20

// controlRequest is the body of every request.
type controlRequest struct {
	Identity string   `json:"identity,omitempty"`
	Seqs     []uint64 `json:"seqs,omitempty"`
	Aside    bool     `json:"aside,omitempty"` // drop only what was set aside: Seqs, or all
}

// controlAnswer is the body of every answer.
type controlAnswer struct {
	Text  string `json:"text,omitempty"`
	Error string `json:"error,omitempty"`
}

// errNotRunning: nobody has the state folder's control socket.
var errNotRunning = errors.New("no gateway is running on this state_dir")

// openControl binds the control socket. The journal's lock, taken before, says
// that a socket which is there is a leftover.
func (g *gateway) openControl(a *arrangement) error {
	path := filepath.Join(a.cfg.StateDir, controlSocket)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("state_dir: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err == nil {
		err = os.Chmod(path, 0o600)
	}
	if err != nil {
		return fmt.Errorf("state_dir: %w (a shorter path may help)", err)
	}
	mux := http.NewServeMux()
	handle := func(name string, do func(context.Context, controlRequest) (string, error)) {
		mux.HandleFunc("POST /"+name, func(w http.ResponseWriter, r *http.Request) { serveControl(w, r, do) })
	}
	handle("requeue", g.controlRequeue)
	handle("drop", g.controlDrop)
	handle("reload", g.controlReload)
	handle("status", g.controlStatus)
	g.control = &adminServer{listener: l, server: &http.Server{Handler: mux, ReadTimeout: 10 * time.Second, MaxHeaderBytes: 16 << 10,
		ErrorLog: quiet()}}
	return nil
}

func serveControl(w http.ResponseWriter, r *http.Request, do func(context.Context, controlRequest) (string, error)) {
	var req controlRequest
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxControl))
	if err == nil && len(body) > 0 {
		err = json.Unmarshal(body, &req)
	}
	if err != nil {
		writeJSON(w, http.StatusBadRequest, controlAnswer{Error: err.Error()})
		return
	}
	text, err := do(r.Context(), req)
	if err != nil {
		writeJSON(w, http.StatusConflict, controlAnswer{Error: err.Error()})
		return
	}
	writeJSON(w, http.StatusOK, controlAnswer{Text: text})
}

func (g *gateway) controlRequeue(_ context.Context, r controlRequest) (string, error) {
	n, err := g.journal.Requeue(r.Identity, r.Seqs...)
	return fmt.Sprintf("%d messages put back", n), err
}

// controlDrop refuses for an identity that is in use: its session would go on
// with a queue that is gone.
func (g *gateway) controlDrop(_ context.Context, r controlRequest) (string, error) {
	if !r.Aside && g.configured(r.Identity) {
		return "", fmt.Errorf("%q is configured; take it out of the configuration and reload first; --aside drops what was set aside", r.Identity)
	}
	return dropQueue(g.journal, r)
}

// controlStatus is the report for those who may not, or need not, use the admin
// address.
func (g *gateway) controlStatus(context.Context, controlRequest) (string, error) {
	text, err := json.Marshal(g.report())
	return string(text), err
}

// dropQueue forgets what waits in both directions, or what was set aside.
func dropQueue(j *queue.Journal, r controlRequest) (string, error) {
	name := r.Identity
	if r.Aside {
		n, err := j.DropAside(name, r.Seqs...)
		return fmt.Sprintf("%d messages dropped", n), err
	}
	// What was written down of packs goes first: their members' numbers begin anew.
	if err := j.Drop(name + packSuffix); err != nil && !errors.Is(err, queue.ErrNotFound) {
		return "", err
	}
	if err := j.Drop(name); err != nil {
		return "", err
	}
	if err := j.Drop(cloud.QueueName(name)); err != nil && !errors.Is(err, queue.ErrNotFound) {
		return "", err
	}
	return fmt.Sprintf("queue of %s dropped", name), nil
}

// askControl sends a request to the gateway that runs on a state folder.
func askControl(ctx context.Context, cfg *config.Config, name string, req controlRequest) (string, error) {
	path := filepath.Join(cfg.StateDir, controlSocket)
	client := http.Client{Timeout: time.Minute, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}}}
	defer client.CloseIdleConnections()
	body, err := json.Marshal(req)
	if err != nil {
		return "", err
	}
	post, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://control/"+name, bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	resp, err := client.Do(post)
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		if errors.Is(err, os.ErrPermission) {
			return "", fmt.Errorf("the running gateway may be changed by its user and root only: %w", op.Err)
		}
		return "", errNotRunning
	}
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var answer controlAnswer
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(&answer); err != nil {
		return "", fmt.Errorf("answer of the running gateway: %w", err)
	}
	if answer.Error != "" {
		return "", errors.New(answer.Error)
	}
	return strings.TrimSpace(answer.Text), nil
}

// changeQueue has a running gateway do something, or does it itself on the
// journal of a stopped one.
func changeQueue(ctx context.Context, cfg *config.Config, name string, req controlRequest, offline func(*queue.Journal) (string, error)) (string, error) {
	text, err := askControl(ctx, cfg, name, req)
	if !errors.Is(err, errNotRunning) {
		return text, err
	}
	if _, err := os.Stat(queueDir(cfg)); err != nil {
		return "", noQueue(cfg, err)
	}
	err = queue.Offline(ctx, queue.Options{Dir: queueDir(cfg), SegmentBytes: cfg.Queue.SegmentBytes, MaxBytes: cfg.Queue.MaxBytes},
		func(j *queue.Journal) error {
			var err error
			text, err = offline(j)
			return err
		})
	if errors.Is(err, queue.ErrLocked) {
		err = fmt.Errorf("a gateway is starting or stopping on state_dir %s; try again", cfg.StateDir)
	}
	return text, err
}
