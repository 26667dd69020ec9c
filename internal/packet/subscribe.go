package packet

import "encoding/binary"

// Subscription is one filter of a SUBSCRIBE. In 3.1.1 only Filter and QoS exist.
type Subscription struct {
	Filter            string
	QoS               byte
	NoLocal           bool
	RetainAsPublished bool
	RetainHandling    byte // 0 send retained, 1 only when new, 2 never
}

// Subscribe asks for messages.
type Subscribe struct {
	ID            uint16
	Properties    *Properties
	Subscriptions []Subscription
}

// DecodeSubscribe reads a SUBSCRIBE. Filters are checked for UTF-8 only: an
// ill-formed filter is refused in the SUBACK, see ValidFilter.
func DecodeSubscribe(f Frame, v Version) (Subscribe, error) {
	if err := checkFlags(f, SUBSCRIBE); err != nil {
		return Subscribe{}, err
	}
	c := cursor{b: f.Body}
	p := Subscribe{ID: c.packetID()}
	if v == V5 {
		p.Properties = c.properties(SUBSCRIBE)
	}
	if c.err == nil && len(c.b) == 0 {
		return Subscribe{}, violation("SUBSCRIBE without a filter")
	}
	for len(c.b) > 0 {
		s := Subscription{Filter: c.string()}
		o := c.byte()
		s.QoS = o & 3
		switch {
		case c.err != nil:
		case s.QoS == 3:
			c.fail("subscription with QoS 3")
		case v == V311 && o&^3 != 0, v == V5 && o&0xC0 != 0:
			c.fail("reserved subscription options are set")
		case o>>4&3 == 3:
			c.stop(violation("retain handling 3"))
		}
		s.NoLocal, s.RetainAsPublished, s.RetainHandling = o&4 != 0, o&8 != 0, o>>4&3
		p.Subscriptions = append(p.Subscriptions, s)
	}
	if c.err != nil {
		return Subscribe{}, c.err
	}
	return p, nil
}

// Append encodes the packet.
func (p Subscribe) Append(dst []byte, v Version) ([]byte, error) {
	start := len(dst)
	dst = binary.BigEndian.AppendUint16(begin(dst, byte(SUBSCRIBE)<<4|2), p.ID)
	if v == V5 {
		var err error
		if dst, err = appendProperties(dst, p.Properties); err != nil {
			return dst[:start], err
		}
	}
	for _, s := range p.Subscriptions {
		if !fits(len(s.Filter)) {
			return dst[:start], ErrTooLong
		}
		o := s.QoS
		if v == V5 {
			if s.NoLocal {
				o |= 4
			}
			if s.RetainAsPublished {
				o |= 8
			}
			o |= s.RetainHandling << 4
		}
		dst = append(appendString(dst, s.Filter), o)
	}
	return finish(dst, start)
}

// Unsubscribe takes subscriptions back.
type Unsubscribe struct {
	ID         uint16
	Properties *Properties
	Filters    []string
}

// DecodeUnsubscribe reads an UNSUBSCRIBE.
func DecodeUnsubscribe(f Frame, v Version) (Unsubscribe, error) {
	if err := checkFlags(f, UNSUBSCRIBE); err != nil {
		return Unsubscribe{}, err
	}
	c := cursor{b: f.Body}
	p := Unsubscribe{ID: c.packetID()}
	if v == V5 {
		p.Properties = c.properties(UNSUBSCRIBE)
	}
	if c.err == nil && len(c.b) == 0 {
		return Unsubscribe{}, violation("UNSUBSCRIBE without a filter")
	}
	for len(c.b) > 0 {
		p.Filters = append(p.Filters, c.string())
	}
	if c.err != nil {
		return Unsubscribe{}, c.err
	}
	return p, nil
}

// Append encodes the packet.
func (p Unsubscribe) Append(dst []byte, v Version) ([]byte, error) {
	start := len(dst)
	dst = binary.BigEndian.AppendUint16(begin(dst, byte(UNSUBSCRIBE)<<4|2), p.ID)
	if v == V5 {
		var err error
		if dst, err = appendProperties(dst, p.Properties); err != nil {
			return dst[:start], err
		}
	}
	for _, filter := range p.Filters {
		if !fits(len(filter)) {
			return dst[:start], ErrTooLong
		}
		dst = appendString(dst, filter)
	}
	return finish(dst, start)
}

// Suback answers a SUBSCRIBE or, with Type UNSUBACK, an UNSUBSCRIBE: one code per
// filter in their order. An UNSUBACK of 3.1.1 has no codes.
type Suback struct {
	Type       Type
	ID         uint16
	Properties *Properties
	Codes      []byte
}

// DecodeSuback reads a SUBACK or UNSUBACK. Codes aliases the frame.
func DecodeSuback(f Frame, v Version) (Suback, error) {
	if f.Type != SUBACK && f.Type != UNSUBACK {
		return Suback{}, violation("expected SUBACK or UNSUBACK, got %v", f.Type)
	}
	if err := checkFlags(f, f.Type); err != nil {
		return Suback{}, err
	}
	c := cursor{b: f.Body}
	p := Suback{Type: f.Type, ID: c.packetID()}
	if v == V5 {
		p.Properties = c.properties(f.Type)
	}
	if f.Type == UNSUBACK && v == V311 {
		return p, c.end()
	}
	if c.err == nil && len(c.b) == 0 {
		c.fail("%v without a code", f.Type)
	}
	p.Codes = c.b
	return p, c.err
}

// Append encodes the packet.
func (p Suback) Append(dst []byte, v Version) ([]byte, error) {
	start := len(dst)
	dst = binary.BigEndian.AppendUint16(begin(dst, byte(p.Type)<<4), p.ID)
	if v == V5 {
		var err error
		if dst, err = appendProperties(dst, p.Properties); err != nil {
			return dst[:start], err
		}
	}
	if p.Type == SUBACK || v == V5 {
		dst = append(dst, p.Codes...)
	}
	return finish(dst, start)
}
