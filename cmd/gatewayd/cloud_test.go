package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/cloud"
	"gatewayd/internal/config"
	"gatewayd/internal/hub/hubtest"
)

// quietGateway is a gateway of a plant that was built, has read its certificates, and does not run.
func quietGateway(t *testing.T, s *plant) *gateway {
	t.Helper()
	cfg := must(config.Load(s.path("config.yaml")))(t)
	g := must(newGateway(cfg, zap.NewNop(), zap.NewAtomicLevelAt(zap.InfoLevel)))(t)
	t.Cleanup(g.close)
	ctx, cancel := context.WithCancel(t.Context())
	read := make(chan error, 1)
	go func() { read <- g.watcher.Run(ctx) }()
	for _, id := range g.now.Load().identities {
		id.store.Await(ctx)
	}
	cancel()
	check(t, <-read)
	return g
}

func TestBuiltinMethodsTellAndRefuse(t *testing.T) {
	s := newPlant(t, hubtest.Options{}, "press-7", "oven-2")
	g := quietGateway(t, s)
	g.accepting.Store(true) // reload is for a gateway that runs
	call := func(f cloud.Builtin, identity, payload string) string {
		t.Helper()
		v, err := f(t.Context(), identity, []byte(payload))
		var refused *cloud.MethodError
		if errors.As(err, &refused) {
			return fmt.Sprintf("%d %s", refused.Status, refused.Reason)
		}
		check(t, err)
		return string(must(json.Marshal(v))(t))
	}
	for _, tc := range []struct {
		name, got, want string
	}{
		{"status", call(g.methodStatus, "press-7", ""), `"identities":2,"identity":{"name":"press-7"`},
		{"status of nobody", call(g.methodStatus, "x", ""), "404 "},
		{"certificates", call(g.methodCertificates, "press-7", ""), `{"identity":"oven-2","sha256":"`},
		{"queue", call(g.methodQueue, "press-7", ""), `"identity":{"messages":0,`},
		{"queue of nobody", call(g.methodQueue, "x", ""), "404 "},
		{"level", call(g.methodLogLevel, "press-7", ""), `{"level":"info"}`},
		{"other level", call(g.methodLogLevel, "press-7", `{"level":"debug"}`), `{"level":"debug","was":"info"}`},
		{"the level after that", call(g.methodLogLevel, "press-7", "null"), `{"level":"debug"}`},
		{"no level", call(g.methodLogLevel, "press-7", `{"level":"fatal"}`), "400 "},
		{"not an object", call(g.methodLogLevel, "press-7", `[]`), "400 "},
		{"reload", call(g.methodReload, "press-7", ""), "nothing changed"},
	} {
		if !strings.Contains(tc.got, tc.want) {
			t.Errorf("%s: %.300s; want %s", tc.name, tc.got, tc.want)
		}
	}
	check(t, os.WriteFile(s.path("config.yaml"), []byte("nonsense: 1\n"), 0o600))
	if got := call(g.methodReload, "press-7", ""); !strings.Contains(got, "422 ") || !strings.Contains(got, "nonsense") {
		t.Errorf("reload of a bad file: %s", got)
	}
}

func TestTheTwinReportNamesTheCertificate(t *testing.T) {
	s := newPlant(t, hubtest.Options{}, "press-7")
	g := quietGateway(t, s)
	var r struct {
		Version     string
		Certificate struct{ ValidFrom, ValidUntil string }
		Queue       struct{ Messages *int }
		Uptime      *int
	}
	check(t, json.Unmarshal(must(json.Marshal(g.twinReport("press-7")))(t), &r))
	c := g.now.Load().byName["press-7"].store.Status().Current
	if r.Version == "" || r.Queue.Messages == nil || r.Uptime == nil || r.Certificate.ValidUntil != c.NotAfter.UTC().Format("2006-01-02T15:04:05Z") {
		t.Errorf("%+v", r)
	}
	if g.twinReport("x") != nil || g.commandState("x").Connected || g.commandState("press-7").State != "new" {
		t.Error("an identity that is not there")
	}
}

func TestCommandsFollowTheConfiguration(t *testing.T) {
	s := newPlant(t, hubtest.Options{}, "press-7")
	g := quietGateway(t, s)
	id := g.now.Load().cfg.Identities[0]
	id.Methods = map[string]config.Method{"health": {Builtin: config.BuiltinStatus}}
	c := g.newCloud(g.now.Load().cfg)
	first := must(addCommands(c, id))(t)
	if again := must(addCommands(c, id))(t); again != first {
		t.Error("a second part for the same identity")
	}
	id.Methods["health"] = config.Method{Builtin: "none"}
	if _, err := addCommands(c, id); err == nil || !strings.Contains(err.Error(), "methods.health") {
		t.Errorf("a built-in method that does not exist: %v", err)
	}
}

