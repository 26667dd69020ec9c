// Package nodesdk drives the real Azure device SDK for Node.js, so that tests can hold the stand-in hub, and
// whatever else claims to speak IoT Hub's dialect, against a client that nobody here wrote.
//
// The SDK comes from npm, pinned by package-lock.json; see [Start] for where it is looked for. It runs in a
// process of its own that the test's end stops. The only thing changed about it is where its connections go.
package nodesdk

import (
	"bufio"
	"context"
	_ "embed" // for the script
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// ModulesVariable names the environment variable with the node_modules folder to use instead of the one beside
// this package's source.
const ModulesVariable = "GATEWAYD_NODE_MODULES"

const patience = 30 * time.Second

//go:embed device.js
var script string

// TB is the part of testing.TB that this package needs.
type TB interface {
	Helper()
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
	Errorf(format string, args ...any)
	Context() context.Context
	Logf(format string, args ...any)
	Cleanup(func())
	TempDir() string
}

// Settings are what a device needs to know before it connects.
type Settings struct {
	ConnectionString string `json:"connectionString"`
	Dial             string `json:"dial"`           // host:port that replaces the host name and port 8883
	CA               string `json:"ca"`             // PEM of the server's root
	Cert             string `json:"cert,omitempty"` // PEM, with Key
	Key              string `json:"key,omitempty"`
	Retry            bool   `json:"retry"`                  // the SDK's own retry policy instead of none
	TokenSeconds     int    `json:"tokenSeconds,omitempty"` // life of the tokens that the SDK makes; 0 = its own choice, an hour
	Token            string `json:"token,omitempty"`        // a ready one instead of a connection string
}

// Line is one answer or event of the device.
type Line struct {
	Answer     string            `json:"answer"`
	Event      string            `json:"event"`
	Error      string            `json:"error"` // the SDK's error class, such as UnauthorizedError
	Message    string            `json:"message"`
	ID         string            `json:"id"`
	Body       string            `json:"body"`
	Name       string            `json:"name"`
	Properties map[string]string `json:"properties"`
	Payload    json.RawMessage   `json:"payload"`
	Delta      json.RawMessage   `json:"delta"`
	Result     json.RawMessage   `json:"result"`
}

// Device is a running SDK client. It is used by one goroutine.
type Device struct {
	t      TB
	in     io.WriteCloser
	stop   func()
	lines  chan Line
	queued []Line // events that came while an answer was awaited
}

// Start starts a device. Without Node.js or the SDK's packages it skips the test and says what to run; with
// the environment variable CI set it fails instead.
func Start(t TB, s Settings) *Device {
	t.Helper()
	modules, err := find()
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("%v", err)
		}
		t.Skipf("%v", err)
	}
	file := filepath.Join(t.TempDir(), "device.js")
	if err := os.WriteFile(file, []byte(script), 0o600); err != nil {
		t.Fatalf("write script: %v", err)
	}
	cmd := exec.Command("node", file)
	cmd.Env = append(os.Environ(), "NODE_PATH="+modules)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatalf("start node: %v", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatalf("start node: %v", err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start node: %v", err)
	}
	d := &Device{t: t, in: in, lines: make(chan Line, 1024)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.read(out)
		_ = cmd.Wait() // the exit code says nothing that the answers do not
	}()
	d.stop = func() {
		_ = in.Close()
		_ = cmd.Process.Kill()
		for range d.lines { // what nobody wants any more
		}
		<-done
	}
	t.Cleanup(d.stop)
	d.write(s)
	d.want("start")
	return d
}

// Do runs a command and wants it to succeed; it returns the command's result.
func (d *Device) Do(op string, args map[string]any) json.RawMessage {
	d.t.Helper()
	l := d.Try(op, args)
	if l.Error != "" {
		d.t.Fatalf("SDK: %s: %s: %s", op, l.Error, l.Message)
	}
	return l.Result
}

// Try runs a command and returns its answer, which may be an error.
func (d *Device) Try(op string, args map[string]any) Line {
	d.t.Helper()
	command := map[string]any{"op": op}
	for k, v := range args {
		command[k] = v
	}
	d.write(command)
	return d.want(op)
}

// Event waits for the next event of a kind: c2d, method, desired, disconnect, error, acked or failed; with
// TokenSeconds also arrived, a C2D message that the SDK has acknowledged, whether it gives it to the program or not.
func (d *Device) Event(kind string) Line {
	d.t.Helper()
	for i, l := range d.queued {
		if l.Event == kind {
			d.queued = append(d.queued[:i:i], d.queued[i+1:]...)
			return l
		}
	}
	return d.until(func(l Line) bool { return l.Event == kind }, "event "+kind)
}

// Next waits for the next event of any kind.
func (d *Device) Next() Line {
	d.t.Helper()
	if len(d.queued) > 0 {
		l := d.queued[0]
		d.queued = d.queued[1:]
		return l
	}
	return d.until(func(l Line) bool { return l.Event != "" }, "event")
}

// Kill ends the process at once.
func (d *Device) Kill() { d.stop() }

func (d *Device) want(op string) Line {
	d.t.Helper()
	return d.until(func(l Line) bool { return l.Answer == op }, "answer to "+op)
}

func (d *Device) until(match func(Line) bool, what string) Line {
	d.t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		select {
		case l, ok := <-d.lines:
			if !ok {
				d.t.Fatalf("SDK process ended while waiting for %s", what)
			}
			if match(l) {
				return l
			}
			d.queued = append(d.queued, l)
		case <-timer.C:
			d.t.Fatalf("no %s from the SDK within %v; other lines: %+v", what, patience, d.queued)
		}
	}
}

func (d *Device) write(v any) {
	d.t.Helper()
	b, err := json.Marshal(v)
	if err == nil {
		_, err = d.in.Write(append(b, '\n'))
	}
	if err != nil {
		d.t.Fatalf("write to the SDK process: %v", err)
	}
}

func (d *Device) read(out io.Reader) {
	defer close(d.lines)
	scan := bufio.NewScanner(out)
	scan.Buffer(nil, 1<<20)
	for scan.Scan() {
		var l Line
		if json.Unmarshal(scan.Bytes(), &l) != nil {
			d.t.Logf("SDK says: %s", scan.Text())
			continue
		}
		d.lines <- l
	}
}

// find returns the node_modules folder, or an error that says how to get it.
func find() (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", err
	}
	here := filepath.Join(root, "internal", "hub", "hubtest", "nodesdk")
	install := "run: npm ci --prefix " + here
	if _, err := exec.LookPath("node"); err != nil {
		return "", errors.New("this test needs Node.js 18 or newer on the path; then " + install)
	}
	modules := os.Getenv(ModulesVariable)
	if modules == "" {
		modules = filepath.Join(here, "node_modules")
	}
	if _, err := os.Stat(filepath.Join(modules, "azure-iot-device-mqtt", "package.json")); err != nil {
		return "", fmt.Errorf("this test needs the Azure device SDK in %s; %s", modules, install)
	}
	return modules, nil
}

// moduleRoot walks up from the working folder, which for a test is its package's.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if b, err := os.ReadFile(filepath.Join(dir, "go.mod")); err == nil && strings.HasPrefix(string(b), "module gatewayd") {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("not inside the source tree of gatewayd")
		}
		dir = parent
	}
}
