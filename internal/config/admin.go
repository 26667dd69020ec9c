package config

// admin reads the operator's section.
func (d *decoder) admin(o *object, a *Admin) {
	o.address("listen", &a.Listen)
	if a.Listen.TLS || a.Listen.WebSocket {
		d.report(o.child("listen"), "%s: the page is plain HTTP; use host:port or unix:///path", a.Listen)
	}
	o.file("token_file", &a.TokenFile, d.report)
	o.finish()
}
