package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"gatewayd/internal/config"
	"gatewayd/internal/hub/hubtest"
)

// A part of the configuration comes from the twin: applied, refused with the reason,
// kept over a restart without the hub, and given back.
func TestConfigurationFromDesiredProperties(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{}, "press-7", "oven-2")
	s.writeConfig("hub: {trust: [hub-ca.pem], system_roots: false, connect_rate: 200, window: 64, desired_config: {identity: press-7, allow: [log.level, hub.send_rate, routes.pack]}}\n")
	p := s.run()
	type answer struct {
		Version int
		Applied bool
		Reason  string
	}
	reported := func(of string) (a answer, known bool) {
		var r struct {
			Gatewayd struct{ Config *answer }
		}
		check(t, json.Unmarshal([]byte(s.hub.Twin(of).Reported), &r))
		if r.Gatewayd.Config == nil {
			return a, false
		}
		return *r.Gatewayd.Config, true
	}
	desire := func(patch string, applied bool, reason string) {
		t.Helper()
		version, err := s.hub.PatchDesired("press-7", patch)
		check(t, err)
		var got answer
		eventually(t, 30*time.Second, "reported back", func() bool {
			got, _ = reported("press-7")
			return got.Version == int(version)
		})
		if got.Applied != applied || applied && got.Reason != "" || !strings.Contains(got.Reason, reason) {
			t.Errorf("%s: reported %+v; want applied %v, %s", patch, got, applied, reason)
		}
	}
	// arrives waits for a reading, which has a number of its own, alone or in a pack.
	arrives := func(n int, packed bool) {
		t.Helper()
		want := fmt.Sprint(n)
		if packed {
			want = `"body":` + want + "}"
		}
		eventually(t, 20*time.Second, "reading "+want, func() bool {
			return slices.ContainsFunc(s.hub.Messages(), func(m hubtest.Message) bool {
				return string(m.Body) == want || packed && strings.Contains(string(m.Body), want)
			})
		})
	}
	send := func(n int) {
		t.Helper()
		if code := s.post("sensors/press-7/a", fmt.Sprint(n), ""); code != 202 {
			t.Fatal(code)
		}
	}
	eventually(t, 20*time.Second, "subscribed", func() bool { return s.hub.Connected("press-7") && len(s.hub.Subscribed("press-7")) == 4 })
	send(1)
	arrives(1, false)
	desire(`{"gatewayd":{"log":{"level":"debug"},"routes":{"sensors/+/+":{"pack":{"max_bytes":"4KiB","max_delay":"50ms"}}}}}`, true, "")
	send(2)
	arrives(2, true)
	if r := must(s.status())(t); r.Desired == nil || !r.Desired.Applied {
		t.Errorf("status says %+v", r.Desired)
	}
	// Bad ones change nothing.
	desire(`{"gatewayd":{"log":{"level":"loud"}}}`, false, `log.level: "loud" is none of debug, info, warn, error`)
	desire(`{"gatewayd":{"log":{"level":"debug"},"hub":{"connect_rate":1}}}`, false, `hub.connect_rate: may not come from desired properties`)
	send(3)
	arrives(3, true)
	// It holds over a kill, with the hub out of reach from the start.
	s.hub.HangTLS(true)
	p.kill()
	p = s.run()
	eventually(t, 20*time.Second, "told in the status", func() bool { r, err := s.status(); return err == nil && r.Desired != nil })
	send(4)
	p.kill()
	s.hub.HangTLS(false)
	p = s.run()
	arrives(4, true)
	eventually(t, 30*time.Second, "the bad document is refused again", func() bool { got, ok := reported("press-7"); return ok && !got.Applied })
	// Taken back.
	desire(`{"gatewayd":{"hub":null}}`, true, "")
	desire(`{"gatewayd":null}`, true, "")
	send(5)
	arrives(5, false)
	if _, err := os.Stat(s.path("state/desired_config.json")); !os.IsNotExist(err) {
		t.Errorf("kept although it was taken back: %v", err)
	}
	if _, known := reported("oven-2"); known {
		t.Error("another identity reports it too")
	}
	if code := p.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// The hub tells the desired properties with every connection. A document that stays
// bad is news once.
func TestBadDesiredConfigurationIsLoggedOnce(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{}, "press-7")
	s.writeConfig("hub: {trust: [hub-ca.pem], system_roots: false, desired_config: {identity: press-7}}\n")
	core, lines := observer.New(zap.WarnLevel)
	g := must(newGateway(must(config.Load(s.path("config.yaml")))(t), zap.New(core), zap.NewAtomicLevel()))(t)
	defer g.close()
	refused := func() int { return lines.FilterMessage("configuration in the desired properties refused").Len() }
	for range 3 {
		g.applyDesired([]byte(`{"gatewayd":{"log":{"level":"loud"}},"$version":4}`))
	}
	if n := refused(); n != 1 {
		t.Errorf("%d lines about one document", n)
	}
	g.applyDesired([]byte(`{"gatewayd":{"log":{"level":"quiet"}},"$version":5}`))
	if n := refused(); n != 2 {
		t.Errorf("%d lines about two documents", n)
	}
}
