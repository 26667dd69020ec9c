package downstream

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestFirstMatchingRouteWins(t *testing.T) {
	r, err := NewRouter([]Route{
		{Name: "one", Match: "sensors/+/telemetry", To: "press-7", Properties: map[string]string{"sensor": "{1}", "b": "x{1}y"}, Output: "o", Priority: 3, MaxAge: time.Hour},
		{Match: "to/+/+/#", To: "{1}", Properties: map[string]string{"rest": "{3}", "two": "{2}", "literal": "{x} {} {"}},
		{Match: "deep/#", To: "press-8", Properties: map[string]string{"rest": "[{1}]"}},
		{Match: "#", To: "press-8"},
	}, []string{"press-7", "press-8"})
	if err != nil {
		t.Fatal(err)
	}
	for topic, want := range map[string]string{
		"sensors/a/telemetry": "one press-7 [{b xay} {sensor a}] o 3 1h0m0s",
		"sensors//telemetry":  "one press-7 [{b xy} {sensor }] o 3 1h0m0s",
		"to/press-7/a/b/c":    "to/+/+/# press-7 [{literal {x} {} {} {rest b/c} {two a}]  0 0s",
		"to/press-7/a":        "to/+/+/# press-7 [{literal {x} {} {} {rest } {two a}]  0 0s",
		"deep":                "deep/# press-8 [{rest []}]  0 0s",
		"deep/":               "deep/# press-8 [{rest []}]  0 0s",
		"deep/a/b":            "deep/# press-8 [{rest [a/b]}]  0 0s",
		"anything":            "# press-8 []  0 0s",
	} {
		d, err := r.Route(topic)
		if got := fmt.Sprint(d.Route, " ", d.Identity, " ", d.Properties, " ", d.Output, " ", d.Priority, " ", d.MaxAge); err != nil || got != want {
			t.Errorf("%s: %s %v, want %s", topic, got, err, want)
		}
	}
	for _, topic := range []string{"to/press-9/a", "to//a", "$SYS/x"} {
		if _, err := r.Route(topic); !errors.Is(err, ErrNoRoute) {
			t.Errorf("%s: %v", topic, err)
		}
	}
}

func TestRouteProblemsAreAllNamed(t *testing.T) {
	_, err := NewRouter([]Route{
		{Match: "a/#/b", To: "press-7"},
		{Match: "a/+", To: "press-9"},
		{Match: "a/+", To: "{2}", Properties: map[string]string{"x": "{0}", "$.mid": "y", "iothub-x": ""}},
		{Match: "a", To: "press-7", Priority: 10, MaxAge: -1},
		{Match: "", To: ""},
	}, []string{"press-7"})
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{
		`routes[0].match: "a/#/b" is not an MQTT topic filter`,
		`routes[1].to: "press-9" is not the name of an identity`,
		`routes[2].to: {2}: match has 1 wildcards`,
		`routes[2].properties.x: {0}: match has 1 wildcards`,
		`routes[2].properties: property not allowed: "$.mid" is a system property of IoT Hub`,
		`routes[2].properties: property not allowed: "iothub-x" is a system property of IoT Hub`,
		`routes[3].priority: 10 is not between 0 and 9`,
		`routes[3].max_age: -1ns is negative`,
		`routes[4].match: "" is not an MQTT topic filter`,
		`routes[4].to: "" is not the name of an identity`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("missing: %s", want)
		}
	}
	if n := strings.Count(err.Error(), "\n") + 1; n != 10 {
		t.Errorf("%d problems:\n%v", n, err)
	}
}
