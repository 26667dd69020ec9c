package main

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"gopkg.in/yaml.v3"

	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/hub"
	"gatewayd/internal/hub/hubtest"
)

// Marks in the documents, as comments that a reader does not see:
//
//	<!-- file: NAME -->       the block is the file NAME for the commands that follow
//	<!-- needs: WHAT -->      the commands of the block are not run, because they need WHAT
//	<!-- instead: COMMAND --> what stands for them here: "hub ..." below, or a command
//	<!-- fails -->            the block's commands end with an error
//
// The commands of a document run in the order of the document, in one folder.
var mark = regexp.MustCompile(`^<!-- (file|needs|instead|fails)(?:: (.*?))? -->$`)

// needed is what a block may need that no test machine has, with the test that goes
// the same way otherwise.
var needed = map[string]string{
	"cloud account":         "", // a stand-in goes into "instead"
	"certificate authority": "", // step-ca, an ACME server
	"package and systemd":   "TestUnitUnderSystemd, TestQueueOutlivesThePackage",
	"repository":            ".ci/run",
	"running gateway":       "docs/quickstart.md",
}

// block is a fenced block of a document.
type block struct {
	line  int
	lang  string
	text  string
	marks map[string]string
}

func blocks(t *testing.T, text string) (all []block) {
	t.Helper()
	marks := make(map[string]string)
	var b *block
	for n, line := range strings.Split(text, "\n") {
		fence := strings.HasPrefix(strings.TrimSpace(line), "```")
		switch {
		case b != nil && fence:
			all = append(all, *b)
			b = nil
		case b != nil:
			b.text += line + "\n"
		case fence:
			b = &block{line: n + 1, lang: strings.TrimPrefix(strings.TrimSpace(line), "```"), marks: marks}
			marks = make(map[string]string)
		case strings.HasPrefix(line, "<!--"):
			m := mark.FindStringSubmatch(line)
			if m == nil {
				t.Errorf("line %d: the mark %q is not known", n+1, line)
				continue
			}
			marks[m[1]] = m[2]
		case strings.TrimSpace(line) != "" && len(marks) > 0:
			t.Errorf("line %d: a mark without a block", n+1)
			marks = make(map[string]string)
		}
	}
	return all
}

// commands tells whether a block is for a shell.
func (b block) commands() bool {
	return slices.Contains([]string{"sh", "bash", "console", "shell"}, b.lang)
}

// Every command of the documents is run here, against the stand-in hub, or is marked
// with what it needs.
func TestDocumentsWorkAsWritten(t *testing.T) {
	documents := must(filepath.Glob("../../docs/*.md"))(t)
	documents = append(documents, "../../README.md", "../../deploy/systemd/README.md")
	dir := t.TempDir()
	ran := 0
	for _, document := range documents {
		name := strings.ReplaceAll(strings.TrimPrefix(document, "../../"), "/", "-")
		script, n := scriptOf(t, document)
		ran += n
		if n > 0 {
			check(t, os.WriteFile(filepath.Join(dir, strings.TrimSuffix(name, ".md")+".txtar"), []byte(script), 0o600))
		}
	}
	if ran < 20 {
		t.Errorf("only %d blocks are run", ran)
	}
	for _, name := range []string{"bash", "openssl", "mosquitto_pub", "curl", "node"} {
		tool(t, name)
	}
	testscript.Run(t, testscript.Params{Dir: dir, Setup: func(env *testscript.Env) error { return setUpReader(t, env) }, Cmds: map[string]func(*testscript.TestScript, bool, []string){"hub": hubCommand}})
}

var (
	link    = regexp.MustCompile(`\]\(([^)#:]*)(#[^)]*)?\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.*)$`)
	noWord  = regexp.MustCompile(`[^a-z0-9 -]`)
)

// A link leads to a file, and to a heading in it.
func TestDocumentsLinkToWhatIsThere(t *testing.T) {
	documents := must(filepath.Glob("../../docs/*.md"))(t)
	for _, document := range append(documents, "../../README.md", "../../deploy/systemd/README.md") {
		for _, m := range link.FindAllStringSubmatch(string(must(os.ReadFile(document))(t)), -1) {
			target := document
			if m[1] != "" {
				target = filepath.Join(filepath.Dir(document), m[1])
			}
			text, err := os.ReadFile(target)
			if err != nil {
				t.Errorf("%s links to %s, which is not there", document, m[1])
				continue
			}
			found := m[2] == ""
			for _, h := range heading.FindAllStringSubmatch(string(text), -1) {
				found = found || "#"+strings.ReplaceAll(noWord.ReplaceAllString(strings.ToLower(h[1]), ""), " ", "-") == m[2]
			}
			if !found {
				t.Errorf("%s links to %s%s: no such heading", document, m[1], m[2])
			}
		}
	}
	index := string(must(os.ReadFile("../../docs/README.md"))(t))
	for _, document := range documents {
		if name := filepath.Base(document); name != "README.md" && !strings.Contains(index, "]("+name+")") {
			t.Errorf("docs/README.md does not list %s", name)
		}
	}
}

