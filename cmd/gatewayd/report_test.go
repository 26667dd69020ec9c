package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/downstream"
	"gatewayd/internal/hub/hubtest"
)

// A box without a battery begins in 1970 and goes by the last good time that it
// knows: that must not make it half a century old.
func TestStatusCountsFromTheStartWhateverTheClockSays(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{}, "press-7")
	check(t, os.MkdirAll(s.path("state"), 0o700))
	s.write("state/clock", time.Now().Add(10*24*time.Hour).UTC().Format(time.RFC3339)+"\n")
	s.run()
	eventually(t, 15*time.Second, "connected", func() bool {
		id, ok := s.identityStatus("press-7")
		return ok && id.Connected
	})
	r := must(s.status())(t)
	if r.Now.Before(time.Now().Add(9 * 24 * time.Hour)) {
		t.Fatalf("the report goes by %s, not by the last good time", r.Now)
	}
	if up := r.Now.Sub(r.Started); up < 0 || up > time.Minute {
		t.Errorf("up %s", up)
	}
	if d := r.Now.Sub(r.Identities[0].Since); d < 0 || d > time.Minute {
		t.Errorf("connected for %s", d)
	}
}

// A gateway that lives from its copy alone is one file away from silence.
func TestStatusTellsThatOnlyTheCopyIsLeft(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{}, "press-7")
	text := string(must(os.ReadFile(s.path("config.yaml")))(t))
	s.write("config.yaml", strings.ReplaceAll(text, "    certificate:", "    keep_last_good: disk\n    certificate:"))
	p := s.run()
	copied := func() bool {
		_, err := os.Stat(s.path("state/certificates/press-7.pem"))
		return err == nil
	}
	eventually(t, 15*time.Second, "the copy", copied)
	p.stop()
	check(t, os.Remove(s.path("press-7.pem")))
	s.run()
	eventually(t, 15*time.Second, "connected, with a word", func() bool {
		id, ok := s.identityStatus("press-7")
		return ok && id.Connected && strings.Contains(id.FirstFault, "only the copy") && strings.Contains(id.FirstFault, "press-7.pem does not exist")
	})
	check(t, s.issue("press-7", certtest.Leaf{CN: "press-7"}).Write(s.path("press-7.pem"), s.path("press-7.key")))
	eventually(t, 15*time.Second, "no word more", func() bool {
		id, ok := s.identityStatus("press-7")
		return ok && id.Connected && id.FirstFault == ""
	})
}

// A connection that stands says nothing about readings that do not get on.
func TestStatusTellsOfReadingsThatDoNotGetOn(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{}, "press-7")
	text := string(must(os.ReadFile(s.path("config.yaml")))(t))
	s.write("config.yaml", strings.ReplaceAll(text, "    certificate:", "    queue: {max_bytes: 64KiB}\n    certificate:"))
	s.run()
	says := func(words string) func() bool {
		return func() bool {
			id, ok := s.identityStatus("press-7")
			return ok && id.Connected && strings.Contains(id.FirstFault, words) && (words == "") == (id.FirstFault == "")
		}
	}
	eventually(t, 15*time.Second, "connected", says(""))
	s.hub.DelayPuback(time.Hour)
	for code := 0; code != http.StatusServiceUnavailable; {
		code = s.post("sensors/press-7/x", strings.Repeat("x", 4<<10), "")
	}
	eventually(t, 5*time.Second, "the full queue", says("the queue is full to"))
	if code, out := s.exitCode("status", "-c", "config.yaml"); code != exitRunning || !strings.Contains(out, "new readings are refused") {
		t.Errorf("status exits with %d:\n%s", code, out)
	}
	eventually(t, 20*time.Second, "that nothing is acknowledged", says("in flight was acknowledged"))
}

// A hub that takes the connection and says nothing is no outage yet, and not well.
func TestStatusTellsOfAConnectThatTakesLong(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{}, "press-7")
	s.hub.HangTLS(true)
	s.run()
	eventually(t, 25*time.Second, "that it takes long", func() bool {
		id, ok := s.identityStatus("press-7")
		return ok && strings.HasPrefix(id.FirstFault, "not connected yet: connecting for 1") && strings.HasSuffix(id.FirstFault, "at step tls") && id.Fault == nil
	})
}

func TestStatusTellsOfARefusedSubscription(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{MaxFilters: 3}, "press-7")
	s.run()
	eventually(t, 15*time.Second, "the filter that the hub refuses", func() bool {
		id, ok := s.identityStatus("press-7")
		return ok && id.Connected && strings.HasSuffix(id.FirstFault, "the hub refuses the subscription $iothub/twin/PATCH/properties/desired/#")
	})
}

func TestThePageShowsAzureSDKClients(t *testing.T) {
	r := report{AzureClients: []azureReport{{"127.0.0.1:8883", downstream.AzureStatus{Identity: "press-7", Connected: true}}}}
	if got := fmt.Sprint(pageListeners(&r)); got != "[{Azure SDK client press-7 1 }]" {
		t.Errorf("the page shows %s", got)
	}
}

// net/http writes to standard error in a format of its own, once per attempt, unless
// it is told not to.
func TestNoServerWritesPastTheLog(t *testing.T) {
	t.Parallel()
	check(t, filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			lit, ok := n.(*ast.CompositeLit)
			if !ok || !isServer(lit.Type) {
				return true
			}
			for _, e := range lit.Elts {
				if kv, ok := e.(*ast.KeyValueExpr); ok && kv.Key.(*ast.Ident).Name == "ErrorLog" {
					return true
				}
			}
			t.Errorf("%s: an http.Server without ErrorLog", set.Position(lit.Pos()))
			return true
		})
		return nil
	}))
}

func isServer(e ast.Expr) bool {
	s, ok := e.(*ast.SelectorExpr)
	if !ok || s.Sel.Name != "Server" {
		return false
	}
	x, ok := s.X.(*ast.Ident)
	return ok && x.Name == "http"
}
