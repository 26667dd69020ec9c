package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"

	"gatewayd/internal/config"
)

func newRunCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "run -c FILE",
		Short: "Run the gateway until it is told to stop",
		Long: `Run the gateway until it is told to stop.

SIGTERM and SIGINT stop it in order: what was accepted is on disk, and a bounded
time is given to acknowledgements. SIGHUP reads the configuration, the
certificates, users and tokens again, as gatewayd reload does.

Exit codes: 0 asked to stop, 1 failed while running, 2 bad usage or configuration.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(file)
			if err != nil {
				return err
			}
			return runGateway(cmd.Context(), cfg)
		},
	}
	addConfigFlag(cmd, &file)
	return cmd
}

// addConfigFlag gives a command its -c.
func addConfigFlag(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVarP(file, "config", "c", "", "configuration file (required)")
}

// loadConfig reads the file; what is wrong with it is exit code 2.
func loadConfig(file string) (*config.Config, error) { return configFrom(file, config.Load) }

// peekConfig is loadConfig for commands that read none of the files which the configuration names.
func peekConfig(file string) (*config.Config, error) { return configFrom(file, config.Peek) }

func configFrom(file string, load func(string) (*config.Config, error)) (*config.Config, error) {
	if file == "" {
		return nil, &exitError{exitUsage, errors.New("-c FILE is required: the configuration file")}
	}
	cfg, err := load(file)
	if err != nil {
		return nil, &exitError{exitUsage, err}
	}
	return cfg, nil
}

func runGateway(ctx context.Context, cfg *config.Config) error {
	level, err := zapcore.ParseLevel(cfg.Log.Level)
	if err != nil {
		return &exitError{exitUsage, fmt.Errorf("log.level: %w", err)}
	}
	dieBySignal()
	atomic := zap.NewAtomicLevelAt(level)
	var log *zap.Logger
	out := newLogOut(func(n uint64) { log.Warn("log lines were dropped, nobody read them", zap.Uint64("lines", n)) })
	log = newLoggerTo(os.Stderr, out, atomic, cfg.Log.Format)
	// A reader of the log that has gone would end the process with a signal otherwise.
	gone := make(chan os.Signal, 1)
	signal.Notify(gone, syscall.SIGPIPE)
	go out.run(os.Stderr)
	defer out.close()
	if bound := boundMemory("/"); bound > 0 {
		log.Info("memory is bounded by the control group", zap.Int64("bytes", bound))
	}
	g, err := newGateway(cfg, log, atomic)
	if err != nil {
		return err
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	g.hup = hup
	return g.Run(ctx)
}

// dieBySignal makes a panic and the watchdog's SIGABRT end the process by a signal,
// after the stacks are printed. The runtime's own way is exit code 2, which stands
// for a configuration that cannot be used, and which systemd does not restart. The
// core that such a signal leaves would hold private keys, so there is none.
func dieBySignal() {
	debug.SetTraceback("crash")
	// Lowering a limit of one's own is always allowed.
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
}