// scriptOf turns a document into a testscript, and counts the blocks that it runs.
func scriptOf(t *testing.T, document string) (script string, ran int) {
	t.Helper()
	text := string(must(os.ReadFile(document))(t))
	files := ""
	add := func(name, text string) { files += "-- " + name + " --\n" + text }
	for i, b := range blocks(t, text) {
		at := fmt.Sprintf("%s:%d", document, b.line)
		if b.lang == "yaml" {
			var any yaml.Node
			if err := yaml.Unmarshal([]byte(b.text), &any); err != nil {
				t.Errorf("%s: %v", at, err)
			}
		}
		if name, ok := b.marks["file"]; ok {
			stored := fmt.Sprintf("files/%d", i)
			add(stored, b.text)
			script += fmt.Sprintf("# %s\nmkdir %s\ncp %s %s\n", at, filepath.Dir(name), stored, name)
			continue
		}
		if !b.commands() {
			continue
		}
		if what, ok := b.marks["needs"]; ok {
			if _, known := needed[what]; !known {
				t.Errorf("%s: %q is nothing that a block may need", at, what)
			}
			if instead := b.marks["instead"]; instead != "" {
				script += fmt.Sprintf("# %s, instead\n%s\n", at, instead)
			}
			continue
		}
		stored := fmt.Sprintf("files/%d.sh", i)
		add(stored, b.text)
		not := ""
		if _, fails := b.marks["fails"]; fails {
			not = "! "
		}
		script += fmt.Sprintf("# %s\n%sexec bash -euo pipefail %s\n", at, not, stored)
		if strings.Contains(b.text, "gatewayd run ") {
			script += "hub listening -- 1883\n"
		}
		ran++
	}
	return script + files, ran
}

// reader is what a document's commands find: the program, a hub under Azure's name
// and ports of their own.
type reader struct {
	hub   *hubtest.Hub
	ports map[string]string // of the documents, and what stands for them
}

type readerKey struct{}

// setUpReader gives a script its world. The documents' ports and the hub's address
// are exchanged for those of this run.
func setUpReader(t *testing.T, env *testscript.Env) error {
	hub, err := hubtest.New(hubtest.Options{HostName: "contoso.azure-devices.net"})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = hub.Run(ctx) })
	r := &reader{hub, make(map[string]string)}
	env.Values[readerKey{}] = r
	env.Defer(func() {
		// Daemons that a document started in the background.
		_ = os.WriteFile(filepath.Join(env.WorkDir, "over"), nil, 0o600)
		for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			if left, _ := filepath.Glob(filepath.Join(env.WorkDir, "running.*")); len(left) == 0 {
				break
			}
		}
		cancel()
		running.Wait()
	})
	roots := filepath.Join(env.WorkDir, "hub-ca.pem")
	bin := filepath.Join(env.WorkDir, "bin")
	// A daemon ends with the document: whoever waits for it watches for the file "over".
	program := fmt.Sprintf(`#!/bin/bash
export %s=1 SSL_CERT_FILE=%s
[ "$1" = run ] || exec %s "$@"
exec >>%[4]s/gatewayd.log 2>&1
touch %[4]s/running.$$
%[3]s "$@" &
trap 'kill $!; wait $!; rm -f %[4]s/running.$$; exit' TERM INT
trap 'kill -HUP $!' HUP
while kill -0 $! 2>/dev/null && [ ! -e %[4]s/over ]; do sleep 0.1; done
kill $! 2>/dev/null; wait $!; code=$?; rm -f %[4]s/running.$$; exit $code
`, asProgram, roots, os.Args[0], env.WorkDir)
	if err := os.MkdirAll(bin, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(roots, hub.ServerCAPEM(), 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(bin, "gatewayd"), []byte(program), 0o700); err != nil {
		return err
	}
	env.Setenv("PATH", bin+":"+env.Getenv("PATH")+":/usr/sbin")
	env.Setenv("HOME", env.WorkDir)
	return r.exchange(t, filepath.Join(env.WorkDir, "files"), env.WorkDir)
}

