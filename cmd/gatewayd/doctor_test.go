package main

import (
	"bufio"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pkcs12 "software.sslmate.com/src/go-pkcs12"

	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/hub/hubtest"
)

// ailment is one broken set-up and what the doctor has to say about it.
type ailment struct {
	name    string
	opt     hubtest.Options
	before  func(*plant)           // before a gateway starts
	running func(*plant, *process) // with a gateway running; nil: none runs
	args    []string
	step    string // "" = nothing is wrong, and text is in a note
	text    string // part of what is said
	next    string // part of what to do
	code    int    // 0: what follows from step
}

// examine runs the doctor and returns what it says of one identity.
func (s *plant) examine(name string, args ...string) (int, diagnosis, *patient) {
	s.t.Helper()
	args = append([]string{"doctor", "--json", "--timeout", "2s", "--stay", "0s", "-c", s.path("config.yaml"), name}, args...)
	var out, errs strings.Builder
	code := run(s.t.Context(), args, strings.NewReader(""), &out, &errs)
	var d diagnosis
	if err := json.Unmarshal([]byte(out.String()), &d); err != nil {
		s.t.Fatalf("doctor exits with %d, %v: %s%s", code, err, &out, &errs)
	}
	for _, p := range d.Identities {
		if p.Name == name {
			return code, d, p
		}
	}
	return code, d, nil
}

func (s *plant) edit(old, new string) {
	s.t.Helper()
	text := string(must(os.ReadFile(s.path("config.yaml")))(s.t))
	if !strings.Contains(text, old) {
		s.t.Fatalf("no %q in config.yaml", old)
	}
	s.write("config.yaml", strings.ReplaceAll(text, old, new))
}

func root(t testing.TB) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

func TestDoctorNamesTheFirstFault(t *testing.T) {
	t.Parallel()
	for _, group := range [][]ailment{configurationAilments(), fileAilments(), networkAilments(), proxyAilments(), hubAilments(), queueAilments(), runningAilments()} {
		for _, a := range group {
			t.Run(a.name, func(t *testing.T) {
				t.Parallel()
				a.check(t)
			})
		}
	}
}

func (a ailment) check(t *testing.T) {
	s := newPlant(t, a.opt, "press-7")
	if a.before != nil {
		a.before(s)
	}
	if a.running != nil {
		a.running(s, s.run())
	}
	accepted := s.hub.Counters("").Connects
	code, d, p := s.examine("press-7", a.args...)
	want := a.code
	if want == 0 && a.step != "" {
		want = exitRunning
	}
	if code != want {
		t.Errorf("exit code %d, want %d", code, want)
	}
	var f *finding
	switch {
	case p == nil && len(d.Configuration) > 0:
		f = &finding{stepConfiguration, strings.Join(d.Configuration, "\n"), d.Next}
	case len(d.Listeners) > 0:
		f = &finding{"listener", strings.Join(d.Listeners, "\n"), "-"}
	case p != nil:
		f = p.Fault
	}
	all, _ := json.MarshalIndent(d, "", " ")
	switch {
	case a.step == "" && f == nil:
		if !strings.Contains(strings.Join(p.Notes, "\n"), a.text) {
			t.Errorf("want a note with %q; got\n%s", a.text, all)
		}
	case a.step == "" || f == nil || f.Step != a.step || !strings.Contains(f.Text, a.text) || !strings.Contains(f.Next, a.next) || f.Next == "":
		t.Errorf("want %q with %q, next %q; got\n%s", a.step, a.text, a.next, all)
	}
	if a.running != nil && len(a.args) == 0 && a.step != stepContest {
		if now := s.hub.Counters("").Connects; now != accepted {
			t.Errorf("the doctor connected beside a running gateway")
		}
	}
}

func TestDoctorSaysItInWords(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{}, "fine", "lost")
	check(t, os.Remove(s.path("lost.key")))
	code, out := s.exitCode("doctor", "-c", "config.yaml", "--stay", "0s")
	if code != exitRunning {
		t.Errorf("exit code %d", code)
	}
	for _, want := range []string{"the gateway is not running", "  ok  connack ", "  FAULT  file ", "lost.key does not exist", "  next  ", "faulty identities: 1 of 2"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if code, out := s.exitCode("doctor", "-c", "config.yaml", "--stay", "0s", "fine"); code != exitOK || !strings.Contains(out, "nothing is wrong") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	// A certificate's words must not steer the terminal.
	if got := visible("a\x1b[2Jb\nc"); strings.ContainsAny(got, "\x1b\n") {
		t.Errorf("control characters get through: %q", got)
	}
}

