package downstream

import (
	"fmt"
	"testing"
)

// take empties the mirror and returns the payloads, in order.
func take(m *mirror) (all []string) {
	for {
		one, ok := m.next()
		if !ok {
			return all
		}
		all = append(all, string(one.m.Payload))
	}
}

// A broker that takes nothing for a long time costs no more than the bound and one
// value of each retained topic, and gets the latest ones in the end.
func TestMirrorOfASlowBrokerIsBounded(t *testing.T) {
	const bound, topics = 8, 3
	l := NewLocal(LocalConfig{QueueMessages: bound}, nil)
	m := l.addMirror()
	m.up()
	for n := range 1000 {
		for k := range topics {
			if _, err := l.Publish(LocalMessage{Topic: fmt.Sprintf("gateway/%d/status", k), Payload: fmt.Append(nil, n), QoS: 1, Retain: true}); err != nil {
				t.Fatal(err)
			}
		}
		if len(m.waiting) > bound+topics {
			t.Fatalf("%d messages wait after %d changes of %d topics", len(m.waiting), n, topics)
		}
	}
	all := take(m)
	if got := all[len(all)-topics:]; fmt.Sprint(got) != "[999 999 999]" {
		t.Errorf("the last values are %v", got)
	}
	if m.bytes != 0 {
		t.Errorf("%d bytes are left of nothing", m.bytes)
	}
}

// What a broker does not take is offered to it again and again, which leaves no
// trace, and is never given to it twice at once.
func TestMirrorIsOfferedWhatItGaveBack(t *testing.T) {
	l := NewLocal(LocalConfig{}, nil)
	m := l.addMirror()
	m.up()
	offer := new(Offer)
	publish := func() int {
		takers, err := l.Publish(LocalMessage{Topic: "gateway/press-7/c2d/", Payload: []byte("m"), QoS: 1, Offer: offer, Acked: func() {}})
		if err != nil {
			t.Fatal(err)
		}
		return takers
	}
	for range 100 {
		if publish() != 1 || publish() != 0 {
			t.Fatal("not offered exactly once")
		}
		one, ok := m.next()
		if !ok || publish() != 0 {
			t.Fatal("offered while it is being passed on")
		}
		m.giveBack(one)
		m.renew()
	}
	if publish() != 1 {
		t.Fatal("not offered again")
	}
	m.down() // while it waits
	m.up()
	if publish() != 1 {
		t.Fatal("not offered again after the connection was lost")
	}
	if len(offer.given) != 1 {
		t.Errorf("%d traces of one broker", len(offer.given))
	}
}
