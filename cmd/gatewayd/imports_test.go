package main

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

// mayImport says which packages of this module each one knows, and why no
// others: downstream → queue ← hub → certstore, wired by cmd/gatewayd.
var mayImport = map[string]struct {
	packages []string
	why      string
}{
	"internal/bag": {[]string{"internal/queue"}, "the form of a property bag, which both sides of the gateway meet; properties are the journal's"},
	"cmd/gatewayd": {[]string{"internal/certstore", "internal/certstore/certtest", "internal/cloud", "internal/config", "internal/downstream",
		"internal/hub", "internal/hub/hubtest", "internal/packet", "internal/queue", "internal/statuspage"}, "it wires all parts; the test doubles are for the demo"},
	"deploy/packages":             {nil, "it holds the tests of the packages"},
	"internal/certstore":          {nil, "certificates know nothing of MQTT, Azure or the queue"},
	"internal/certstore/certtest": {nil, "every test may use it, so it may use nothing"},
	"internal/cloud": {[]string{"internal/bag", "internal/downstream", "internal/hub", "internal/packet", "internal/queue"},
		"what comes down crosses between the two sides here, so that they need not know each other"},
	"internal/config":              {nil, "it turns a file into plain values; who uses them is wired in cmd/gatewayd"},
	"internal/downstream":          {[]string{"internal/bag", "internal/packet", "internal/queue"}, "the local side knows the journal and nothing behind it"},
	"internal/hub":                 {[]string{"internal/bag", "internal/certstore", "internal/packet", "internal/queue"}, "the cloud side knows the journal and nothing before it"},
	"internal/hub/hubtest":         {[]string{"internal/certstore/certtest", "internal/packet"}, "a stand-in that shared code with the session would share its mistakes; the codec is the one exception"},
	"internal/hub/hubtest/nodesdk": {[]string{"internal/hub/hubtest"}, "it drives a process of its own, and looks at the hub what that did"},
	"internal/packet":              {nil, "a codec knows bytes"},
	"internal/queue":               {nil, "the journal knows nothing of MQTT, Azure or certificates"},
	"internal/statuspage":          {nil, "the page gets plain values; what they mean is wired in cmd/gatewayd"},
}

// mayUse says which packages may import a module from outside: those that
// reach a network or a foreign format have one home, so that they can be
// replaced. Modules that are not listed may be imported by nobody.
var mayUse = map[string][]string{
	"github.com/cloudevents/sdk-go/v2":    {"internal/downstream"},
	"github.com/coder/websocket":          {"internal/downstream", "internal/hub", "internal/hub/hubtest"},
	"github.com/coreos/go-systemd/v22":    {"cmd/gatewayd"},
	"github.com/eclipse/paho.golang":      {"internal/downstream", "cmd/gatewayd"}, // simulated sensors of the demo
	"github.com/fsnotify/fsnotify":        {"internal/certstore"},
	"github.com/itchyny/gojq":             {"internal/downstream"},
	"github.com/prometheus/client_golang": {"cmd/gatewayd"},
	"github.com/prometheus/client_model":  {"cmd/gatewayd"},
	"github.com/spf13/cobra":              {"cmd/gatewayd"},
	"github.com/youmark/pkcs8":            {"internal/certstore"},
	"go.opentelemetry.io/proto/slim/otlp": {"cmd/gatewayd"},
	"go.uber.org/zap":                     {"cmd/gatewayd", "internal/certstore", "internal/cloud", "internal/downstream", "internal/hub", "internal/statuspage"},
	"golang.org/x/crypto":                 {"internal/certstore", "internal/downstream"},
	"golang.org/x/net":                    {"internal/downstream", "internal/hub"},
	"golang.org/x/sync":                   {"cmd/gatewayd", "internal/downstream", "internal/hub"},
	"golang.org/x/sys":                    {"cmd/gatewayd", "internal/certstore", "internal/hub", "internal/queue"},
	"golang.org/x/term":                   {"cmd/gatewayd"},
	"golang.org/x/time":                   {"internal/downstream", "internal/hub", "internal/statuspage"},
	"gopkg.in/yaml.v3":                    {"internal/config"},
	"google.golang.org/protobuf":          {"cmd/gatewayd"},
	"software.sslmate.com/src/go-pkcs12":  {"internal/certstore"},
}

// noNames say nothing about what is inside, so everything ends up there.
var noNames = []string{"util", "utils", "common", "types", "models", "manager", "pkg", "helpers", "shared"}

type listed struct {
	ImportPath   string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

const module = "gatewayd/"

func listPackages(t *testing.T) []listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,TestImports,XTestImports", module+"...")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %s", exit.Stderr)
		}
		t.Fatal(err)
	}
	var all []listed
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		p.ImportPath = strings.TrimPrefix(p.ImportPath, module)
		all = append(all, p)
	}
}

func TestImportsKeepTheirDirections(t *testing.T) {
	all := listPackages(t)
	if len(all) < 8 {
		t.Fatalf("go list found only %d packages", len(all))
	}
	for _, p := range all {
		rule, known := mayImport[p.ImportPath]
		if !known {
			t.Errorf("%s is in no rule: add it with what it may import and the reason", p.ImportPath)
			continue
		}
		if slices.Contains(noNames, path.Base(p.ImportPath)) {
			t.Errorf("%s: name it after what is inside", p.ImportPath)
		}
		for _, i := range p.Imports {
			if own, ok := strings.CutPrefix(i, module); ok {
				if !slices.Contains(rule.packages, own) {
					t.Errorf("%s imports %s, which it may not: %s", p.ImportPath, own, rule.why)
				}
			} else if strings.Contains(strings.Split(i, "/")[0], ".") {
				checkOutside(t, p.ImportPath, i)
			}
		}
	}
}

func checkOutside(t *testing.T, from, to string) {
	t.Helper()
	for m, users := range mayUse {
		if to != m && !strings.HasPrefix(to, m+"/") {
			continue
		}
		if !slices.Contains(users, from) {
			t.Errorf("%s imports %s, whose home is %s: a second home makes it hard to replace", from, to, strings.Join(users, ", "))
		}
		return
	}
	t.Errorf("%s imports %s, which is in no rule: each dependency needs a home", from, to)
}

// Not even a test may make the two sides meet: what they share is the journal.
func TestDownstreamAndHubNeverMeet(t *testing.T) {
	for _, p := range listPackages(t) {
		for _, i := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			local := strings.HasPrefix(p.ImportPath, "internal/downstream") && strings.HasPrefix(i, module+"internal/hub")
			cloud := strings.HasPrefix(p.ImportPath, "internal/hub") && strings.HasPrefix(i, module+"internal/downstream")
			if local || cloud {
				t.Errorf("%s imports %s: only cmd/gatewayd and internal/cloud may know both", p.ImportPath, i)
			}
		}
	}
}

// What stands in for others in tests must not end up in the daemon's parts.
func TestDoublesStayInTestsAndDemo(t *testing.T) {
	doubles := []string{module + "internal/hub/hubtest", module + "internal/hub/hubtest/nodesdk", module + "internal/certstore/certtest"}
	for _, p := range listPackages(t) {
		if p.ImportPath == "cmd/gatewayd" || strings.HasSuffix(p.ImportPath, "test") || strings.Contains(p.ImportPath, "test/") {
			continue
		}
		for _, i := range p.Imports {
			if slices.Contains(doubles, i) {
				t.Errorf("%s imports %s outside its tests", p.ImportPath, i)
			}
		}
	}
}
