package config

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
)

// cross checks what concerns more than one key.
func (d *decoder) cross(c *Config) {
	if len(c.Identities) == 0 && d.ok("identities") {
		d.report("identities", "is missing or empty: at least one identity is needed")
	}
	d.distinct(c)
	d.trust(c)
	d.desiredIdentity(c)
	d.routes(c)
	d.shadowed(c.Routes)
	d.listeners(c)
	if q := c.Queue; q.MaxBytes > 0 && q.MaxBytes < 2*q.SegmentBytes {
		d.report("queue.max_bytes", "%s is less than two segments of segment_bytes (%s)", sizeString(q.MaxBytes), sizeString(q.SegmentBytes))
	}
	d.sources(&c.Downstream)
	if c.Downstream.empty() && d.ok("downstream") {
		d.warn("downstream", "has no listener: no reading can arrive")
	}
	if len(c.Routes) == 0 && d.ok("routes") && !c.Downstream.onlyAzure() {
		d.warn("routes", "there is no route: every reading will be refused")
	}
}

// ok tells whether nothing was reported at or below a path.
func (d *decoder) ok(path string) bool {
	return !slices.ContainsFunc(d.problems, func(p Problem) bool { return strings.HasPrefix(p.Path, path) })
}

// distinct refuses what two identities cannot share: a name, a place on the
// hub (which keeps one connection for each) and a certificate.
func (d *decoder) distinct(c *Config) {
	names, places, files := map[string]int{}, map[string]int{}, map[string]int{}
	for i := range c.Identities {
		id := &c.Identities[i]
		path := item("identities", i)
		if id.Name == "" || id.HostName == "" || id.DeviceID == "" {
			continue
		}
		if first, twice := once(names, id.Name, i); twice {
			d.report(path+".name", "%s is the name of %s too", quote(id.Name), item("identities", first))
		}
		place := strings.ToLower(id.HostName) + "\x00" + id.HubID()
		if first, twice := once(places, place, i); twice {
			d.report(path, "is the same device or module of the same hub as %s", item("identities", first))
		}
		for _, f := range []struct{ key, name string }{{"cert", id.Certificate.Cert}, {"pkcs12", id.Certificate.PKCS12}} {
			if f.name == "" {
				continue
			}
			if first, twice := once(files, filepath.Clean(f.name), i); twice {
				d.report(path+".certificate."+f.key, "%s has the same certificate file: each identity needs its own", item("identities", first))
			}
		}
	}
}

// trust wants somebody to believe, once where the switch stands.
func (d *decoder) trust(c *Config) {
	said := map[string]bool{}
	for i := range c.Identities {
		if h := c.Identities[i].Hub; h.SystemRoots || len(h.Trust) > 0 {
			continue
		}
		path := item("identities", i) + ".system_roots"
		if _, own := d.lines[path]; !own {
			path = "hub.system_roots"
		}
		if !said[path] {
			said[path] = true
			d.report(path, "is false and trust is empty: no hub would be believed")
		}
	}
}

// once remembers who came first.
func once(seen map[string]int, key string, i int) (first int, twice bool) {
	if first, twice = seen[key]; !twice {
		seen[key] = i
	}
	return first, twice
}

// maxShadowed bounds how many routes are compared with each other.
const maxShadowed = 1000

// shadowed warns of routes whose turn never comes, because the first that matches wins.
func (d *decoder) shadowed(routes []Route) {
	levels := make([][]string, min(len(routes), maxShadowed))
	for i := range levels {
		levels[i] = strings.Split(routes[i].Match, "/")
		if first := slices.IndexFunc(levels[:i], func(l []string) bool { return covers(l, levels[i]) }); first >= 0 {
			d.warn(item("routes", i)+".match", "%s takes all of it before: the first route that matches wins", item("routes", first))
		}
	}
}

// covers says that the topic filter a matches whatever b matches.
func covers(a, b []string) bool {
	if strings.HasPrefix(b[0], "$") && a[0] != b[0] {
		return false // wildcards leave such topics out
	}
	for i, l := range a {
		switch {
		case l == "#":
			return true
		case i >= len(b) || b[i] == "#" || l != "+" && l != b[i]:
			return false
		}
	}
	return len(a) == len(b)
}

func (d *decoder) routes(c *Config) {
	byName := map[string]*Identity{}
	for i := range c.Identities {
		byName[c.Identities[i].Name] = &c.Identities[i]
	}
	for i := range c.Routes {
		r := &c.Routes[i]
		if r.Match == "" || !validFilter(r.Match) {
			continue
		}
		path := item("routes", i)
		most := wildcards(r.Match)
		d.placeholders(path+".to", r.To, most)
		for _, k := range slices.Sorted(maps.Keys(r.Properties)) {
			d.placeholders(path+".properties."+keyText(k), r.Properties[k], most)
		}
		id := byName[r.To]
		switch {
		case r.To == "" || !d.ok("identities"):
		case len(placeholders(r.To)) > 0:
		case id == nil:
			hint := ""
			if s := suggest(r.To, c.Names()); s != "" {
				hint = fmt.Sprintf("; did you mean %q?", s)
			}
			d.report(path+".to", "%s is not the name of an identity%s", quote(r.To), hint)
		case r.Output != "" && id.ModuleID == "":
			d.report(path+".output", "%s is a device; only modules have outputs", quote(r.To))
		}
	}
}

func (d *decoder) placeholders(path, text string, most int) {
	for _, n := range placeholders(text) {
		if n < 1 || n > most {
			d.report(path, "{%d} has nothing to stand for: match has %d wildcard(s)", n, most)
		}
	}
}

// listeners refuses two on one address.
func (d *decoder) listeners(c *Config) {
	seen := map[string]string{}
	look := func(path string, a Address) {
		if !a.Enabled() || strings.HasSuffix(a.Address, ":0") {
			return
		}
		if other, twice := seen[a.Address]; twice {
			d.report(path, "%s is the address of %s too", a.Address, other)
			return
		}
		seen[a.Address] = path
	}
	look("admin.listen", c.Admin.Listen)
	for i := range c.Downstream.MQTT {
		look(item("downstream.mqtt", i)+".listen", c.Downstream.MQTT[i].Listen)
	}
	d.azureIdentities(c)
	for i := range c.Downstream.HTTP {
		look(item("downstream.http", i)+".listen", c.Downstream.HTTP[i].Listen)
	}
	for i := range c.Downstream.Socket {
		look(item("downstream.socket", i)+".listen", c.Downstream.Socket[i].Listen)
	}
	if c.Admin.Listen.Enabled() && !c.Admin.Listen.Local() && c.Admin.TokenFile == "" {
		d.warn("admin.listen", "%s can be reached from other machines: the page shows identities and topics to everybody; give admin.token_file", c.Admin.Listen)
	}
}
