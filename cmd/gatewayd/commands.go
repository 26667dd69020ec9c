package main

import "github.com/spf13/cobra"

// commands are what gatewayd can do.
func commands() []*cobra.Command {
	return []*cobra.Command{newRunCommand(), newDemoCommand(), newCheckCommand(), newCertsCommand(), newDoctorCommand(), newStatusCommand(), newQueueCommand(), newRouteCommand(), newReloadCommand(), newPasswdCommand(), newVersionCommand()}
}
