package packet

import "encoding/binary"

// Publish carries one application message. ID is 0 exactly when QoS is 0.
type Publish struct {
	Dup        bool
	QoS        byte
	Retain     bool
	Topic      string // empty only in MQTT 5 together with a topic alias
	ID         uint16
	Properties *Properties
	Payload    []byte
}

// DecodePublish reads a PUBLISH. Payload aliases the frame.
func DecodePublish(f Frame, v Version) (Publish, error) {
	if f.Type != PUBLISH {
		return Publish{}, violation("expected PUBLISH, got %v", f.Type)
	}
	p := Publish{Dup: f.Flags&8 != 0, QoS: f.Flags >> 1 & 3, Retain: f.Flags&1 != 0}
	switch {
	case p.QoS == 3:
		return Publish{}, malformed("PUBLISH with QoS 3")
	case p.QoS == 0 && p.Dup:
		return Publish{}, malformed("PUBLISH with QoS 0 and the DUP flag")
	}
	c := cursor{b: f.Body}
	p.Topic = c.string()
	if p.QoS > 0 {
		p.ID = c.packetID()
	}
	if v == V5 {
		p.Properties = c.properties(PUBLISH)
	}
	if c.err != nil {
		return Publish{}, c.err
	}
	if p.Topic == "" {
		if !p.Properties.Has(PropTopicAlias) {
			return Publish{}, violation("PUBLISH with neither a topic name nor a topic alias")
		}
	} else if !ValidTopic(p.Topic) {
		return Publish{}, &Error{Code: TopicNameInvalid, Reason: "topic name with a wildcard"}
	}
	p.Payload = c.b
	return p, nil
}

// Append encodes the packet.
func (p Publish) Append(dst []byte, v Version) ([]byte, error) {
	if !fits(len(p.Topic)) {
		return dst, ErrTooLong
	}
	first := byte(PUBLISH)<<4 | p.QoS<<1
	if p.Dup {
		first |= 8
	}
	if p.Retain {
		first |= 1
	}
	start := len(dst)
	dst = appendString(begin(dst, first), p.Topic)
	if p.QoS > 0 {
		dst = binary.BigEndian.AppendUint16(dst, p.ID)
	}
	if v == V5 {
		var err error
		if dst, err = appendProperties(dst, p.Properties); err != nil {
			return dst[:start], err
		}
	}
	return finish(append(dst, p.Payload...), start)
}

// Ack is a PUBACK, PUBREC, PUBREL or PUBCOMP. Code and Properties exist in MQTT 5 only.
type Ack struct {
	Type       Type
	ID         uint16
	Code       byte
	Properties *Properties
}

// DecodeAck reads any of the four acknowledgements.
func DecodeAck(f Frame, v Version) (Ack, error) {
	if f.Type < PUBACK || f.Type > PUBCOMP {
		return Ack{}, violation("expected an acknowledgement, got %v", f.Type)
	}
	if err := checkFlags(f, f.Type); err != nil {
		return Ack{}, err
	}
	c := cursor{b: f.Body}
	p := Ack{Type: f.Type, ID: c.packetID()}
	if v == V5 && len(c.b) > 0 {
		p.Code = c.byte()
		if len(c.b) > 0 {
			p.Properties = c.properties(f.Type)
		}
	}
	return p, c.end()
}

// Append encodes the packet.
func (p Ack) Append(dst []byte, v Version) ([]byte, error) {
	first := byte(p.Type) << 4
	if p.Type == PUBREL {
		first |= 2
	}
	if v != V5 || (p.Code == 0 && p.Properties == nil) {
		return append(dst, first, 2, byte(p.ID>>8), byte(p.ID)), nil
	}
	start := len(dst)
	dst = append(begin(dst, first), byte(p.ID>>8), byte(p.ID), p.Code)
	if p.Properties != nil {
		var err error
		if dst, err = appendProperties(dst, p.Properties); err != nil {
			return dst[:start], err
		}
	}
	return finish(dst, start)
}