func configurationAilments() []ailment {
	edit := func(old, new string) func(*plant) { return func(s *plant) { s.edit(old, new) } }
	return []ailment{
		{name: "nothing is wrong"},
		{name: "no file", before: func(s *plant) { os.Remove(s.path("config.yaml")) }, step: stepConfiguration, text: "config.yaml", code: exitUsage},
		{name: "broken YAML", before: func(s *plant) { s.write("config.yaml", "identities: [") }, step: stepConfiguration, text: "config.yaml:1", code: exitUsage},
		{name: "unknown key", before: edit("state_dir:", "state_folder:"), step: stepConfiguration, text: "state_folder", code: exitUsage},
		{name: "wrong type", before: edit("window: 64", "window: many"), step: stepConfiguration, text: "hub.window", code: exitUsage},
		{name: "route to nobody", before: edit(`to: "{1}"`, "to: press-8"), step: stepConfiguration, text: "routes[0].to", code: exitUsage},
		{name: "port taken", before: func(s *plant) {
			l := must(net.Listen("tcp", s.mqtt))(s.t)
			s.t.Cleanup(func() { l.Close() })
		}, step: "listener", text: "downstream.mqtt[0]"},
		{name: "users file missing", before: func(s *plant) {
			s.edit(fmt.Sprintf("{listen: %q}]\n  http", s.mqtt), fmt.Sprintf("{listen: %q, users_file: users}]\n  http", s.mqtt))
		}, step: stepConfiguration, text: "users_file", code: exitUsage},
		{name: "half a connection string", before: edit("DeviceId=press-7;", ""), step: stepConfiguration, text: "DeviceId", code: exitUsage},
	}
}

// spoil does something to the files of press-7.
func spoil(f func(t testing.TB, s *plant, cert, key string)) func(*plant) {
	return func(s *plant) { f(s.t, s, s.path("press-7.pem"), s.path("press-7.key")) }
}

func leaf(l certtest.Leaf) func(*plant) {
	return func(s *plant) { s.issue("press-7", l) }
}

// wrongPassphrase gives press-7 a PKCS#12 file that another passphrase opens.
func wrongPassphrase(s *plant) {
	pair := s.issue("press-7", certtest.Leaf{CN: "press-7"})
	der := must(pkcs12.Modern.Encode(pair.TLS().PrivateKey, pair.Leaf, []*x509.Certificate{}, "right"))(s.t)
	s.write("press-7.p12", string(der))
	s.write("press-7.pass", "wrong\n")
	s.edit("{cert: press-7.pem, key: press-7.key}", "{pkcs12: press-7.p12, passphrase_file: press-7.pass}")
}

// leftover puts an intermediate into the file that did not sign the certificate, as
// after a change of the intermediate.
func leftover(s *plant) {
	old, mid := must(s.ca.Intermediate("Plant CA"))(s.t), must(s.ca.Intermediate("Plant CA"))(s.t)
	pair := must(mid.Issue(certtest.Leaf{CN: "press-7"}))(s.t)
	check(s.t, pair.Write(s.path("press-7.pem"), s.path("press-7.key")))
	text := string(must(os.ReadFile(s.path("press-7.pem")))(s.t))
	one := strings.SplitAfter(text, "-----END CERTIFICATE-----\n")[0]
	other := must(old.Issue(certtest.Leaf{CN: "x"}))(s.t)
	check(s.t, other.Write(s.path("x.pem"), s.path("x.key")))
	rest := strings.SplitAfter(string(must(os.ReadFile(s.path("x.pem")))(s.t)), "-----END CERTIFICATE-----\n")[1]
	s.write("press-7.pem", one+rest)
}

