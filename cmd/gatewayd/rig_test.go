package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"gatewayd/internal/certstore/certtest"
	"gatewayd/internal/hub/hubtest"
)

// asProgram makes the test binary behave as gatewayd, so that tests start and
// kill real processes which are built with the race detector too.
const asProgram = "GATEWAYD_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		keepSignalsComing()
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
		stop()
		os.Exit(code)
	}
	if os.Getenv(asThreads) != "" {
		beThreads()
		return
	}
	if spec := os.Getenv(asCrowd); spec != "" {
		beCrowd(spec)
		return
	}
	os.Exit(m.Run())
}

// plant is a folder with certificates and a configuration, beside a stand-in hub.
type plant struct {
	t     testing.TB
	dir   string
	ca    *certtest.CA
	hub   *hubtest.Hub
	names []string
	files map[string][2]string // certificate and key of a name, when not name.pem and name.key
	mqtt  string               // address
	http  string
	admin string
	other string // address of a second MQTT listener, where there is one
}

// newPlant makes a plant with a device per name.
func newPlant(t testing.TB, opt hubtest.Options, names ...string) *plant {
	t.Helper()
	s := &plant{t: t, dir: t.TempDir(), names: names, mqtt: freeAddress(t), http: freeAddress(t), admin: freeAddress(t)}
	s.ca = must(certtest.NewCA("site CA"))(t)
	s.hub = must(hubtest.New(opt))(t)
	s.hub.AddCA(s.ca.Cert)
	for _, name := range names {
		check(t, s.hub.AddDevice(hubtest.Device{DeviceID: name}))
		s.issue(name, certtest.Leaf{CN: name})
	}
	s.write("hub-ca.pem", string(s.hub.ServerCAPEM()))
	s.writeConfig("")
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := s.hub.Run(ctx); err != nil {
			t.Errorf("hub: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	return s
}

// writeConfig writes config.yaml; more is put in front of the standard keys.
func (s *plant) writeConfig(more string) {
	b := more + "state_dir: state\n"
	if !strings.Contains(more, "hub:") {
		b += "hub: {trust: [hub-ca.pem], system_roots: false, connect_rate: 200, window: 64}\n"
	}
	b += "identities:\n"
	for _, name := range s.names {
		cert, key := s.certificate(name)
		b += fmt.Sprintf("  - connection_string: HostName=%s;DeviceId=%s;x509=true\n    address: %s\n    certificate: {cert: %s, key: %s}\n",
			s.hub.HostName(), name, s.hub.Addr(), cert, key)
	}
	b += fmt.Sprintf("downstream:\n  mqtt: [{listen: %q}]\n  http: [{listen: %q}]\nadmin: {listen: %q}\n", s.mqtt, s.http, s.admin)
	b += "routes:\n  - {match: sensors/+/+, to: \"{1}\", properties: {sensor: \"{2}\"}}\n"
	s.write("config.yaml", b)
}

// listen adds MQTT listeners to config.yaml, in the words of the file.
func (s *plant) listen(listeners ...string) {
	s.t.Helper()
	config := string(must(os.ReadFile(s.path("config.yaml")))(s.t))
	s.write("config.yaml", strings.Replace(config, "  mqtt: [", "  mqtt: ["+strings.Join(listeners, ", ")+", ", 1))
}

func (s *plant) certificate(name string) (cert, key string) {
	if f, ok := s.files[name]; ok {
		return f[0], f[1]
	}
	return name + ".pem", name + ".key"
}

func (s *plant) write(name, text string) {
	s.t.Helper()
	check(s.t, os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600))
}

func (s *plant) path(name string) string { return filepath.Join(s.dir, name) }

func (s *plant) issue(name string, leaf certtest.Leaf) *certtest.Pair {
	s.t.Helper()
	pair := must(s.ca.Issue(leaf))(s.t)
	check(s.t, pair.Write(s.path(name+".pem"), s.path(name+".key")))
	return pair
}

// process is a running gatewayd.
type process struct {
	t    testing.TB
	cmd  *exec.Cmd
	log  syncBuffer
	done chan struct{}
}

// gatewayd starts the program with arguments and gives it up at the end of the test.
func (s *plant) gatewayd(args ...string) *process {
	s.t.Helper()
	p := &process{t: s.t, done: make(chan struct{})}
	p.cmd = exec.Command(os.Args[0], args...)
	p.cmd.Dir = s.dir
	p.cmd.Env = append(os.Environ(), asProgram+"=1")
	p.cmd.Stdout, p.cmd.Stderr = &p.log, &p.log
	check(s.t, p.cmd.Start())
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait() // the exit code is looked at by those who care
	}()
	s.t.Cleanup(func() {
		p.kill()
		if _, race, found := strings.Cut(p.log.String(), "WARNING: DATA RACE"); found {
			s.t.Errorf("data race in gatewayd:%s", race[:min(len(race), 5000)])
		}
		if s.t.Failed() {
			s.t.Logf("last of the log of gatewayd %s:\n%s", strings.Join(args, " "), tail(p.log.String(), 40))
		}
	})
	return p
}

// run starts `gatewayd run` and waits until it accepts sensors.
func (s *plant) run() *process {
	s.t.Helper()
	p := s.gatewayd("run", "-c", "config.yaml")
	eventually(s.t, 20*time.Second, "the listener accepts", func() bool {
		c, err := net.Dial("tcp", s.mqtt)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return p
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may be gone already
	<-p.done
}

// stop asks politely and returns the exit code.
func (p *process) stop() int {
	p.t.Helper()
	check(p.t, p.cmd.Process.Signal(syscall.SIGTERM))
	return p.wait(40 * time.Second)
}

func (p *process) wait(limit time.Duration) int {
	p.t.Helper()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(limit):
		_ = p.cmd.Process.Signal(syscall.SIGQUIT) // for its goroutines
		time.Sleep(time.Second)
		p.t.Fatalf("gatewayd does not end within %v:\n%s", limit, tail(p.log.String(), 200))
		return -1
	}
}

// status reads /status.
func (s *plant) status() (report, error) {
	var r report
	resp, err := http.Get("http://" + s.admin + "/status")
	if err != nil {
		return r, err
	}
	defer resp.Body.Close()
	return r, json.NewDecoder(resp.Body).Decode(&r)
}

func (s *plant) get(path string) string {
	s.t.Helper()
	resp := must(http.Get("http://" + s.admin + path))(s.t)
	defer resp.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil {
		s.t.Fatal(err)
	}
	return b.String()
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func tail(s string, lines int) string {
	all := strings.Split(s, "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// nextPort counts through ports below those that the kernel gives to outgoing
// connections: one that was free a moment ago is not taken by a client of
// another test, and none is given twice.
var nextPort atomic.Int32

func freeAddress(t testing.TB) string {
	t.Helper()
	for range 5000 {
		port := 12000 + (os.Getpid()%50*200+int(nextPort.Add(1)))%20000
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			defer l.Close()
			return l.Addr().String()
		}
	}
	t.Fatal("no free port")
	return ""
}

func eventually(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		check(t, err)
		return v
	}
}

// exitCode runs a command of the program to its end.
func (s *plant) exitCode(args ...string) (int, string) {
	s.t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), asProgram+"=1")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

func fingerprint(c *x509.Certificate) []byte {
	sum := sha256.Sum256(c.Raw)
	return sum[:]
}
