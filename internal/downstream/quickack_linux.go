package downstream

import (
	"net"
	"syscall"
)

// quickAck has the kernel acknowledge at once what was read. A client that sends small
// packets one after the other, as MQTT libraries do without TCP_NODELAY, else holds the
// next one back for the 40 ms that a kernel waits for something to send along.
func quickAck(c net.Conn) {
	s, ok := c.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return
	}
	// That it does not work, as on a unix socket, only costs the 40 ms.
	_ = raw.Control(func(fd uintptr) {
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_QUICKACK, 1)
	})
}
