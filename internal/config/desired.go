package config

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// Desired says which part of the configuration may come from the desired properties
// of an identity's twin.
type Desired struct {
	Identity string   // whose twin; "" = none
	Key      string   // the desired property that holds it
	Allow    []string // what it may hold, some of desiredKeys
}

// desiredKeys are the keys that desired properties may hold at all: nothing that
// could cut the gateway off from those who set them.
func desiredKeys() []string {
	return []string{"log.level", "hub.connect_rate", "hub.send_rate", "routes.pack", "routes.only_changes"}
}

// maxDesired bounds the document: the hub's own limit for a section of a twin.
const maxDesired = 32 << 10

func defaultDesired() Desired { return Desired{Key: "gatewayd", Allow: desiredKeys()} }

func (o *object) desired(into *Desired) {
	d := o.d
	c := o.object("desired_config")
	c.text("identity", &into.Identity)
	c.text("key", &into.Key)
	if k := into.Key; k == "" || len(k) > 128 || !printable(k) || strings.ContainsAny(k, ".$ ") {
		d.report(c.child("key"), "%s cannot be the name of a property in a twin: 1 to 128 characters, no . $ or space", quote(k))
	}
	if c.has("allow") {
		into.Allow = c.texts("allow")
	}
	c.known = append(c.known, "allow")
	for i, a := range into.Allow {
		if a != "" && !slices.Contains(desiredKeys(), a) {
			d.report(item(c.child("allow"), i), "%s cannot come from desired properties; those that can: %s", quote(a), strings.Join(desiredKeys(), ", "))
		}
	}
	c.finish()
}

// desiredIdentity wants an identity that can hear and answer.
func (d *decoder) desiredIdentity(c *Config) {
	const path = "hub.desired_config.identity"
	name := c.Desired.Identity
	if name == "" || !d.ok("identities") || !d.ok(path) {
		return
	}
	i := slices.IndexFunc(c.Identities, func(id Identity) bool { return id.Name == name })
	switch {
	case i < 0:
		hint := ""
		if s := suggest(name, c.Names()); s != "" {
			hint = fmt.Sprintf("; did you mean %q?", s)
		}
		d.report(path, "%s is not the name of an identity%s", quote(name), hint)
	case !c.Identities[i].Commands.Twin:
		d.report(path, "%s has commands.twin: false, so its twin is not known here", quote(name))
	case c.Identities[i].TwinReport.Key == "":
		d.report(path, "%s has an empty twin_report.key, so nobody would hear whether the configuration was applied", quote(name))
	}
}

// WithDesired reads the file of c again with a document of desired properties on
// top, which is checked like the file, in the same words. The document is an object
// such as
//
//	{"log":{"level":"debug"},"hub":{"send_rate":50},
//	 "routes":{"sensors/+/telemetry":{"pack":{"max_bytes":"4KiB"}}}}
//
// in which a route has the name of its match, and all that have that match are meant.
// The error is always an *Error.
func (c *Config) WithDesired(document []byte) (*Config, error) {
	source := "desired properties of " + c.Desired.Identity
	d := &decoder{file: source, lines: map[string]int{}}
	if len(document) > maxDesired {
		d.reportLine(0, c.Desired.Key, "has %d bytes, at most %d are possible", len(document), maxDesired)
		return nil, d.err()
	}
	var top yaml.Node
	if !json.Valid(document) || yaml.Unmarshal(document, &top) != nil || len(top.Content) != 1 || top.Content[0].Kind != yaml.MappingNode {
		d.reportLine(0, c.Desired.Key, "is not an object")
		return nil, d.err()
	}
	data, err := read(c.File)
	if err != nil {
		return nil, &Error{Problems: []Problem{{File: c.File, Reason: err.Error()}}}
	}
	root := d.document(data)
	if root == nil {
		return nil, d.err()
	}
	unplaced(top.Content[0])
	o := overlay{d: d, allow: c.Desired.Allow}
	o.top(root, top.Content[0])
	if err := d.err(); err != nil {
		return nil, err
	}
	next, err := d.whole(c.File, root, nil) // the document names no files
	if err != nil {
		return nil, err
	}
	for i := range next.Warnings {
		next.Warnings[i].File = c.File
	}
	for _, w := range c.Warnings { // of files
		w.File = c.File
		if !slices.Contains(next.Warnings, w) {
			next.Warnings = append(next.Warnings, w)
		}
	}
	slices.SortStableFunc(next.Warnings, byLine)
	return next, nil
}

