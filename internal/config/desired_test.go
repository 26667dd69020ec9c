package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const desiredFile = `
hub:
  send_rate: 5
  desired_config: {identity: press-7}
identities:
  - connection_string: HostName=contoso.azure-devices.net;DeviceId=press-7;x509=true
    certificate: {cert: press-7.pem, key: press-7.key}
routes:
  - &r {match: a/+, to: press-7, pack: {max_bytes: 8KiB}}
  - {match: b, to: press-7}
  - *r
`

func writeDesired(t testing.TB, text string) *Config {
	t.Helper()
	name := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(name)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestDesiredPropertiesGoOverTheFile(t *testing.T) {
	c := writeDesired(t, desiredFile)
	got, err := c.WithDesired([]byte(`{"log":{"level":"debug"},"hub":{"send_rate":50,"connect_rate":2.5},
		"routes":{"a/+":{"pack":{"max_delay":"5s"},"only_changes":{"deadband":{"t":0.5},"max_interval":"1m"}}}}`))
	if err != nil {
		t.Fatal(err)
	}
	if got.Log.Level != "debug" || got.Hub.SendRate != 50 || got.Hub.ConnectRate != 2.5 {
		t.Errorf("%+v %+v", got.Log, got.Hub)
	}
	for _, i := range []int{0, 2} { // both have the match
		r := got.Routes[i]
		if r.Pack != (Pack{8 << 10, 5 * time.Second, PackJSON}) || r.OnlyChanges.Deadbands["t"] != 0.5 || r.OnlyChanges.MaxInterval != time.Minute {
			t.Errorf("route %d: %+v", i, r)
		}
	}
	if r := got.Routes[1]; r.Pack.MaxBytes != 0 || r.OnlyChanges.MaxInterval != 0 {
		t.Errorf("another route changed: %+v", r)
	}
	if again, err := Load(c.File); err != nil || again.Log.Level != "info" {
		t.Errorf("the file itself changed: %v %+v", err, again)
	}
}

func TestDesiredPropertiesAreCheckedLikeTheFile(t *testing.T) {
	c := writeDesired(t, strings.Replace(desiredFile, "identity: press-7}", "identity: press-7, allow: [log.level, hub.send_rate, routes.pack]}", 1))
	for document, want := range map[string]string{
		`{"log":{"level":"loud"}}`:                          `log.level: "loud" is none of debug, info, warn, error`,
		`{"hub":{"send_rate":-1}}`:                          `hub.send_rate: -1 is not a number per second from 0 to 1000000`,
		`{"hub":{"send_rate":{"x":1}}}`:                     `hub.send_rate: is a mapping`,
		`{"hub":{"connect_rate":1}}`:                        `hub.connect_rate: may not come from desired properties; hub.desired_config.allow has log.level, hub.send_rate, routes.pack`,
		`{"hub":{"desired_config":{"identity":""}}}`:        `hub.desired_config: may not come from desired properties`,
		`{"identities":{}}`:                                 `identities: may not come from desired properties`,
		`{"routes":{"a/+":{"to":"x"}}}`:                     `routes[0].to: may not come from desired properties`,
		`{"routes":{"a/+":{"pack":{"max_bytes":1,"x":2}}}}`: `routes[0].pack.max_bytes: 1 is neither 0 nor from 256 to 256KiB`,
		`{"routes":{"z":{"pack":{}}}}`:                      `routes."z": no route has this match`,
		`{"routes":{"a/+":{"pack":"4KiB"}}}`:                `routes[0].pack: is text where a mapping (key: value) is needed`,
		`[]`:                                                `gatewayd: is not an object`,
		`{"log":` + strings.Repeat(" ", maxDesired) + `{}}`: `gatewayd: has 32778 bytes, at most 32768 are possible`,
	} {
		_, err := c.WithDesired([]byte(document))
		if err == nil || !strings.Contains(err.Error(), "desired properties of press-7: "+want) {
			t.Errorf("%.60s: got %v, want %s", document, err, want)
		}
	}
}

func FuzzDesired(f *testing.F) {
	c := writeDesired(f, desiredFile)
	f.Add([]byte(`{"log":{"level":"debug"},"routes":{"a/+":{"pack":{"max_delay":"5s"}}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := c.WithDesired(b)
		if err == nil && (got.StateDir != c.StateDir || len(got.Identities) != 1 || len(got.Routes) != 3 || got.Hub.Window != c.Hub.Window) {
			t.Errorf("more than is allowed changed: %+v", got)
		}
	})
}
