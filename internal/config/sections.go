package config

import (
	"math"
	"time"

	"gopkg.in/yaml.v3"
)

// maxKeepAlive: the hub waits 1.5 times the client's value, but at most 1767 s.
const maxKeepAlive = 1177 * time.Second

// maxWindow leaves the hub session packet ids for its own requests.
const maxWindow = 30_000

const longest = 10 * 365 * 24 * time.Hour

// config reads the whole tree. hub: comes first, because it holds the defaults
// of what stands in identities:.
func (d *decoder) config(root *yaml.Node, c *Config) {
	o := d.object(root, "")
	if o.broken {
		return
	}
	o.text("state_dir", &c.StateDir)
	if c.StateDir == "" {
		d.report("state_dir", "is empty")
	}
	c.StateDir = d.absolute(c.StateDir)

	hub := o.object("hub")
	hub.hub(&c.Hub)
	hub.rates(&c.Hub)
	hub.desired(&c.Desired)
	hub.finish()
	o.list("identities", func(n *yaml.Node, path string) {
		c.Identities = append(c.Identities, d.identity(n, path, c.Hub))
	})
	d.downstream(o.object("downstream"), &c.Downstream)
	o.list("routes", func(n *yaml.Node, path string) {
		c.Routes = append(c.Routes, d.route(n, path))
	})

	q := o.object("queue")
	q.duration("sync_interval", &c.Queue.SyncInterval, 0, time.Minute)
	q.sizeOrOff("max_bytes", &c.Queue.MaxBytes, 128<<10, math.MaxInt64)
	q.size("segment_bytes", &c.Queue.SegmentBytes, 64<<10, 1<<30)
	q.whole("set_aside_after", &c.Queue.SetAsideAfter, 1, 1000)
	q.finish()

	d.admin(o.object("admin"), &c.Admin)

	log := o.object("log")
	log.choice("level", &c.Log.Level, "debug", "info", "warn", "error")
	log.choice("format", &c.Log.Format, "auto", "console", "json")
	log.finish()
	o.finish()
	d.cross(c)
}

// hub reads the keys of hub:, there or inside an identity.
func (o *object) hub(h *Hub) {
	d := o.d
	if o.has("trust") {
		h.Trust = o.texts("trust")
		for i, f := range h.Trust {
			h.Trust[i] = d.absolute(f)
			d.exists(item(o.child("trust"), i), h.Trust[i], d.report)
		}
	}
	o.boolean("system_roots", &h.SystemRoots)
	o.choice("transport", &h.Transport, TransportMQTT, TransportMQTTWS, TransportAuto)
	if s, ok := d.text(o.take("proxy"), o.child("proxy")); ok {
		if p, err := parseProxy(s); err != nil {
			d.report(o.child("proxy"), "%v", err)
		} else {
			h.Proxy = p
		}
	}
	o.keepAlive(h)
	o.whole("window", &h.Window, 1, maxWindow)
}

// rates are bounds over all identities together, so they stand under hub: only.
func (o *object) rates(h *Hub) {
	o.rate("connect_rate", &h.ConnectRate, "0 would never connect")
	o.rate("send_rate", &h.SendRate, "")
}

// noRates says where the rates stand instead of calling them unknown.
func (o *object) noRates() {
	for _, key := range []string{"connect_rate", "send_rate"} {
		if o.take(key) != nil {
			o.d.report(o.child(key), "is a bound over all identities together; write it under hub:")
		}
	}
}

func (o *object) keepAlive(h *Hub) {
	n := o.take("keepalive")
	if n != nil && n.Kind == yaml.ScalarNode && n.Value == "auto" {
		h.KeepAliveAuto = true
		return
	}
	o.duration("keepalive", &h.KeepAlive, time.Second, maxKeepAlive)
	if n != nil {
		h.KeepAliveAuto = false
	}
	if h.KeepAlive%time.Second != 0 {
		o.d.report(o.child("keepalive"), "%s is not whole seconds, as MQTT needs", h.KeepAlive)
	}
}

func (d *decoder) identity(n *yaml.Node, path string, hub Hub) Identity {
	o := d.object(n, path)
	id := defaultIdentity(hub)
	o.text("name", &id.Name)
	o.names(&id)
	o.dial("address", &id.Address)
	o.dial("websocket_address", &id.WebSocketAddress)
	o.hub(&id.Hub)
	if id.WebSocketAddress != "" && id.Hub.Transport == TransportMQTT {
		d.report(o.child("websocket_address"), "is of no use with transport: mqtt")
	}
	o.noRates()

	cert := o.object("certificate")
	cert.file("cert", &id.Certificate.Cert, d.warn)
	cert.file("key", &id.Certificate.Key, d.warn)
	cert.file("pkcs12", &id.Certificate.PKCS12, d.warn)
	cert.file("passphrase_file", &id.Certificate.PassphraseFile, d.warn)
	cert.finish()
	if !o.broken && !cert.broken {
		d.onePair(cert.path, id.Certificate)
	}

	o.boolean("allow_cn_mismatch", &id.AllowCNMismatch)
	o.choice("keep_last_good", &id.KeepLastGood, KeepInMemory, KeepOnDisk)
	c := o.object("commands")
	c.boolean("c2d", &id.Commands.C2D)
	c.boolean("methods", &id.Commands.Methods)
	c.boolean("twin", &id.Commands.Twin)
	c.finish()
	o.methods(&id)
	q := o.object("queue")
	q.size("max_bytes", &id.Queue.MaxBytes, 1<<10, math.MaxInt64)
	q.duration("max_age", &id.Queue.MaxAge, 0, longest)
	q.choice("when_full", &id.Queue.WhenFull, WhenFullRefuse, WhenFullDropOldest)
	q.finish()
	o.finish()
	return id
}

