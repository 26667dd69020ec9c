package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gatewayd/internal/certstore/certtest"
)

// TestSilentShareIsAWarning: files on a share whose server is silent hold a load up for lookLimit, and once only; what
// is wrong elsewhere is found.
func TestSilentShareIsAWarning(t *testing.T) {
	dir := t.TempDir()
	share := filepath.Join(dir, "share")
	if err := os.Mkdir(share, 0o700); err != nil {
		t.Fatal(err)
	}
	text := "hub: {trust: [share/root.pem, none.pem]}\nidentities:\n"
	const folders = lookers / 2
	for i := range folders {
		text += fmt.Sprintf("  - {host_name: h, device_id: d%d, certificate: {cert: share/%d/a.pem, key: none.key}}\n", i, i)
	}
	text += "downstream: {mqtt: [{listen: \"127.0.0.1:0\"}]}\nroutes: [{match: \"#\", to: d1}]\n"
	file := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	release, err := certtest.Hang(share)
	if err != nil {
		t.Skip("no file system can be mounted: ", err)
	}
	t.Cleanup(release)
	var l Looker
	for range 2 {
		began := time.Now()
		_, err = l.Load(file)
		if d := time.Since(began); d > lookLimit+time.Second {
			t.Errorf("took %s", d)
		}
		bad, ok := err.(*Error)
		if !ok {
			t.Fatalf("%v", err)
		}
		if silentFiles(bad.Warnings) != folders+1 || !strings.Contains(err.Error(), "hub.trust[1]: no such file") {
			t.Errorf("warnings %v, problems %v", bad.Warnings, bad.Problems)
		}
		l.mu.Lock()
		n := len(l.busy)
		l.mu.Unlock()
		if n != folders+1 {
			t.Errorf("%d folders hang", n)
		}
	}
	if _, err := Peek(file); err != nil {
		t.Errorf("peek: %v", err)
	}
	release()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		_, err := l.Load(file)
		if bad, ok := err.(*Error); ok && silentFiles(bad.Warnings) == 0 && strings.Contains(err.Error(), "hub.trust[1]: no such file") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%v", err)
		}
	}
}

func silentFiles(all []Problem) (n int) {
	for _, w := range all {
		if strings.Contains(w.Reason, "does not answer") {
			n++
		}
	}
	return n
}
