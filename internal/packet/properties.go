package packet

import "encoding/binary"

// PropertyID names an MQTT 5 property (2.2.2.2).
type PropertyID byte

// The properties of MQTT 5.
const (
	PropPayloadFormat         PropertyID = 1
	PropMessageExpiry         PropertyID = 2
	PropContentType           PropertyID = 3
	PropResponseTopic         PropertyID = 8
	PropCorrelationData       PropertyID = 9
	PropSubscriptionID        PropertyID = 11
	PropSessionExpiry         PropertyID = 17
	PropAssignedClientID      PropertyID = 18
	PropServerKeepAlive       PropertyID = 19
	PropAuthMethod            PropertyID = 21
	PropAuthData              PropertyID = 22
	PropRequestProblemInfo    PropertyID = 23
	PropWillDelay             PropertyID = 24
	PropRequestResponseInfo   PropertyID = 25
	PropResponseInfo          PropertyID = 26
	PropServerReference       PropertyID = 28
	PropReasonString          PropertyID = 31
	PropReceiveMaximum        PropertyID = 33
	PropTopicAliasMaximum     PropertyID = 34
	PropTopicAlias            PropertyID = 35
	PropMaximumQoS            PropertyID = 36
	PropRetainAvailable       PropertyID = 37
	PropUser                  PropertyID = 38
	PropMaximumPacketSize     PropertyID = 39
	PropWildcardAvailable     PropertyID = 40
	PropSubIDAvailable        PropertyID = 41
	PropSharedSubAvailable    PropertyID = 42
	maxPropertyID                        = 42
	inWill                    Type       = 0 // stands for the will properties inside CONNECT
	anyAck                               = 1<<PUBACK | 1<<PUBREC | 1<<PUBREL | 1<<PUBCOMP
	reasonCarriers            uint16     = 1<<CONNACK | anyAck | 1<<SUBACK | 1<<UNSUBACK | 1<<DISCONNECT | 1<<AUTH
	messageCarriers           uint16     = 1<<PUBLISH | 1<<inWill
	userPropertyCarriersWider uint16     = reasonCarriers | messageCarriers | 1<<CONNECT | 1<<SUBSCRIBE | 1<<UNSUBSCRIBE
)

// allowedIn says which packets may carry which property; a bit per Type.
var allowedIn = [maxPropertyID + 1]uint16{
	PropPayloadFormat: messageCarriers, PropMessageExpiry: messageCarriers, PropContentType: messageCarriers,
	PropResponseTopic: messageCarriers, PropCorrelationData: messageCarriers,
	PropSubscriptionID: 1<<PUBLISH | 1<<SUBSCRIBE,
	PropSessionExpiry:  1<<CONNECT | 1<<CONNACK | 1<<DISCONNECT, PropAssignedClientID: 1 << CONNACK,
	PropServerKeepAlive: 1 << CONNACK, PropAuthMethod: 1<<CONNECT | 1<<CONNACK | 1<<AUTH,
	PropAuthData: 1<<CONNECT | 1<<CONNACK | 1<<AUTH, PropRequestProblemInfo: 1 << CONNECT,
	PropWillDelay: 1 << inWill, PropRequestResponseInfo: 1 << CONNECT, PropResponseInfo: 1 << CONNACK,
	PropServerReference: 1<<CONNACK | 1<<DISCONNECT, PropReasonString: reasonCarriers,
	PropReceiveMaximum: 1<<CONNECT | 1<<CONNACK, PropTopicAliasMaximum: 1<<CONNECT | 1<<CONNACK,
	PropTopicAlias: 1 << PUBLISH, PropMaximumQoS: 1 << CONNACK, PropRetainAvailable: 1 << CONNACK,
	PropUser: userPropertyCarriersWider, PropMaximumPacketSize: 1<<CONNECT | 1<<CONNACK,
	PropWildcardAvailable: 1 << CONNACK, PropSubIDAvailable: 1 << CONNACK, PropSharedSubAvailable: 1 << CONNACK,
}

// UserProperty is one name and value of MQTT 5; names may repeat and order counts.
type UserProperty struct{ Key, Value string }

