package certstore

import (
	"crypto/tls"
	"net"
	"testing"

	"gatewayd/internal/certstore/certtest"
)

// TestCertificateIsSentWhateverTheServerNames presents the credential as TLSCertificate says, to a server whose list of
// acceptable issuers names another one, in both versions of TLS.
func TestCertificateIsSentWhateverTheServerNames(t *testing.T) {
	site, err := certtest.NewCA("site")
	must(t, err)
	stranger, err := certtest.NewCA("stranger")
	must(t, err)
	server, err := site.Issue(certtest.Leaf{CN: "hub", DNS: []string{"hub"}})
	must(t, err)
	p := pair(t, certtest.Leaf{})
	c, err := Parse(p.CertPEM, p.KeyPEM, nil)
	must(t, err)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			must(t, err)
			defer l.Close()
			got := make(chan tls.ConnectionState, 1)
			go func() {
				conn, err := l.Accept()
				if err != nil {
					close(got)
					return
				}
				defer conn.Close()
				s := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{server.TLS()}, ClientAuth: tls.RequestClientCert, ClientCAs: stranger.Pool()})
				_ = s.Handshake()
				got <- s.ConnectionState()
			}()
			conn, err := net.Dial("tcp", l.Addr().String())
			must(t, err)
			defer conn.Close()
			client := tls.Client(conn, &tls.Config{ServerName: "hub", RootCAs: site.Pool(), MaxVersion: version,
				GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.TLSCertificate() }})
			must(t, client.Handshake())
			st := <-got
			if len(st.PeerCertificates) != len(c.Chain()) || !st.PeerCertificates[0].Equal(c.Leaf()) {
				t.Errorf("the server saw %d certificates", len(st.PeerCertificates))
			}
		})
	}
}
