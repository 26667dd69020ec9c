package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func load(t *testing.T, name string) *Config {
	t.Helper()
	c, err := Load(name)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func abs(t *testing.T, name string) string {
	t.Helper()
	a, err := filepath.Abs(name)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestBadFilesSayExactlyWhatIsWrong(t *testing.T) {
	text, err := os.ReadFile("testdata/messages.txt")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	for _, section := range strings.Split(string(text), "\n# ")[1:] {
		name, messages, _ := strings.Cut(section, "\n")
		want[name] = strings.TrimSpace(messages)
	}
	files, _ := filepath.Glob("testdata/*.bad.yaml")
	if len(files) != len(want) {
		t.Errorf("%d bad files, %d sections in messages.txt", len(files), len(want))
	}
	dir := abs(t, "testdata") + "/"
	for _, f := range files {
		t.Run(filepath.Base(f), func(t *testing.T) {
			c, err := Load(f)
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("error is %T, %v", err, err)
			}
			if c != nil {
				t.Error("a refused file gave a configuration")
			}
			var got []string
			for _, p := range e.Problems {
				s, ok := strings.CutPrefix(p.String(), f+":")
				if !ok {
					t.Errorf("%q does not start with the file", p)
				}
				got = append(got, strings.TrimSpace(strings.ReplaceAll(s, dir, "DIR/")))
			}
			if g := strings.Join(got, "\n"); g != want[filepath.Base(f)] {
				t.Errorf("got\n%s\nwant\n%s", g, want[filepath.Base(f)])
			}
		})
	}
}

func TestGoodFilesLoad(t *testing.T) {
	files, _ := filepath.Glob("testdata/*.good.yaml")
	if len(files) == 0 {
		t.Fatal("no good files")
	}
	for _, f := range files {
		load(t, f)
	}
}

// A minimal file must give what Defaults and its neighbours say, and no zero
// value where the contract has another default.
func TestDefaultsFillWhatTheFileLeavesOut(t *testing.T) {
	c := load(t, "testdata/minimal.good.yaml")
	dir := abs(t, "testdata")
	want := Defaults()
	want.File = dir + "/minimal.good.yaml"
	want.Identities = []Identity{{
		Name: "press-7", HostName: "contoso.azure-devices.net", DeviceID: "press-7",
		Hub:          want.Hub,
		Certificate:  Certificate{Cert: dir + "/files/press-7.pem", Key: dir + "/files/press-7.key"},
		KeepLastGood: "memory",
		Commands:     Commands{C2D: true, Methods: true, Twin: true},
		TwinReport:   TwinReport{Key: "gatewayd", Every: time.Hour},
		Queue:        Limits{MaxBytes: 1 << 30, MaxAge: 168 * time.Hour, WhenFull: "refuse"},
	}}
	want.Warnings = c.Warnings
	if !reflect.DeepEqual(*c, want) {
		t.Errorf("got  %+v\nwant %+v", *c, want)
	}
	hub := Hub{SystemRoots: true, Transport: "mqtt", KeepAlive: 240 * time.Second, Window: 16, ConnectRate: 10}
	if !reflect.DeepEqual(c.Hub, hub) {
		t.Errorf("hub: %+v", c.Hub)
	}
	if c.Queue != (Journal{SegmentBytes: 16 << 20, SetAsideAfter: 5}) {
		t.Errorf("queue: %+v", c.Queue)
	}
	if c.StateDir != "/var/lib/gatewayd" || c.Admin.Listen.String() != "127.0.0.1:9180" || c.Log != (Log{Level: "info", Format: "auto"}) {
		t.Errorf("state_dir %q admin %v log %v", c.StateDir, c.Admin, c.Log)
	}
}

func TestEmptySectionsAreDefaults(t *testing.T) {
	empty, minimal := load(t, "testdata/empty-sections.good.yaml"), load(t, "testdata/minimal.good.yaml")
	empty.File, empty.Warnings = minimal.File, minimal.Warnings
	if !reflect.DeepEqual(empty, minimal) {
		t.Errorf("got  %+v\nwant %+v", empty, minimal)
	}
}

func TestEveryKeyIsHonoured(t *testing.T) {
	c := load(t, "testdata/full.good.yaml")
	dir := abs(t, "testdata")
	file := func(name string) string { return dir + "/files/" + name }
	root := Hub{
		Trust: []string{file("roots.pem")}, Transport: "mqtt",
		KeepAlive: time.Minute, Window: 1000, ConnectRate: 0.5, SendRate: 50,
	}
	own := root
	own.Window, own.Trust, own.SystemRoots = 4, nil, true
	tcp := func(a string) Address { return Address{Network: "tcp", Address: a} }
	mqtt := func(m MQTT) MQTT {
		m.MaxConnections, m.MaxPerAddress, m.ConnectTimeout, m.MaxPacket, m.MaxSubscriptions, m.InFlight = 10000, 1000, 10*time.Second, 256<<10, 100, 1024
		return m
	}
	server := ListenTLS{Cert: file("server.pem"), Key: file("server.key")}
	mutual := server
	mutual.ClientCA = file("ca.pem")
	want := &Config{
		File:     dir + "/full.good.yaml",
		StateDir: dir + "/state",
		Hub:      root,
		Desired:  Desired{Identity: "press-8.filter", Key: "gw", Allow: []string{"log.level", "routes.pack"}},
		Identities: []Identity{{
			Name: "press", HostName: "contoso.azure-devices.net", DeviceID: "007", Address: "127.0.0.1:8883",
			Hub:             own,
			Certificate:     Certificate{Cert: file("press-7.pem"), Key: file("press-7.key")},
			AllowCNMismatch: true, KeepLastGood: "memory",
			Commands: Commands{Methods: true, Twin: true},
			Methods: map[string]Method{
				"start":  {URL: "http://127.0.0.1:9000/start", Timeout: 5 * time.Second},
				"stop":   {Exec: []string{file("token"), "-f"}, Timeout: 25 * time.Second},
				"date":   {Exec: []string{"date"}, Timeout: 25 * time.Second},
				"health": {Builtin: "status", Timeout: 25 * time.Second},
				"slow":   {Timeout: 5 * time.Minute},
			},
			AllowMethods: []string{"reset"},
			TwinReport:   TwinReport{Every: 24 * time.Hour},
			Queue:        Limits{MaxBytes: 65536, WhenFull: "drop-oldest"},
		}, {
			Name: "press-8.filter", HostName: "contoso.azure-devices.net", DeviceID: "press-8", ModuleID: "filter",
			Hub:          root,
			Certificate:  Certificate{PKCS12: file("filter.p12"), PassphraseFile: file("filter.pass")},
			KeepLastGood: "memory",
			Commands:     Commands{C2D: true, Methods: true, Twin: true},
			TwinReport:   TwinReport{Key: "gatewayd", Every: time.Hour},
			Queue:        Limits{MaxBytes: 1 << 30, MaxAge: 168 * time.Hour, WhenFull: "refuse"},
		}},
		Downstream: Downstream{
			MQTT: []MQTT{
				mqtt(MQTT{Listen: tcp("127.0.0.1:1883"), Anonymous: true}),
				{
					Listen: Address{"tcp", "0.0.0.0:8883", true, false}, TLS: mutual,
					ACL: []ACLRule{
						{User: "*", Publish: []string{"sensors/%u/#"}, Subscribe: []string{"gateway/%u/#", "gateway/+/status"}},
						{User: "boss", Publish: []string{"#"}}, {Publish: []string{"open/%c"}},
					},
					MaxConnections: 5, MaxPerAddress: 2, ConnectTimeout: 3 * time.Second, MaxPacket: 1 << 20, MaxSubscriptions: 7, InFlight: 65535, Rate: 0.5,
				},
				mqtt(MQTT{Listen: Address{"tcp", ":8884", true, false}, TLS: mutual, AzureClients: map[string]AzureClient{
					"press": {KeyFile: file("token")}, "press-8.filter": {Thumbprints: []string{"00112233445566778899aabbccddeeff00112233"}}}}),
				mqtt(MQTT{Listen: Address{"tcp", ":8885", true, false}, TLS: server, AzureClients: map[string]AzureClient{"press": {KeyFile: file("token")}}}),
				mqtt(MQTT{Listen: tcp("192.0.2.1:1883"), Anonymous: true}),
				mqtt(MQTT{Listen: Address{"unix", "/run/gatewayd/mqtt.sock", false, false}, Anonymous: true}),
				mqtt(MQTT{Listen: tcp("[::1]:1884"), UsersFile: file("users"), ACL: []ACLRule{{User: "a", Subscribe: []string{"gateway/#"}}}}),
				mqtt(MQTT{Listen: Address{"tcp", "127.0.0.1:8081", false, true}, Anonymous: true}),
				mqtt(MQTT{Listen: Address{"tcp", ":8444", true, true}, TLS: server, Anonymous: true}),
			},
			HTTP: []HTTP{
				{Listen: tcp("127.0.0.1:8080"), Anonymous: true, MaxConnections: 1000, MaxBody: 256 << 10, MaxBatch: 4 << 20},
				{
					Listen: Address{"tcp", ":8443", true, false}, TLS: server, TokenFile: file("token"),
					MaxConnections: 3, MaxBody: 4 << 10, MaxBatch: 8 << 10, Rate: 20,
				},
				{Listen: tcp("0.0.0.0:8082"), Anonymous: true, MaxConnections: 1000, MaxBody: 256 << 10, MaxBatch: 4 << 20},
			},
			Local:    Local{MaxSessions: 1, SessionExpiry: time.Minute, MaxMessages: 2, MaxBytes: 2 << 10, MaxRetained: 3 << 10},
			MaxTopic: 200,
			Broker: []Broker{
				{URL: "mqtt://127.0.0.1:1884", ClientID: "gatewayd", Subscribe: []string{"factory/#"}, ReceiveMaximum: 1000, SessionExpiry: 24 * time.Hour},
				{
					URL: "mqtts://broker.example.com:8883", ClientID: "gw-1", Subscribe: []string{"$share/gateways/factory/#", "a/+"},
					Username: "gw", PasswordFile: file("token"), TLS: BrokerTLS{file("ca.pem"), file("server.pem"), file("server.key")},
					ReceiveMaximum: 10, SessionExpiry: time.Hour, LocalTopics: true,
				},
			},
			Exec: []Exec{
				{Name: "modbus", Command: []string{"python3", "-u", "modbus.py"}, Dir: dir, Env: map[string]string{}, MaxLine: 512 << 10, InFlight: 1000},
				{Name: "opc", Command: []string{file("token"), "x"}, Dir: dir + "/files", Env: map[string]string{"A": "b"}, MaxLine: 4 << 10, InFlight: 5},
			},
			Socket: []Socket{
				{Name: "sources.sock", Listen: Address{Network: "unix", Address: "/run/gatewayd/sources.sock"}, MaxConnections: 100, MaxLine: 512 << 10, InFlight: 1000},
				{Name: "s", Listen: Address{Network: "unix", Address: "/run/gatewayd/s.sock"}, MaxConnections: 3, MaxLine: 1 << 20, InFlight: 7},
			},
		},
		Routes: []Route{{
			Name: "routes[0]", Match: "sensors/+/+/#", To: "press-{2}.filter",
			Properties:      map[string]string{"sensor": "{1}", "rest": "a{3}b{c}", "n": "5"},
			ContentEncoding: "utf-8", EncodingAssumed: true, Set: map[string]string{}, OnError: "set-aside", Pack: Pack{MaxBytes: 4096, MaxDelay: 5 * time.Second, Format: PackNDJSON}, MaxAge: time.Hour, Priority: 9,
		}, {
			Name: "routes[1]", Match: "out", To: "press-8.filter", Properties: map[string]string{},
			ContentType: "application/json", ContentEncoding: "utf-8", TypeAssumed: true, EncodingAssumed: true, Output: "alarms", Pack: Pack{MaxDelay: time.Second, Format: PackJSON},
			Filter: ".level > 2", Transform: "{level, topic: $topic}", Set: map[string]string{"level": ".level"}, OnError: "pass", Compress: "gzip",
			OnlyChanges: OnlyChanges{Deadbands: map[string]float64{"level": 0.5, "m.s": 1}, MinInterval: time.Second, MaxInterval: 10 * time.Minute},
		}, {
			Name: "routes[2]", Match: "in", To: "press", Properties: map[string]string{}, ContentType: "application/json", ContentEncoding: "utf-8",
			TypeAssumed: true, EncodingAssumed: true,
			Set: map[string]string{}, OnError: "set-aside", Pack: Pack{MaxDelay: time.Second, Format: PackJSON},
			OnlyChanges: OnlyChanges{Deadband: 2},
		}},
		Queue: Journal{SyncInterval: 20 * time.Millisecond, MaxBytes: 2 << 30, SegmentBytes: 1 << 20, SetAsideAfter: 9},
		Admin: Admin{TokenFile: file("token"), OTLP: OTLP{Endpoint: "https://otel.example.com/v1/metrics", Interval: 5 * time.Second, Timeout: 2 * time.Second,
			CA: file("ca.pem"), HeadersFile: file("token"), Attributes: map[string]string{"site": "north"}}},
		Log: Log{Level: "debug", Format: "json"},
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
}

func TestAliasesStandForTheirValue(t *testing.T) {
	c := load(t, "testdata/aliases.good.yaml")
	if a, b := c.Identities[0].Queue.MaxBytes, c.Identities[1].Queue.MaxBytes; a != 1<<20 || b != a {
		t.Errorf("max_bytes %d and %d", a, b)
	}
}

// A gateway starts before its first certificate is there.
func TestRoutesWhoseTurnNeverComesAreNamed(t *testing.T) {
	for _, tc := range []struct {
		first, second string
		covered       bool
	}{
		{"#", "sensors/+/telemetry", true},
		{"sensors/#", "sensors", true},
		{"sensors/+/telemetry", "sensors/a/telemetry", true},
		{"sensors/+/telemetry", "sensors/+/telemetry", true},
		{"sensors/+", "sensors/#", false},
		{"sensors/a/telemetry", "sensors/+/telemetry", false},
		{"+/+", "a", false},
		{"+/#", "$SYS/a", false},
		{"$SYS/#", "$SYS/a", true},
		{"a/b", "a/b/c", false},
	} {
		path := filepath.Join(t.TempDir(), "c.yaml")
		text := fmt.Sprintf("identities:\n  - {host_name: h.example.com, device_id: d, certificate: {cert: none, key: none}}\nroutes:\n  - {match: %q, to: d}\n  - {match: %q, to: d}\n", tc.first, tc.second)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := Load(path)
		if err != nil {
			t.Fatal(err)
		}
		got := slices.ContainsFunc(c.Warnings, func(p Problem) bool { return p.Path == "routes[1].match" && p.Line == 5 })
		if got != tc.covered {
			t.Errorf("%s before %s: %v, want %v", tc.first, tc.second, got, tc.covered)
		}
	}
}

func TestMissingCertificatesAreWarnings(t *testing.T) {
	c := load(t, "testdata/first-boot.good.yaml")
	var got []string
	for _, w := range c.Warnings {
		got = append(got, fmt.Sprintf("%d %s", w.Line, w.Path))
	}
	want := []string{"1 downstream", "1 routes", "2 identities[0].connection_string", "3 identities[0].certificate.cert", "3 identities[0].certificate.key"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// Default deny without a rule looks like a broken gateway, so it is said.
func TestUsersWithoutRulesAreAWarning(t *testing.T) {
	c, err := Parse("testdata/x.yaml", []byte(`
identities:
  - connection_string: HostName=contoso.azure-devices.net;DeviceId=press-7;x509=true
    certificate: {cert: files/press-7.pem, key: files/press-7.key}
routes: [{match: a, to: press-7}]
downstream:
  mqtt:
    - {users_file: files/users}
    - {listen: "tls://:8883", tls: {cert: files/server.pem, key: files/server.key, client_ca: files/ca.pem}}
    - {listen: "127.0.0.1:1884"}
`))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, w := range c.Warnings {
		got = append(got, fmt.Sprintf("%d %s", w.Line, w.Path))
	}
	if want := []string{"8 downstream.mqtt[0]", "9 downstream.mqtt[1]"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// Azure SDK clients need neither rules nor routes.
func TestAzureClientsAloneAreNoWarning(t *testing.T) {
	c, err := Parse("testdata/x.yaml", []byte(`
identities:
  - connection_string: HostName=contoso.azure-devices.net;DeviceId=press-7;x509=true
    certificate: {cert: files/press-7.pem, key: files/press-7.key}
downstream:
  mqtt:
    - {listen: "tls://:8883", tls: {cert: files/server.pem, key: files/server.key, client_ca: files/ca.pem}, azure_clients: {press-7: {}}}
    - {listen: "192.0.2.1:1884", azure_clients: {press-7: {key_file: files/token}}}
`))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Warnings) != 1 || c.Warnings[0].Path != "downstream.mqtt[1].azure_clients" {
		t.Errorf("warnings %v", c.Warnings)
	}
}

func TestUnreadableFileIsOneProblem(t *testing.T) {
	dir := t.TempDir()
	big := filepath.Join(dir, "big.yaml")
	if err := os.WriteFile(big, []byte(strings.Repeat("# filler\n", maxFile/9+1)), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		filepath.Join(dir, "none.yaml"): "no such file or directory",
		dir:                             "is a folder where a file is needed",
		big:                             "is larger than 1MiB",
	} {
		if _, err := Load(name); err == nil || err.Error() != name+": "+want {
			t.Errorf("%s: got %v", want, err)
		}
	}
}

// The file is small; what it stands for is not.
func TestAliasBombEndsSoon(t *testing.T) {
	var b strings.Builder
	b.WriteString("hub:\n  trust: &t [")
	b.WriteString(strings.Repeat("x,", 20_000))
	b.WriteString("x]\nidentities:\n  - &i {host_name: h.example.com, trust: *t}\n")
	b.WriteString(strings.Repeat("  - *i\n", 20_000))
	began := time.Now()
	_, err := Parse("bomb.yaml", []byte(b.String()))
	if err == nil || !strings.Contains(err.Error(), "more problems") {
		t.Errorf("got %.300v", err)
	}
	if d := time.Since(began); d > 20*time.Second {
		t.Errorf("took %v", d)
	}
	_, err = Parse("loop.yaml", []byte("identities: &a [*a]\n"))
	if err == nil {
		t.Error("a value inside itself was accepted")
	}
}

func TestManyProblemsAreCut(t *testing.T) {
	text := "identities:\n" + strings.Repeat("  - 1\n", 3000)
	_, err := Parse("x.yaml", []byte(text))
	var e *Error
	if !errors.As(err, &e) || len(e.Problems) != maxProblems {
		t.Fatalf("got %T", err)
	}
	if n := strings.Count(err.Error(), "\n"); n != maxShown {
		t.Errorf("%d lines", n+1)
	}
}

// No form of a configuration, of its warnings or of an error shows a secret.
func TestSecretsLeaveNoTrace(t *testing.T) {
	const key = "c2VjcmV0LWtleS1vZi10aGUtZGV2aWNl"
	c := load(t, "testdata/first-boot.good.yaml")
	p, err := parseProxy("http://user:hunter2@proxy.example.com:3128")
	if err != nil {
		t.Fatal(err)
	}
	c.Hub.Proxy = p
	js, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	texts := []string{string(js), fmt.Sprint(c), fmt.Sprintf("%+v", *c), fmt.Sprintf("%#v", *c), fmt.Sprintf("%v", c.Hub.Proxy), fmt.Sprintf("%#v", c.Hub.Proxy)}
	files, _ := filepath.Glob("testdata/*.bad.yaml")
	for _, f := range files {
		_, err := Load(f)
		texts = append(texts, err.Error(), fmt.Sprintf("%#v", err))
	}
	for _, s := range texts {
		if strings.Contains(s, key) || strings.Contains(s, "hunt") {
			t.Errorf("a secret shows: %s", s)
		}
	}
	if pw, _ := p.URL().User.Password(); pw != "hunter2" {
		t.Error("the proxy lost its password")
	}
}

func TestDefaultsMayBeWrittenOut(t *testing.T) {
	_, err := Parse("testdata/x.yaml", []byte(`
hub: {transport: mqtt, proxy: "", keepalive: 4m}
identities:
  - connection_string: HostName=contoso.azure-devices.net;DeviceId=press-7;x509=true
    certificate: {cert: files/press-7.pem, key: files/press-7.key}
    transport: mqtt
    keep_last_good: memory
downstream: {broker: []}
routes:
  - {match: a, to: press-7, pack: {max_bytes: 0KiB, max_delay: 5s}}
`))
	if err != nil {
		t.Error(err)
	}
}

func FuzzParse(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.yaml")
	for _, name := range append(files, "../../config.example.yaml") {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Parse("testdata/fuzz.yaml", b)
		var e *Error
		switch {
		case err == nil:
			complete(t, c)
		case !errors.As(err, &e) || len(e.Problems) == 0 || c != nil:
			t.Errorf("not an *Error: %T", err)
		}
	})
}

// complete checks what consumers take for granted.
func complete(t *testing.T, c *Config) {
	t.Helper()
	if len(c.Identities) == 0 || !filepath.IsAbs(c.StateDir) || c.Queue.SegmentBytes <= 0 || c.Log.Level == "" {
		t.Errorf("incomplete: %+v", c)
	}
	names := map[string]bool{}
	for _, id := range c.Identities {
		if names[id.Name] || checkName(id.Name) != "" || id.HostName == "" || checkID(id.DeviceID) != "" || id.DeviceID == "" ||
			id.Hub.Window < 1 || id.Hub.KeepAlive < time.Second || id.Hub.ConnectRate <= 0 || id.Queue.MaxBytes <= 0 || id.Queue.WhenFull == "" ||
			(id.Certificate.PKCS12 == "") == (id.Certificate.Cert == "") {
			t.Errorf("incomplete: %+v", id)
		}
		names[id.Name] = true
	}
	for _, r := range c.Routes {
		if !validFilter(r.Match) || !names[r.To] && len(placeholders(r.To)) == 0 {
			t.Errorf("incomplete: %+v", r)
		}
	}
	for _, m := range c.Downstream.MQTT {
		if !m.Listen.Enabled() || m.MaxPacket < 1 || m.MaxConnections < 1 || m.Listen.TLS != m.TLS.Enabled() && m.Listen.Network == "tcp" {
			t.Errorf("incomplete: %+v", m)
		}
	}
}