// unplaced takes the line numbers away: they are those of another text.
func unplaced(n *yaml.Node) {
	n.Line, n.Column = 0, 0
	for _, c := range n.Content {
		unplaced(c)
	}
}

// overlay puts a document over the tree of a file.
type overlay struct {
	d     *decoder
	allow []string
}

func (o *overlay) top(root, document *yaml.Node) {
	for i := 0; i+1 < len(document.Content); i += 2 {
		section, value := document.Content[i].Value, document.Content[i+1]
		if value.Kind != yaml.MappingNode {
			o.refuse(section)
			continue
		}
		switch section {
		case "log", "hub":
			o.merge(branch(root, section), value, section, section)
		case "routes":
			o.routes(value, get(root, "routes"))
		default:
			o.refuse(section)
		}
	}
}

func (o *overlay) refuse(path string) {
	o.d.reportLine(0, path, "may not come from desired properties; hub.desired_config.allow has %s", strings.Join(o.allow, ", "))
}

// merge puts the allowed keys of from into a mapping. path is told, key is looked up in
// the allow list.
func (o *overlay) merge(into, from *yaml.Node, path, key string) {
	for i := 0; i+1 < len(from.Content); i += 2 {
		name, value := from.Content[i].Value, from.Content[i+1]
		if !slices.Contains(o.allow, key+"."+name) {
			o.refuse(path + "." + keyText(name))
			continue
		}
		have := get(into, name)
		if have == nil || have.Kind != yaml.MappingNode || value.Kind != yaml.MappingNode {
			put(into, name, value)
			continue
		}
		for j := 0; j+1 < len(value.Content); j += 2 {
			put(have, value.Content[j].Value, value.Content[j+1])
		}
	}
}

// routes changes those routes of the file that a document names by their match.
func (o *overlay) routes(document, list *yaml.Node) {
	for i := 0; i+1 < len(document.Content); i += 2 {
		match, value := document.Content[i].Value, document.Content[i+1]
		if value.Kind != yaml.MappingNode {
			o.refuse("routes." + quote(match))
			continue
		}
		found := false
		for n := 0; list != nil && n < len(list.Content); n++ {
			route := own(&list.Content[n])
			if m := get(route, "match"); m == nil || m.Value != match {
				continue
			}
			found = true
			o.merge(route, value, "routes["+strconv.Itoa(n)+"]", "routes")
		}
		if !found {
			o.d.reportLine(0, "routes."+quote(match), "no route has this match")
		}
	}
}

// get is the value of a key, behind its alias; nil when there is none.
func get(mapping *yaml.Node, key string) *yaml.Node {
	for i := 0; mapping != nil && mapping.Kind == yaml.MappingNode && i+1 < len(mapping.Content); i += 2 {
		if mapping.Content[i].Value == key {
			return own(&mapping.Content[i+1])
		}
	}
	return nil
}

// own replaces an alias by a copy of what it stands for, so that a change stays here.
func own(n **yaml.Node) *yaml.Node {
	if (*n).Kind == yaml.AliasNode {
		c := *(*n).Alias
		c.Content = slices.Clone(c.Content)
		c.Anchor = ""
		*n = &c
	}
	return *n
}

// branch is the mapping at a key, made where it is missing.
func branch(mapping *yaml.Node, key string) *yaml.Node {
	n := get(mapping, key)
	if n == nil || isNull(n) {
		n = &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
		put(mapping, key, n)
	}
	return n
}

func put(mapping *yaml.Node, key string, value *yaml.Node) {
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		if mapping.Content[i].Value == key {
			mapping.Content[i+1] = value
			return
		}
	}
	mapping.Content = append(mapping.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: key}, value)
}
