package downstream

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"gatewayd/internal/packet"
)

// refusal is a CONNECT that is answered with a failure.
type refusal struct {
	v5, v311 byte // codes; v311 0 = no CONNACK can say it
	err      error
}

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

const maxClientID = 256

// tlsRecord begins what a TLS client sends first; here it looks like a CONNECT with
// flags that there are not.
const tlsRecord = 0x16

var errSpeaksTLS = errors.New("the client speaks TLS and this listener does not: listen on tls://, with tls.cert and tls.key, or have the client use the other port")

// connect waits for the CONNECT and answers it. After an error the connection is
// of no use; the answer that explains it is on its way.
func (c *conn) connect() error {
	f, err := c.in.next()
	if err != nil {
		return err
	}
	p, err := packet.DecodeConnect(f)
	if f.Type == packet.CONNECT && f.Flags == tlsRecord&0xf {
		return errSpeaksTLS
	}
	if err != nil {
		c.refuseUndecoded(err)
		return err
	}
	c.version = p.Version
	if err := c.welcome(p); err != nil {
		var r *refusal
		if errors.As(err, &r) {
			c.connack(r)
		}
		return err
	}
	return nil
}

// refuseUndecoded answers a CONNECT whose version is unknown to this side.
func (c *conn) refuseUndecoded(err error) {
	var wrong *packet.VersionError
	if !errors.As(err, &wrong) {
		return
	}
	// 3.1.2.2 of either standard: the answer is in the form of the client's version.
	c.version = packet.V311
	if wrong.Level > byte(packet.V5) {
		c.version = packet.V5
	}
	c.connack(&refusal{v5: packet.UnsupportedVersion, v311: packet.RefusedVersion, err: err})
}

func (c *conn) connack(r *refusal) {
	a := packet.Connack{Code: r.v5}
	if c.version == packet.V311 {
		a.Code = r.v311
		if a.Code == 0 {
			return
		}
	}
	_ = c.send(func(b []byte) ([]byte, error) { return a.Append(b, c.version) })
}

func (c *conn) welcome(p packet.Connect) error {
	assigned, err := c.identify(&p)
	if err != nil {
		return err
	}
	if err := c.login(p); err != nil {
		return err
	}
	if p.Will != nil {
		if c.version == packet.V5 && p.Will.QoS > 1 {
			return &refusal{v5: packet.QoSNotSupported, err: errors.New("will with QoS 2, at most 1 is supported")}
		}
		c.will = keepWill(p.Will)
	}
	c.keepAlive = time.Duration(p.KeepAlive) * time.Second * 3 / 2
	c.sendMax = 65535
	c.problems = c.version == packet.V5
	if props := p.Properties; props != nil {
		if props.Has(packet.PropReceiveMaximum) {
			c.sendMax = int(props.ReceiveMaximum)
		}
		c.packetMax = int(min(props.MaximumPacketSize, 1<<30))
		if props.Has(packet.PropRequestProblemInfo) && props.RequestProblemInfo == 0 {
			c.problems = false
		}
	}
	// A reason string must not push a packet over the client's limit; with such a
	// limit none is sent.
	c.problems = c.problems && c.packetMax == 0
	c.sendMax = min(c.sendMax, maxFlight)
	c.counters = c.server.source.Client(c.id)
	if c.azure != nil {
		c.counters = c.server.gate.ledger.Source("azure").Client(c.id)
	}
	return c.enterSession(p, assigned)
}

// identify settles the client id. It returns the one that was made up, if any.
func (c *conn) identify(p *packet.Connect) (assigned string, err error) {
	if p.Properties.Has(packet.PropAuthMethod) {
		return "", &refusal{v5: packet.BadAuthMethod, err: errors.New("extended authentication is not supported")}
	}
	if len(p.ClientID) > maxClientID {
		return "", &refusal{v5: packet.InvalidClientID, v311: packet.RefusedClientID, err: fmt.Errorf("client id longer than %d bytes", maxClientID)}
	}
	if p.ClientID != "" {
		c.id, c.key = p.ClientID, p.ClientID
		return "", nil
	}
	if c.version == packet.V311 && !p.CleanStart {
		return "", &refusal{v311: packet.RefusedClientID, err: errors.New("no client id and no clean session")}
	}
	random := make([]byte, 12)
	if _, err := rand.Read(random); err != nil {
		return "", err
	}
	c.id = "auto-" + hex.EncodeToString(random)
	c.key = c.id
	return c.id, nil
}

