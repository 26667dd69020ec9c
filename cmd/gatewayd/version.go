package main

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"github.com/spf13/cobra"
)

// Set by the linker (-X main.version=...), never at run time. Empty in a plain
// "go build", where the build information of the Go toolchain stands in.
var (
	version string // such as v1.2.0
	commit  string // full hash
	built   string // RFC 3339
)

// build says which program this is.
type build struct {
	Version string    `json:"version"`
	Commit  string    `json:"commit,omitempty"`
	Built   time.Time `json:"built,omitzero"`
	Go      string    `json:"go"`
	OS      string    `json:"os"`
	Arch    string    `json:"arch"`
}

// readBuild looks once.
var readBuild = sync.OnceValue(func() build {
	b := build{Version: version, Commit: commit, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
	b.Built, _ = time.Parse(time.RFC3339, built)
	if info, ok := debug.ReadBuildInfo(); ok {
		b.fill(info)
	}
	if b.Version == "" {
		b.Version = "devel"
	}
	return b
})

// fill takes from the toolchain what the linker was not told.
func (b *build) fill(info *debug.BuildInfo) {
	if b.Version == "" && info.Main.Version != "(devel)" {
		b.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision" && b.Commit == "":
			b.Commit = s.Value
		case s.Key == "vcs.time" && b.Built.IsZero():
			b.Built, _ = time.Parse(time.RFC3339, s.Value)
		}
	}
}

func (b build) String() string {
	text := "gatewayd " + b.Version
	if b.Commit != "" {
		text += fmt.Sprintf("\ncommit:  %s", b.Commit)
	}
	if !b.Built.IsZero() {
		text += fmt.Sprintf("\nbuilt:   %s", b.Built.UTC().Format(time.RFC3339))
	}
	return text + fmt.Sprintf("\ngo:      %s\nsystem:  %s/%s", b.Go, b.OS, b.Arch)
}

// versionString is the version alone.
func versionString() string { return readBuild().Version }

func newVersionCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print version, commit, build time and Go version",
		Args:  usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(readBuild())
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), readBuild())
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
