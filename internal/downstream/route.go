package downstream

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"gatewayd/internal/packet"
	"gatewayd/internal/queue"
)

// ErrNoRoute says that no route takes the topic to a configured identity. The
// sensor is told; sending the same again is pointless until the configuration
// changes.
var ErrNoRoute = errors.New("no route for this topic")

// Route says where messages of matching local topics go and what they carry.
//
// In To, and in the values of Properties, "{1}" stands for what the first
// wildcard of Match took, "{2}" for the second, and so on; a final # counts and
// takes the rest of the topic with its slashes. Other braces are literal.
type Route struct {
	Name            string // for status and messages; "" becomes Match
	Match           string // an MQTT topic filter over the local topic
	To              string // an identity's name
	Properties      map[string]string
	ContentType     string
	ContentEncoding string
	// The labels that nobody wrote down are assumed: the sensor's own go before
	// them, and a body that is not UTF-8 gets none of them.
	TypeAssumed, EncodingAssumed bool
	Output                       string        // module output
	Priority                     uint8         // 0 to 9, higher first
	MaxAge                       time.Duration // 0 = the identity's own
	Pack                         queue.Pack    // how several readings become one hub message

	// What happens to the message before it is stored: jq programs over the body
	// as it came ("" = none), which know $topic and $properties, then OnlyChanges
	// over the new body, then compression.
	Filter      string            // false, null or nothing = not wanted
	Set         map[string]string // properties; null or nothing = none
	Transform   string            // the new body; nothing = not wanted
	OnError     OnError
	OnlyChanges OnlyChanges
	Gzip        bool // compress bodies that get smaller by it
}

// Decision is what a route says about one topic.
type Decision struct {
	Identity        string
	Route           string
	Properties      []queue.Property // in the order of their keys; shared, not to be changed
	ContentType     string
	ContentEncoding string
	Output          string
	Priority        uint8
	MaxAge          time.Duration
	Pack            queue.Pack

	typeAssumed, encodingAssumed bool // as in Route

	programs *programs // nil = the message is stored as it came
	taken    *atomic.Uint64
}

// Router decides where topics go. It never changes after NewRouter and may be
// used by any number of goroutines.
type Router struct {
	rules      []rule
	identities map[string]bool
}

type rule struct {
	route      Route
	levels     []string
	to         template
	properties []propertyTemplate
	programs   *programs
	taken      *atomic.Uint64 // messages that were accepted over it
}

type propertyTemplate struct {
	key   string
	value template
}

// NewRouter compiles routes for the identities with the given names. All
// problems are returned at once, joined, each with its key path.
func NewRouter(routes []Route, identities []string) (*Router, error) {
	r := &Router{identities: make(map[string]bool, len(identities))}
	for _, name := range identities {
		r.identities[name] = true
	}
	var problems []error
	for i, route := range routes {
		compiled, errs := compile(route, r.identities)
		for _, err := range errs {
			problems = append(problems, fmt.Errorf("routes[%d].%w", i, err))
		}
		r.rules = append(r.rules, compiled)
	}
	if len(problems) > 0 {
		return nil, errors.Join(problems...)
	}
	return r, nil
}

func compile(route Route, identities map[string]bool) (rule, []error) {
	var problems []error
	problem := func(key, format string, args ...any) {
		problems = append(problems, fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...)))
	}
	if route.Name == "" {
		route.Name = route.Match
	}
	if !packet.ValidFilter(route.Match) {
		problem("match", "%q is not an MQTT topic filter", route.Match)
	}
	out := rule{route: route, levels: strings.Split(route.Match, "/"), taken: new(atomic.Uint64)}
	wildcards := 0
	for _, level := range out.levels {
		if level == "+" || level == "#" {
			wildcards++
		}
	}
	var err error
	if out.to, err = parseTemplate(route.To, wildcards); err != nil {
		problem("to", "%v", err)
	} else if name, constant := out.to.constant(); constant && !identities[name] {
		problem("to", "%q is not the name of an identity", route.To)
	}
	for key, text := range route.Properties {
		if err := CheckProperty(key); err != nil {
			problem("properties", "%v", err)
		}
		value, err := parseTemplate(text, wildcards)
		if err != nil {
			problem("properties."+key, "%v", err)
		}
		out.properties = append(out.properties, propertyTemplate{key, value})
	}
	slices.SortFunc(out.properties, func(a, b propertyTemplate) int { return strings.Compare(a.key, b.key) })
	if route.Priority > 9 {
		problem("priority", "%d is not between 0 and 9", route.Priority)
	}
	if route.MaxAge < 0 {
		problem("max_age", "%v is negative", route.MaxAge)
	}
	var errs []error
	out.programs, errs = compilePrograms(route)
	return out, append(problems, errs...)
}

