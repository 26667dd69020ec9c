package cloud

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"gatewayd/internal/downstream"
	"gatewayd/internal/hub/hubtest"
	"gatewayd/internal/packet"
)

func sameJSON(a, b string) bool {
	var x, y any
	return json.Unmarshal([]byte(a), &x) == nil && json.Unmarshal([]byte(b), &y) == nil && reflect.DeepEqual(x, y)
}

// desiredIs waits for the retained desired document.
func (s *site) desiredIs(want string) {
	s.Helper()
	id, err := s.g.cloud.identity("press-7")
	check(s.T, err)
	var got string
	s.eventually("desired is "+want, func() bool {
		done := make(chan struct{})
		id.post(func() { got = string(id.twin.raw); close(done) })
		<-done
		return sameJSON(got, want)
	})
}

func TestDesiredPropertiesAreRetainedAndFollowed(t *testing.T) {
	s := newSite(t, hubtest.Options{}, everything("press-7"))
	must(s.hub.PatchDesired("press-7", `{"speed":1,"old":{"a":1,"b":2}}`))(t)
	s.start()
	s.desiredIs(`{"speed":1,"old":{"a":1,"b":2},"$version":2}`)
	c := s.connect(packet.V311, "plc", true)
	c.subscribe("gateway/press-7/twin/desired")
	if p := c.take(); !p.Retain || !sameJSON(string(p.Payload), `{"speed":1,"old":{"a":1,"b":2},"$version":2}`) {
		t.Errorf("retained %v %s", p.Retain, p.Payload)
	}
	must(s.hub.PatchDesired("press-7", `{"speed":2.50,"old":{"a":null}}`))(t)
	if p := c.take(); string(p.Payload) != `{"$version":3,"old":{"b":2},"speed":2.50}` {
		t.Errorf("after a change: %s", p.Payload)
	}
	// A gap: the whole document is asked for again.
	check(t, s.hub.LoseDesired("press-7", 2))
	for i := range 3 {
		must(s.hub.PatchDesired("press-7", fmt.Sprintf(`{"n%d":%d}`, i, i)))(t)
	}
	s.desiredIs(`{"speed":2.5,"old":{"b":2},"n0":0,"n1":1,"n2":2,"$version":6}`)
	// What changes while the link is down comes with the GET.
	s.hub.StopListening()
	s.hub.DropConnections("press-7")
	must(s.hub.PatchDesired("press-7", `{"old":null,"n0":null,"n1":null,"n2":null}`))(t)
	check(t, s.hub.Resume())
	s.desiredIs(`{"speed":2.5,"$version":7}`)
	// An identity that was made anew begins with a lower version.
	check(t, s.hub.ResetTwin("press-7"))
	s.hub.DropConnections("press-7")
	s.desiredIs(`{"$version":1}`)
	s.strict()
}

func TestDesiredPropertiesAreThereWhileOffline(t *testing.T) {
	s := newSite(t, hubtest.Options{}, everything("press-7"))
	must(s.hub.PatchDesired("press-7", `{"speed":1}`))(t)
	s.start()
	s.desiredIs(`{"speed":1,"$version":2}`)
	s.stop()
	file := filepath.Join(s.setup.Dir, "twins", "press-7.desired.json")
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st, err)
	}
	s.hub.StopListening()
	s.startOffline()
	c := s.connect(packet.V5, "plc", true)
	c.subscribe("gateway/+/twin/desired")
	if p := c.take(); !sameJSON(string(p.Payload), `{"speed":1,"$version":2}`) {
		t.Errorf("offline: %s", p.Payload)
	}
}

func TestReportedPropertiesAreSentOnceTheyCan(t *testing.T) {
	s := newSite(t, hubtest.Options{}, everything("press-7"))
	s.start()
	c := s.connect(packet.V5, "plc", true)
	report := func(patch string) {
		t.Helper()
		if code := c.publish("gateway/press-7/twin/reported", patch); code != 0 {
			t.Errorf("%s: PUBACK code %#x", patch, code)
		}
	}
	reported := func(want string) {
		t.Helper()
		s.eventually("reported is "+want, func() bool {
			var doc map[string]any
			check(t, json.Unmarshal(s.hub.Twin("press-7").Reported, &doc))
			delete(doc, "$version")
			return sameJSON(string(encode(doc)), want)
		})
	}
	report(`{"mode":"auto","tool":{"id":7,"wear":0.1}}`)
	reported(`{"mode":"auto","tool":{"id":7,"wear":0.1}}`)

	// The hub has no time, then it fails: it is told in the end.
	check(t, s.hub.FailTwin("press-7", 429, 1))
	report(`{"mode":"manual"}`)
	reported(`{"mode":"manual","tool":{"id":7,"wear":0.1}}`)
	check(t, s.hub.FailTwin("press-7", 503, 1))
	report(`{"tool":{"wear":null}}`)
	reported(`{"mode":"manual","tool":{"id":7}}`)

	// A no that stays a no is dropped, and what comes behind it goes on.
	check(t, s.hub.FailTwin("press-7", 400, 1))
	report(`{"never":1}`)
	report(`{"then":1}`)
	reported(`{"mode":"manual","tool":{"id":7},"then":1}`)
	if n := s.logs.FilterMessage("the hub refuses reported properties").Len(); n != 1 {
		t.Errorf("%d lines in the log", n)
	}

	// Offline: durable, joined, exact, also over a restart.
	before := s.hub.Twin("press-7").ReportedVersion
	s.hub.StopListening()
	s.hub.DropConnections("press-7")
	for i := range 50 {
		report(fmt.Sprintf(`{"count":%d,"tool":{"id":%d}}`, i, i))
	}
	report(`{"tool":null}`)
	report(`{"tool":{"new":true}}`)
	s.stop()
	s.startOffline()
	check(t, s.hub.Resume())
	reported(`{"mode":"manual","then":1,"count":49,"tool":{"new":true}}`)
	if n := s.hub.Twin("press-7").ReportedVersion - before; n > 4 {
		t.Errorf("%d patches for what could be joined", n)
	}
	s.eventually("nothing is left on disk", func() bool {
		b, _ := os.ReadFile(filepath.Join(s.setup.Dir, "twins", "press-7.reported.json"))
		return strings.Contains(string(b), `"unsent":[]`)
	})
	s.strict()
}

