package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"gatewayd/internal/hub/hubtest"
)

func TestLogLinesNeverWaitForTheirReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told []uint64
		l := newLogOut(func(n uint64) { told = append(told, n) })
		r, w := io.Pipe()
		go l.run(w)
		const more = 10
		for i := range maxLogLines + 1 + more { // one is on its way
			fmt.Fprintln(l, i)
			synctest.Wait()
		}
		var got bytes.Buffer
		go io.Copy(&got, r)
		synctest.Wait()
		if fmt.Sprint(told) != "[10]" || strings.Count(got.String(), "\n") != maxLogLines+1 {
			t.Errorf("told %v, %d lines", told, strings.Count(got.String(), "\n"))
		}
		fmt.Fprintln(l, "last")
		l.close()
		synctest.Wait()
		if !strings.HasSuffix(got.String(), "\nlast\n") {
			t.Error("the end is missing")
		}
		r.Close()
	})
	synctest.Test(t, func(t *testing.T) {
		l := newLogOut(nil)
		r, w := io.Pipe()
		go l.run(w)
		fmt.Fprintln(l, "nobody reads this")
		start := time.Now()
		l.close()
		if took := time.Since(start); took != logFlush {
			t.Errorf("the end took %v", took)
		}
		r.Close()
	})
}

// A pipe that nobody reads, and one whose reader has gone, cost lines and nothing else.
func TestGatewayOutlivesTheReaderOfItsLog(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{}, "press-7")
	r, w, err := os.Pipe()
	check(t, err)
	for filled := false; ; filled = true { // until nothing more goes in
		check(t, w.SetWriteDeadline(time.Now().Add(200*time.Millisecond)))
		if n, err := w.Write(make([]byte, 1<<20)); filled && n == 0 && err != nil {
			break
		}
	}
	cmd := exec.Command(os.Args[0], "run", "-c", "config.yaml")
	cmd.Dir, cmd.Env, cmd.Stderr = s.dir, append(os.Environ(), asProgram+"=1"), w
	check(t, cmd.Start())
	check(t, w.Close())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	eventually(t, 20*time.Second, "connected", func() bool { return s.hub.Connected("press-7") })
	s.hub.DropConnections("press-7")
	if code := s.post("sensors/press-7/x", "while nobody reads", ""); code != http.StatusAccepted {
		t.Errorf("code %d", code)
	}
	s.drained(20 * time.Second)
	check(t, r.Close())
	s.hub.DropConnections("press-7")
	if code := s.post("sensors/press-7/x", "after the reader has gone", ""); code != http.StatusAccepted {
		t.Errorf("code %d", code)
	}
	s.drained(20 * time.Second)
}
