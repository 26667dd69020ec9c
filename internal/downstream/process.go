package downstream

import (
	"context"
	"fmt"
	"sync/atomic"

	"go.uber.org/zap"

	"gatewayd/internal/queue"
)

// process runs a route's programs over a message and hands in what is left of it.
// A message that is not wanted is answered like one that is stored.
func (g *Gate) process(ctx context.Context, identity string, p *programs, m queue.Message, done func(seq uint64, err error)) error {
	out, err := p.apply(ctx, m, g.limits.PayloadBytes)
	if err != nil {
		return err
	}
	counts := &p.counts
	switch {
	case out.fate == fateUnwanted:
		counts.unwanted.Add(1)
		done(0, nil)
		return nil
	case out.fate == fateUnchanged:
		counts.unchanged.Add(1)
		done(0, nil)
		return nil
	case out.fate == fateFailed && p.onError == ErrorDrop:
		g.failed("message dropped: a program of its route failed", counts, m, out.reason)
		g.countDrop(identity)
		done(0, nil)
		return nil
	case out.fate == fateFailed && p.onError == ErrorSetAside:
		return g.sink.SetAside(ctx, identity, m, fmt.Sprintf("%s: %v", m.Route, out.reason), func(seq uint64, err error) {
			if err == nil {
				g.failed("message set aside: a program of its route failed", counts, m, out.reason)
			}
			done(seq, err)
		})
	case out.fate == fateFailed:
		g.failed("message sent as it came: a program of its route failed", counts, m, out.reason)
		return g.append(ctx, identity, m, done)
	case p.changes == nil:
		return g.append(ctx, identity, out.m, done)
	}
	mark := out.mark
	return g.append(ctx, identity, out.m, func(seq uint64, err error) {
		if err == nil {
			p.changes.keep(mark)
		}
		done(seq, err)
	})
}

// failed counts a message for which a program failed. The log has a line a minute
// and route.
func (g *Gate) failed(what string, counts *routeCounts, m queue.Message, reason error) {
	counts.fail(reason)
	g.notes.once(m.Route, what, func() {
		g.log.Warn(what, zap.String("route", m.Route), zap.String("topic", clip(m.Topic)), zap.Error(reason))
	})
}

func (g *Gate) countDrop(identity string) {
	n, ok := g.drops.Load(identity)
	if !ok {
		n, _ = g.drops.LoadOrStore(identity, new(atomic.Uint64))
	}
	n.(*atomic.Uint64).Add(1)
}

// Dropped is how many messages for an identity were dropped because a program
// failed (ErrorDrop). They never reached its queue.
func (g *Gate) Dropped(identity string) uint64 {
	if n, ok := g.drops.Load(identity); ok {
		return n.(*atomic.Uint64).Load()
	}
	return 0
}

// routeCounts counts what the programs of one route did since it was compiled.
type routeCounts struct {
	unwanted, unchanged, failed atomic.Uint64
	latest                      atomic.Pointer[string]
}

func (c *routeCounts) fail(reason error) {
	c.failed.Add(1)
	text := reason.Error()
	c.latest.Store(&text)
}

// RouteCount is what one route did since the routes were loaded.
type RouteCount struct {
	Route     string `json:"route"`
	Match     string `json:"match"`
	To        string `json:"to"`
	Messages  uint64 `json:"messages"`  // accepted, those that follow among them
	Unwanted  uint64 `json:"unwanted"`  // the filter said no
	Unchanged uint64 `json:"unchanged"` // only_changes said no
	Failed    uint64 `json:"failed"`    // a program failed; on_error decided
	LastError string `json:"last_error,omitempty"`
}

// Counts lists the routes in their order.
func (r *Router) Counts() []RouteCount {
	all := make([]RouteCount, 0, len(r.rules))
	for i := range r.rules {
		rule := &r.rules[i]
		row := RouteCount{Route: rule.route.Name, Match: rule.route.Match, To: rule.route.To, Messages: rule.taken.Load()}
		if p := rule.programs; p != nil {
			row.Unwanted, row.Unchanged, row.Failed = p.counts.unwanted.Load(), p.counts.unchanged.Load(), p.counts.failed.Load()
			if text := p.counts.latest.Load(); text != nil {
				row.LastError = *text
			}
		}
		all = append(all, row)
	}
	return all
}

// Preview is what would happen to a message.
type Preview struct {
	Identity string
	Message  queue.Message
	Fate     string // queued, not wanted, set aside, dropped, queued as it came
	Reason   string // of a program that failed
}

// Preview tells what Accept would do, without doing it. The error is why the
// message would be refused. Nothing is counted and nothing is remembered, so
// only_changes sees each message as the first one of its topic.
func (g *Gate) Preview(ctx context.Context, a Arrival) (Preview, error) {
	route, err := g.Decide(a.Topic)
	if err != nil {
		return Preview{}, err
	}
	m, err := g.message(a, route)
	if err != nil {
		return Preview{}, err
	}
	v := Preview{Identity: route.Identity, Message: m, Fate: "queued"}
	if route.programs == nil {
		return v, nil
	}
	out, err := route.programs.apply(ctx, m, g.limits.PayloadBytes)
	if err != nil {
		return Preview{}, err
	}
	switch out.fate {
	case fateSend:
		v.Message = out.m
	case fateUnwanted, fateUnchanged:
		v.Fate = "not wanted"
	default:
		v.Fate = map[OnError]string{ErrorSetAside: "set aside", ErrorDrop: "dropped", ErrorPass: "queued as it came"}[route.programs.onError]
		v.Reason = out.reason.Error()
	}
	return v, nil
}
