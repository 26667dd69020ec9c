package main

import "github.com/spf13/cobra"

// commands are what gatewayd can do.
func commands() []*cobra.Command {
	return []*cobra.Command{newRunCommand(), newDemoCommand(), newCheckCommand(), newCertsCommand(), newStatusCommand(), newQueueCommand(), newRouteCommand(), newReloadCommand(), newPasswdCommand(), newVersionCommand()}
}
