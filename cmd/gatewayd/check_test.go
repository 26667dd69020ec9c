package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	pkcs12 "software.sslmate.com/src/go-pkcs12"

	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/hub/hubtest"
)

// site is a folder with a configuration of one identity, press-7, and its
// certificate.
type site struct {
	t   *testing.T
	dir string
	ca  *certtest.CA
}

func newSite(t *testing.T) *site {
	t.Helper()
	ca, err := certtest.NewCA("Factory CA")
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, dir: t.TempDir(), ca: ca}
	s.issue(certtest.Leaf{CN: "press-7"})
	s.config("")
	return s
}

func (s *site) path(name string) string { return filepath.Join(s.dir, name) }

func (s *site) write(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(s.path(name), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) issue(l certtest.Leaf) *certtest.Pair {
	s.t.Helper()
	pair, err := s.ca.Issue(l)
	if err == nil {
		err = pair.Write(s.path("press-7.pem"), s.path("press-7.key"))
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return pair
}

// config writes the configuration; extra goes to the end, at the top level
// unless it is indented as a key of the identity.
func (s *site) config(extra string) {
	s.t.Helper()
	s.write("config.yaml", `state_dir: state
identities:
  - connection_string: HostName=contoso.azure-devices.net;DeviceId=press-7;x509=true
    certificate: {cert: press-7.pem, key: press-7.key}
`+extra)
}

func (s *site) check() (stdout string, err error) {
	s.t.Helper()
	out, _, err := execute(s.t, newCheckCommand(), "", "-c", s.path("config.yaml"))
	return out, err
}

func TestCheckDescribesAGoodSite(t *testing.T) {
	s := newSite(t)
	mid, err := s.ca.Intermediate("Plant CA")
	if err != nil {
		t.Fatal(err)
	}
	s.ca = mid
	leaf := s.issue(certtest.Leaf{CN: "press-7", NotAfter: time.Now().Add(10*24*time.Hour + time.Hour)}).Leaf
	out, err := s.check()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{
		"press-7 (identities[0].certificate)",
		"subject   CN=press-7",
		"issuer    CN=Plant CA",
		"valid     " + leaf.NotBefore.UTC().Format(time.RFC3339) + " to " + leaf.NotAfter.UTC().Format(time.RFC3339) + ", 10.0 days left",
		`cn        "press-7" equals the identity`,
		"chain     whole, 2 certificate(s), up to CN=Factory CA",
		"config.yaml: ok",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	for name, digits := range map[string]int{"sha1": 40, "sha256": 64} {
		_, after, _ := strings.Cut(out, "  "+name+" ")
		line, _, _ := strings.Cut(strings.TrimSpace(after), "\n")
		if len(line) != digits || strings.Trim(line, "0123456789ABCDEF") != "" {
			t.Errorf("%s is %q", name, line)
		}
	}
	if _, err := os.Stat(s.path("state")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("check touched the state folder: %v", err)
	}
}

func TestCheckNamesEveryFault(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(*site)
		want  []string // parts of the problems, each beside the key path
	}{
		{"missing certificate", func(s *site) { os.Remove(s.path("press-7.pem")) }, []string{"identities[0].certificate.cert: ", "press-7.pem"}},
		{"missing both", func(s *site) { os.Remove(s.path("press-7.pem")); os.Remove(s.path("press-7.key")) }, []string{"identities[0].certificate.cert: ", "identities[0].certificate.key: "}},
		{"missing key", func(s *site) { os.Remove(s.path("press-7.key")) }, []string{"identities[0].certificate.key: ", "press-7.key"}},
		{"expired", func(s *site) {
			s.issue(certtest.Leaf{CN: "press-7", NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(-time.Hour)})
		}, []string{"identities[0].certificate: expired on "}},
		{"not yet valid", func(s *site) { s.issue(certtest.Leaf{CN: "press-7", NotBefore: time.Now().Add(time.Hour)}) }, []string{"identities[0].certificate: not valid before "}},
		{"other name", func(s *site) { s.issue(certtest.Leaf{CN: "press-8"}) }, []string{"identities[0].certificate: ", `"press-8", not "press-7"`}},
		{"other key", func(s *site) {
			key, _ := os.ReadFile(s.path("press-7.key"))
			s.issue(certtest.Leaf{CN: "press-7"})
			s.write("press-7.key", string(key))
		}, []string{"identities[0].certificate: the key is not the one of the certificate"}},
		{"torn", func(s *site) {
			pem, _ := os.ReadFile(s.path("press-7.pem"))
			s.write("press-7.pem", string(pem[:len(pem)/2]))
		}, []string{"identities[0].certificate.cert: ", "press-7.pem"}},
		{"garbage", func(s *site) { s.write("press-7.key", "garbage") }, []string{"identities[0].certificate.key: ", "press-7.key"}},
		{"open key", func(s *site) { os.Chmod(s.path("press-7.key"), 0o644) }, []string{"identities[0].certificate: ", "mode 0644"}},
		{"wrong passphrase", func(s *site) {
			pair := s.issue(certtest.Leaf{CN: "press-7"})
			der, err := pkcs12.Modern.Encode(pair.TLS().PrivateKey, pair.Leaf, []*x509.Certificate{}, "right")
			if err != nil {
				s.t.Fatal(err)
			}
			s.write("press-7.p12", string(der))
			s.write("press-7.pass", "wrong\n")
			s.write("config.yaml", `identities:
  - connection_string: HostName=contoso.azure-devices.net;DeviceId=press-7;x509=true
    certificate: {pkcs12: press-7.p12, passphrase_file: press-7.pass}
`)
		}, []string{"identities[0].certificate.pkcs12: ", "passphrase"}},
		{"two identities, one certificate", func(s *site) {
			for _, ext := range []string{".pem", ".key"} {
				b, _ := os.ReadFile(s.path("press-7" + ext))
				s.write("copy"+ext, string(b))
			}
			s.config(`  - connection_string: HostName=contoso.azure-devices.net;DeviceId=press-8;x509=true
    certificate: {cert: copy.pem, key: copy.key}
    allow_cn_mismatch: true
`)
		}, []string{"identities[1].certificate: identity \"press-7\" holds the same certificate"}},
		{"bad roots", func(s *site) {
			s.write("roots.pem", "garbage")
			s.config("hub: {trust: [roots.pem]}\n")
		}, []string{"hub.trust: ", "roots.pem"}},
		{"bad roots of one identity", func(s *site) {
			s.write("roots.pem", "garbage")
			s.config("    trust: [roots.pem]\n")
		}, []string{"identities[0].trust: ", "roots.pem"}},
		{"bad users and tokens", func(s *site) {
			s.write("users", "press:hunter2\n")
			s.write("tokens", "")
			s.config("downstream:\n  mqtt: [{users_file: users}]\n  http: [{token_file: tokens}]\n")
		}, []string{"downstream.mqtt[0].users_file: ", "line 1", "downstream.http[0].token_file: "}},
		{"bad listener certificate", func(s *site) {
			s.write("server.pem", "garbage")
			s.config("downstream:\n  mqtt:\n    - listen: tls://127.0.0.1:8883\n      tls: {cert: server.pem, key: server.pem}\n")
		}, []string{"downstream.mqtt[0].tls.cert: "}},
		{"line of a certificate", func(s *site) { s.write("press-7.key", "garbage") }, []string{"config.yaml:4: identities[0].certificate.key: "}},
		{"configuration and files", func(s *site) {
			s.config("hubb: {}\n")
			os.Remove(s.path("press-7.pem"))
		}, []string{"config.yaml:5: hubb: unknown key", "config.yaml:4: identities[0].certificate.cert: no such file: "}},
		{"configuration", func(s *site) { s.config("hubb: {}\nlog: {level: loud}\n") }, []string{"config.yaml:5: hubb: unknown key", "config.yaml:6: log.level: "}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSite(t)
			tt.spoil(s)
			_, err := s.check()
			for _, want := range tt.want {
				wantUsage(t, err, want)
			}
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Errorf("a secret shows: %v", err)
			}
		})
	}
}

