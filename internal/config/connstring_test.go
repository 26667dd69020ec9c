package config

import (
	"strings"
	"testing"
)

func TestConnectionStrings(t *testing.T) {
	const base = "HostName=h.example.com;DeviceId=d;x509=true"
	full := ConnectionString{HostName: "h.example.com", DeviceID: "d"}
	with := func(change func(*ConnectionString)) ConnectionString {
		c := full
		change(&c)
		return c
	}
	for _, tt := range []struct {
		name, in string
		want     ConnectionString
		err      string
	}{
		{"device", base, full, ""},
		{"any order", "x509=true;DeviceId=d;HostName=h.example.com", full, ""},
		{"module", base + ";ModuleId=m", with(func(c *ConnectionString) { c.ModuleID = "m" }), ""},
		{"gateway", base + ";GatewayHostName=gw", with(func(c *ConnectionString) { c.GatewayHostName = "gw" }), ""},
		{"first = only", "HostName=h.example.com;DeviceId=a=b=;x509=true", with(func(c *ConnectionString) { c.DeviceID = "a=b=" }), ""},
		{"key beside x509", base + ";SharedAccessKey=AAAA==", with(func(c *ConnectionString) { c.KeyIgnored = true }), ""},
		{"key alone", "HostName=h;DeviceId=d;SharedAccessKey=AAAA==", ConnectionString{}, "x509=true is missing: gatewayd authenticates with certificates only"},
		{"empty", "", ConnectionString{}, "part 1 is empty (a \";\" too many)\nHostName is missing\nDeviceId is missing\nx509=true is missing: gatewayd authenticates with certificates only"},
		{"trailing", base + ";", ConnectionString{}, "part 4 is empty (a \";\" too many)"},
		{"twice", base + ";DeviceId=d", ConnectionString{}, "DeviceId is there twice"},
		{"key twice", base + ";SharedAccessKey=AAAA;SharedAccessKey=AAAA", ConnectionString{}, "SharedAccessKey is there twice"},
		{"empty value", "HostName=;DeviceId=d;x509=true", ConnectionString{}, "HostName is empty"},
		{"empty key value", base + ";SharedAccessKey=", ConnectionString{}, "SharedAccessKey is empty"},
		{"no value", "HostName=h;DeviceId=d;x509", ConnectionString{}, "x509 has no \"=\""},
		{"false", "HostName=h;DeviceId=d;x509=false", ConnectionString{}, "x509 can only be true"},
		{"case", "hostname=h;DeviceId=d;x509=true", ConnectionString{}, "hostname is an unknown key; did you mean HostName?\nHostName is missing"},
		{"signature", base + ";SharedAccessSignature=AAAA", ConnectionString{}, "SharedAccessSignature cannot be used: gatewayd authenticates with certificates only"},
		{"old spelling", "HostName=h;DeviceId=d;X509Cert=true", ConnectionString{}, "X509Cert is the old spelling; write x509=true\nx509=true is missing: gatewayd authenticates with certificates only"},
		{"unknown", base + ";Zone=north", ConnectionString{}, "Zone is an unknown key"},
		{"no value of an unknown key", base + ";Zone", ConnectionString{}, "part 4 has no \"=\""},
		{"long piece of a secret", base + ";c2VjcmV0LWtleXNlY3JldA=a", ConnectionString{}, "part 4 has an unknown key"},
		{"piece of a secret", base + ";c2VjcmV0LWtleQ==", ConnectionString{}, "part 4 has an unknown key"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseConnectionString(tt.in)
			text := ""
			if err != nil {
				text = err.Error()
			}
			if got != tt.want || text != tt.err {
				t.Errorf("got  %+v, %q\nwant %+v, %q", got, text, tt.want, tt.err)
			}
		})
	}
}

func FuzzConnectionString(f *testing.F) {
	f.Add("HostName=h.example.com;DeviceId=d;x509=true", "")
	f.Add("HostName=h;DeviceId=d;", "x509=true;ModuleId=m")
	f.Add("x509=true;;=;HostName", "GatewayHostName=")
	f.Add("SharedAccessKey=", "SharedAccessKeyName=")
	const secret = "4Zr1wq9uX7pKc2Tn8sLd0Vy3Gh6Jb5Mf"
	f.Fuzz(func(t *testing.T, before, after string) {
		for _, s := range []string{before + after, before + ";SharedAccessKey=" + secret + ";" + after, before + secret + after} {
			cs, err := ParseConnectionString(s)
			if err != nil && strings.Contains(err.Error(), secret) {
				t.Errorf("the secret shows: %v", err)
			}
			if err == nil && (cs.HostName == "" || cs.DeviceID == "") {
				t.Errorf("incomplete: %+v", cs)
			}
			if err != nil && cs != (ConnectionString{}) {
				t.Errorf("an error with a value: %+v", cs)
			}
		}
	})
}

func TestIDs(t *testing.T) {
	for id, ok := range map[string]bool{
		"press-7": true, "a.b:c=d@e$f'g": true, "A%20_*?!(),": true, strings.Repeat("x", 128): true,
		"a#b": false, "a+b": false, "a/b": false, "a b": false, "ä": false, "a;b": false, strings.Repeat("x", 129): false,
	} {
		if got := checkID(id); (got == "") != ok {
			t.Errorf("%.20q: %q", id, got)
		}
	}
}