// dial reads where to connect to.
func (o *object) dial(key string, into *string) {
	o.text(key, into)
	if *into == "" {
		return
	}
	if err := hostPort(*into, 1); err != nil {
		o.d.report(o.child(key), "%s is not host:port: %v", quote(*into), err)
	}
}

// names reads who the identity is: a connection string or its parts.
func (o *object) names(id *Identity) {
	d := o.d
	var whole string
	o.text("connection_string", &whole)
	o.text("host_name", &id.HostName)
	o.text("device_id", &id.DeviceID)
	o.text("module_id", &id.ModuleID)
	host, device, module := "host_name", "device_id", "module_id"
	switch {
	case o.broken:
		return
	case o.has("connection_string"):
		host, device, module = "connection_string", "connection_string", "connection_string"
		if id.HostName != "" || id.DeviceID != "" || id.ModuleID != "" {
			d.report(o.child(host), "stands beside host_name, device_id or module_id; write one or the other")
		}
		cs, err := ParseConnectionString(whole)
		if err != nil {
			for _, e := range err.(interface{ Unwrap() []error }).Unwrap() {
				d.report(o.child(host), "%v", e)
			}
			return
		}
		id.HostName, id.DeviceID, id.ModuleID, id.GatewayHostName = cs.HostName, cs.DeviceID, cs.ModuleID, cs.GatewayHostName
		if cs.KeyIgnored {
			d.warn(o.child(host), "SharedAccessKey is ignored beside x509=true; take it out of the file")
		}
		if m := checkHost(id.GatewayHostName); id.GatewayHostName != "" && m != "" {
			d.report(o.child(host), "GatewayHostName: %s", m)
		}
	case id.HostName == "" || id.DeviceID == "":
		d.report(o.child("connection_string"), "is missing (or host_name and device_id)")
		return
	}
	for _, part := range []struct{ key, in, reason string }{
		{host, "HostName: ", checkHost(id.HostName)}, {device, "DeviceId: ", checkID(id.DeviceID)}, {module, "ModuleId: ", checkID(id.ModuleID)},
	} {
		if part.reason != "" && whole != "" {
			part.reason = part.in + part.reason
		}
		o.wrong(part.key, part.reason)
	}
	o.name(id)
}

// name checks the name, or makes the default one.
func (o *object) name(id *Identity) {
	if o.has("name") {
		if !o.d.ok(o.child("name")) {
			return
		}
		o.wrong("name", checkName(id.Name))
		return
	}
	id.Name = id.DeviceID
	if id.ModuleID != "" {
		id.Name += "." + id.ModuleID
	}
}

func (o *object) wrong(key, reason string) {
	if reason != "" {
		o.d.report(o.child(key), "%s", reason)
	}
}

// onePair wants exactly one way to a credential.
func (d *decoder) onePair(path string, c Certificate) {
	switch {
	case c.PKCS12 != "" && (c.Cert != "" || c.Key != ""):
		d.report(path, "has pkcs12 beside cert or key; write one or the other")
	case c.PKCS12 != "":
	case c.Cert == "" && c.Key == "":
		d.report(path, "is missing: cert and key, or pkcs12")
	case c.Cert == "":
		d.report(path+".cert", "is missing beside key")
	case c.Key == "":
		d.report(path+".key", "is missing beside cert (name the same file if it holds both)")
	}
}

// texts is a list of texts, none empty. nil when there is none.
func (o *object) texts(key string) []string {
	var all []string
	o.list(key, func(n *yaml.Node, path string) {
		s, ok := o.d.text(o.d.resolve(n, path), path)
		if ok && s == "" {
			o.d.report(path, "is empty")
		}
		all = append(all, s)
	})
	return all
}

// address leaves no listener where the text is empty or wrong.
func (o *object) address(key string, into *Address) {
	if !o.has(key) {
		o.known = append(o.known, key)
		return
	}
	*into = Address{}
	s, ok := o.d.text(o.take(key), o.child(key))
	if !ok || s == "" {
		return
	}
	a, err := ParseAddress(s)
	if err != nil {
		o.d.report(o.child(key), "%v", err)
		return
	}
	*into = a
}
