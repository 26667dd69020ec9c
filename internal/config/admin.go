package config

import (
	"net/url"
	"time"
)

// admin reads the operator's section.
func (d *decoder) admin(o *object, a *Admin) {
	o.address("listen", &a.Listen)
	if a.Listen.TLS || a.Listen.WebSocket {
		d.report(o.child("listen"), "%s: the page is plain HTTP; use host:port or unix:///path", a.Listen)
	}
	o.file("token_file", &a.TokenFile, d.report)
	otlp := o.object("otlp")
	otlp.text("endpoint", &a.OTLP.Endpoint)
	if a.OTLP.Endpoint != "" {
		if u, err := url.Parse(a.OTLP.Endpoint); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
			d.report(otlp.child("endpoint"), "is not http:// or https:// with host, port and path, such as http://127.0.0.1:4318/v1/metrics")
		} else if u.User != nil {
			d.report(otlp.child("endpoint"), "has a user or password in it; write an Authorization line into headers_file")
		}
	}
	otlp.duration("interval", &a.OTLP.Interval, time.Second, time.Hour)
	otlp.duration("timeout", &a.OTLP.Timeout, 100*time.Millisecond, time.Hour)
	if a.OTLP.Timeout > a.OTLP.Interval && d.ok(otlp.child("interval")) {
		// The default gives way; what is written out does not.
		if otlp.has("timeout") {
			d.report(otlp.child("timeout"), "%s is more than interval (%s)", durationString(a.OTLP.Timeout), durationString(a.OTLP.Interval))
		}
		a.OTLP.Timeout = a.OTLP.Interval
	}
	otlp.file("ca", &a.OTLP.CA, d.report)
	otlp.file("headers_file", &a.OTLP.HeadersFile, d.report)
	attributes := otlp.object("attributes")
	for _, k := range attributes.keys {
		var v string
		attributes.text(k.Value, &v)
		if a.OTLP.Attributes == nil {
			a.OTLP.Attributes = make(map[string]string)
		}
		a.OTLP.Attributes[k.Value] = v
	}
	otlp.finish()
	o.finish()
}
