package main

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/bcrypt"
)

// execute runs one command by itself.
func execute(t *testing.T, cmd *cobra.Command, stdin string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.SetIn(strings.NewReader(stdin))
	cmd.SetOut(&out)
	cmd.SetErr(&errs)
	cmd.SetArgs(args)
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	err = cmd.ExecuteContext(t.Context())
	return out.String(), errs.String(), err
}

// wantUsage checks that an error means exit code 2 and says why.
func wantUsage(t *testing.T, err error, reason string) {
	t.Helper()
	var exit *exitError
	if !errors.As(err, &exit) || exit.code != exitUsage || !strings.Contains(err.Error(), reason) {
		t.Errorf("got %v, want exit code 2 because of %q", err, reason)
	}
}

func TestPasswdLineVerifies(t *testing.T) {
	out, _, err := execute(t, newPasswdCommand(), "hunter2\r\nmore\n", "press")
	if err != nil {
		t.Fatal(err)
	}
	name, hash, _ := strings.Cut(strings.TrimSuffix(out, "\n"), ":")
	if name != "press" || bcrypt.CompareHashAndPassword([]byte(hash), []byte("hunter2")) != nil {
		t.Errorf("got %q", out)
	}
}

func TestPasswordIsTheFirstLine(t *testing.T) {
	for _, stdin := range []string{"hunter 2", "hunter 2\n", "hunter 2\r\n", "hunter 2\nmore\n"} {
		got, err := readPassword(strings.NewReader(stdin), io.Discard)
		if err != nil || string(got) != "hunter 2" {
			t.Errorf("%q gave %q, %v", stdin, got, err)
		}
	}
}

func TestPasswdRefusesWhatTheFileCannotCarry(t *testing.T) {
	for _, tt := range []struct{ name, stdin, reason string }{
		{"a:b", "x", "colon"},
		{"#a", "x", "user name"},
		{" a", "x", "space"},
		{"", "x", "empty"},
		{"a", "", "1 to 72 bytes"},
		{"a", "\n", "1 to 72 bytes"},
		{"a", strings.Repeat("x", 73) + "\n", "1 to 72 bytes"},
		{"a", strings.Repeat("x", 1<<20), "1 to 72 bytes"},
	} {
		_, _, err := execute(t, newPasswdCommand(), tt.stdin, "--", tt.name)
		wantUsage(t, err, tt.reason)
	}
	if _, _, err := execute(t, newPasswdCommand(), strings.Repeat("x", 72)+"\r\n", "a"); err != nil {
		t.Errorf("the longest password: %v", err)
	}
	_, _, err := execute(t, newPasswdCommand(), "x")
	wantUsage(t, err, "usage: passwd NAME")
}
