package cloud

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"gatewayd/internal/hub/hubtest"
	"gatewayd/internal/packet"
)

// What a reload changes takes effect without a restart, and what waits stays.
func TestOptionsChangeWhileRunning(t *testing.T) {
	s := newSite(t, hubtest.Options{}, Options{Name: "press-7", Methods: true})
	must(s.hub.PatchDesired("press-7", `{"speed":1}`))(t)
	s.start()
	if status, _ := s.get("/v1/twin/press-7"); status != 404 {
		t.Errorf("the twin is off: %d", status)
	}
	again := func(o Options) {
		t.Helper()
		before := must(s.g.cloud.identity("press-7"))(t)
		if id := must(s.g.cloud.Add(o))(t); id != before {
			t.Error("the session would be left with another part")
		}
		s.setup.Identities = []Options{o}
		s.reconnect("press-7") // as the reload does for a changed identity
	}
	again(everything("press-7"))
	s.desiredIs(`{"speed":1,"$version":2}`)
	s.send("press-7", "m-1", "one")
	s.eventually("stored", func() bool { return s.waiting("press-7") == 1 })
	o := everything("press-7")
	o.Targets = map[string]Target{"me": {Builtin: "echo"}}
	again(o)
	if status, body, err := s.invoke("press-7", "me", `1`, patience); status != 200 {
		t.Errorf("%d %s %v", status, body, err)
	}
	c := s.connect(packet.V311, "plc", true)
	c.subscribe("gateway/press-7/c2d/#")
	if p := c.take(); string(p.Payload) != "one" {
		t.Errorf("got %s", p.Payload)
	}
	// What is switched off is off at the hub too, which remembers subscriptions.
	again(Options{Name: "press-7", Twin: true})
	s.eventually("taken back", func() bool { return slices.Equal(s.hub.Subscribed("press-7"), []string{"twin replies", "desired"}) })
	s.send("press-7", "m-2", "two")
	if _, _, err := s.invoke("press-7", "me", `1`, patience); !errors.Is(err, hubtest.ErrNotOnline) {
		t.Errorf("a method that is switched off: %v", err)
	}
	again(everything("press-7"))
	if p := c.take(); string(p.Payload) != "two" {
		t.Errorf("got %s", p.Payload)
	}
	if _, err := s.g.cloud.Add(Options{Name: "press-7", Targets: map[string]Target{"x": {Builtin: "none"}}}); err == nil {
		t.Error("a built-in method that does not exist is accepted")
	}
}

func TestARemovedIdentityIsForgotten(t *testing.T) {
	s := newSite(t, hubtest.Options{}, everything("press-7"), everything("oven"))
	s.start()
	s.desiredIs(`{"$version":1}`)
	s.send("oven", "m-1", "one")
	s.eventually("stored", func() bool { return s.waiting("oven") == 1 })
	s.g.cloud.Remove("oven")
	s.g.cloud.Remove("oven")
	s.eventually("nothing is retained for it", func() bool { return s.g.local.Stats().Retained == 2 })
	if status, _ := s.get("/v1/c2d/oven"); status != 404 {
		t.Errorf("over HTTP: %d", status)
	}
	// What a client acknowledged just before does not come again.
	c := s.connect(packet.V311, "plc", true)
	c.subscribe("gateway/press-7/c2d/#")
	for i := range 8 {
		s.send("press-7", fmt.Sprint("m-", i), "x")
		c.take()
		s.g.cloud.Remove("press-7")
		must(s.g.cloud.Add(everything("press-7")))(t)
		s.reconnect("press-7")
	}
	c.quiet()
	must(s.g.cloud.Add(everything("oven")))(t)
	if n := s.waiting("oven"); n != 1 {
		t.Errorf("%d messages wait after it came back, want 1", n)
	}
}
