package config

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

// maxProgram bounds the text of one jq program.
const maxProgram = 64 << 10

// programs reads the jq programs of a route. They are compiled where they are
// run; a mistake in one is told with the same key path.
func (o *object) programs(r *Route) {
	o.program("filter", &r.Filter)
	o.program("transform", &r.Transform)
	r.Set = map[string]string{}
	p := o.object("set")
	for _, k := range p.keys {
		at := p.child(k.Value)
		var text string
		p.program(k.Value, &text)
		switch reason := checkProperty(k.Value); {
		case reason != "":
			o.d.report(at, "%s", reason)
		case text == "":
			if o.d.ok(at) {
				o.d.report(at, "is empty")
			}
		default:
			r.Set[k.Value] = text
		}
	}
	o.choice("on_error", &r.OnError, OnErrorSetAside, OnErrorDrop, OnErrorPass)
}

func (o *object) program(key string, into *string) {
	s, ok := o.d.text(o.take(key), o.child(key))
	switch {
	case !ok:
	case len(s) > maxProgram:
		o.d.report(o.child(key), "is longer than %s", sizeString(maxProgram))
	case s != "" && strings.TrimSpace(s) == "":
		o.d.report(o.child(key), "is blank")
	default:
		*into = s
	}
}

func (o *object) onlyChanges(c *OnlyChanges) {
	p := o.object("only_changes")
	p.deadband(c)
	p.duration("min_interval", &c.MinInterval, 0, 24*time.Hour)
	p.duration("max_interval", &c.MaxInterval, 0, longest)
	p.finish()
	if !p.broken && o.d.ok(p.path) && c.MaxInterval > 0 && c.MinInterval > c.MaxInterval {
		o.d.report(p.child("min_interval"), "is above max_interval")
	}
}

// deadband is one number for all fields, or a number for each that counts.
func (o *object) deadband(c *OnlyChanges) {
	const key = "deadband"
	n := o.take(key)
	if n == nil || n.Kind != yaml.MappingNode {
		o.number(key, &c.Deadband)
		return
	}
	p := o.d.object(n, o.child(key))
	c.Deadbands = map[string]float64{}
	for _, k := range p.keys {
		var v float64
		p.number(k.Value, &v)
		if slices.Contains(strings.Split(k.Value, "."), "") {
			o.d.report(p.child(k.Value), "is not the path of a field, such as temperature or motor.speed")
		}
		c.Deadbands[k.Value] = v
	}
}

// number is a distance, 0 or more.
func (o *object) number(key string, into *float64) {
	s, ok := o.scalar(key, "a number", "!!int", "!!float")
	if !ok {
		return
	}
	v, err := strconv.ParseFloat(s, 64)
	if err != nil || math.IsNaN(v) || math.IsInf(v, 0) || v < 0 {
		o.d.report(o.child(key), "%s is not a number of 0 or more", s)
		return
	}
	*into = v
}
