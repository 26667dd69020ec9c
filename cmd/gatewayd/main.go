// Command gatewayd relays many local sensors to Azure IoT Hub, one X.509
// authenticated connection per configured identity, durably in between.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/spf13/cobra"
)

// Exit codes of every command.
const (
	exitOK      = 0
	exitRunning = 1 // failed while running
	exitUsage   = 2 // bad usage or configuration; systemd does not restart on it
)

// exitError carries an exit code other than exitRunning, or says that the
// command has already told the user what is wrong (a nil err).
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// keepSignalsComing has the first thread of the process, which main begins on, do nothing but main's work. The kernel
// hands signals for the process to that thread; one that hangs in a system call, on a file of a share whose server is
// silent, would sit on SIGTERM.
func keepSignalsComing() { runtime.LockOSThread() }

func main() {
	keepSignalsComing()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is the whole life of the process, without its globals.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRootCommand()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	code := exitRunning
	var exit *exitError
	if errors.As(err, &exit) {
		code = exit.code
	}
	if text := err.Error(); text != "" {
		fmt.Fprintln(stderr, "gatewayd:", text)
	}
	return code
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "gatewayd",
		Short:         "Relay local sensors to Azure IoT Hub, durably, under X.509 identities",
		Version:       readBuild().Version,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return &exitError{exitUsage, fmt.Errorf("unknown command %q; gatewayd --help lists the commands", args[0])}
			}
			return cmd.Help()
		},
		Args: cobra.ArbitraryArgs,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &exitError{exitUsage, err} })
	root.AddCommand(commands()...)
	root.AddCommand(buildOnly()...)
	return root
}