func (c *conn) login(p packet.Connect) error {
	if name, ok := parseAzureName(p.Username); ok && c.server.azure != nil {
		return c.loginAzure(p, name)
	}
	cn, hasCN := c.commonName()
	ctx, cancel := context.WithTimeout(c.context(), c.server.cfg.ConnectTimeout/2)
	defer cancel()
	user, err := c.server.access.login(ctx, cn, hasCN, p.Username, p.Password)
	switch {
	case err == nil:
		c.user = user
		return nil
	case errors.Is(err, errCredentials):
		return &refusal{v5: packet.BadCredentials, v311: packet.RefusedCredentials, err: err}
	case errors.Is(err, errBusy):
		return &refusal{v5: packet.ServerBusy, v311: packet.RefusedUnavailable, err: err}
	}
	return &refusal{v5: packet.NotAuthorized, v311: packet.RefusedNotAuthorized, err: err}
}

func (c *conn) commonName() (cn string, ok bool) {
	cert := c.certificate()
	if cert == nil {
		return "", false
	}
	return cert.Subject.CommonName, true
}

// certificate is the client's, which client_ca vouches for; nil = none.
func (c *conn) certificate() *x509.Certificate {
	state := c.upgraded
	if t, isTLS := c.stream.(*tls.Conn); isTLS {
		s := t.ConnectionState()
		state = &s
	}
	if state == nil || len(state.VerifiedChains) == 0 {
		return nil
	}
	return state.PeerCertificates[0]
}

// enterSession takes over the session of the client id and greets the client.
func (c *conn) enterSession(p packet.Connect, assigned string) error {
	expiry := c.server.local.sessionExpiry(p)
	present, err := c.server.local.attach(c, p.CleanStart, expiry)
	if err != nil {
		return &refusal{v5: packet.InvalidClientID, v311: packet.RefusedClientID, err: err}
	}
	a := packet.Connack{SessionPresent: present}
	if c.version == packet.V5 {
		a.Properties = c.offers(p, expiry, assigned)
	}
	// From here on limits are those of a client; the CONNECT deadline is over.
	c.readBy.Store(0)
	return c.send(func(b []byte) ([]byte, error) {
		c.greeted = true
		return a.Append(b, c.version)
	})
}

// offers are the properties of a good CONNACK: what this gate can do and cannot.
func (c *conn) offers(p packet.Connect, expiry time.Duration, assigned string) *packet.Properties {
	o := &packet.Properties{
		ReceiveMaximum:    uint16(c.server.cfg.InFlight),
		MaximumPacketSize: uint32(c.server.cfg.MaxPacket),
		TopicAliasMaximum: topicAliases,
		AssignedClientID:  assigned,
	}
	o.MaximumQoS = 1
	o.Mark(packet.PropSharedSubAvailable) // 0: none
	if p.Properties != nil {
		if asked := p.Properties.SessionExpiry; uint32(expiry/time.Second) != asked {
			o.SessionExpiry = uint32(expiry / time.Second)
			o.Mark(packet.PropSessionExpiry)
		}
	}
	return o
}

// keepWill copies a will out of the frame that it came in.
func keepWill(w *packet.Will) *packet.Will {
	kept := *w
	kept.Payload = append([]byte(nil), w.Payload...)
	if w.Properties != nil {
		props := *w.Properties
		props.CorrelationData = nil
		kept.Properties = &props
	}
	return &kept
}

// publishWill hands the will in like any other message of the client.
func (c *conn) publishWill(w *packet.Will) {
	p := packet.Publish{Topic: w.Topic, Payload: w.Payload, Retain: w.Retain, Properties: w.Properties}
	var decision Decision
	var err error
	if c.azure != nil {
		err = c.publishAzureWill(p)
	} else if decision, err = c.decideAnew(w.Topic); err == nil {
		a := c.arrival(p)
		a.mark(PropertyWill)
		err = c.server.gate.accept(c.context(), a, decision, func(uint64, error) {})
	}
	if err != nil {
		c.counters.refused(w.Topic, err)
		c.note("will refused", zap.String("topic", clip(w.Topic)), zap.Error(err))
	}
}
