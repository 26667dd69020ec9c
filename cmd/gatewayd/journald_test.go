package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/zap"
)

func TestTheJournalLearnsThePriority(t *testing.T) {
	f := must(os.Create(filepath.Join(t.TempDir(), "stream")))(t)
	defer f.Close()
	stat := must(f.Stat())(t).Sys().(*syscall.Stat_t)
	say := func() string {
		t.Helper()
		check(t, f.Truncate(0))
		log := newLogger(f, zap.NewAtomicLevelAt(zap.DebugLevel), "auto").Named("part").With(zap.String("identity", "press-7"))
		log.Debug("d")
		log.Info("i")
		log.Warn("w")
		log.Error("e")
		var begins []string
		for line := range strings.Lines(strings.TrimLeft(string(must(os.ReadFile(f.Name()))(t)), "\x00")) {
			if !strings.HasSuffix(line, `"identity":"press-7"}`+"\n") {
				t.Errorf("the line is %q", line)
			}
			begins = append(begins, line[:3])
		}
		return strings.Join(begins, " ")
	}
	t.Setenv("JOURNAL_STREAM", fmt.Sprintf("%d:%d", stat.Dev, stat.Ino))
	if got := say(); got != "<7> <6> <4> <3>" {
		t.Errorf("in the journal: %s", got)
	}
	// A program that was started with its own output elsewhere inherits the variable.
	t.Setenv("JOURNAL_STREAM", fmt.Sprintf("%d:%d", stat.Dev, stat.Ino+1))
	if got := say(); got != `{"l {"l {"l {"l` {
		t.Errorf("elsewhere: %s", got)
	}
}
