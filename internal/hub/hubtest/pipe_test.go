package hubtest

import (
	"net"
	"testing"

	"golang.org/x/net/nettest"
)

// TestPipeIsAProperConn runs the conformance suite for net.Conn.
func TestPipeIsAProperConn(t *testing.T) {
	nettest.TestConn(t, func() (a, b net.Conn, stop func(), err error) {
		a, b = Pipe()
		return a, b, func() { _ = a.Close(); _ = b.Close() }, nil
	})
}
