package main

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"gatewayd/internal/hub/hubtest"
)

// The limits of the file are those of the running process.
func TestLimitsOfTheFileHold(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{}, "press-7")
	config := string(must(os.ReadFile(s.path("config.yaml")))(t))
	config = strings.Replace(config, fmt.Sprintf("http: [{listen: %q", s.http), fmt.Sprintf("http: [{max_body: 1KiB, rate: 2, listen: %q", s.http), 1)
	config = strings.Replace(config, "downstream:\n", "downstream:\n  max_topic: 32\n", 1)
	s.write("config.yaml", config)
	limited := freeAddress(t)
	s.listen(fmt.Sprintf("{listen: %q, max_connections: 1, max_packet: 1KiB}", limited))
	s.run()
	if got := s.post("sensors/press-7/a", strings.Repeat("x", 1025), ""); got != http.StatusRequestEntityTooLarge {
		t.Errorf("max_body: %d", got)
	}
	if got := s.post("sensors/press-7/"+strings.Repeat("a", 32), "x", ""); got < 400 || got >= 500 || got == http.StatusTooManyRequests {
		t.Errorf("max_topic: %d", got)
	}
	eventually(t, 10*time.Second, "rate refuses", func() bool { return s.post("sensors/press-7/a", "x", "") == http.StatusTooManyRequests })
	if out, err := mosquittoPub(t, limited, "sensors/press-7/a", "fits"); err != nil || out != "" {
		t.Errorf("below the limits: %v %s", err, out)
	}
	if out, err := mosquittoPub(t, limited, "sensors/press-7/a", strings.Repeat("x", 1100), "-V", "mqttv311"); err == nil {
		t.Errorf("max_packet: accepted: %s", out)
	}
	if out, _ := mosquittoPub(t, s.mqtt, "sensors/press-7/"+strings.Repeat("a", 32), "x"); out == "" {
		t.Error("max_topic: accepted over MQTT")
	}
	held := must(dialLocal(t.Context(), limited))(t)
	defer held.Close()
	eventually(t, 10*time.Second, "max_connections refuses", func() bool {
		_, err := mosquittoPub(t, limited, "sensors/press-7/a", "one too many")
		return err != nil
	})
	config = string(must(os.ReadFile(s.path("config.yaml")))(t))
	s.write("config.yaml", strings.Replace(config, "max_topic: 32", "max_topic: 64", 1))
	if code, out := s.exitCode("reload", "-c", "config.yaml"); code == exitOK || !strings.Contains(out, "downstream.max_topic changed, which needs a restart") {
		t.Errorf("reload exits with %d: %s", code, out)
	}
}

func TestSendRateHoldsOverAllIdentitiesAndReloads(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{}, "press-7", "press-8")
	hub := func(rate int) string {
		return fmt.Sprintf("hub: {trust: [hub-ca.pem], system_roots: false, connect_rate: 200, send_rate: %d}\n", rate)
	}
	s.writeConfig(hub(20))
	s.run()
	eventually(t, 15*time.Second, "connected", func() bool { return s.hub.Connected("press-7") && s.hub.Connected("press-8") })
	f := s.fleet(4, 50, 64, 0)
	eventually(t, 10*time.Second, "readings", func() bool { return f.acked() > 300 })
	f.end()
	before, began := len(s.hub.Messages()), time.Now()
	time.Sleep(3 * time.Second)
	// A tenth of a second's worth may go at once.
	if sent, most := len(s.hub.Messages())-before, int(20*time.Since(began).Seconds())+4; sent > most || sent < 20 {
		t.Errorf("%d messages in %v, at most %d are allowed", sent, time.Since(began), most)
	}
	s.writeConfig(hub(0))
	if code, out := s.exitCode("reload", "-c", "config.yaml"); code != exitOK || !strings.Contains(out, "hub or log settings") {
		t.Errorf("reload exits with %d: %s", code, out)
	}
	s.drained(30 * time.Second)
	if n := len(s.hub.ConnectionsOf("press-7")); n != 1 {
		t.Errorf("%d connections: the rate is not the identity's", n)
	}
}
