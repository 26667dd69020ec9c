package main

import (
	"bytes"
	"io"
	"sync/atomic"
	"time"
)

const (
	// maxLogLines is how many lines wait for a reader of the log that is slow.
	maxLogLines = 1024
	// logFlush is how long the end of the process waits for it.
	logFlush = 2 * time.Second
)

// logOut keeps whoever logs from waiting for whoever reads the log: a pipe whose
// reader has stopped would stop sessions too. Lines that find no room are dropped and
// counted. Write may be called from many goroutines, and does nothing after close.
type logOut struct {
	lines   chan []byte
	stop    chan struct{}
	done    chan struct{} // closed when run has returned
	dropped atomic.Uint64
	// told hears, from run, how many lines were dropped since the last time.
	told func(dropped uint64)
}

func newLogOut(told func(dropped uint64)) *logOut {
	return &logOut{lines: make(chan []byte, maxLogLines), stop: make(chan struct{}), done: make(chan struct{}), told: told}
}

func (l *logOut) Write(line []byte) (int, error) {
	select {
	case l.lines <- bytes.Clone(line):
	default:
		l.dropped.Add(1)
	}
	return len(line), nil
}

// run writes lines to w until close. What cannot be written is lost: there is nowhere
// to say so.
func (l *logOut) run(w io.Writer) {
	defer close(l.done)
	for {
		select {
		case line := <-l.lines:
			_, _ = w.Write(line)
		case <-l.stop:
			for len(l.lines) > 0 {
				_, _ = w.Write(<-l.lines)
			}
			return
		}
		if len(l.lines) > 0 {
			continue
		}
		if n := l.dropped.Swap(0); n > 0 {
			l.told(n)
		}
	}
}

// close writes what waits, for a bounded time: a reader that never reads again does
// not keep the process.
func (l *logOut) close() {
	close(l.stop)
	select {
	case <-l.done:
	case <-time.After(logFlush):
	}
}
