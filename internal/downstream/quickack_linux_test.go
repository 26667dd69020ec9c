package downstream

import (
	"net"
	"slices"
	"testing"
	"time"

	"gatewayd/internal/packet"
)

// A client that is killed, or whose gateway is, must not have acknowledgements that
// never left it because of Nagle's algorithm.
func TestSmallPacketsOfClientsAreNotHeldBack(t *testing.T) {
	b := start(t, benchOptions{})
	c := b.connect(packet.V311, "a")
	if err := c.nc.(*net.TCPConn).SetNoDelay(false); err != nil {
		t.Fatal(err)
	}
	c.subscribe("gateway/#", 1)
	var took []time.Duration
	for range 41 {
		acked := make(chan struct{}, 2)
		for i := range 2 {
			m := c2d(i)
			m.Acked = func() { acked <- struct{}{} }
			if _, err := b.local.Publish(m); err != nil {
				t.Fatal(err)
			}
		}
		first, second := c.receive(), c.receive()
		began := time.Now()
		c.ack(first.ID)
		c.ack(second.ID)
		<-acked
		<-acked
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	if m := took[len(took)/2]; m > 20*time.Millisecond {
		t.Errorf("an acknowledgement takes %v at the median", m)
	}
}
