package downstream

import (
	"crypto/tls"
	"testing"
)

// A sensor with TLS on a port without it is a mistake of every site's first day.
func TestTLSOnAPlainPortIsSaid(t *testing.T) {
	b := start(t, benchOptions{})
	c, err := tls.Dial("tcp", b.mqtt.Addr().String(), &tls.Config{InsecureSkipVerify: true})
	if err == nil {
		c.Close()
		t.Fatal("a handshake")
	}
	eventually(t, "a line in the log", func() bool { return b.logs("client refused") == 1 })
	for _, e := range b.logged.All() {
		if got := e.ContextMap()["error"]; got != errSpeaksTLS.Error() {
			t.Errorf("logged %q", got)
		}
	}
}