func TestCheckNeedsAFile(t *testing.T) {
	_, _, err := execute(t, newCheckCommand(), "")
	wantUsage(t, err, "-c FILE is required")
	_, _, err = execute(t, newCheckCommand(), "", "-c", filepath.Join(t.TempDir(), "none.yaml"))
	wantUsage(t, err, "none.yaml: no such file or directory")
}

func TestCheckAcceptsAnotherNameWhereAllowed(t *testing.T) {
	s := newSite(t)
	s.issue(certtest.Leaf{CN: "something else"})
	s.config("    allow_cn_mismatch: true\n")
	out, err := s.check()
	if err != nil || !strings.Contains(out, `"something else" is not "press-7", which allow_cn_mismatch accepts`) {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestCheckShowsWarningsWithoutFailing(t *testing.T) {
	s := newSite(t)
	s.issue(certtest.Leaf{CN: "press-7", NoClientAuth: true})
	out, err := s.check()
	if err != nil || !strings.Contains(out, "clientAuth") || !strings.Contains(out, "routes: there is no route") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestCertsListsGoodAndBad(t *testing.T) {
	s := newSite(t)
	s.config(`  - connection_string: HostName=contoso.azure-devices.net;DeviceId=press-8;x509=true
    certificate: {cert: none.pem, key: none.key}
`)
	out, _, err := execute(t, newCertsCommand(), "", "-c", s.path("config.yaml"))
	var exit *exitError
	if !errors.As(err, &exit) || exit.code != exitRunning || err.Error() != "" {
		t.Errorf("with a problem: %v", err)
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != 3 || !strings.HasPrefix(lines[0], "IDENTITY") || !strings.Contains(lines[1], "CN=Factory CA") || !strings.Contains(lines[2], "none.pem") {
		t.Errorf("got\n%s", out)
	}

	out, _, err = execute(t, newCertsCommand(), "", "-c", s.path("config.yaml"), "--json")
	if !errors.As(err, &exit) || exit.code != exitRunning {
		t.Errorf("with a problem, as JSON: %v", err)
	}
	var all []certificate
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		t.Fatal(err)
	}
	if len(all) != 2 || all[0].Report == nil || all[0].Report.CommonName != "press-7" || len(all[0].Problems) != 0 || all[1].Report != nil || len(all[1].Problems) == 0 {
		t.Errorf("got %s", out)
	}
	key, _ := os.ReadFile(s.path("press-7.key"))
	if body := strings.Split(string(key), "\n")[1]; strings.Contains(out, body) {
		t.Error("the key shows")
	}
	s.config("")
	if _, _, err := execute(t, newCertsCommand(), "", "-c", s.path("config.yaml")); err != nil {
		t.Errorf("without a problem: %v", err)
	}
}

// check --connect against a stand-in hub that knows press-7 and nobody else.
func TestCheckConnectTriesEachIdentity(t *testing.T) {
	s := newSite(t)
	h, err := hubtest.New(hubtest.Options{ClientCAs: []*x509.Certificate{s.ca.Cert}})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.AddDevice(hubtest.Device{DeviceID: "press-7"}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := h.Run(ctx); err != nil {
			t.Errorf("hub: %v", err)
		}
	})
	defer running.Wait()
	defer cancel()

	pair, err := s.ca.Issue(certtest.Leaf{CN: "press-8"})
	if err == nil {
		err = pair.Write(s.path("press-8.pem"), s.path("press-8.key"))
	}
	if err != nil {
		t.Fatal(err)
	}
	s.write("hub-ca.pem", string(h.ServerCAPEM()))
	identity := func(id, address string) string {
		return fmt.Sprintf(`  - connection_string: HostName=%s;DeviceId=%s;x509=true
    certificate: {cert: %s.pem, key: %s.key}
    address: %s
`, hubtest.DefaultHostName, id, id, id, address)
	}
	head := "hub: {trust: [hub-ca.pem], system_roots: false}\nidentities:\n"
	try := func(text string) (string, error) {
		s.write("config.yaml", text)
		out, _, err := execute(t, newCheckCommand(), "", "-c", s.path("config.yaml"), "--connect")
		return out, err
	}

	out, err := try(head + identity("press-7", h.Addr()))
	if err != nil || !strings.Contains(out, "press-7: session: the hub answers") {
		t.Errorf("%v\n%s", err, out)
	}

	out, err = try(head + identity("press-7", h.Addr()) + identity("press-8", h.Addr()))
	wantUsage(t, err, "config.yaml:6: identities[1]: cannot connect: connect: ")
	if strings.Contains(fmt.Sprint(err), "identities[0]") || !strings.Contains(out, "press-7: session: the hub answers") {
		t.Errorf("press-8's refusal reached press-7: %v\n%s", err, out)
	}

	os.Remove(s.path("press-8.key"))
	out, err = try(head + identity("press-8", h.Addr()))
	wantUsage(t, err, "identities[0].certificate.key: ")
	if !strings.Contains(out, "press-8: not tried") {
		t.Errorf("got %s", out)
	}
	if got := h.Messages(); len(got) != 0 {
		t.Errorf("check sent %d messages", len(got))
	}
}
