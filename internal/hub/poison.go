package hub

import "slices"

// poison finds the message that the hub answers by closing the connection.
// MQTT 3.1.1 has no negative acknowledgement, so it shows only as a connection that
// keeps dying with the same oldest message in flight. That alone proves nothing: a
// hub out of quota cuts every connection at its first publish, and one that is being
// moved cuts them at any time. So the question is put more and more precisely:
//
//  1. after two such deaths the message is sent alone, and so are those that were in
//     flight behind it: the hub may have closed over one of them, and the
//     acknowledgements before it were lost;
//  2. after limit of them, alone and only on a connection that has been quiet and
//     alive for a while;
//  3. after two more, another message goes first, of another sensor if there is one
//     so that no sensor's order suffers. If the hub acknowledges that, and closes the
//     connection over the suspect right after, the suspect is condemned.
//
// It is not safe for concurrent use.
type poison struct {
	limit   int
	suspect uint64 // 0: none
	source  string // of the suspect, once it was read again
	deaths  int
	caution int      // messages still to be sent alone although there is no suspect
	left    []uint64 // others that were sent first and not acknowledged either

	// Of the present connection:
	cleared bool // another message was acknowledged, the suspect is next
	others  int  // acknowledged since
	only    bool // there is no other message: the suspect goes without a comparison
}

const (
	carefulAfter = 2
	// maxControls is how many other messages may fail before all begins anew.
	maxControls = 4
	maxOthers   = 100
	maxCaution  = 64
)

func (p *poison) careful() bool { return p.caution > 0 || p.suspect != 0 && p.deaths >= carefulAfter }
func (p *poison) active() bool  { return p.caution > 0 || p.suspect != 0 }
func (p *poison) quiet() bool   { return p.suspect != 0 && p.deaths >= p.limit }
func (p *poison) apart() bool   { return p.suspect != 0 && p.deaths >= p.limit+2 }

// connected begins with a new connection.
func (p *poison) connected() { p.cleared, p.others, p.only = false, 0, false }

// alone says that there is nothing to compare the suspect with.
func (p *poison) alone() { p.only = true }

// skip says whether a message is left out for now.
func (p *poison) skip(seq uint64, source string) bool {
	if !p.apart() || p.cleared || p.only {
		return false
	}
	if seq == p.suspect {
		p.source = source
		return true
	}
	sameSensor := source == p.source && p.deaths < 2*p.limit+2
	return sameSensor || slices.Contains(p.left, seq)
}

// acked notes an acknowledged message.
func (p *poison) acked(seq uint64) {
	p.caution = max(p.caution-1, 0)
	switch {
	case p.suspect == 0:
	case seq == p.suspect:
		*p = poison{limit: p.limit, caution: p.caution}
	case p.cleared:
		// The suspect would have been next, but it is gone, or many others have
		// overtaken it since.
		if p.others++; p.others > maxOthers {
			p.forget()
		}
	case p.apart():
		p.cleared = true
	}
}

// died notes that the hub closed an accepted connection with so many messages in
// flight, and returns the one that is condemned by it, or 0. oldest is 0 when there
// were none.
func (p *poison) died(oldest uint64, inFlight int) (condemned uint64) {
	if p.deaths >= carefulAfter-1 || p.caution > 0 {
		p.caution = max(p.caution, min(inFlight, maxCaution))
	}
	switch {
	case oldest == 0:
		// The connection died of something else.
		p.deaths = min(p.deaths, carefulAfter)
	case oldest == p.suspect && p.apart() && p.cleared:
		p.forget()
		return oldest
	case oldest == p.suspect:
		p.deaths++
	case p.apart():
		if p.left = append(p.left, oldest); len(p.left) > maxControls {
			p.left, p.deaths = nil, 1
		}
	default:
		*p = poison{limit: p.limit, suspect: oldest, deaths: 1, caution: p.caution}
	}
	return 0
}

func (p *poison) forget() { *p = poison{limit: p.limit} }
