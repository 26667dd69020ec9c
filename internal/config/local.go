package config

import (
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

func item(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

func (d *decoder) downstream(o *object, down *Downstream) {
	o.list("mqtt", func(n *yaml.Node, path string) { down.MQTT = append(down.MQTT, d.mqtt(n, path)) })
	o.list("http", func(n *yaml.Node, path string) { down.HTTP = append(down.HTTP, d.http(n, path)) })
	o.list("broker", func(n *yaml.Node, path string) { down.Broker = append(down.Broker, d.broker(n, path)) })
	o.list("exec", func(n *yaml.Node, path string) { down.Exec = append(down.Exec, d.exec(n, path)) })
	o.list("socket", func(n *yaml.Node, path string) { down.Socket = append(down.Socket, d.socket(n, path)) })
	l := o.object("local")
	l.whole("max_sessions", &down.Local.MaxSessions, 1, 1_000_000)
	l.duration("session_expiry", &down.Local.SessionExpiry, time.Second, longest)
	l.whole("max_messages", &down.Local.MaxMessages, 1, 1_000_000)
	l.bounded("max_bytes", &down.Local.MaxBytes, 1<<10, 256<<20)
	l.bounded("max_retained", &down.Local.MaxRetained, 1<<10, 1<<30)
	l.finish()
	if down.Local.SessionExpiry%time.Second != 0 {
		d.report(l.child("session_expiry"), "%s is not whole seconds, as MQTT needs", down.Local.SessionExpiry)
	}
	o.bounded("max_topic", &down.MaxTopic, 16, 64<<10-1)
	o.finish()
}

// bounded is a size that fits an int of every machine.
func (o *object) bounded(key string, into *int, least, most int64) {
	v := int64(*into)
	o.size(key, &v, least, most)
	*into = int(v)
}

func (d *decoder) mqtt(n *yaml.Node, path string) MQTT {
	o := d.object(n, path)
	m := defaultMQTTListener()
	o.listen(&m.Listen, &m.TLS)
	o.file("users_file", &m.UsersFile, d.report)
	o.boolean("anonymous", &m.Anonymous)
	o.list("acl", func(n *yaml.Node, path string) { m.ACL = append(m.ACL, d.aclRule(n, path)) })
	o.azureClients(&m)
	o.whole("max_connections", &m.MaxConnections, 1, 1_000_000)
	o.whole("max_per_address", &m.MaxPerAddress, 1, 1_000_000)
	o.duration("connect_timeout", &m.ConnectTimeout, time.Second, 10*time.Minute)
	o.bounded("max_packet", &m.MaxPacket, 1<<10, 16<<20)
	o.whole("max_subscriptions", &m.MaxSubscriptions, 1, 100_000)
	o.whole("in_flight", &m.InFlight, 1, 65_535)
	o.rate("rate", &m.Rate, "")
	o.finish()
	switch login := m.UsersFile != "" || m.TLS.ClientCA != ""; {
	case o.broken || !d.ok(o.child("acl")):
	case login && len(m.ACL) == 0 && len(m.AzureClients) == 0:
		d.warn(o.path, "has users but no acl: what no rule allows is refused, so nobody may publish or subscribe")
	case !login && len(m.ACL) > 0:
		d.report(o.child("acl"), "has no effect: nobody logs in without users_file or tls.client_ca")
	}
	if m.UsersFile == "" && m.TLS.ClientCA == "" && !m.Anonymous && m.Listen.Enabled() {
		// Where Azure SDK clients log in, nobody else has to be let in.
		if m.Anonymous = m.Listen.Local(); !m.Anonymous && len(m.AzureClients) == 0 {
			d.report(o.child("listen"), "%s can be reached from other machines: give users_file or tls.client_ca, or write anonymous: true", m.Listen)
		}
	}
	return m
}

func (d *decoder) aclRule(n *yaml.Node, path string) ACLRule {
	o := d.object(n, path)
	var r ACLRule
	o.text("user", &r.User)
	r.Publish, r.Subscribe = o.filters("publish"), o.filters("subscribe")
	o.finish()
	switch {
	case o.broken:
	case !o.has("user"):
		d.report(o.child("user"), `is missing: a name or certificate CN, "*" for all who logged in, "" for anonymous clients too`)
	case len(r.Publish)+len(r.Subscribe) == 0 && d.ok(path):
		d.report(path, "allows nothing: publish and subscribe are empty")
	}
	return r
}

// filters are topic filters in which %u and %c stand for a name.
func (o *object) filters(key string) []string {
	all := o.texts(key)
	for i, f := range all {
		if f != "" && !validFilter(f) {
			o.d.report(item(o.child(key), i), "%s is not a topic filter (+ for one level, # for the rest at the end)", quote(f))
		}
	}
	return all
}

func (d *decoder) http(n *yaml.Node, path string) HTTP {
	o := d.object(n, path)
	h := defaultHTTPListener()
	o.listen(&h.Listen, &h.TLS)
	o.file("token_file", &h.TokenFile, d.report)
	o.boolean("anonymous", &h.Anonymous)
	o.whole("max_connections", &h.MaxConnections, 1, 1_000_000)
	o.bounded("max_body", &h.MaxBody, 1<<10, 1<<20)
	o.bounded("max_batch", &h.MaxBatch, 1<<10, 256<<20)
	o.rate("rate", &h.Rate, "")
	o.finish()
	if h.Listen.WebSocket {
		d.report(o.child("listen"), "%s: WebSocket is for downstream.mqtt", h.Listen)
	}
	if h.TokenFile == "" && h.TLS.ClientCA == "" && !h.Anonymous && h.Listen.Enabled() {
		if h.Anonymous = h.Listen.Local(); !h.Anonymous {
			d.report(o.child("listen"), "%s can be reached from other machines: give token_file or tls.client_ca, or write anonymous: true", h.Listen)
		}
	}
	return h
}

// listen reads an address and its TLS files. Certificates mean TLS whatever
// the scheme says: what was meant to be private is never served in the open.
func (o *object) listen(a *Address, t *ListenTLS) {
	d := o.d
	o.address("listen", a)
	if !a.Enabled() && d.ok(o.child("listen")) {
		d.report(o.child("listen"), "is empty; take the whole listener out")
	}
	files := o.object("tls")
	files.file("cert", &t.Cert, d.report)
	files.file("key", &t.Key, d.report)
	files.file("client_ca", &t.ClientCA, d.report)
	files.finish()
	switch {
	case files.broken:
	case (t.Cert == "") != (t.Key == ""):
		d.report(files.path, "cert and key belong together; one is missing")
	case t.ClientCA != "" && t.Cert == "":
		d.report(files.path, "client_ca needs cert and key")
	case a.Network == "unix" && t.Cert != "":
		d.report(files.path, "a socket needs no TLS; its folder's permissions guard it")
	case a.TLS && t.Cert == "":
		d.report(o.child("listen"), "TLS needs tls.cert and tls.key")
	case a.Network == "tcp" && t.Cert != "":
		a.TLS = true
	}
}

func (d *decoder) route(n *yaml.Node, path string) Route {
	o := d.object(n, path)
	r := defaultRoute()
	r.Name = path
	o.text("match", &r.Match)
	o.text("to", &r.To)
	o.properties(&r)
	o.text("content_type", &r.ContentType)
	o.text("content_encoding", &r.ContentEncoding)
	r.TypeAssumed, r.EncodingAssumed = !o.has("content_type"), !o.has("content_encoding")
	o.text("output", &r.Output)
	o.programs(&r)
	if o.text("compress", &r.Compress); r.Compress != "" && r.Compress != "gzip" {
		d.report(o.child("compress"), "%s is not gzip", quote(r.Compress))
	}
	o.onlyChanges(&r.OnlyChanges)
	p := o.object("pack")
	p.sizeOrOff("max_bytes", &r.Pack.MaxBytes, 256, 256<<10)
	p.duration("max_delay", &r.Pack.MaxDelay, time.Millisecond, time.Hour)
	p.choice("format", &r.Pack.Format, PackJSON, PackNDJSON)
	p.finish()
	o.duration("max_age", &r.MaxAge, 0, longest)
	o.whole("priority", &r.Priority, 0, 9)
	o.finish()
	if o.broken {
		return r
	}
	switch {
	case !d.ok(o.child("match")):
	case r.Match == "":
		d.report(o.child("match"), "is missing")
	case !validFilter(r.Match):
		d.report(o.child("match"), "%s is not a topic filter (+ for one level, # for the rest at the end)", quote(r.Match))
	}
	if r.To == "" && d.ok(o.child("to")) {
		d.report(o.child("to"), "is missing")
	}
	for _, key := range []string{"content_type", "content_encoding", "output"} {
		if v := o.values[key]; v != nil && !printable(v.Value) {
			d.report(o.child(key), "%s holds a control character or too many", quote(v.Value))
		}
	}
	return r
}

// properties reads what is added to each message. Keys that start with "$." or
// "iothub-" belong to the hub.
func (o *object) properties(r *Route) {
	d := o.d
	p := o.object("properties")
	p.known = append(p.known, "")
	r.Properties = map[string]string{}
	for _, k := range p.keys {
		at := p.child(k.Value)
		s, ok := d.text(p.take(k.Value), at)
		if !ok {
			continue
		}
		switch reason := checkProperty(k.Value); {
		case reason != "":
			d.report(at, "%s", reason)
		case !printable(s):
			d.report(at, "%s holds a control character or too many", quote(s))
		default:
			r.Properties[k.Value] = s
		}
	}
}

// checkProperty tells what is wrong with the name of a property, or "".
func checkProperty(key string) string {
	switch {
	case key == "" || len(key) > 128 || !printable(key):
		return "a property needs a name of 1 to 128 printable characters"
	case strings.HasPrefix(key, "$.") || strings.HasPrefix(strings.ToLower(key), "iothub-"):
		return "names that start with $. or iothub- belong to the hub"
	}
	return ""
}

func printable(s string) bool {
	return len(s) <= 4096 && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}

// validFilter is MQTT's rule (4.7.1): + alone in its level, # alone in the
// last one. This package stands below the codec, so it has its own reading.
func validFilter(s string) bool {
	if s == "" || len(s) > math.MaxUint16 || !utf8.ValidString(s) || strings.ContainsRune(s, 0) {
		return false
	}
	levels := strings.Split(s, "/")
	for i, l := range levels {
		if len(l) > 1 && strings.ContainsAny(l, "+#") || l == "#" && i != len(levels)-1 {
			return false
		}
	}
	return true
}

// wildcards counts what {1}, {2}... can stand for.
func wildcards(filter string) int { return strings.Count(filter, "+") + strings.Count(filter, "#") }

// placeholders are the numbers of {n} in s, in order.
func placeholders(s string) []int {
	var all []int
	for _, m := range regexp.MustCompile(`\{([0-9]{1,4})\}`).FindAllStringSubmatch(s, -1) {
		n, err := strconv.Atoi(m[1])
		if err == nil {
			all = append(all, n)
		}
	}
	return all
}
