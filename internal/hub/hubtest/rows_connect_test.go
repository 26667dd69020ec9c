package hubtest

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"strings"
	"testing/synctest"
	"time"

	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/packet"
)

func tlsRows() []rowTest {
	mismatched := func(r *rig) tls.Certificate {
		c := r.issue(certtest.Leaf{CN: "press-7"}).TLS()
		c.PrivateKey = r.issue(certtest.Leaf{CN: "press-7"}).Key
		return c
	}
	return []rowTest{
		{1, "01 plaintext", Options{}, func(r *rig) {
			c := &client{rig: r, nc: r.raw()}
			c.in = packet.NewReader(c.nc, 0)
			c.send(connectPacket("press-7"))
			c.wantClosed()
		}},
		{2, "02 TLS 1.1", Options{}, func(r *rig) {
			conf := r.tlsConfig()
			conf.MinVersion, conf.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
			if c := r.dialWith(conf); c.err == nil || !strings.Contains(c.err.Error(), "protocol version") {
				r.Fatalf("handshake: %v, want a protocol version alert", c.err)
			}
		}},
		{3, "03 no server name", Options{DeviceEndpoint: true}, func(r *rig) {
			conf := r.tlsConfig()
			conf.ServerName, conf.InsecureSkipVerify = "", true
			if !r.dialWith(conf).handshakeRefused() {
				r.Fatal("handshake went through")
			}
		}},
		{3, "03 weak suite", Options{DeviceEndpoint: true}, func(r *rig) {
			conf := r.tlsConfig()
			conf.MaxVersion = tls.VersionTLS12
			conf.CipherSuites = []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}
			if !r.dialWith(conf).handshakeRefused() {
				r.Fatal("handshake went through")
			}
			if c := r.dial(nil); c.err != nil {
				r.Fatalf("a good client: %v", c.err)
			}
		}},
		{4, "04 no proof of the key", Options{}, func(r *rig) {
			if !r.dialWith(r.tlsConfig(mismatched(r))).handshakeRefused() {
				r.Fatal("handshake went through")
			}
			synctest.Wait()
			all := r.hub.Connections()
			if got := all[len(all)-1].Outcome; got != OutcomeTLS {
				r.Fatalf("outcome %q, want %q", got, OutcomeTLS)
			}
		}},
		{4, "04 malformed certificate", Options{}, func(r *rig) {
			c := r.issue(certtest.Leaf{CN: "press-7"}).TLS()
			c.Certificate = [][]byte{[]byte("garbage")}
			if !r.dialWith(r.tlsConfig(c)).handshakeRefused() {
				r.Fatal("handshake went through")
			}
		}},
		{5, "05 A: CONNACK 5", Options{}, func(r *rig) {
			for name, pair := range badCertificates(r) {
				c := r.dial(pair)
				c.send(connectPacket("press-7"))
				r.Log(name)
				c.wantConnack(packet.RefusedNotAuthorized)
				r.wantClosedRow(5)
			}
		}},
		{5, "05 B: TLS alert", Options{CertFailure: TLSAlert}, func(r *rig) {
			for name, pair := range badCertificates(r) {
				if !r.dial(pair).handshakeRefused() {
					r.Fatalf("%s: handshake went through", name)
				}
			}
			self := r.issue(certtest.Leaf{CN: "self"})
			stranger := must(must(certtest.NewCA("self"))(r).Issue(certtest.Leaf{CN: "self"}))(r)
			r.add(Device{DeviceID: "self", Thumbprints: []string{stranger.SHA256()}})
			for _, pair := range []*certtest.Pair{stranger, self} {
				c := r.dial(pair)
				c.send(connectPacket("self"))
				want := packet.Accepted
				if pair == self {
					want = packet.RefusedNotAuthorized
				}
				c.wantConnack(want)
			}
		}},
		{5, "05 C: silent close", Options{CertFailure: CloseSilently}, func(r *rig) {
			for _, pair := range badCertificates(r) {
				c := r.dial(pair)
				c.send(connectPacket("press-7"))
				c.wantClosed()
				r.wantClosedRow(5)
			}
		}},
	}
}

func badCertificates(r *rig) map[string]*certtest.Pair {
	now := time.Now()
	mid := must(r.ca.Intermediate("line 2"))(r)
	incomplete := must(mid.Issue(certtest.Leaf{CN: "press-7"}))(r)
	incomplete.Chain = incomplete.Chain[:1]
	return map[string]*certtest.Pair{
		"expired":          r.issue(certtest.Leaf{CN: "press-7", NotBefore: now.Add(-2 * time.Hour), NotAfter: now.Add(-time.Hour)}),
		"not yet valid":    r.issue(certtest.Leaf{CN: "press-7", NotBefore: now.Add(time.Hour)}),
		"unknown CA":       must(must(certtest.NewCA("stranger"))(r).Issue(certtest.Leaf{CN: "press-7"}))(r),
		"chain incomplete": incomplete,
	}
}