// Route finds the first route that matches a valid topic name. The error is
// ErrNoRoute, wrapped with the name that a route produced where that is not a
// configured identity.
func (r *Router) Route(topic string) (Decision, error) {
	for i := range r.rules {
		rule := &r.rules[i]
		if !packet.Match(rule.route.Match, topic) {
			continue
		}
		taken := rule.captures(topic)
		d := Decision{
			Identity: rule.to.expand(taken), Route: rule.route.Name,
			ContentType: rule.route.ContentType, ContentEncoding: rule.route.ContentEncoding,
			Output: rule.route.Output, Priority: rule.route.Priority, MaxAge: rule.route.MaxAge, Pack: rule.route.Pack,
			typeAssumed: rule.route.TypeAssumed, encodingAssumed: rule.route.EncodingAssumed,
			programs: rule.programs, taken: rule.taken,
		}
		if !r.identities[d.Identity] {
			return Decision{}, fmt.Errorf("%w: route %q leads to %q, which is no identity", ErrNoRoute, d.Route, d.Identity)
		}
		for _, p := range rule.properties {
			d.Properties = append(d.Properties, queue.Property{Key: p.key, Value: p.value.expand(taken)})
		}
		return d, nil
	}
	return Decision{}, ErrNoRoute
}

// captures lists what the wildcards of a rule took of a topic that it matches.
func (r *rule) captures(topic string) []string {
	var taken []string
	rest, more := topic, true
	for _, level := range r.levels {
		if level == "#" {
			// "a/#" matches "a" too: nothing is left for the wildcard then.
			if !more {
				rest = ""
			}
			return append(taken, rest)
		}
		var t string
		t, rest, more = strings.Cut(rest, "/")
		if level == "+" {
			taken = append(taken, t)
		}
	}
	return taken
}

// template is literal text with places for captures: text[0] place[0] text[1] ...
type template struct {
	text  []string
	place []int
}

func parseTemplate(s string, wildcards int) (template, error) {
	var t template
	literal := 0
	for i := 0; i < len(s); i++ {
		if s[i] != '{' {
			continue
		}
		end := i + 1
		n := 0
		for end < len(s) && s[end] >= '0' && s[end] <= '9' && n < 1000 {
			n = n*10 + int(s[end]-'0')
			end++
		}
		if end == i+1 || end == len(s) || s[end] != '}' {
			continue
		}
		if n < 1 || n > wildcards {
			return template{}, fmt.Errorf("%s: match has %d wildcards", s[i:end+1], wildcards)
		}
		t.text = append(t.text, s[literal:i])
		t.place = append(t.place, n-1)
		literal = end + 1
		i = end
	}
	t.text = append(t.text, s[literal:])
	return t, nil
}

func (t template) constant() (string, bool) {
	if len(t.place) > 0 || len(t.text) == 0 {
		return "", false
	}
	return t.text[0], true
}

func (t template) expand(taken []string) string {
	if s, ok := t.constant(); ok {
		return s
	}
	var b strings.Builder
	for i, place := range t.place {
		b.WriteString(t.text[i])
		b.WriteString(taken[place])
	}
	b.WriteString(t.text[len(t.place)])
	return b.String()
}
