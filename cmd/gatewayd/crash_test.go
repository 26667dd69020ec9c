package main

import (
	"context"
	"os"
	"testing"
	"time"

	"gatewayd/internal/hub/hubtest"
)

// soakFor is how long tests with repeated kills go on; GATEWAYD_SOAK makes them longer.
func soakFor(t testing.TB, standard time.Duration) time.Duration {
	t.Helper()
	if v := os.Getenv("GATEWAYD_SOAK"); v != "" {
		return must(time.ParseDuration(v))(t)
	}
	return standard
}

func TestNothingAckedIsLostOverKills(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{MaxInbound: -1}, "press-1", "press-2", "press-3")
	p := s.run()
	f := s.fleet(50, 20, 256, 0)
	kills := 0
	for end := time.Now().Add(soakFor(t, time.Minute)); time.Now().Before(end); {
		time.Sleep(2 * time.Second)
		p.kill()
		kills++
		p = s.run()
	}
	f.end()
	s.drained(2 * time.Minute)
	if code := p.stop(); code != 0 {
		t.Errorf("exit code %d after SIGTERM", code)
	}
	resent := f.account(t, s.hub.Messages())
	t.Logf("%d kills, %d messages acknowledged, %d resent with the same id", kills, f.acked(), resent)
	if f.acked() < 1000 {
		t.Errorf("only %d messages were acknowledged: no load", f.acked())
	}
}

// drained waits until the queues of a running gateway are empty.
func (s *plant) drained(limit time.Duration) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	for {
		r, err := s.status()
		if err == nil {
			left := int64(0)
			for _, id := range r.Identities {
				left += id.Queue.Messages
			}
			if left == 0 {
				return
			}
		}
		select {
		case <-ctx.Done():
			s.t.Fatalf("the queues are not empty within %v: %+v", limit, r.Identities)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
