package hub

import (
	"context"
	"fmt"
	"sync"
	"time"

	"gatewayd/internal/certstore"
)

// Transport is how MQTT travels to the hub.
type Transport string

// The transports. "" is OverTLS.
const (
	OverTLS       Transport = "mqtt"    // MQTT over TLS, port 8883
	OverWebSocket Transport = "mqtt-ws" // MQTT over WebSocket over TLS, port 443
	Auto          Transport = "auto"    // OverTLS; OverWebSocket while port 8883 is blocked
)

// ways remembers, for [Auto], whether port 8883 was blocked. It is safe for
// concurrent use.
type ways struct {
	mu     sync.Mutex
	fallen bool          // port 443 goes first
	why    *Fault        // what was wrong with port 8883 the last time
	due    time.Time     // of the next look at port 8883
	wait   time.Duration // between the latest two looks
}

// first is the transport to begin with.
func (w *ways) first() Transport {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fallen && time.Now().Before(w.due) {
		return OverWebSocket
	}
	return OverTLS
}

// works notes that a connection over t could be made. blocked is what became of the
// other way before, nil when that was not tried.
func (w *ways) works(t Transport, blocked *Fault, timing *Timing) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case t == OverTLS:
		w.fallen, w.wait, w.why = false, 0, nil
	case blocked == nil:
	default:
		w.fallen, w.why = true, blocked
		w.laterLocked(timing)
	}
}

// later puts the next look at port 8883 off, twice as long as the last time.
func (w *ways) later(timing *Timing) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.laterLocked(timing)
}

func (w *ways) laterLocked(timing *Timing) {
	w.wait = min(max(2*w.wait, timing.ReturnMin), timing.ReturnMax)
	w.due = time.Now().Add(w.wait)
}

// back is when to look whether port 8883 is open again; false: it is in use.
func (w *ways) back() (due time.Time, wanted bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.due, w.fallen
}

// detour is why port 8883 is not in use; nil: it is.
func (w *ways) detour() *Fault {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.why
}

// dial connects with cred up to the point where CONNECT can be sent, within
// Timing.Dial; of two ways, each gets half of it.
func (d *dialer) dial(ctx context.Context, cred *certstore.Credential) (*transport, *Fault) {
	if d.cfg.Transport != Auto {
		return d.over(ctx, cred, d.cfg.Transport, d.cfg.Timing.Dial)
	}
	first, second := d.ways.first(), OverWebSocket
	if first == OverWebSocket {
		second = OverTLS
	}
	tr, fault := d.over(ctx, cred, first, d.cfg.Timing.Dial/2)
	if fault == nil {
		d.ways.works(first, nil, &d.cfg.Timing)
		return tr, nil
	}
	if !fault.blocked || ctx.Err() != nil {
		return nil, fault
	}
	tr, other := d.over(ctx, cred, second, d.cfg.Timing.Dial/2)
	switch {
	case other == nil:
		d.ways.works(second, fault, &d.cfg.Timing)
		return tr, nil
	case !other.blocked:
		return nil, other
	case other.Kind == Untrusted && fault.Kind != Untrusted: // somebody answers there
		return nil, other.and(first, fault)
	}
	return nil, fault.and(second, other)
}

// and is f, with what became of the way t.
func (f *Fault) and(t Transport, other *Fault) *Fault {
	both := *f
	both.Text = fmt.Sprintf("%s; and over %s, %s: %s", f.Text, t, other.Step, other.Text)
	return &both
}

// home connects to port 8883 only, while a connection over WebSocket works.
func (d *dialer) home(ctx context.Context, cred *certstore.Credential) (*transport, *Fault) {
	return d.over(ctx, cred, OverTLS, d.cfg.Timing.Dial/2)
}

// over goes one way within limit.
func (d *dialer) over(ctx context.Context, cred *certstore.Credential, t Transport, limit time.Duration) (*transport, *Fault) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return d.walk(ctx, cred, t, nil)
}
