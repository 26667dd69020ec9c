package downstream

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"gatewayd/internal/packet"
)

// ACLRule allows topics to a user. In filters, %u is the user name and %c the
// client id.
type ACLRule struct {
	User      string   // a user name or certificate CN; "*" = all who logged in, "" = anonymous clients too
	Publish   []string // topic filters
	Subscribe []string // topic filters; a subscription must lie within one
}

// access decides who may come in and what they may use.
type access struct {
	users     *Users
	mutual    bool // a verified client certificate names the user
	anonymous bool
	rules     []ACLRule
}

var (
	errCredentials = errors.New("user name or password wrong")
	errAnonymous   = errors.New("a login is required")
	errOtherUser   = errors.New("user name differs from the certificate's CN")
	errBusy        = errors.New("too many logins at the same moment")
	errNoCN        = errors.New("certificate without a CN")
)

func newAccess(users *Users, mutual, anonymous, private, azure bool, rules []ACLRule) (access, error) {
	a := access{users: users, mutual: mutual, rules: rules, anonymous: anonymous}
	if users == nil && !mutual {
		if !anonymous && !private && !azure {
			return a, errors.New("listen: others than this machine can reach it: set users_file, tls.client_ca, or anonymous: true")
		}
		a.anonymous = anonymous || private
	}
	var problems []error
	for i, rule := range rules {
		for _, f := range rule.Publish {
			if !packet.ValidFilter(f) {
				problems = append(problems, fmt.Errorf("acl[%d].publish: %q is not an MQTT topic filter", i, f))
			}
		}
		for _, f := range rule.Subscribe {
			if !packet.ValidFilter(f) {
				problems = append(problems, fmt.Errorf("acl[%d].subscribe: %q is not an MQTT topic filter", i, f))
			}
		}
	}
	return a, errors.Join(problems...)
}

// login finds out who a client is; "" is anonymous. hasCN tells that a verified
// certificate came with the connection.
func (a *access) login(ctx context.Context, cn string, hasCN bool, name string, password []byte) (user string, err error) {
	switch {
	case hasCN && cn == "":
		return "", errNoCN
	case hasCN && name != "" && name != cn:
		return "", errOtherUser
	case hasCN:
		return cn, nil
	case a.users != nil && name != "":
		return name, a.users.Check(ctx, name, password)
	case a.anonymous:
		return "", nil
	}
	return "", errAnonymous
}

// enforced tells whether rules apply: once somebody can be told apart.
func (a *access) enforced() bool { return a.users != nil || a.mutual }

func (a *access) mayPublish(user, client, topic string) bool {
	return a.allowed(user, client, func(r *ACLRule) []string { return r.Publish },
		func(filter string) bool { return packet.Match(filter, topic) })
}

// maySubscribe tells whether everything that the filter matches is allowed.
func (a *access) maySubscribe(user, client, filter string) bool {
	return a.allowed(user, client, func(r *ACLRule) []string { return r.Subscribe },
		func(allowed string) bool { return covers(allowed, filter) })
}

func (a *access) allowed(user, client string, filters func(*ACLRule) []string, match func(string) bool) bool {
	if !a.enforced() {
		return true
	}
	for i := range a.rules {
		r := &a.rules[i]
		if r.User != "" && r.User != "*" && r.User != user {
			continue
		}
		if user == "" && r.User == "*" {
			continue
		}
		for _, f := range filters(r) {
			if expanded, ok := expandFilter(f, user, client); ok && match(expanded) {
				return true
			}
		}
	}
	return false
}

// expandFilter fills in %u and %c. A name that would change the shape of the
// filter matches nothing: a client called "#" must not get everything.
func expandFilter(filter, user, client string) (string, bool) {
	for _, p := range []struct{ place, value string }{{"%u", user}, {"%c", client}} {
		if !strings.Contains(filter, p.place) {
			continue
		}
		if p.value == "" || strings.ContainsAny(p.value, "+#/%\x00") {
			return "", false
		}
		filter = strings.ReplaceAll(filter, p.place, p.value)
	}
	return filter, true
}

// covers tells whether every topic that filter b matches is matched by filter a.
func covers(a, b string) bool {
	for {
		la, ra, ma := strings.Cut(a, "/")
		if la == "#" {
			return true
		}
		lb, rb, mb := strings.Cut(b, "/")
		if lb == "#" || (la != "+" && la != lb) {
			return false
		}
		switch {
		case !ma && !mb:
			return true
		case !mb:
			return ra == "#"
		case !ma:
			return false
		}
		a, b = ra, rb
	}
}
