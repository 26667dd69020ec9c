package config

import (
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

// maxReceiveMaximum: the MQTT library looks through all unacknowledged messages
// for each new one.
const maxReceiveMaximum = 10_000

// Bounds of the line protocol of exec and socket.
const (
	defaultMaxLine  = 512 << 10 // a payload of 256 KiB in base64, with its properties
	defaultInFlight = 1000
)

func (d *decoder) broker(n *yaml.Node, path string) Broker {
	o := d.object(n, path)
	b := Broker{ClientID: "gatewayd", ReceiveMaximum: 1000, SessionExpiry: 24 * time.Hour}
	o.text("url", &b.URL)
	o.text("client_id", &b.ClientID)
	b.Subscribe = o.texts("subscribe")
	o.text("username", &b.Username)
	o.file("password_file", &b.PasswordFile, d.report)
	files := o.object("tls")
	files.file("ca", &b.TLS.CA, d.report)
	files.file("cert", &b.TLS.Cert, d.report)
	files.file("key", &b.TLS.Key, d.report)
	files.finish()
	o.whole("receive_maximum", &b.ReceiveMaximum, 1, maxReceiveMaximum)
	o.duration("session_expiry", &b.SessionExpiry, time.Minute, longest)
	o.boolean("local_topics", &b.LocalTopics)
	o.finish()
	if o.broken {
		return b
	}
	o.brokerURL(&b)
	o.brokerSession(&b)
	if !files.broken && (b.TLS.Cert == "") != (b.TLS.Key == "") {
		d.report(files.path, "cert and key belong together; one is missing")
	}
	return b
}

// brokerURL checks where the broker is and what is shown to it.
func (o *object) brokerURL(b *Broker) {
	d := o.d
	u, err := url.Parse(b.URL)
	if err != nil || u.Scheme != "mqtt" && u.Scheme != "mqtts" || u.User != nil || hostPort(u.Host, 1) != nil || u.Path != "" || u.RawQuery != "" {
		d.report(o.child("url"), "is not mqtt://host:port or mqtts://host:port (user and password have their own keys)")
		return
	}
	if u.Scheme == "mqtt" && b.TLS != (BrokerTLS{}) {
		d.report(o.child("tls"), "is set, but the url is not mqtts://")
	}
	if b.PasswordFile != "" && b.Username == "" {
		d.report(o.child("password_file"), "needs username")
	}
	a := Address{Network: "tcp", Address: u.Host}
	if b.PasswordFile != "" && u.Scheme == "mqtt" && !a.Local() {
		d.warn(o.child("password_file"), "the password goes over the network in the open; use mqtts://")
	}
}

func (o *object) brokerSession(b *Broker) {
	d := o.d
	if b.ClientID == "" || len(b.ClientID) > 128 || !printable(b.ClientID) {
		d.report(o.child("client_id"), "needs 1 to 128 printable characters: the broker keeps the session under this name")
	}
	if b.SessionExpiry%time.Second != 0 {
		d.report(o.child("session_expiry"), "%s is not whole seconds, as MQTT needs", b.SessionExpiry)
	}
	if len(b.Subscribe) == 0 {
		d.report(o.child("subscribe"), "is missing or empty: nothing would come from this broker")
	}
	for i, f := range b.Subscribe {
		if f != "" && !validSubscription(f) {
			d.report(item(o.child("subscribe"), i), "%s is not a topic filter", quote(f))
		}
	}
}

// validSubscription admits $share/name/filter (MQTT 5, 4.8.2) beside filters.
func validSubscription(f string) bool {
	if !strings.HasPrefix(f, "$share/") {
		return validFilter(f)
	}
	name, filter, found := strings.Cut(strings.TrimPrefix(f, "$share/"), "/")
	return found && name != "" && !strings.ContainsAny(name, "+#") && validFilter(filter)
}

func (d *decoder) exec(n *yaml.Node, path string) Exec {
	o := d.object(n, path)
	e := Exec{MaxLine: defaultMaxLine, InFlight: defaultInFlight, Dir: d.dir}
	o.text("name", &e.Name)
	e.Command = o.texts("command")
	if s, ok := d.text(o.take("dir"), o.child("dir")); ok && s != "" {
		e.Dir = d.absolute(s)
		if fi, err := os.Stat(e.Dir); err != nil || !fi.IsDir() {
			d.report(o.child("dir"), "no such folder: %s", e.Dir)
		}
	}
	e.Env = o.environment("env")
	o.lines(&e.MaxLine, &e.InFlight)
	o.finish()
	if o.broken {
		return e
	}
	if e.Name == "" && d.ok(o.child("name")) {
		d.report(o.child("name"), "is missing: status and logs call the program by it")
	}
	if len(e.Command) == 0 {
		d.report(o.child("command"), "is missing or empty: [program, argument, ...]; no shell is involved")
	} else if strings.Contains(e.Command[0], "/") {
		e.Command[0] = d.absolute(e.Command[0])
		d.exists(item(o.child("command"), 0), e.Command[0], d.report)
	}
	return e
}

func (d *decoder) socket(n *yaml.Node, path string) Socket {
	o := d.object(n, path)
	s := Socket{MaxConnections: 100, MaxLine: defaultMaxLine, InFlight: defaultInFlight}
	o.text("name", &s.Name)
	o.address("listen", &s.Listen)
	o.whole("max_connections", &s.MaxConnections, 1, 10_000)
	o.lines(&s.MaxLine, &s.InFlight)
	o.finish()
	if o.broken {
		return s
	}
	if s.Listen.Network != "unix" && d.ok(o.child("listen")) {
		d.report(o.child("listen"), "is not a socket (use unix:///path/to/socket)")
	} else if s.Name == "" {
		s.Name = filepath.Base(s.Listen.Address)
	}
	return s
}

// lines reads the bounds that exec and socket share.
func (o *object) lines(maxLine, inFlight *int) {
	o.bounded("max_line", maxLine, 1<<10, 16<<20)
	o.whole("in_flight", inFlight, 1, 100_000)
}

// environment is a mapping of names to texts.
func (o *object) environment(key string) map[string]string {
	p := o.object(key)
	all := map[string]string{}
	for _, k := range p.keys {
		s, ok := o.d.text(p.take(k.Value), p.child(k.Value))
		switch {
		case !ok:
		case k.Value == "" || strings.ContainsAny(k.Value, "=\x00") || strings.ContainsRune(s, 0):
			o.d.report(p.child(k.Value), "is not the name and value of an environment variable")
		default:
			all[k.Value] = s
		}
	}
	return all
}

func (d *Downstream) empty() bool {
	return len(d.MQTT)+len(d.HTTP)+len(d.Broker)+len(d.Exec)+len(d.Socket) == 0
}

// sources refuses what two sources cannot share: the name in the logs, and the
// session at one broker, where the second client would throw the first one out.
func (d *decoder) sources(down *Downstream) {
	names, sessions := map[string]string{}, map[string]string{}
	look := func(seen map[string]string, path, key, what string) {
		if other, twice := seen[key]; twice {
			d.report(path, "%s is %s of %s too", quote(key), what, other)
			return
		}
		seen[key] = path
	}
	for i := range down.Exec {
		if name := down.Exec[i].Name; name != "" {
			look(names, item("downstream.exec", i), name, "the name")
		}
	}
	for i := range down.Socket {
		if name := down.Socket[i].Name; name != "" {
			look(names, item("downstream.socket", i), name, "the name")
		}
	}
	for i, b := range down.Broker {
		look(sessions, item("downstream.broker", i), b.ClientID+" at "+b.URL, "the client")
	}
}
