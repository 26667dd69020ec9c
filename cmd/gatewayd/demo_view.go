package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

// demoView shows one line per identity: redrawn in place on a terminal, printed
// every few seconds elsewhere.
type demoView struct {
	out      io.Writer
	d        *demo
	terminal bool
	before   map[string]viewCount
	at       time.Time
	drawn    bool
}

type viewCount struct{ in, out uint64 }

func newDemoView(out io.Writer, d *demo) *demoView {
	return &demoView{out: out, d: d, terminal: isTerminal(out), before: make(map[string]viewCount), at: time.Now()}
}

func (v *demoView) run(ctx context.Context) error {
	every := 5 * time.Second
	if v.terminal {
		every = 500 * time.Millisecond
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			v.draw()
			return nil
		case <-tick.C:
			v.draw()
		}
	}
}

// viewHeader and viewRow share their columns.
const (
	viewHeader = "%-16s %-14s %9s %9s %9s %7s %9s  %s\n"
	viewRow    = "%-16s %-14s %9.1f %9.1f %9.1f %7d %9d  %s\n"
)

func (v *demoView) draw() {
	r := v.d.gateway.report()
	var b strings.Builder
	if v.terminal && v.drawn {
		fmt.Fprintf(&b, "\x1b[%dA\x1b[J", len(r.Identities)+1)
	}
	v.drawn = true
	fmt.Fprintf(&b, viewHeader, "identity", "state", "cert days", "in/s", "out/s", "queued", "rotations", "last gap")
	now := time.Now()
	seconds := now.Sub(v.at).Seconds()
	v.at = now
	for _, id := range r.Identities {
		count := viewCount{in: id.Queue.Appended, out: id.Delivered}
		was := v.before[id.Name]
		v.before[id.Name] = count
		days, gap := 0.0, "-"
		if id.Certificate.Current != nil {
			days = id.Certificate.Current.DaysLeft
		}
		if id.Rotation != nil {
			gap = fmt.Sprintf("%.1f ms", id.Rotation.GapMS)
		}
		fmt.Fprintf(&b, viewRow, id.Name, id.State, days, float64(count.in-was.in)/seconds, float64(count.out-was.out)/seconds,
			id.Queue.Messages, id.Rotations, gap)
	}
	// A terminal that is gone does not end the demo.
	_, _ = io.WriteString(v.out, b.String())
}

func port(a net.Addr) string {
	_, p, err := net.SplitHostPort(a.String())
	if err != nil {
		return a.String()
	}
	return p
}
