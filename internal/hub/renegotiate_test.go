package hub

import (
	"bufio"
	"context"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/hub/hubtest"
)

// TestCertificateIsGivenWhenTheHubRenegotiates has openssl's server ask for the
// certificate only after the request for a WebSocket, as the classic endpoint does on
// port 443. No Go server can. Over port 8883 the same is refused.
func TestCertificateIsGivenWhenTheHubRenegotiates(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("openssl"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("openssl is not installed")
	}
	ca := must(certtest.NewCA("hub root"))
	dir := t.TempDir()
	server := must(ca.Issue(certtest.Leaf{CN: hubtest.DefaultHostName, DNS: []string{hubtest.DefaultHostName}}))
	if err := server.Write(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")); err != nil {
		t.Fatal(err)
	}
	port := must(net.Listen("tcp", "127.0.0.1:0"))
	address := port.Addr().String()
	port.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "openssl", "s_server", "-accept", address, "-tls1_2", "-cert", "cert.pem", "-key", "key.pem", "-naccept", "1")
	cmd.Dir = dir
	in, out := must(cmd.StdinPipe()), must(cmd.StdoutPipe())
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer in.Close()
	said := bufio.NewScanner(out)
	for said.Scan() && !strings.HasPrefix(said.Text(), "ACCEPT") {
	}
	answering := make(chan struct{})
	go func() {
		defer close(answering)
		var key string
		for said.Scan() {
			line := strings.TrimSpace(said.Text())
			if k, ok := strings.CutPrefix(line, "Sec-Websocket-Key: "); ok {
				key = k
			}
			switch {
			case line == "" && key != "":
				fmt.Fprint(in, "R\n") // renegotiate, and ask for a certificate
			case strings.HasPrefix(line, "SSL_do_handshake"): // it has taken that in
				sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
				fmt.Fprintf(in, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Protocol: mqtt\r\nSec-WebSocket-Accept: %s\r\n\r\n",
					base64.StdEncoding.EncodeToString(sum[:]))
				key = ""
			}
		}
	}()
	cfg := Config{Identity: Identity{HostName: hubtest.DefaultHostName, DeviceID: "dev-1", Address: address}, Transport: OverWebSocket,
		Roots: func() *x509.CertPool { return ca.Pool() }}.withDefaults()
	d := dialer{cfg: &cfg}
	tr, f := d.dial(ctx, issue(t, ca, certtest.Leaf{}))
	if f != nil {
		t.Fatalf("%s: %v, cause %v", f.Kind, f, f.Err)
	}
	defer func() { tr.raw.Close(); <-answering }()
	if !tr.presented.Load() {
		t.Error("the certificate was not asked for")
	}
	if v := tr.nc.(*stream).ConnectionState().Version; v != tls.VersionTLS12 {
		t.Errorf("TLS %x", v)
	}
}
