package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
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

// kills is how often the short tests kill the gateway.
const kills = 5

func TestNothingAckedOverTheUnixSocketIsLostOverKills(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{MaxInbound: -1}, "press-1", "press-2")
	socket := s.path("mqtt.sock")
	s.listen(fmt.Sprintf(`{listen: "unix://%s"}`, socket))
	p := s.run()
	f := s.fleetAt(socket, 10, 20, 256, 0)
	s.survives(p, f)
}

// A 202 is as good as a PUBACK.
func TestNothingAnsweredWith202IsLostOverKills(t *testing.T) {
	t.Parallel()
	s := newPlant(t, hubtest.Options{MaxInbound: -1}, "press-1", "press-2")
	p := s.run()
	ctx, stop := context.WithCancel(context.Background())
	t.Cleanup(stop)
	f := &fleet{stop: stop}
	for i := range 20 {
		name := fmt.Sprintf("h%d", i)
		one := &sensor{name: name, topic: "sensors/" + s.names[i%len(s.names)] + "/" + name, size: 256, tries: make(map[int]int)}
		f.sensors = append(f.sensors, one)
		f.running.Go(func() { one.postAll(ctx, s) })
	}
	s.survives(p, f)
}

// survives kills the gateway while a fleet sends, and accounts for everything.
func (s *plant) survives(p *process, f *fleet) {
	t := s.t.(*testing.T)
	t.Helper()
	for range kills {
		before := f.acked()
		eventually(t, 20*time.Second, "acknowledgements", func() bool { return f.acked() > before+200 })
		p.kill()
		p = s.run()
	}
	f.end()
	s.drained(time.Minute)
	resent := f.account(t, s.hub.Messages())
	t.Logf("%d kills, %d messages acknowledged, %d resent with the same id", kills, f.acked(), resent)
}

// postAll posts numbered messages until ctx ends, each until it is answered with 202.
func (s *sensor) postAll(ctx context.Context, to *plant) {
	for n := 0; ctx.Err() == nil; n++ {
		body := fmt.Sprintf("%s %d ", s.name, n)
		body += strings.Repeat(".", max(0, s.size-len(body)))
		s.mu.Lock()
		s.next = n + 1
		s.mu.Unlock()
		for to.post(s.topic, body, "") != http.StatusAccepted {
			if ctx.Err() != nil {
				return
			}
			s.mu.Lock()
			s.tries[n]++
			s.mu.Unlock()
			time.Sleep(30 * time.Millisecond)
		}
		s.mu.Lock()
		s.acked = n + 1
		s.mu.Unlock()
	}
}

// post returns the status of the answer, or 0 without one.
func (s *plant) post(topic, body, token string) int {
	r, err := http.NewRequest(http.MethodPost, "http://"+s.http+"/v1/messages/"+topic, strings.NewReader(body))
	if err != nil {
		return 0
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	client := http.Client{Timeout: 20 * time.Second}
	resp, err := client.Do(r)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body) // the connection is used again then
	return resp.StatusCode
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
