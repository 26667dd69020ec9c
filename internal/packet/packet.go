package packet

import (
	"errors"
	"fmt"
)

// Version is the protocol level of a connection, as CONNECT carries it.
type Version byte

// The versions that this package speaks.
const (
	V311 Version = 4
	V5   Version = 5
)

// Type is the kind of a control packet: the upper half of its first byte.
type Type byte

// The control packet types.
const (
	CONNECT Type = iota + 1
	CONNACK
	PUBLISH
	PUBACK
	PUBREC
	PUBREL
	PUBCOMP
	SUBSCRIBE
	SUBACK
	UNSUBSCRIBE
	UNSUBACK
	PINGREQ
	PINGRESP
	DISCONNECT
	AUTH
)

var typeNames = [16]string{"reserved", "CONNECT", "CONNACK", "PUBLISH", "PUBACK", "PUBREC", "PUBREL", "PUBCOMP",
	"SUBSCRIBE", "SUBACK", "UNSUBSCRIBE", "UNSUBACK", "PINGREQ", "PINGRESP", "DISCONNECT", "AUTH"}

func (t Type) String() string { return typeNames[t&15] }

// Reason codes of MQTT 5 that the gateway sends or looks at.
const (
	Success               byte = 0x00
	NormalDisconnect      byte = 0x00
	DisconnectWithWill    byte = 0x04
	NoMatchingSubscribers byte = 0x10
	NoSubscriptionExisted byte = 0x11
	ContinueAuth          byte = 0x18
	UnspecifiedError      byte = 0x80
	MalformedPacket       byte = 0x81
	ProtocolError         byte = 0x82
	ImplementationError   byte = 0x83
	UnsupportedVersion    byte = 0x84
	InvalidClientID       byte = 0x85
	BadCredentials        byte = 0x86
	NotAuthorized         byte = 0x87
	ServerUnavailable     byte = 0x88
	ServerBusy            byte = 0x89
	BadAuthMethod         byte = 0x8C
	ServerShuttingDown    byte = 0x8B
	KeepAliveTimeout      byte = 0x8D
	SessionTakenOver      byte = 0x8E
	TopicFilterInvalid    byte = 0x8F
	TopicNameInvalid      byte = 0x90
	PacketIDInUse         byte = 0x91
	PacketIDNotFound      byte = 0x92
	ReceiveMaxExceeded    byte = 0x93
	TopicAliasInvalid     byte = 0x94
	PacketTooLarge        byte = 0x95
	MessageRateTooHigh    byte = 0x96
	QuotaExceeded         byte = 0x97
	PayloadFormatInvalid  byte = 0x99
	QoSNotSupported       byte = 0x9B
	SharedNotSupported    byte = 0x9E
	ConnectionRate        byte = 0x9F
	SubIDsNotSupported    byte = 0xA1
	WildcardNotSupported  byte = 0xA2
)

// Return codes of a 3.1.1 CONNACK.
const (
	Accepted             byte = 0
	RefusedVersion       byte = 1
	RefusedClientID      byte = 2
	RefusedUnavailable   byte = 3
	RefusedCredentials   byte = 4
	RefusedNotAuthorized byte = 5
)

// SubackFailure is the only failure that a 3.1.1 SUBACK can carry.
const SubackFailure byte = 0x80

// MaxString is the most bytes that a string or binary field can hold.
const MaxString = 65535

// maxRemaining is the largest remaining length that four bytes can express.
const maxRemaining = 268435455

// Error says why bytes are not an acceptable packet. The connection they came
// on cannot be used any further.
type Error struct {
	Code   byte // the MQTT 5 reason code for a DISCONNECT or CONNACK
	Reason string
}

func (e *Error) Error() string { return e.Reason }

// ErrTooLong says that a string, binary field or packet does not fit the wire
// format; the packet was not encoded.
var ErrTooLong = errors.New("field or packet longer than MQTT can carry")

func malformed(format string, args ...any) error {
	return &Error{Code: MalformedPacket, Reason: fmt.Sprintf(format, args...)}
}

func violation(format string, args ...any) error {
	return &Error{Code: ProtocolError, Reason: fmt.Sprintf(format, args...)}
}

// Frame is one control packet as it stands on the wire. Body is valid until the
// Reader's next call of Next.
type Frame struct {
	Type  Type
	Flags byte
	Body  []byte
}

// Packet is anything that can be put on the wire.
type Packet interface {
	// Append encodes the packet for the version behind dst. On an error dst is
	// returned as it was.
	Append(dst []byte, v Version) ([]byte, error)
}

// checkFlags enforces the fixed flags of all types but PUBLISH (2.2.2 in both
// standards).
func checkFlags(f Frame, want Type) error {
	if f.Type != want {
		return violation("expected %v, got %v", want, f.Type)
	}
	fixed := byte(0)
	if want == PUBREL || want == SUBSCRIBE || want == UNSUBSCRIBE {
		fixed = 2
	}
	if f.Flags != fixed {
		return malformed("%v with flags %#x", want, f.Flags)
	}
	return nil
}

// begin reserves the fixed header; finish fills it in.
func begin(dst []byte, first byte) []byte { return append(dst, first, 0, 0, 0, 0) }

func finish(dst []byte, start int) ([]byte, error) {
	n := len(dst) - start - 5
	if n > maxRemaining {
		return dst[:start], ErrTooLong
	}
	used := putVarint(dst[start+1:start+5], n)
	copy(dst[start+1+used:], dst[start+5:])
	return dst[:start+1+used+n], nil
}

func putVarint(b []byte, n int) int {
	i := 0
	for {
		c := byte(n & 0x7f)
		n >>= 7
		if n > 0 {
			c |= 0x80
		}
		b[i] = c
		i++
		if n == 0 {
			return i
		}
	}
}
