package main

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
)

func TestRouteShowsWhatWouldHappen(t *testing.T) {
	s := newSite(t)
	s.config(`downstream: {mqtt: [{}]}
routes:
  - {match: sensors/+/raw, to: press-7, properties: {sensor: "{1}"}, content_type: text/plain, content_encoding: "", priority: 3, max_age: 90s}
  - match: sensors/+/json
    to: press-7
    filter: .level > 2
    set: {level: .level}
    transform: "{level, topic: $topic}"
    on_error: drop
  - {match: zip/+, to: press-7, compress: gzip, transform: "[range(200)]", only_changes: {max_interval: 1m}}
  - {match: odd/+, to: press-7, filter: .x, on_error: set-aside}
  - {match: pack/+, to: press-7, properties: {sensor: "{1}"}, compress: gzip, pack: {max_bytes: 4KiB, max_delay: 2s}}
`)
	for _, tt := range []struct {
		name, stdin string
		args        []string
		want        string
		code        int
	}{
		{"plain", "", []string{"sensors/a/raw", "21.5", "-p", "unit=C"},
			"topic      sensors/a/raw\nroute      routes[0] (match: sensors/+/raw)\nfate       queued\nidentity   press-7\nproperty   unit=C\nproperty   sensor=a\n" +
				"type       text/plain\npriority   3\nmax age    1m30s\nbody       4 bytes:\n21.5\n", 0},
		{"from standard input", `{"level":5,"rest":[]}`, []string{"sensors/a/json", "-"},
			"topic      sensors/a/json\nroute      routes[1] (match: sensors/+/json)\nfate       queued\nidentity   press-7\nproperty   level=5\n" +
				"type       application/json\nencoding   utf-8\nbody       36 bytes:\n" + `{"level":5,"topic":"sensors/a/json"}` + "\n", 0},
		{"not wanted", "", []string{"sensors/a/json", `{"level":1}`}, "topic      sensors/a/json\nroute      routes[1] (match: sensors/+/json)\nfate       not wanted\n", 0},
		{"dropped", "", []string{"sensors/a/json", `x`}, "topic      sensors/a/json\nroute      routes[1] (match: sensors/+/json)\nfate       dropped: program failed: the body is not JSON\n", 0},
		{"set aside", "", []string{"odd/a", "\xff"},
			"topic      odd/a\nroute      routes[3] (match: odd/+)\nfate       set aside: program failed: the body is not JSON\nidentity   press-7\n" +
				"body       1 bytes:\n\"\\xff\"\n", 0},
		{"no route", "", []string{"other"}, "topic      other\nfate       refused: no route for this topic\n", exitRunning},
		{"not a topic", "", []string{"a/+"}, "topic      a/+\nfate       refused: not a topic that can be published to: empty, not UTF-8, or with a wildcard\n", exitRunning},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, _, err := execute(t, newRouteCommand(), tt.stdin, append([]string{"-c", s.path("config.yaml")}, tt.args...)...)
			var exit *exitError
			if tt.code == 0 && err != nil || tt.code != 0 && (!errors.As(err, &exit) || exit.code != tt.code) {
				t.Errorf("error %v", err)
			}
			if out != tt.want {
				t.Errorf("got\n%s\nwant\n%s", out, tt.want)
			}
		})
	}
	out, _, err := execute(t, newRouteCommand(), "", "-c", s.path("config.yaml"), "pack/a", `{ "t": 1 }`)
	element := regexp.MustCompile(`\npack       with others of the route, up to 4096 bytes or 2s \(array, compressed\), as:\nelement    \{"time":[0-9]{13},"props":\{"sensor":"a"\},"body":\{"t":1\}\}\nbody       10 bytes:\n`)
	if err != nil || !element.MatchString(out) {
		t.Errorf("%v\n%s", err, out)
	}
	out, _, err = execute(t, newRouteCommand(), "", "-c", s.path("config.yaml"), "zip/a", "1")
	if err != nil || !strings.Contains(out, "encoding   gzip\n") || !strings.Contains(out, "bytes of gzip, which are:\n[0,1,2,") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestRouteWantsATopicAndGoodPrograms(t *testing.T) {
	s := newSite(t)
	s.config("routes:\n  - match: a\n    to: press-7\n    filter: \".a |\"\n    set: {k: \".b |\"}\n")
	_, _, err := execute(t, newRouteCommand(), "", "-c", s.path("config.yaml"))
	wantUsage(t, err, "arg")
	_, _, err = execute(t, newRouteCommand(), "", "-c", s.path("config.yaml"), "a", "-p", "x")
	wantUsage(t, err, "KEY=VALUE")
	_, _, err = execute(t, newRouteCommand(), "", "-c", s.path("config.yaml"), "a")
	wantUsage(t, err, "routes[0].filter: not a jq program: ")
	text, err := os.ReadFile(s.path("config.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	line := func(key string) int { return 1 + strings.Count(strings.Split(string(text), key)[0], "\n") }
	_, _, err = execute(t, newCheckCommand(), "", "-c", s.path("config.yaml"))
	wantUsage(t, err, fmt.Sprintf("config.yaml:%d: routes[0].filter: not a jq program: ", line("filter:")))
	wantUsage(t, err, fmt.Sprintf("config.yaml:%d: routes[0].set.k: not a jq program: ", line("set:")))
}
