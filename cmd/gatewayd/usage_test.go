package main

import (
	"strings"
	"testing"

	"gatewayd/internal/hub/hubtest"
)

func TestBadUsageIsExitCodeTwo(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{}, "press-7")
	for _, args := range [][]string{
		{"frobnicate"}, {"run"}, {"run", "-c", "config.yaml", "more"}, {"run", "--none"}, {"check"}, {"check", "more"}, {"certs"}, {"certs", "more"},
		{"doctor"}, {"doctor", "-c", "config.yaml", "nobody"}, {"doctor", "-c", "config.yaml", "a", "b"}, {"doctor", "-c", "config.yaml", "--timeout", "1ms"},
		{"status", "more"}, {"queue", "none"}, {"queue", "ls"}, {"queue", "inspect"}, {"queue", "inspect", "press-7", "one", "-c", "config.yaml"},
		{"queue", "export", "a", "b"}, {"queue", "verify", "more"}, {"queue", "requeue"}, {"queue", "requeue", "press-7", "one", "-c", "config.yaml"},
		{"queue", "drop"}, {"queue", "drop", "press-7", "-c", "config.yaml"}, {"route"}, {"route", "a"}, {"reload", "more"},
		{"passwd"}, {"passwd", "a", "b"}, {"version", "more"}, {"demo", "more"}, {"demo", "--for", "soon"},
	} {
		var out, errs strings.Builder
		for i, a := range args {
			if a == "config.yaml" {
				args[i] = s.path(a)
			}
		}
		if code := run(t.Context(), args, strings.NewReader(""), &out, &errs); code != exitUsage {
			t.Errorf("%v exits with %d, want %d: %s", args, code, exitUsage, &errs)
		}
		if !strings.HasPrefix(errs.String(), "gatewayd: ") || strings.Count(errs.String(), "\n") != 1 {
			t.Errorf("%v does not say in one line why: %q", args, &errs)
		}
	}
}

// A command that needs a running gateway, or a queue, says so.
func TestCommandsWithoutAGateway(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{}, "press-7")
	for _, tt := range []struct{ args, want string }{
		{"status", "no gateway is running on this state_dir"},
		{"reload", "no gateway is running on this state_dir"},
		{"queue ls", "there is no queue in state_dir"},
		{"queue verify", "there is no queue in state_dir"},
		{"queue requeue press-7", "there is no queue in state_dir"},
		{"queue drop press-7 --yes", "there is no queue in state_dir"},
	} {
		if code, out := s.exitCode(append(strings.Fields(tt.args), "-c", "config.yaml")...); code != exitRunning || !strings.Contains(out, tt.want) {
			t.Errorf("%s exits with %d: %s", tt.args, code, out)
		}
	}
	p := s.run()
	p.stop()
	for _, args := range []string{"queue inspect press-7", "queue export press-7", "queue requeue press-7"} {
		if code, out := s.exitCode(append(strings.Fields(args), "-c", "config.yaml")...); code != exitOK {
			t.Errorf("%s of an identity that never had a message exits with %d: %s", args, code, out)
		}
	}
}
