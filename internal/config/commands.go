package config

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

// Method says where a direct method goes; with neither of URL, Exec and Builtin it
// goes to the local topics.
type Method struct {
	URL     string
	Exec    []string // program, absolute or to be found in PATH, and its arguments
	Builtin string
	Timeout time.Duration
}

// TwinReport is what the gateway reports on itself in an identity's twin.
type TwinReport struct {
	Key   string // name of the property; "" = no report
	Every time.Duration
}

// Methods that the gateway answers itself.
const (
	BuiltinStatus       = "status"
	BuiltinCertificates = "certificates"
	BuiltinQueue        = "queue"
	BuiltinReload       = "reload"
	BuiltinLogLevel     = "log_level"
)

// defaultMethodTimeout is below the 30 s that the hub's callers wait by default.
const defaultMethodTimeout = 25 * time.Second

func defaultTwinReport() TwinReport { return TwinReport{Key: "gatewayd", Every: time.Hour} }

// methods reads what comes down for an identity besides commands:.
func (o *object) methods(id *Identity) {
	d := o.d
	m := o.object("methods")
	for _, k := range m.keys {
		at := m.child(k.Value)
		if reason := checkMethod(k.Value); reason != "" {
			d.report(at, "%s", reason)
		}
		if id.Methods == nil {
			id.Methods = map[string]Method{}
		}
		id.Methods[k.Value] = d.method(m.take(k.Value), at)
	}
	if o.has("allow_methods") {
		id.AllowMethods = o.texts("allow_methods")
		if id.AllowMethods == nil {
			id.AllowMethods = []string{}
		}
		for i, name := range id.AllowMethods {
			if reason := checkMethod(name); reason != "" && name != "*" && name != "" {
				d.report(item(o.child("allow_methods"), i), "%s", reason)
			}
		}
		if slices.Contains(id.AllowMethods, "*") {
			id.AllowMethods = nil
		}
	}
	r := o.object("twin_report")
	r.text("key", &id.TwinReport.Key)
	if k := id.TwinReport.Key; len(k) > 128 || !printable(k) || strings.ContainsAny(k, ".$ ") {
		d.report(r.child("key"), "%s cannot be the name of a property in a twin: at most 128 characters, no . $ or space", quote(k))
	}
	r.duration("interval", &id.TwinReport.Every, time.Minute, 30*24*time.Hour)
	r.finish()
}

// checkMethod tells what is wrong with the name of a method, or "".
func checkMethod(name string) string {
	if name == "" || len(name) > 128 || !printable(name) || strings.ContainsAny(name, "/+#") {
		return fmt.Sprintf("%s cannot be the name of a method: 1 to 128 printable characters, no / + #", quote(name))
	}
	return ""
}

func (d *decoder) method(n *yaml.Node, path string) Method {
	o := d.object(n, path)
	m := Method{Timeout: defaultMethodTimeout}
	o.text("url", &m.URL)
	m.Exec = o.texts("exec")
	o.choice("builtin", &m.Builtin, BuiltinStatus, BuiltinCertificates, BuiltinQueue, BuiltinReload, BuiltinLogLevel)
	o.duration("timeout", &m.Timeout, 100*time.Millisecond, 5*time.Minute)
	o.finish()
	ways := 0
	for _, set := range []bool{m.URL != "", len(m.Exec) > 0, m.Builtin != ""} {
		if set {
			ways++
		}
	}
	if ways > 1 {
		d.report(path, "has more than one of url, exec and builtin")
	}
	if m.URL != "" {
		if u, err := url.Parse(m.URL); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
			d.report(o.child("url"), "is not http://host/path or https://host/path, without a password")
		}
	}
	if len(m.Exec) > 0 && strings.Contains(m.Exec[0], "/") {
		m.Exec[0] = d.absolute(m.Exec[0])
		d.exists(item(o.child("exec"), 0), m.Exec[0], d.report)
	}
	return m
}
