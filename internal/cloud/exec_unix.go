//go:build unix

package cloud

import (
	"os/exec"
	"syscall"
)

// ownGroup has a program that takes too long ended together with what it started.
func ownGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
}