func TestReportedPropertiesThatTheHubWouldRefuseAreRefusedHere(t *testing.T) {
	o := everything("press-7")
	o.ReportKey = "gatewayd"
	id := byHand(t, o)
	id.c.cfg.Report = func(string) map[string]any { return nil }
	long := strings.Repeat("x", maxKey+1)
	deep := strings.Repeat(`{"a":`, maxDepth+1) + "1" + strings.Repeat("}", maxDepth+1)
	var wide []string
	for i := range 9 {
		wide = append(wide, fmt.Sprintf(`"k%d":"%s"`, i, strings.Repeat("v", 4000)))
	}
	for _, tc := range []struct{ patch, reason string }{
		{`[1]`, "not a JSON object"},
		{`{"a":1`, "not JSON"},
		{`{"a":1} 2`, "something follows"},
		{`{"a.b":1}`, `'.' is not allowed`},
		{`{"$a":1}`, `'$' is not allowed`},
		{`{"a b":1}`, `' ' is not allowed`},
		{`{"a\u0001":1}`, "is not allowed"},
		{`{"":1}`, "0 bytes"},
		{`{"` + long + `":1}`, "1025 bytes"},
		{`{"a":{"b":"` + strings.Repeat("x", maxValue+1) + `"}}`, "4097 bytes"},
		{`{"a":4503599627370496}`, "out of range"},
		{`{"a":-4503599627370497}`, "out of range"},
		{`{"a":1e999}`, "out of range"},
		{`{"a":[` + strings.Repeat("1,", 3000) + `1]}`, "bytes"},
		{deep, "deeper than 10"},
		{`{` + strings.Join(wide, ",") + `}`, "bytes, the hub allows"},
		{`{"gatewayd":1}`, "gateway's own"},
	} {
		var got error
		id.patch([]byte(tc.patch), 0, func(_ int64, err error) { got = err })
		if !errors.Is(got, downstream.ErrProperty) || !strings.Contains(got.Error(), tc.reason) {
			t.Errorf("%.60s: %v; want %q", tc.patch, got, tc.reason)
		}
	}
	// Together with what is there already.
	half := `{"%s":"` + strings.Repeat("v", 4000) + `"}`
	accepted := 0
	for i := range 12 {
		id.patch(fmt.Appendf(nil, half, fmt.Sprint("k", i)), 0, func(_ int64, err error) {
			if err == nil {
				accepted++
			}
		})
	}
	id.flushTwin()
	if accepted != 8 {
		t.Errorf("%d of 12 accepted, want 8: 32 KB", accepted)
	}
}

// A disk that fails takes nothing, and says so; what was taken before stays.
func TestReportedPropertiesAreRefusedWhenTheDiskTakesNothing(t *testing.T) {
	id := byHand(t, everything("press-7"))
	tell := func(patch string) (got error) {
		got = errors.New("not told")
		id.patch([]byte(patch), 0, func(_ int64, err error) { got = err })
		id.flushTwin()
		return got
	}
	if err := tell(`{"a":1}`); err != nil {
		t.Fatal(err)
	}
	id.c.files.dir = "/dev/null/nowhere"
	if err := tell(`{"b":1}`); err == nil || len(id.twin.unsent) != 1 || len(id.twin.next) != 1 {
		t.Errorf("%v, %d and %d patches", err, len(id.twin.unsent), len(id.twin.next))
	}
}

func TestTheGatewayReportsOnItself(t *testing.T) {
	o := everything("press-7")
	o.ReportKey = "gatewayd"
	s := newSite(t, hubtest.Options{}, o)
	s.start()
	is := func(what string) {
		t.Helper()
		s.eventually("reported on "+what, func() bool {
			var doc struct {
				Gatewayd struct{ Certificate struct{ Fingerprint string } }
			}
			check(t, json.Unmarshal(s.hub.Twin("press-7").Reported, &doc))
			return doc.Gatewayd.Certificate.Fingerprint == s.g.creds["press-7"].fingerprint()
		})
	}
	is("the start")
	version := s.hub.Twin("press-7").ReportedVersion
	first := s.g.creds["press-7"].fingerprint()
	s.rotate("press-7")
	s.eventually("rotated", func() bool { return s.g.creds["press-7"].fingerprint() != first })
	is("the new certificate")
	// A connect without news is not worth a message.
	s.reconnect("press-7")
	time.Sleep(5 * testSettle)
	if n := s.hub.Twin("press-7").ReportedVersion - version; n != 1 {
		t.Errorf("%d reports after the first, want 1", n)
	}
	s.strict()
}

func TestTheStateIsRetainedAndFollowed(t *testing.T) {
	t.Parallel()
	s := newSite(t, hubtest.Options{}, everything("press-7"))
	s.start()
	c := s.connect(packet.V311, "plc", true)
	c.subscribe("gateway/press-7/status")
	until := func(connected bool) {
		t.Helper()
		for {
			var st struct{ Connected bool }
			check(t, json.Unmarshal(c.take().Payload, &st))
			if st.Connected == connected {
				return
			}
		}
	}
	until(true)
	s.hub.StopListening()
	s.hub.DropConnections("press-7")
	until(false)
	check(t, s.hub.Resume())
	until(true)
}
