package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"gatewayd/internal/config"
	"gatewayd/internal/queue"
)

func queueDir(cfg *config.Config) string { return filepath.Join(cfg.StateDir, "queue") }

func noQueue(cfg *config.Config, err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("there is no queue in state_dir %s yet", cfg.StateDir)
	}
	return err
}

func newQueueCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "queue",
		Short: "Look inside the queue of a stopped or running gateway",
		Args:  usageArgs(cobra.NoArgs),
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		readQueue("ls", "List the queues: what waits, how old it is, what was set aside or dropped", cobra.NoArgs, listQueues),
		readQueue("inspect IDENTITY [SEQ]", "Show the messages of a queue, one line each, or one message whole", inspectArgs, inspectQueue),
		readQueue("export [IDENTITY]", "Write messages, also those set aside, as JSON lines", cobra.MaximumNArgs(1), exportQueue),
		readQueue("verify", "Read every byte and check every checksum; exit 1 when something is damaged", cobra.NoArgs, verifyQueue),
		newRequeueCommand(), newDropCommand())
	return cmd
}

// readQueue makes a command that only reads, beside a running gateway or not.
func readQueue(use, short string, args cobra.PositionalArgs, show func(cmd *cobra.Command, j *queue.Journal, args []string) error) *cobra.Command {
	var file string
	cmd := &cobra.Command{Use: use, Short: short, Args: usageArgs(args), RunE: func(cmd *cobra.Command, args []string) error {
		cfg, err := peekConfig(file)
		if err != nil {
			return err
		}
		if _, err := os.Stat(queueDir(cfg)); err != nil {
			return noQueue(cfg, err)
		}
		j, err := queue.OpenForReading(queueDir(cfg))
		if err != nil {
			return err
		}
		return errors.Join(neverUsed(cfg, args, show(cmd, j, args)), j.Close())
	}}
	addConfigFlag(cmd, &file)
	return cmd
}

// neverUsed takes the missing queue of a configured identity for an empty one: it
// comes into being with the first message.
func neverUsed(cfg *config.Config, args []string, err error) error {
	if errors.Is(err, queue.ErrNotFound) && len(args) == 1 && slices.Contains(cfg.Names(), args[0]) {
		return nil
	}
	return err
}

func listQueues(cmd *cobra.Command, j *queue.Journal, _ []string) error {
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "QUEUE\tWAITING\tBYTES\tOLDEST\tASIDE\tACKED\tDROPPED")
	for _, s := range j.List() {
		dropped := uint64(0)
		for reason, n := range s.Dropped {
			if reason != queue.DropAside {
				dropped += n
			}
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%d\t%d\t%d\n", s.Identity, s.Messages, s.Bytes, s.OldestAge.Round(time.Second), s.Aside, s.Acked, dropped)
	}
	return w.Flush()
}

func inspectQueue(cmd *cobra.Command, j *queue.Journal, args []string) error {
	if len(args) == 2 {
		return inspectOne(cmd.OutOrStdout(), j, args[0], args[1])
	}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "SEQ\tSTATE\tACCEPTED\tPRIO\tSOURCE\tTOPIC\tBYTES\tREASON")
	if !slices.Contains(j.Identities(), args[0]) {
		return fmt.Errorf("queue %q: %w", args[0], queue.ErrNotFound)
	}
	err := j.Each(args[0], func(it queue.Item) error {
		_, err := fmt.Fprintf(w, "%d\t%s\t%s\t%d\t%s\t%s\t%d\t%s\n", it.Seq, it.State, it.Accepted.Format(time.RFC3339), it.Priority,
			printable(it.Source), printable(it.Topic), len(it.Payload), it.Reason)
		return err
	})
	return errors.Join(err, w.Flush())
}

// printable keeps what a sensor wrote from steering a terminal.
func printable(s string) string {
	if q := strconv.QuoteToGraphic(s); q != `"`+s+`"` {
		return q
	}
	return s
}

func inspectArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 2 {
		if _, err := strconv.ParseUint(args[1], 10, 64); err != nil {
			return fmt.Errorf("%q is not a sequence number", args[1])
		}
	}
	return cobra.RangeArgs(1, 2)(cmd, args)
}

var errFound = errors.New("found")

func inspectOne(out io.Writer, j *queue.Journal, identity, text string) error {
	seq, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return &exitError{exitUsage, fmt.Errorf("%q is not a sequence number", text)}
	}
	err = j.Each(identity, func(it queue.Item) error {
		if it.Seq != seq {
			return nil
		}
		line, err := it.MarshalJSON()
		if err == nil {
			_, err = fmt.Fprintf(out, "%s\n", line)
		}
		return errors.Join(err, errFound)
	})
	switch {
	case errors.Is(err, errFound):
		return nil
	case err == nil:
		return fmt.Errorf("message %d of %s: %w", seq, identity, queue.ErrNotFound)
	}
	return err
}

