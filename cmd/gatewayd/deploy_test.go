package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/hub/hubtest"
)

const (
	rulesFile     = "../../deploy/prometheus/gatewayd.rules.yml"
	rulesTestFile = "../../deploy/prometheus/gatewayd.rules.test.yml"
	dashboardFile = "../../deploy/grafana/gatewayd.json"
)

// promtool runs it in the folder of the rules.
func promtool(t *testing.T, stdin string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(tool(t, "promtool"), args...)
	cmd.Dir = filepath.Dir(rulesFile)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestAlertRulesPassTheirTests(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"check", "rules", "gatewayd.rules.yml"}, {"test", "rules", "gatewayd.rules.test.yml"}} {
		if out, err := promtool(t, "", args...); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	rules, tests := string(must(os.ReadFile(rulesFile))(t)), string(must(os.ReadFile(rulesTestFile))(t))
	alerts := regexp.MustCompile(`alert: (\w+)`).FindAllStringSubmatch(rules, -1)
	if len(alerts) < 10 {
		t.Errorf("only %d alerts", len(alerts))
	}
	for _, a := range alerts {
		if !regexp.MustCompile(`alertname: ` + a[1] + `\n\s+exp_alerts:\n`).MatchString(tests) {
			t.Errorf("no test makes %s fire", a[1])
		}
	}
}

// dashboard is what of it a test looks at.
type dashboard struct {
	Title  string
	Panels []struct {
		ID      int
		Title   string
		GridPos struct{ X, Y, W, H int }
		Targets []struct{ Expr, RefID string }
	}
	Templating struct {
		List []struct{ Name, Definition string }
	}
}

// queries are a dashboard's expressions with Grafana's own words filled in.
func (d *dashboard) queries() []string {
	fill := strings.NewReplacer("$__rate_interval", "5m", "$__range", "1h", "$instance", ".*", "$identity", ".*")
	var all []string
	for _, p := range d.Panels {
		for _, target := range p.Targets {
			all = append(all, fill.Replace(target.Expr))
		}
	}
	return all
}

func readDashboard(t *testing.T) *dashboard {
	t.Helper()
	d := new(dashboard)
	check(t, json.Unmarshal(must(os.ReadFile(dashboardFile))(t), d))
	return d
}

func TestDashboardIsInOrder(t *testing.T) {
	t.Parallel()
	d := readDashboard(t)
	if len(d.Panels) < 15 {
		t.Errorf("only %d panels", len(d.Panels))
	}
	ids := map[int]bool{}
	for i, p := range d.Panels {
		if ids[p.ID] || p.Title == "" || len(p.Targets) == 0 {
			t.Errorf("panel %d: %+v", i, p)
		}
		ids[p.ID] = true
		for _, q := range d.Panels[:i] {
			a, b := p.GridPos, q.GridPos
			if a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H {
				t.Errorf("%s lies over %s", p.Title, q.Title)
			}
		}
	}
	// promtool reads PromQL in rules.
	var b bytes.Buffer
	b.WriteString("groups:\n  - name: dashboard\n    rules:\n")
	for i, q := range d.queries() {
		fmt.Fprintf(&b, "      - {record: 'panel:%d', expr: %q}\n", i, q)
	}
	file := filepath.Join(t.TempDir(), "dashboard.yml")
	check(t, os.WriteFile(file, b.Bytes(), 0o600))
	if out, err := promtool(t, "", "check", "rules", file); err != nil {
		t.Errorf("%v\n%s\n%s", err, out, &b)
	}
}

// Each name in rules and dashboard is one that a gateway really has: after load, a
// rotation and a refused certificate, because some metrics begin with those.
func TestRulesAndDashboardNameMetricsThatExist(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{}, "press-7", "oven-2")
	s.run()
	f := s.fleet(2, 4, 64, 10*time.Millisecond)
	eventually(t, 15*time.Second, "messages arrive", func() bool { return s.hub.Counters("press-7").Messages > 10 })
	s.issue("press-7", certtest.Leaf{CN: "press-7"})
	eventually(t, 15*time.Second, "a rotation", func() bool { id, ok := s.identityStatus("press-7"); return ok && id.Rotations == 1 })
	other := must(certtest.NewCA("another CA"))(t)
	check(t, must(other.Issue(certtest.Leaf{CN: "oven-2"}))(t).Write(s.path("oven-2.pem"), s.path("oven-2.key")))
	eventually(t, 15*time.Second, "a refusal", func() bool { id, ok := s.identityStatus("oven-2"); return ok && id.Certificate.MissedTrials == 1 })
	f.end()
	text := s.get("/metrics")
	name := regexp.MustCompile(`\b(gatewayd|process|go)_[a-z_]+\b`)
	d := readDashboard(t)
	sources := map[string]string{"the rules": string(must(os.ReadFile(rulesFile))(t)), "the dashboard": strings.Join(d.queries(), "\n")}
	for _, v := range d.Templating.List {
		sources["the dashboard"] += "\n" + v.Definition
	}
	for where, source := range sources {
		found := name.FindAllString(source, -1)
		if len(found) < 10 {
			t.Errorf("%s: only %d metrics found", where, len(found))
		}
		for _, n := range found {
			if !strings.Contains(text, "\n"+n+"{") && !strings.Contains(text, "\n"+n+" ") {
				t.Errorf("%s ask for %s, which is not in /metrics", where, n)
			}
		}
	}
	// And the contract, after a rotation and a refusal.
	for _, line := range []string{
		`gatewayd_rotations_total{identity="press-7",result="committed"} 1`, `gatewayd_rotations_total{identity="oven-2",result="missed"} 1`,
		`gatewayd_rotations_total{identity="oven-2",result="rejected"} 0`, `gatewayd_connects_total{identity="press-7",result="accepted"} 2`,
		`gatewayd_connects_total{identity="oven-2",result="refused"} 1`, `gatewayd_identity_connected{identity="oven-2"} 1`,
	} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("no line %q among\n%s", line, grep(text, "gatewayd_(rotations|connects|identity)"))
		}
	}
	checkMetrics(t, text)
}

// checkMetrics has promtool look at names, types, units and help.
func checkMetrics(t *testing.T, text string) {
	t.Helper()
	if out, err := promtool(t, text, "check", "metrics"); err != nil {
		t.Errorf("promtool: %v\n%s", err, out)
	}
}

func grep(text, pattern string) string {
	var found []string
	for _, line := range strings.Split(text, "\n") {
		if ok, _ := regexp.MatchString("^"+pattern, line); ok {
			found = append(found, line)
		}
	}
	return strings.Join(found, "\n")
}
