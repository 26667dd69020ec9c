package main

import (
	"os"
	"strings"
	"testing"
	"time"

	"gatewayd/internal/hub/hubtest"
)

// What nobody can deliver is looked at and forgotten, and then all is well again.
func TestDropForgetsWhatWasSetAside(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{}, "press-7")
	file := string(must(os.ReadFile(s.path("config.yaml")))(t))
	s.write("config.yaml", strings.Replace(file, `to: "{1}"`, `to: "{1}", transform: error`, 1))
	p := s.run()
	drop := func(want int, text string, args ...string) {
		t.Helper()
		if code, out := s.exitCode(append([]string{"queue", "drop", "press-7", "-c", "config.yaml"}, args...)...); code != want || !strings.Contains(out, text) {
			t.Errorf("drop %v: %d %s", args, code, out)
		}
	}
	healthy := func(want bool) {
		t.Helper()
		eventually(t, 10*time.Second, "healthy or not", func() bool {
			r, err := s.status()
			return err == nil && r.Healthy == want && strings.Contains(r.FirstFault, "set aside") != want
		})
	}
	for range 3 {
		s.post("sensors/press-7/x", "{}", "")
	}
	healthy(false)
	drop(exitUsage, "--yes", "1")
	drop(exitUsage, "not a sequence", "--yes", "one")
	drop(exitRunning, "is configured", "--yes")
	drop(exitRunning, "not set aside", "--yes", "9")
	drop(exitOK, "1 messages dropped", "--yes", "1")
	p.stop()
	drop(exitOK, "1 messages dropped", "--yes", "2")
	s.run()
	healthy(false)
	drop(exitOK, "1 messages dropped", "--yes", "--aside")
	healthy(true)
}
