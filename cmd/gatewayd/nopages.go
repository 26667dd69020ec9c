//go:build !pages

package main

import "github.com/spf13/cobra"

// buildOnly are commands of the build, which the daemon does not carry.
func buildOnly() []*cobra.Command { return nil }