// Properties are the properties of one MQTT 5 packet. A field that is not its
// zero value is sent; Mark sends one that is. Has tells a zero value that was
// received from an absent one.
type Properties struct {
	marked uint64

	PayloadFormat       byte
	MessageExpiry       uint32 // seconds
	ContentType         string
	ResponseTopic       string
	CorrelationData     []byte
	SubscriptionIDs     []uint32
	SessionExpiry       uint32 // seconds; 0xFFFFFFFF = never
	AssignedClientID    string
	ServerKeepAlive     uint16 // seconds
	AuthMethod          string
	AuthData            []byte
	RequestProblemInfo  byte
	WillDelay           uint32 // seconds
	RequestResponseInfo byte
	ResponseInfo        string
	ServerReference     string
	ReasonString        string
	ReceiveMaximum      uint16
	TopicAliasMaximum   uint16
	TopicAlias          uint16
	MaximumQoS          byte
	RetainAvailable     byte
	User                []UserProperty
	MaximumPacketSize   uint32 // bytes, the whole packet
	WildcardAvailable   byte
	SubIDAvailable      byte
	SharedSubAvailable  byte
}

// Mark makes a property present although its value is zero.
func (p *Properties) Mark(id PropertyID) { p.marked |= 1 << id }

// Has tells whether a property was received or marked. It is false on nil.
func (p *Properties) Has(id PropertyID) bool { return p != nil && p.marked&(1<<id) != 0 }

// field is where a property of a single value lives; nil for the repeatable ones.
func (p *Properties) field(id PropertyID) any {
	switch id {
	case PropPayloadFormat:
		return &p.PayloadFormat
	case PropMessageExpiry:
		return &p.MessageExpiry
	case PropContentType:
		return &p.ContentType
	case PropResponseTopic:
		return &p.ResponseTopic
	case PropCorrelationData:
		return &p.CorrelationData
	case PropSessionExpiry:
		return &p.SessionExpiry
	case PropAssignedClientID:
		return &p.AssignedClientID
	case PropServerKeepAlive:
		return &p.ServerKeepAlive
	case PropAuthMethod:
		return &p.AuthMethod
	case PropAuthData:
		return &p.AuthData
	case PropRequestProblemInfo:
		return &p.RequestProblemInfo
	case PropWillDelay:
		return &p.WillDelay
	case PropRequestResponseInfo:
		return &p.RequestResponseInfo
	case PropResponseInfo:
		return &p.ResponseInfo
	case PropServerReference:
		return &p.ServerReference
	case PropReasonString:
		return &p.ReasonString
	case PropReceiveMaximum:
		return &p.ReceiveMaximum
	case PropTopicAliasMaximum:
		return &p.TopicAliasMaximum
	case PropTopicAlias:
		return &p.TopicAlias
	case PropMaximumQoS:
		return &p.MaximumQoS
	case PropRetainAvailable:
		return &p.RetainAvailable
	case PropMaximumPacketSize:
		return &p.MaximumPacketSize
	case PropWildcardAvailable:
		return &p.WildcardAvailable
	case PropSubIDAvailable:
		return &p.SubIDAvailable
	case PropSharedSubAvailable:
		return &p.SharedSubAvailable
	}
	return nil
}

// properties reads the property block of a packet of the given type; nil when
// it is empty.
func (c *cursor) properties(in Type) *Properties {
	n := c.varint()
	if c.err != nil || n == 0 {
		return nil
	}
	if n > len(c.b) {
		c.fail("property block longer than the packet")
		return nil
	}
	block := cursor{b: c.b[:n]}
	c.b = c.b[n:]
	p := new(Properties)
	for len(block.b) > 0 {
		block.property(p, in)
	}
	if block.err != nil {
		c.err = block.err
		c.b = nil
		return nil
	}
	return p
}