// refusedBy makes a row in which a changed CONNECT gets a CONNACK.
func refusedBy(row int, name string, opt Options, code byte, change func(*packet.Connect)) rowTest {
	return rowTest{row, name, opt, func(r *rig) {
		c := r.dial(r.issue(certtest.Leaf{CN: "press-7"}))
		p := connectPacket("press-7")
		change(&p)
		c.send(p)
		c.wantConnack(code)
		r.wantClosedRow(row)
	}}
}

// admitted makes a row in which a changed CONNECT is accepted.
func admitted(row int, name string, opt Options, change func(*packet.Connect)) rowTest {
	return rowTest{row, name, opt, func(r *rig) {
		c := r.dial(r.issue(certtest.Leaf{CN: "press-7"}))
		p := connectPacket("press-7")
		change(&p)
		c.send(p)
		c.wantConnack(packet.Accepted)
		c.alive()
	}}
}

// withCert makes a row in which press-7 comes with a certificate of the test's choice.
func withCert(row int, name string, opt Options, code byte, identity string, leaf func(r *rig) *certtest.Pair) rowTest {
	return rowTest{row, name, opt, func(r *rig) {
		c := r.dial(leaf(r))
		c.send(connectPacket(identity))
		c.wantConnack(code)
	}}
}

func username7(s string) func(*packet.Connect) {
	return func(p *packet.Connect) { p.Username = strings.ReplaceAll(s, "HOST", DefaultHostName) }
}

const five = packet.RefusedNotAuthorized

