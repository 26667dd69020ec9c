package packet

import "fmt"

// VersionError is a CONNECT of a protocol that is neither MQTT 3.1.1 nor 5; the
// server answers it with RefusedVersion or UnsupportedVersion.
type VersionError struct {
	Name  string
	Level byte
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("protocol %q level %d is neither MQTT 3.1.1 nor 5", e.Name, e.Level)
}

// Connect is the first packet of a connection.
type Connect struct {
	Version     Version
	CleanStart  bool   // clean session in 3.1.1
	KeepAlive   uint16 // seconds, 0 = none
	ClientID    string
	HasUsername bool
	Username    string
	HasPassword bool
	Password    []byte
	Will        *Will
	Properties  *Properties
}

// Will is the message that the server publishes when the connection breaks.
type Will struct {
	Topic      string
	Payload    []byte
	QoS        byte
	Retain     bool
	Properties *Properties
}

// Flags of CONNECT (3.1.2.3).
const (
	flagCleanStart  = 1 << 1
	flagWill        = 1 << 2
	flagWillRetain  = 1 << 5
	flagHasPassword = 1 << 6
	flagHasUsername = 1 << 7
)

// DecodeConnect reads a CONNECT of either version; the version is in the packet.
func DecodeConnect(f Frame) (Connect, error) {
	if err := checkFlags(f, CONNECT); err != nil {
		return Connect{}, err
	}
	c := cursor{b: f.Body}
	name, level := c.string(), c.byte()
	if c.err != nil {
		return Connect{}, c.err
	}
	if name != "MQTT" || (Version(level) != V311 && Version(level) != V5) {
		return Connect{}, &VersionError{Name: name, Level: level}
	}
	p := Connect{Version: Version(level)}
	flags := c.byte()
	p.KeepAlive = c.uint16()
	if c.err == nil {
		c.stop(checkConnectFlags(flags, p.Version))
	}
	if p.Version == V5 {
		p.Properties = c.properties(CONNECT)
		if c.err == nil && p.Properties.Has(PropAuthData) && !p.Properties.Has(PropAuthMethod) {
			c.stop(violation("authentication data without a method"))
		}
	}
	p.CleanStart = flags&flagCleanStart != 0
	p.ClientID = c.string()
	if c.err == nil && flags&flagWill != 0 {
		p.Will = c.will(p.Version, flags)
	}
	if p.HasUsername = flags&flagHasUsername != 0; p.HasUsername {
		p.Username = c.string()
	}
	if p.HasPassword = flags&flagHasPassword != 0; p.HasPassword {
		p.Password = c.bytes()
	}
	return p, c.end()
}

func checkConnectFlags(flags byte, v Version) error {
	switch willQoS := flags >> 3 & 3; {
	case flags&1 != 0:
		return malformed("reserved flag of CONNECT is set")
	case willQoS == 3:
		return malformed("will with QoS 3")
	case flags&flagWill == 0 && (willQoS != 0 || flags&flagWillRetain != 0):
		return malformed("will QoS or retain without a will")
	case v == V311 && flags&flagHasPassword != 0 && flags&flagHasUsername == 0:
		return malformed("password without a user name")
	}
	return nil
}

func (c *cursor) will(v Version, flags byte) *Will {
	w := &Will{QoS: flags >> 3 & 3, Retain: flags&flagWillRetain != 0}
	if v == V5 {
		w.Properties = c.properties(inWill)
	}
	w.Topic = c.string()
	if c.err == nil && !ValidTopic(w.Topic) {
		c.stop(&Error{Code: TopicNameInvalid, Reason: "will topic is not a topic name"})
	}
	w.Payload = c.bytes()
	return w
}

// Append encodes the packet for p.Version; v is not looked at.
func (p Connect) Append(dst []byte, _ Version) ([]byte, error) {
	if !fits(len(p.ClientID), len(p.Username), len(p.Password)) {
		return dst, ErrTooLong
	}
	start := len(dst)
	dst = begin(dst, byte(CONNECT)<<4)
	dst = appendString(dst, "MQTT")
	dst = append(dst, byte(p.Version), p.flags(), byte(p.KeepAlive>>8), byte(p.KeepAlive))
	var err error
	if p.Version == V5 {
		if dst, err = appendProperties(dst, p.Properties); err != nil {
			return dst[:start], err
		}
	}
	dst = appendString(dst, p.ClientID)
	if w := p.Will; w != nil {
		if !fits(len(w.Topic), len(w.Payload)) {
			return dst[:start], ErrTooLong
		}
		if p.Version == V5 {
			if dst, err = appendProperties(dst, w.Properties); err != nil {
				return dst[:start], err
			}
		}
		dst = appendBytes(appendString(dst, w.Topic), w.Payload)
	}
	if p.HasUsername {
		dst = appendString(dst, p.Username)
	}
	if p.HasPassword {
		dst = appendBytes(dst, p.Password)
	}
	return finish(dst, start)
}