func (c *cursor) property(p *Properties, in Type) {
	id := PropertyID(c.varint())
	if c.err != nil {
		return
	}
	if id > maxPropertyID || allowedIn[id] == 0 {
		c.fail("unknown property %d", id)
		return
	}
	if allowedIn[id]&(1<<in) == 0 {
		c.stop(violation("property %d does not belong here", id))
		return
	}
	repeated := p.Has(id)
	p.Mark(id)
	switch id {
	case PropUser:
		key := c.string()
		p.User = append(p.User, UserProperty{Key: key, Value: c.string()})
		return
	case PropSubscriptionID:
		n := c.varint()
		if c.err == nil && n == 0 {
			c.stop(violation("subscription identifier 0"))
		}
		p.SubscriptionIDs = append(p.SubscriptionIDs, uint32(n))
		if in == PUBLISH {
			return
		}
	default:
		c.value(p.field(id))
	}
	if repeated {
		c.stop(violation("property %d given twice", id))
		return
	}
	if c.err == nil {
		c.stop(checkValue(id, p))
	}
}

func (c *cursor) stop(err error) {
	if err != nil && c.err == nil {
		c.err = err
		c.b = nil
	}
}

func (c *cursor) value(field any) {
	switch f := field.(type) {
	case *byte:
		*f = c.byte()
	case *uint16:
		*f = c.uint16()
	case *uint32:
		*f = c.uint32()
	case *string:
		*f = c.string()
	case *[]byte:
		*f = c.bytes()
	}
}

// checkValue enforces the ranges that the standard states per property.
func checkValue(id PropertyID, p *Properties) error {
	switch id {
	case PropReceiveMaximum, PropTopicAlias:
		if *p.field(id).(*uint16) == 0 {
			code := ProtocolError
			if id == PropTopicAlias {
				code = TopicAliasInvalid
			}
			return &Error{Code: code, Reason: "property with the value 0"}
		}
	case PropMaximumPacketSize:
		if p.MaximumPacketSize == 0 {
			return violation("maximum packet size 0")
		}
	case PropPayloadFormat, PropRequestProblemInfo, PropRequestResponseInfo, PropMaximumQoS, PropRetainAvailable,
		PropWildcardAvailable, PropSubIDAvailable, PropSharedSubAvailable:
		if *p.field(id).(*byte) > 1 {
			return violation("property %d is neither 0 nor 1", id)
		}
	case PropResponseTopic:
		if !ValidTopic(p.ResponseTopic) {
			return violation("response topic is not a topic name")
		}
	}
	return nil
}

// appendProperties writes the block with its length; a nil p is an empty block.
func appendProperties(dst []byte, p *Properties) ([]byte, error) {
	if p == nil {
		return append(dst, 0), nil
	}
	start := len(dst)
	dst = append(dst, 0, 0, 0, 0)
	for id := PropertyID(1); id <= maxPropertyID; id++ {
		var ok bool
		if dst, ok = p.appendProperty(dst, id); !ok {
			return dst[:start], ErrTooLong
		}
	}
	n := len(dst) - start - 4
	if n > maxRemaining {
		return dst[:start], ErrTooLong
	}
	used := putVarint(dst[start:start+4], n)
	copy(dst[start+used:], dst[start+4:])
	return dst[:start+used+n], nil
}

func (p *Properties) appendProperty(dst []byte, id PropertyID) ([]byte, bool) {
	switch id {
	case PropUser:
		for _, u := range p.User {
			if !fits(len(u.Key), len(u.Value)) {
				return dst, false
			}
			dst = appendString(appendString(append(dst, byte(id)), u.Key), u.Value)
		}
		return dst, true
	case PropSubscriptionID:
		for _, n := range p.SubscriptionIDs {
			var b [4]byte
			used := putVarint(b[:], int(n)&maxRemaining)
			dst = append(append(dst, byte(id)), b[:used]...)
		}
		return dst, true
	}
	always := p.Has(id)
	switch f := p.field(id).(type) {
	case *byte:
		if *f != 0 || always {
			dst = append(dst, byte(id), *f)
		}
	case *uint16:
		if *f != 0 || always {
			dst = binary.BigEndian.AppendUint16(append(dst, byte(id)), *f)
		}
	case *uint32:
		if *f != 0 || always {
			dst = binary.BigEndian.AppendUint32(append(dst, byte(id)), *f)
		}
	case *string:
		if *f != "" || always {
			if !fits(len(*f)) {
				return dst, false
			}
			dst = appendString(append(dst, byte(id)), *f)
		}
	case *[]byte:
		if *f != nil || always {
			if !fits(len(*f)) {
				return dst, false
			}
			dst = appendBytes(append(dst, byte(id)), *f)
		}
	}
	return dst, true
}
