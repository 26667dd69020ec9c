package hubtest

import (
	"strings"

	"gatewayd/internal/packet"
)

// filter is one of the subscriptions that the hub knows.
type filter int

const (
	toC2D filter = iota
	toMethods
	toTwinReplies
	toDesired
	toInputs
	toCredentials
	numFilters
)

// subscriptions holds the granted QoS plus one for each known filter; zero is not subscribed.
type subscriptions [numFilters]byte

func (s subscriptions) has(f filter) bool { return s[f] > 0 }

func (s subscriptions) qos(f filter) byte { return s[f] - 1 }

func (s subscriptions) count() int {
	n := 0
	for _, q := range s {
		if q > 0 {
			n++
		}
	}
	return n
}

// filterOf names a known filter by its exact text: the hub knows no wildcards of the client's own making, and
// ids may hold wildcard characters.
func (c *conn) filterOf(text string) (filter, bool) {
	switch text {
	case "$iothub/methods/POST/#":
		return toMethods, true
	case "$iothub/twin/res/#":
		return toTwinReplies, true
	case "$iothub/twin/PATCH/properties/desired/#":
		return toDesired, true
	case "$iothub/credentials/res/#":
		return toCredentials, strings.HasSuffix(c.user.apiVersion, "-preview")
	}
	own := "devices/" + c.user.device + "/"
	if c.user.module == "" {
		return toC2D, text == own+"messages/devicebound/#"
	}
	own += "modules/" + c.user.module + "/"
	return toInputs, text == own+"inputs/#" || text == own+"#"
}

func (c *conn) subscribe(s packet.Subscribe) {
	id := c.id
	codes := make([]byte, len(s.Subscriptions))
	id.mu.Lock()
	for i, sub := range s.Subscriptions {
		f, known := c.filterOf(sub.Filter)
		switch {
		case !known && c.h.opt.Edge:
			codes[i] = min(sub.QoS, 1)
		case !known, !id.subs.has(f) && id.subs.count() >= c.h.opt.MaxFilters:
			codes[i] = packet.SubackFailure
			c.breach(c.rowOfFilter(sub.Filter), false, "filter %.200q refused", sub.Filter)
		default:
			codes[i] = min(sub.QoS, 1)
			id.subs[f] = codes[i] + 1
		}
	}
	c.out.packet(packet.Suback{Type: packet.SUBACK, ID: s.ID, Codes: codes})
	id.mu.Unlock()
	poke(c.wake) // what waits for this subscription goes out behind the SUBACK
	c.h.ledger.touch()
}

func (c *conn) rowOfFilter(text string) int {
	if _, known := c.filterOf(text); known {
		return 45
	}
	if strings.HasSuffix(text, "/messages/devicebound/#") || strings.HasSuffix(text, "/inputs/#") {
		return 46
	}
	return 43
}

func (c *conn) unsubscribe(u packet.Unsubscribe) {
	id := c.id
	id.mu.Lock()
	for _, text := range u.Filters {
		if f, known := c.filterOf(text); known {
			id.subs[f] = 0
		}
	}
	c.out.packet(packet.Suback{Type: packet.UNSUBACK, ID: u.ID})
	id.mu.Unlock()
	c.h.ledger.touch()
}

// Subscribed lists the filters that an identity's session holds, by their function: c2d, methods, twin
// replies, desired, inputs, credentials.
func (h *Hub) Subscribed(identity string) []string {
	id, err := h.identity(identity)
	if err != nil {
		return nil
	}
	id.mu.Lock()
	defer id.mu.Unlock()
	names := [numFilters]string{"c2d", "methods", "twin replies", "desired", "inputs", "credentials"}
	var out []string
	for f, name := range names {
		if id.subs.has(filter(f)) {
			out = append(out, name)
		}
	}
	return out
}