func (p Connect) flags() byte {
	var f byte
	if p.CleanStart {
		f |= flagCleanStart
	}
	if p.Will != nil {
		f |= flagWill | p.Will.QoS<<3
		if p.Will.Retain {
			f |= flagWillRetain
		}
	}
	if p.HasUsername {
		f |= flagHasUsername
	}
	if p.HasPassword {
		f |= flagHasPassword
	}
	return f
}

// Connack answers CONNECT. Code is a return code in 3.1.1 and a reason code in 5.
type Connack struct {
	SessionPresent bool
	Code           byte
	Properties     *Properties
}

// DecodeConnack reads a CONNACK.
func DecodeConnack(f Frame, v Version) (Connack, error) {
	if err := checkFlags(f, CONNACK); err != nil {
		return Connack{}, err
	}
	c := cursor{b: f.Body}
	flags := c.byte()
	p := Connack{SessionPresent: flags&1 != 0, Code: c.byte()}
	if flags > 1 {
		c.fail("reserved flags of CONNACK are set")
	}
	if v == V5 {
		p.Properties = c.properties(CONNACK)
	}
	return p, c.end()
}

// Append encodes the packet.
func (p Connack) Append(dst []byte, v Version) ([]byte, error) {
	start := len(dst)
	dst = begin(dst, byte(CONNACK)<<4)
	var flags byte
	if p.SessionPresent {
		flags = 1
	}
	dst = append(dst, flags, p.Code)
	if v == V5 {
		var err error
		if dst, err = appendProperties(dst, p.Properties); err != nil {
			return dst[:start], err
		}
	}
	return finish(dst, start)
}

// Disconnect ends a connection; only MQTT 5 gives it a reason, and only there
// may a server send it.
type Disconnect struct {
	Code       byte
	Properties *Properties
}

// DecodeDisconnect reads a DISCONNECT.
func DecodeDisconnect(f Frame, v Version) (Disconnect, error) {
	if err := checkFlags(f, DISCONNECT); err != nil {
		return Disconnect{}, err
	}
	c := cursor{b: f.Body}
	var p Disconnect
	if v == V5 && len(c.b) > 0 {
		p.Code = c.byte()
		if len(c.b) > 0 {
			p.Properties = c.properties(DISCONNECT)
		}
	}
	return p, c.end()
}

// Append encodes the packet.
func (p Disconnect) Append(dst []byte, v Version) ([]byte, error) {
	return appendReasoned(dst, DISCONNECT, v, p.Code, p.Properties)
}

// Auth carries extended authentication in MQTT 5.
type Auth struct {
	Code       byte
	Properties *Properties
}

// DecodeAuth reads an AUTH.
func DecodeAuth(f Frame, v Version) (Auth, error) {
	if v != V5 {
		return Auth{}, malformed("AUTH in MQTT 3.1.1")
	}
	if err := checkFlags(f, AUTH); err != nil {
		return Auth{}, err
	}
	c := cursor{b: f.Body}
	var p Auth
	if len(c.b) > 0 {
		p.Code = c.byte()
		p.Properties = c.properties(AUTH)
	}
	return p, c.end()
}

// Append encodes the packet.
func (p Auth) Append(dst []byte, v Version) ([]byte, error) {
	return appendReasoned(dst, AUTH, v, p.Code, p.Properties)
}

// appendReasoned encodes a packet that is a reason code and properties, both of
// which may be left out when they say nothing.
func appendReasoned(dst []byte, t Type, v Version, code byte, props *Properties) ([]byte, error) {
	start := len(dst)
	dst = begin(dst, byte(t)<<4)
	if v == V5 && (code != 0 || props != nil) {
		var err error
		if dst, err = appendProperties(append(dst, code), props); err != nil {
			return dst[:start], err
		}
	}
	return finish(dst, start)
}

// AppendPing encodes a PINGREQ or PINGRESP.
func AppendPing(dst []byte, t Type) []byte { return append(dst, byte(t)<<4, 0) }

// DecodePing checks a PINGREQ or PINGRESP.
func DecodePing(f Frame) error {
	if f.Flags != 0 || len(f.Body) != 0 {
		return malformed("%v with flags or a body", f.Type)
	}
	return nil
}
