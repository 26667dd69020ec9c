package config

import (
	"os"
	"reflect"
	"regexp"
	"testing"
)

const example = "../../config.example.yaml"

// What the example shows is the default, so leaving everything optional out
// must give the same configuration.
func TestExampleShowsTheDefaults(t *testing.T) {
	got := load(t, example)
	want, err := Parse(example, []byte(`
identities:
  - connection_string: HostName=contoso.azure-devices.net;DeviceId=press-7;x509=true
    certificate: {cert: certs/press-7.pem, key: certs/press-7.key}
  - host_name: contoso.azure-devices.net
    device_id: press-7
    module_id: filter
    certificate: {pkcs12: certs/filter.p12, passphrase_file: certs/filter.pass}
downstream:
  mqtt: [{}]
  http: [{}]
routes:
  - {match: sensors/+/telemetry, to: press-7, properties: {sensor: "{1}"}}
`))
	if err != nil {
		t.Fatal(err)
	}
	got.Warnings, want.Warnings = nil, nil
	got.Hub.Trust, want.Hub.Trust = nil, nil
	// Written out, the labels are no assumption any more.
	got.Routes[0].TypeAssumed, got.Routes[0].EncodingAssumed = true, true
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the example is\n%+v\nthe defaults are\n%+v", got, want)
	}
}

// Each key that the decoder asks for stands in the example; the other way
// round, a key that it does not ask for would not load.
func TestExampleShowsEveryKey(t *testing.T) {
	text, err := os.ReadFile(example)
	if err != nil {
		t.Fatal(err)
	}
	asked := map[string]bool{}
	call := regexp.MustCompile(`\.(?:text|texts|choice|file|boolean|whole|number|rate|size|sizeOrOff|bounded|filters|duration|address|dial|object|list|take)\("([a-z0-9_]+)"`)
	for _, name := range []string{"sections.go", "admin.go", "local.go", "sources.go", "programs.go", "commands.go", "azure.go", "desired.go"} {
		src, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range call.FindAllSubmatch(src, -1) {
			asked[string(m[1])] = true
		}
	}
	if len(asked) < 50 {
		t.Errorf("only %d keys found in the decoder", len(asked))
	}
	for key := range asked {
		if !regexp.MustCompile(`\b` + key + `\b`).Match(text) {
			t.Errorf("%s is not in the example", key)
		}
	}
}
