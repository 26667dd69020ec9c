package config

import (
	"strings"
	"testing"
)

func TestAddresses(t *testing.T) {
	for _, tt := range []struct {
		in    string
		want  Address
		local bool
	}{
		{"127.0.0.1:1883", Address{"tcp", "127.0.0.1:1883", false, false}, true},
		{"localhost:0", Address{"tcp", "localhost:0", false, false}, true},
		{"[::1]:1883", Address{"tcp", "[::1]:1883", false, false}, true},
		{"[::ffff:127.0.0.1]:1883", Address{"tcp", "[::ffff:127.0.0.1]:1883", false, false}, true},
		{":1883", Address{"tcp", ":1883", false, false}, false},
		{"0.0.0.0:1883", Address{"tcp", "0.0.0.0:1883", false, false}, false},
		{"[fe80::1%eth0]:1883", Address{"tcp", "[fe80::1%eth0]:1883", false, false}, false},
		{"gw.example.com:1883", Address{"tcp", "gw.example.com:1883", false, false}, false},
		{"tls://192.0.2.1:8883", Address{"tcp", "192.0.2.1:8883", true, false}, false},
		{"ws://[::1]:80", Address{"tcp", "[::1]:80", false, true}, true},
		{"wss://:443", Address{"tcp", ":443", true, true}, false},
		{"unix:///run/x.sock", Address{"unix", "/run/x.sock", false, false}, true},
	} {
		got, err := ParseAddress(tt.in)
		if err != nil || got != tt.want || got.Local() != tt.local {
			t.Errorf("%s: %+v, local %v, %v", tt.in, got, got.Local(), err)
		}
		if got.String() != tt.in {
			t.Errorf("%s came back as %s", tt.in, got)
		}
	}
	for _, in := range []string{"", "1883", "host", "host:", "host:mqtt", "host:-1", "host:65536", "a b:1", "http://h:1", "tcp://h:1",
		"unix://x", "unix:///", "unix:///a\x00", "unix:///" + strings.Repeat("x", 120), "::1:1883", "tls://", "wss://", "ws://h", "user@host:1"} {
		if got, err := ParseAddress(in); err == nil {
			t.Errorf("%q was accepted as %+v", in, got)
		}
	}
}

func TestProxies(t *testing.T) {
	for in, want := range map[string]string{
		"":                            "",
		"env":                         "env",
		"http://p.example.com:3128":   "http://p.example.com:3128",
		"https://u@p.example.com:443": "https://u@p.example.com:443",
		"socks5://u:secret@[::1]:80/": "socks5://u:xxxxx@[::1]:80/",
	} {
		p, err := parseProxy(in)
		if err != nil || p.String() != want {
			t.Errorf("%q: %q, %v", in, p, err)
		}
	}
	for _, in := range []string{"p.example.com:3128", "http://p.example.com", "ftp://p:1", "http://u:secret%@p:1", "http://p:1/path", "http://p:1?secret=x", "socks4://p:1"} {
		if _, err := parseProxy(in); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v", in, err)
		}
	}
}