func fileAilments() []ailment {
	hour := func(n int) time.Time { return time.Now().Add(time.Duration(n) * time.Hour) }
	return []ailment{
		{name: "certificate missing", before: spoil(func(_ testing.TB, _ *plant, cert, _ string) { os.Remove(cert) }), step: stepFile, text: "press-7.pem does not exist"},
		{name: "key missing", before: spoil(func(_ testing.TB, _ *plant, _, key string) { os.Remove(key) }), step: stepFile, text: "press-7.key does not exist"},
		{name: "certificate cut off", before: spoil(func(t testing.TB, s *plant, cert, _ string) {
			text := must(os.ReadFile(cert))(t)
			s.write("press-7.pem", string(text[:len(text)/2]))
		}), step: stepFile, text: "press-7.pem is cut off"},
		{name: "not a certificate", before: spoil(func(_ testing.TB, s *plant, _, _ string) { s.write("press-7.pem", "hello") }), step: stepFile, text: "neither PEM nor DER"},
		{name: "key that its user cannot read", before: func(s *plant) {
			root(s.t)
			check(s.t, os.MkdirAll(s.path("state"), 0o700))
			check(s.t, os.Chown(s.path("state"), 65534, 65534))
			check(s.t, os.Chmod(s.dir, 0o755))
			check(s.t, os.Chmod(filepath.Dir(s.dir), 0o755))
			check(s.t, os.Chmod(s.path("press-7.pem"), 0o644))
		}, step: stepFile, text: "press-7.key cannot be read by nobody", next: "chmod 640"},
		{name: "key that I cannot read", before: spoil(func(t testing.TB, _ *plant, _, key string) {
			if os.Geteuid() == 0 {
				t.Skip("root reads everything")
			}
			check(t, os.Chmod(key, 0))
		}), step: stepFile, text: "may not be read"},
		{name: "key that everybody can read", before: spoil(func(t testing.TB, _ *plant, _, key string) { check(t, os.Chmod(key, 0o644)) }), step: stepKey, text: "mode 0644"},
		{name: "wrong passphrase", before: wrongPassphrase, step: stepKey, text: "cannot be decrypted", next: "passphrase_file"},
		{name: "no key in the file", before: spoil(func(t testing.TB, s *plant, cert, _ string) {
			s.write("press-7.key", string(must(os.ReadFile(cert))(t)))
		}), step: stepKey, text: "no private key but a certificate"},
		{name: "key of another certificate", before: spoil(func(t testing.TB, s *plant, _, key string) {
			old := must(os.ReadFile(key))(t)
			s.issue("press-7", certtest.Leaf{CN: "press-7"})
			s.write("press-7.key", string(old))
		}), step: stepKey, text: "not the one of the certificate"},
		{name: "certificate of another identity", before: leaf(certtest.Leaf{CN: "press-8"}), step: stepFile, text: `for "press-8"`},
		{name: "chain of another intermediate", before: leftover, step: stepChain, text: "did not sign", next: "leaf first"},
		{name: "expired", before: leaf(certtest.Leaf{CN: "press-7", NotBefore: hour(-48), NotAfter: hour(-1)}), step: stepDates, text: "expired on", next: "Renew"},
		{name: "not yet valid", before: leaf(certtest.Leaf{CN: "press-7", NotBefore: hour(1)}), step: stepDates, text: "not valid before", next: "clock"},
		{name: "clock behind", before: func(s *plant) {
			check(s.t, os.MkdirAll(s.path("state"), 0o700))
			s.write("state/clock", hour(72).UTC().Format(time.RFC3339)+"\n")
		}, step: stepClock, text: "it was", next: "Set the clock"},
		{name: "no root of the hub", before: func(s *plant) { s.write("hub-ca.pem", "") }, step: stepFile, text: "hub.trust"},
	}
}

// With a hundred identities the first answer must not wait for the last.
func TestDoctorTellsWhatItKnows(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{}, "press-7", "oven-2")
	silent := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer silent.Close()
	before, after, _ := strings.Cut(string(must(os.ReadFile(s.path("config.yaml")))(t)), "DeviceId=oven-2")
	s.write("config.yaml", before+"DeviceId=oven-2"+strings.Replace(after, "address: "+s.hub.Addr(), "address: "+silent.Addr().String(), 1))
	cmd := exec.Command(os.Args[0], "doctor", "-c", "config.yaml", "--timeout", "5m")
	cmd.Dir, cmd.Env = s.dir, append(os.Environ(), asProgram+"=1")
	out := must(cmd.StdoutPipe())(t)
	check(t, cmd.Start())
	defer time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() }).Stop()
	lines := bufio.NewScanner(out)
	told := func(word string) bool {
		for lines.Scan() {
			if strings.Contains(lines.Text(), word) {
				return true
			}
		}
		return false
	}
	if !told("press-7 (") || !told(stepQueue) {
		t.Error("nothing is told of the one while the other is waited for")
	}
	silent.Close() // and with it whoever waits
	if !told("faulty identities: 1 of 2") {
		t.Error("the other one's fault is not told")
	}
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != exitRunning {
		t.Errorf("it ends with %v", err)
	}
}