// ask calls the process's HTTP listener.
func (s *plant) ask(method, path, body string) (int, string) {
	s.t.Helper()
	r := must(http.NewRequestWithContext(s.t.Context(), method, "http://"+s.http+path, strings.NewReader(body)))(s.t)
	resp := must(http.DefaultClient.Do(r))(s.t)
	defer resp.Body.Close()
	return resp.StatusCode, string(must(io.ReadAll(resp.Body))(s.t))
}

// The real process brings down what the hub has, through a kill and a renewal of
// the certificate.
func TestCommandsComeDownToTheProcess(t *testing.T) {
	s := newPlant(t, hubtest.Options{}, "press-7")
	file := string(must(os.ReadFile(s.path("config.yaml")))(t))
	s.write("config.yaml", strings.Replace(file, "    certificate:", "    methods: {health: {builtin: status}, now: {exec: [echo, '1']}}\n    certificate:", 1))
	p := s.run()
	online := func() {
		t.Helper()
		eventually(t, 20*time.Second, "subscribed", func() bool { return s.hub.Connected("press-7") && len(s.hub.Subscribed("press-7")) == 4 })
	}
	online()
	check(t, s.hub.SendC2D(t.Context(), "press-7", hubtest.C2D{MessageID: "m-1", Body: []byte(`{"go":1}`)}))
	eventually(t, 10*time.Second, "acknowledged to the hub", func() bool { return s.hub.C2DStates("press-7")[0].State == hubtest.C2DCompleted })
	p.kill()
	p = s.run()
	online()
	var described struct {
		Paths map[string]map[string]struct{ Responses map[string]any }
	}
	_, openAPI := s.ask("GET", "/openapi.json", "")
	check(t, json.Unmarshal([]byte(openAPI), &described))
	template := strings.NewReplacer("/press-7/1", "/{identity}/{sequence}", "/press-7", "/{identity}", "/press-8", "/{identity}")
	for _, tc := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"GET", "/v1/c2d/press-8", "", 404, "no such identity"},
		{"GET", "/v1/c2d/press-7?wait=x", "", 400, "duration"},
		{"PATCH", "/v1/twin/press-7", `{"desired":{}}`, 400, "reported"},
		{"PATCH", "/v1/twin/press-7", `{"reported":{"a":"` + strings.Repeat("x", 40<<10) + `"}}`, 413, "allows"},
		{"GET", "/v1/c2d/press-7", "", 200, `"body":{"go":1}`},
		{"DELETE", "/v1/c2d/press-7/1", "", 204, ""},
		{"GET", "/v1/c2d/press-7?wait=0s", "", 204, ""},
		{"PATCH", "/v1/twin/press-7", `{"reported":{"a":1}}`, 202, ""},
		{"GET", "/v1/twin/press-7", "", 200, `"a":1`},
	} {
		if status, body := s.ask(tc.method, tc.path, tc.body); status != tc.status || !strings.Contains(body, tc.want) {
			t.Errorf("%s %s: %d %s", tc.method, tc.path, status, body)
		}
		path, _, _ := strings.Cut(template.Replace(tc.path), "?")
		if described.Paths[path][strings.ToLower(tc.method)].Responses[strconv.Itoa(tc.status)] == nil {
			t.Errorf("/openapi.json has no %s %s with %d", tc.method, path, tc.status)
		}
	}
	reported := func(want string) {
		t.Helper()
		eventually(t, 30*time.Second, "reported "+want, func() bool { return strings.Contains(string(s.hub.Twin("press-7").Reported), want) })
	}
	reported(`"a":1`)
	pair := s.issue("press-7", certtest.Leaf{CN: "press-7", NotAfter: time.Now().Add(99 * time.Hour)})
	reported(`"validUntil":"` + pair.Leaf.NotAfter.UTC().Format(time.RFC3339))
	for method, want := range map[string]string{"health": `200 {"clock"`, "now": "200 1", "other": `404 {"error":"no local client`} {
		status, body, err := s.hub.InvokeMethod(t.Context(), "press-7", method, nil, 0)
		if got := fmt.Sprint(status, " ", string(body)); err != nil || !strings.HasPrefix(got, want) {
			t.Errorf("method %s: %s %v", method, got, err)
		}
	}
	if r := must(s.status())(t); len(r.Unconfigured) != 0 {
		t.Errorf("unconfigured: %v", r.Unconfigured)
	}
	if code := p.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}