// exchange writes this run's addresses and folders into what the document says.
func (r *reader) exchange(t *testing.T, dir, work string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		return err
	}
	pairs := []string{"DeviceId=press-7;x509=true\n", "DeviceId=press-7;x509=true\n    address: " + r.hub.Addr() + "\n",
		"/var/lib/gatewayd", filepath.Join(work, "state"), "/etc/gatewayd", filepath.Join(work, "etc")}
	for _, port := range []string{"1883", "8080", "9180", "1884"} {
		_, free, _ := strings.Cut(freeAddress(t), ":")
		r.ports[port] = free
		pairs = append(pairs, port, free)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(strings.NewReplacer(pairs...).Replace(string(text))), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// hubCommand stands for what a person does in the cloud:
//
//	hub thumbprint DEVICE CERT.pem    a device with the certificate's thumbprint
//	hub ca CA.pem DEVICE              a registered CA and a device that it may sign for
//	hub received DEVICE TEXT          waits until a message with TEXT has arrived
//	hub listening -- PORT             waits until the gateway does
//	hub connected DEVICE CERT.pem     waits until the device is connected with that certificate
//	hub issue DEVICE CERT.pem KEY.pem a device of a registered CA, and a certificate for it
func hubCommand(ts *testscript.TestScript, neg bool, args []string) {
	r := ts.Value(readerKey{}).(*reader)
	usable(ts, !neg && len(args) >= 3, "hub: bad arguments %q", args)
	switch args[0] {
	case "thumbprint":
		ts.Check(r.hub.AddDevice(hubtest.Device{DeviceID: args[1], Thumbprints: []string{certtest.Thumbprint(r.certificate(ts, args[2]))}}))
	case "ca":
		r.hub.AddCA(r.certificate(ts, args[1]))
		ts.Check(r.hub.AddDevice(hubtest.Device{DeviceID: args[2]}))
	case "received":
		wait(ts, "the message", func() bool {
			return slices.ContainsFunc(r.hub.MessagesOf(args[1]), func(m hubtest.Message) bool { return strings.Contains(string(m.Body), args[2]) })
		})
	case "listening":
		wait(ts, "gatewayd listens", func() bool {
			for _, port := range []string{args[2], "1884"} {
				if c, err := net.Dial("tcp", "127.0.0.1:"+r.ports[port]); err == nil {
					c.Close()
					return true
				}
			}
			return false
		})
	case "connected":
		want := certtest.Thumbprint(r.certificate(ts, args[2]))
		wait(ts, "the connection", func() bool {
			all := r.hub.ConnectionsOf(args[1])
			return len(all) > 0 && strings.EqualFold(all[len(all)-1].Fingerprint, want)
		})
	case "issue":
		usable(ts, len(args) == 4, "hub issue DEVICE CERT KEY")
		ca, err := certtest.NewCA("site CA")
		ts.Check(err)
		r.hub.AddCA(ca.Cert)
		pair, err := ca.Issue(certtest.Leaf{CN: args[1]})
		ts.Check(err)
		ts.Check(os.MkdirAll(filepath.Dir(ts.MkAbs(args[2])), 0o700))
		ts.Check(pair.Write(ts.MkAbs(args[2]), ts.MkAbs(args[3])))
		ts.Check(r.hub.AddDevice(hubtest.Device{DeviceID: args[1]}))
	default:
		ts.Fatalf("hub: unknown %q", args[0])
	}
}

func usable(ts *testscript.TestScript, ok bool, format string, args ...any) {
	if !ok {
		ts.Fatalf(format, args...)
	}
}

func wait(ts *testscript.TestScript, what string, ok func() bool) {
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		usable(ts, time.Now().Before(end), "not within 20 s: %s", what)
	}
}

func (r *reader) certificate(ts *testscript.TestScript, name string) *x509.Certificate {
	b, _ := pem.Decode([]byte(ts.ReadFile(name)))
	usable(ts, b != nil, "%s is no PEM file", name)
	cert, err := x509.ParseCertificate(b.Bytes)
	ts.Check(err)
	return cert
}

// A state that status shows is found on the page that is asked about it.
func TestTroubleshootingKnowsTheStates(t *testing.T) {
	text := string(must(os.ReadFile("../../docs/troubleshooting.md"))(t))
	for _, kind := range []hub.Kind{hub.Unreachable, hub.Untrusted, hub.Unavailable, hub.Closed, hub.Lost, hub.Stalled, hub.Violation, hub.Local,
		hub.Refused, hub.ProxyRefused, hub.Contested} {
		if !strings.Contains(text, "`"+string(kind)+"`") {
			t.Errorf("docs/troubleshooting.md does not know the state %q", kind)
		}
	}
}