func exportQueue(cmd *cobra.Command, j *queue.Journal, args []string) error {
	identity := ""
	if len(args) == 1 {
		identity = args[0]
	}
	return j.Export(cmd.OutOrStdout(), identity)
}

func verifyQueue(cmd *cobra.Command, j *queue.Journal, _ []string) error {
	r, err := j.Verify(cmd.Context())
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	for _, f := range r.Faults {
		fmt.Fprintln(out, f)
	}
	fmt.Fprintf(out, "%d segments, %d bytes, %d records checked, %d messages stored\n", r.Segments, r.Bytes, r.Records, r.Messages)
	if r.Torn {
		fmt.Fprintln(out, "the newest segment ends in bytes of an unfinished write, which were never acknowledged")
	}
	if len(r.Faults) > 0 {
		return fmt.Errorf("%d places are damaged; what is intact around them is delivered", len(r.Faults))
	}
	return nil
}

func newRequeueCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "requeue IDENTITY [SEQ...]",
		Short: "Put messages that were set aside back into their queue: those named, or all",
		Args:  usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := peekConfig(file)
			if err != nil {
				return err
			}
			req, err := asideRequest(args)
			if err != nil {
				return err
			}
			text, err := changeQueue(cmd.Context(), cfg, "requeue", req, func(j *queue.Journal) (string, error) {
				n, err := j.Requeue(req.Identity, req.Seqs...)
				return fmt.Sprintf("%d messages put back", n), neverUsed(cfg, args, err)
			})
			if err == nil {
				fmt.Fprintln(cmd.OutOrStdout(), text)
			}
			return err
		},
	}
	addConfigFlag(cmd, &file)
	return cmd
}

// asideRequest is about messages that were set aside: IDENTITY [SEQ...].
func asideRequest(args []string) (controlRequest, error) {
	req := controlRequest{Identity: args[0]}
	for _, text := range args[1:] {
		seq, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return req, &exitError{exitUsage, fmt.Errorf("%q is not a sequence number", text)}
		}
		req.Seqs = append(req.Seqs, seq)
	}
	return req, nil
}

func newDropCommand() *cobra.Command {
	var file string
	var yes, aside bool
	cmd := &cobra.Command{
		Use:   "drop IDENTITY [SEQ...] --yes",
		Short: "Forget the queue of an identity that is no longer configured, or messages that were set aside",
		Long: `Forget the queue of an identity that is no longer configured, with everything in
it. With SEQ or --aside only messages that were set aside are forgotten: those
named, or all. Their identity may be configured and connected.`,
		Args: usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := peekConfig(file)
			if err != nil {
				return err
			}
			if !yes {
				return &exitError{exitUsage, errors.New("--yes is required: undelivered messages are lost; gatewayd queue export saves them")}
			}
			req, err := asideRequest(args)
			if err != nil {
				return err
			}
			req.Aside = aside || len(req.Seqs) > 0
			text, err := changeQueue(cmd.Context(), cfg, "drop", req, func(j *queue.Journal) (string, error) {
				return dropQueue(j, req)
			})
			if err == nil {
				fmt.Fprintln(cmd.OutOrStdout(), text)
			}
			return err
		},
	}
	addConfigFlag(cmd, &file)
	cmd.Flags().BoolVar(&yes, "yes", false, "really drop it")
	cmd.Flags().BoolVar(&aside, "aside", false, "only what was set aside")
	return cmd
}

func newReloadCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "reload [-c FILE]",
		Short: "Have the running gateway read its configuration and certificates again",
		Long: `Have the running gateway read its configuration and certificates again, and say
what has changed, or why nothing has. Without -c it asks the gateway whose
state_dir is the default one.`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			defaults := config.Defaults()
			cfg := &defaults
			if file != "" {
				if cfg, err = peekConfig(file); err != nil {
					return err
				}
			}
			text, err := askControl(cmd.Context(), cfg, "reload", controlRequest{})
			if errors.Is(err, errNotRunning) {
				return fmt.Errorf("%w (%s)", err, cfg.StateDir)
			}
			if err == nil {
				fmt.Fprintln(cmd.OutOrStdout(), text)
			}
			return err
		},
	}
	cmd.Flags().StringVarP(&file, "config", "c", "", "configuration file, for its state_dir")
	return cmd
}