func connectRows() []rowTest {
	rows := []rowTest{
		{6, "06 first packet not CONNECT", Options{}, func(r *rig) {
			c := r.dial(r.issue(certtest.Leaf{CN: "press-7"}))
			c.write(packet.AppendPing(nil, packet.PINGREQ))
			c.wantClosed()
			r.wantRow(6)
		}},
		{6, "06 second CONNECT", Options{}, func(r *rig) {
			c := r.online("press-7")
			c.send(connectPacket("press-7"))
			c.wantClosed()
			r.wantRow(6)
		}},
		{7, "07 no CONNECT", Options{}, func(r *rig) {
			c := r.dial(r.issue(certtest.Leaf{CN: "press-7"}))
			c.wantQuiet(59 * time.Second)
			c.wantClosedWithin(2 * time.Second)
			r.wantClosedRow(7)
		}},
		refusedBy(8, "08 level 5", Options{}, packet.RefusedVersion, func(p *packet.Connect) { p.Version = packet.V5 }),
		{8, "08 level 3", Options{}, func(r *rig) {
			c := r.dial(nil)
			c.write(connectBytes("MQTT", 3, 0))
			c.wantConnack(packet.RefusedVersion)
		}},
		{8, "08 name", Options{}, func(r *rig) {
			c := r.dial(nil)
			c.write(connectBytes("MQIsdp", 3, 0))
			c.wantClosed()
			r.wantRow(8)
		}},
		{8, "08 reserved flag", Options{}, func(r *rig) {
			c := r.dial(nil)
			c.write(connectBytes("MQTT", 4, 1))
			c.wantClosed()
			r.wantRow(8)
		}},
		{8, "08 level, closing", Options{CloseOnLevel: true}, func(r *rig) {
			c := r.dial(nil)
			c.write(connectBytes("MQTT", 3, 0))
			c.wantClosed()
		}},
		refusedBy(9, "09 empty client id", Options{}, five, func(p *packet.Connect) { p.ClientID = "" }),
		refusedBy(9, "09 other client id", Options{}, five, func(p *packet.Connect) { p.ClientID = "press-8" }),
		refusedBy(10, "10 no user name", Options{}, five, func(p *packet.Connect) { p.HasUsername = false }),
		refusedBy(10, "10 edge", Options{Edge: true}, packet.RefusedUnavailable, username7("HOST/press-7")),
		refusedBy(11, "11 other host", Options{}, five, username7("other.azure-devices.net/press-7/?api-version=2021-04-12")),
		admitted(11, "11 edge does not look", Options{Edge: true}, username7("gateway.local/press-7/?api-version=2021-04-12")),
		admitted(11, "11 any host", Options{AnyHost: true}, username7("gateway.local/press-7/?api-version=2021-04-12")),
		admitted(12, "12 any api-version", Options{AnyAPIVersion: true}, username7("HOST/press-7/?api-version=1999-01-01")),
		admitted(10, "10 the older form without ?", Options{}, username7("HOST/press-7/api-version=2019-10-01")),
		admitted(10, "10 other parameters", Options{}, username7("HOST/press-7/?x=1&api-version=2021-04-12&DeviceClientType=a%2Fb&model-id=dtmi%3Ax%3B1")),
		admitted(15, "15 password allowed", Options{AllowPassword: true}, func(p *packet.Connect) { p.HasPassword, p.Password = true, []byte("x") }),
		admitted(15, "15 empty password", Options{}, func(p *packet.Connect) { p.HasPassword = true }),
		withCert(5, "05 clock offset", Options{ClockOffset: 60 * 24 * time.Hour}, five, "press-7", func(r *rig) *certtest.Pair {
			return r.issue(certtest.Leaf{CN: "press-7"})
		}),
		withCert(17, "17 CN of a self-signed one, checked", Options{CheckCNWithThumbprint: true}, five, "self", func(r *rig) *certtest.Pair {
			p := r.issue(certtest.Leaf{CN: "anything"})
			r.add(Device{DeviceID: "self", Thumbprints: []string{p.SHA256()}})
			return p
		}),
		refusedBy(12, "12 api-version", Options{}, five, username7("HOST/press-7/?api-version=1999-01-01")),
		refusedBy(13, "13 unknown", Options{}, five, func(p *packet.Connect) { *p = connectPacket("press-9") }),
		refusedBy(13, "13 case", Options{}, five, func(p *packet.Connect) { *p = connectPacket("Press-7") }),
		{13, "13 disabled", Options{}, func(r *rig) {
			_ = r.hub.SetDisabled("press-7", true)
			c := r.dial(r.issue(certtest.Leaf{CN: "press-7"}))
			c.send(connectPacket("press-7"))
			c.wantConnack(five)
			r.wantClosedRow(13)
		}},
		withCert(14, "14 no certificate", Options{}, five, "press-7", func(*rig) *certtest.Pair { return nil }),
		refusedBy(15, "15 password too", Options{}, five, func(p *packet.Connect) { p.HasPassword, p.Password = true, []byte("x") }),
		withCert(16, "16 key identity with certificate", Options{}, five, "keyed", func(r *rig) *certtest.Pair {
			return r.issue(certtest.Leaf{CN: "keyed"})
		}),
		{16, "16 certificate identity with token", Options{}, func(r *rig) {
			c := r.dial(nil)
			c.send(withToken("press-7", token("press-7", "secret", time.Now().Add(time.Hour))))
			c.wantConnack(five)
			r.wantClosedRow(16)
		}},
		withCert(17, "17 CN", Options{}, five, "press-7", func(r *rig) *certtest.Pair { return r.issue(certtest.Leaf{CN: "PRESS-7"}) }),
		withCert(18, "18 leaf is a CA", Options{}, five, "press-7", func(r *rig) *certtest.Pair {
			return r.issue(certtest.Leaf{CN: "press-7", IsCA: true})
		}),
		withCert(18, "18 leaf is a CA, allowed", Options{AllowCALeaf: true}, packet.Accepted, "press-7", func(r *rig) *certtest.Pair {
			return r.issue(certtest.Leaf{CN: "press-7", IsCA: true})
		}),
		{18, "18 registered CA expired", Options{ClientCAs: []*x509.Certificate{}}, func(r *rig) {
			old := must(certtest.NewCAValid("old", certtest.Validity{NotAfter: time.Now().Add(-time.Minute)}))(r)
			r.hub.AddCA(old.Cert)
			c := r.dial(must(old.Issue(certtest.Leaf{CN: "press-7"}))(r))
			c.send(connectPacket("press-7"))
			c.wantConnack(five)
		}},
		withCert(19, "19 EKU", Options{}, five, "press-7", func(r *rig) *certtest.Pair {
			return r.issue(certtest.Leaf{CN: "press-7", NoClientAuth: true})
		}),
		withCert(19, "19 EKU, ignored", Options{IgnoreEKU: true}, packet.Accepted, "press-7", func(r *rig) *certtest.Pair {
			return r.issue(certtest.Leaf{CN: "press-7", NoClientAuth: true})
		}),
		withCert(20, "20 thumbprint", Options{}, five, "self", func(r *rig) *certtest.Pair {
			r.add(Device{DeviceID: "self", Thumbprints: []string{strings.Repeat("0", 40), strings.Repeat("1", 64)}})
			return r.issue(certtest.Leaf{CN: "self"})
		}),
		withCert(20, "20 either slot, either case", Options{}, packet.Accepted, "self", func(r *rig) *certtest.Pair {
			p := r.issue(certtest.Leaf{CN: "anything"})
			r.add(Device{DeviceID: "self", Thumbprints: []string{strings.Repeat("0", 40), strings.ToLower(p.SHA256())}})
			return p
		}),
		withCert(21, "21 rotated identifier", Options{}, five, "press-7", func(r *rig) *certtest.Pair {
			r.add(Device{DeviceID: "press-7", ManagedID: "two"})
			return r.issue(certtest.Leaf{CN: "press-7", ManagedID: "one"})
		}),
		withCert(22, "22 module with the device's CN", Options{}, five, "press-7/agent", func(r *rig) *certtest.Pair {
			return r.issue(certtest.Leaf{CN: "press-7"})
		}),
		withCert(22, "22 module in edge mode", Options{Edge: true}, five, "press-7/agent", func(r *rig) *certtest.Pair {
			return r.issue(certtest.Leaf{CN: "press-7/agent"})
		}),
		withCert(22, "22 module", Options{}, packet.Accepted, "press-7/agent", func(r *rig) *certtest.Pair {
			return r.issue(certtest.Leaf{CN: "press-7/agent"})
		}),
		{23, "23 tokens", Options{}, func(r *rig) {
			for _, tt := range []struct {
				password string
				code     byte
			}{
				{token("keyed", "secret", time.Now().Add(time.Hour)), packet.Accepted},
				{token("keyed", "secret", time.Now().Add(-time.Second)), five},
				{token("keyed", "wrong", time.Now().Add(time.Hour)), five},
				{token("press-7", "secret", time.Now().Add(time.Hour)), five},
				{"anything", five},
			} {
				c := r.dial(nil)
				c.send(withToken("keyed", tt.password))
				c.wantConnack(tt.code)
			}
		}},
		{25, "25 connect rate", Options{}, func(r *rig) {
			r.hub.ThrottleConnects(1)
			start := time.Now()
			for i := range 4 {
				r.online("press-7")
				if got, want := time.Since(start), time.Duration(i)*time.Second; got != want {
					r.Fatalf("connect %d after %v, want %v", i, got, want)
				}
			}
		}},
		{25, "25 refused", Options{}, func(r *rig) {
			r.hub.ThrottleConnects(0.01)
			r.online("press-7")
			c := r.dial(r.issue(certtest.Leaf{CN: "press-8"}))
			c.send(connectPacket("press-8"))
			c.wantConnack(five)
			r.wantClosedRow(25)
		}},
		{25, "25 closed", Options{CloseOnConnectThrottle: true}, func(r *rig) {
			r.hub.ThrottleConnects(0.01)
			r.online("press-7")
			c := r.dial(r.issue(certtest.Leaf{CN: "press-8"}))
			c.send(connectPacket("press-8"))
			c.wantClosed()
		}},
	}
	for _, name := range []string{
		"HOST/press-7", "HOST/press-7/x/y/?api-version=2021-04-12", "HOST/press-7/?", "HOST/press-7/?api-version=",
		"HOST/press-7/?api-version", "HOST//?api-version=2021-04-12", "HOST/press%2D7/?api-version=2021-04-12",
		"HOST/press-7?api-version=2021-04-12", "HOST/press-7/x?api-version=2021-04-12",
	} {
		row := refusedBy(10, "10 "+name, Options{}, five, username7(name))
		if strings.Contains(name, "%") { // ids are not decoded, so it names another identity than the client id
			row.run = func(r *rig) {
				c := r.dial(r.issue(certtest.Leaf{CN: "press-7"}))
				p := connectPacket("press-7")
				username7(name)(&p)
				c.send(p)
				c.wantConnack(five)
			}
		}
		rows = append(rows, row)
	}
	return rows
}

// connectBytes is a CONNECT that the codec would not write.
func connectBytes(name string, level, flags byte) []byte {
	body := append([]byte{0, byte(len(name))}, name...)
	body = append(body, level, flags, 0, 60, 0, 1, 'x')
	return append([]byte{byte(packet.CONNECT) << 4, byte(len(body))}, body...)
}

func withToken(identity, password string) packet.Connect {
	p := connectPacket(identity)
	p.HasPassword, p.Password = true, []byte(password)
	return p
}

func token(device, key string, expiry time.Time) string {
	sr := string(escape(nil, DefaultHostName+"/devices/"+device))
	se := fmt.Sprint(expiry.Unix())
	mac := hmac.New(sha256.New, []byte(key))
	mac.Write([]byte(sr + "\n" + se))
	sig := string(escape(nil, base64.StdEncoding.EncodeToString(mac.Sum(nil))))
	return "SharedAccessSignature sr=" + sr + "&sig=" + sig + "&se=" + se
}
