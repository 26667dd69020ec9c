//go:build !linux

package hub

import (
	"net"
	"time"
)

// setUserTimeout exists on Linux only; elsewhere the write deadline and the ping
// find a dead link.
func setUserTimeout(net.Conn, time.Duration) {}
