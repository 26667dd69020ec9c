package statuspage

import (
	"bytes"
	"fmt"
	"net/http"
	"time"
)

// writeLimit is how long a reader may take for one event.
const writeLimit = 15 * time.Second

// reader is one page that is open.
type reader struct {
	next chan *snapshot // one slot; holds the latest
}

func (p *Page) readers() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.subs)
}

// join admits a reader unless there are too many.
func (p *Page) join() (r *reader, ok bool) {
	r = &reader{next: make(chan *snapshot, 1)}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.subs) >= MaxReaders {
		return nil, false
	}
	p.subs[r] = struct{}{}
	select {
	case p.joined <- struct{}{}:
	default:
	}
	return r, true
}

func (p *Page) leave(r *reader) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.subs, r)
}

// live is the stream of events of the overview, or of one identity's page.
func (p *Page) live(w http.ResponseWriter, r *http.Request) {
	me, ok := p.join()
	if !ok {
		w.Header().Set("Retry-After", "30")
		http.Error(w, fmt.Sprintf("%d pages are open, which is the most", MaxReaders), http.StatusServiceUnavailable)
		return
	}
	defer p.leave(me)
	// The server's limits are for requests that end.
	rc := http.NewResponseController(w)
	if rc.SetReadDeadline(time.Time{}) != nil {
		http.Error(w, "this connection cannot stream", http.StatusInternalServerError)
		return
	}
	secure(w.Header())
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no") // for proxies in between
	write := p.overviewEvents()
	if name := r.URL.Query().Get("identity"); name != "" {
		write = p.identityEvents(name)
	}
	for {
		select {
		case <-r.Context().Done():
			return
		case <-p.ended:
			return
		case s := <-me.next:
			if rc.SetWriteDeadline(time.Now().Add(writeLimit)) != nil || !write(w, s) || rc.Flush() != nil || !p.o.Guard.stillMayRead(r) {
				return
			}
		}
	}
}

// overviewEvents writes the whole first and after something was missed, else what
// has changed.
func (p *Page) overviewEvents() func(http.ResponseWriter, *snapshot) bool {
	var last uint64
	return func(w http.ResponseWriter, s *snapshot) bool {
		following := last != 0 && s.seq == last+1 && s.delta != nil
		switch {
		case s.full != nil && (!following || s.rolled):
			last = s.seq
			return event(w, "full", s.full)
		case following:
			last = s.seq
			return event(w, "delta", s.delta)
		default:
			last = 0
			return event(w, "wait", []byte("{}"))
		}
	}
}

// detail is an identity's page.
type detail struct {
	Now      time.Time `json:"now"`
	Identity any       `json:"identity"` // nil = not configured any more
	Chart    *chart    `json:"chart"`
	Events   []Event   `json:"events"`
}

// identityEvents writes an identity's page when something in it has changed.
func (p *Page) identityEvents(name string) func(http.ResponseWriter, *snapshot) bool {
	var before []byte
	return func(w http.ResponseWriter, s *snapshot) bool {
		d := detail{Now: s.now, Events: dated(p.o.Events.of(name), s.now)}
		d.Identity, _ = p.o.Gateway.Detail(name)
		p.chartsMu.Lock()
		d.Chart = p.charts.chart(name)
		p.chartsMu.Unlock()
		b := encode(d)
		if bytes.Equal(b, before) {
			return event(w, "same", []byte("{}"))
		}
		before = b
		return event(w, "identity", b)
	}
}

// event writes one; JSON has no line breaks of its own.
func event(w http.ResponseWriter, name string, data []byte) bool {
	_, err := fmt.Fprintf(w, "event: %s\ndata: %s\n\n", name, data)
	return err == nil
}
