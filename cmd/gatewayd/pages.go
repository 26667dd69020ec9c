//go:build pages

package main

import (
	"cmp"
	"compress/gzip"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

// pages.go is built with -tags pages only: it turns the commands into man pages and
// completions for the packages, and what it needs for that stays out of the daemon.
func newPagesCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "pages DIR",
		Short:  "Write man pages and shell completions below DIR",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE:   func(cmd *cobra.Command, args []string) error { return writePages(cmd.Root(), args[0]) },
	}
}

// writePages makes the same bytes each time: SOURCE_DATE_EPOCH is the date in the
// man pages, and nothing else of the machine gets in.
func writePages(root *cobra.Command, dir string) error {
	seconds, err := strconv.ParseInt(cmp.Or(os.Getenv("SOURCE_DATE_EPOCH"), "0"), 10, 64)
	if err != nil {
		return &exitError{exitUsage, fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)}
	}
	date := time.Unix(seconds, 0).UTC()
	man := filepath.Join(dir, "man", "man8")
	for _, d := range []string{man, filepath.Join(dir, "bash"), filepath.Join(dir, "zsh"), filepath.Join(dir, "fish")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	root.DisableAutoGenTag = true
	header := &doc.GenManHeader{Section: "8", Source: "gatewayd", Manual: "System administration", Date: &date}
	if err := doc.GenManTree(root, header, man); err != nil {
		return err
	}
	if err := compressAll(man); err != nil {
		return err
	}
	return errors.Join(
		root.GenBashCompletionFileV2(filepath.Join(dir, "bash", "gatewayd"), true),
		root.GenZshCompletionFile(filepath.Join(dir, "zsh", "_gatewayd")),
		root.GenFishCompletionFile(filepath.Join(dir, "fish", "gatewayd.fish"), true),
	)
}

// compressAll replaces each page by its gzip form, as man(1) and the
// distributions want them, without name and time inside.
func compressAll(dir string) error {
	pages, err := filepath.Glob(filepath.Join(dir, "*.8"))
	if err != nil {
		return err
	}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			return err
		}
		f, err := os.Create(page + ".gz")
		if err != nil {
			return err
		}
		w, err := gzip.NewWriterLevel(f, gzip.BestCompression)
		if err == nil {
			_, err = w.Write(text)
		}
		if err = errors.Join(err, w.Close(), f.Close(), os.Remove(page)); err != nil {
			return err
		}
	}
	return nil
}

// buildOnly are commands of the build, which the daemon does not carry.
func buildOnly() []*cobra.Command { return []*cobra.Command{newPagesCommand()} }
