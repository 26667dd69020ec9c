package cloud

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"gatewayd/internal/downstream"
)

// ask puts a request for the twin and returns what it was answered so far.
func ask(id *Identity) *string {
	got := new(string)
	id.askTwin(func(_ int64, body []byte) { *got = string(body) }, func(err error) {
		if err != nil {
			*got = err.Error()
		}
	})
	return got
}

func TestAskingForTheTwin(t *testing.T) {
	id := byHand(t, everything("press-7"))
	now := time.Now()
	never := ask(id)
	id.answerAskers(now.Add(firstTwin / 2))
	if *never != "" {
		t.Errorf("answered with nothing to tell: %s", *never)
	}
	id.answerAskers(now.Add(firstTwin + time.Second))
	if *never != errNoTwin.Error() {
		t.Errorf("got %q", *never)
	}
	// The first document is what a request waits for.
	first := ask(id)
	l := &fakeLink{done: make(chan struct{})}
	id.twinConnected(l)
	id.gotTwin([]byte(`{"desired":{"a":1,"$version":4},"reported":{"b":2,"$version":7}}`))
	if want := `{"desired":{"$version":4,"a":1},"reported":{"$version":7,"b":2}}`; *first != want {
		t.Errorf("got  %s\nwant %s", *first, want)
	}
	if again := ask(id); *again != *first {
		t.Errorf("got %q", *again)
	}
	// On a new connection a newer one is about to come; it is not waited for for ever.
	id.twinConnected(&fakeLink{done: make(chan struct{})})
	fresh := ask(id)
	if *fresh != "" {
		t.Errorf("answered before the hub: %s", *fresh)
	}
	id.answerAskers(time.Now().Add(freshTwin))
	if *fresh != *first {
		t.Errorf("got %q", *fresh)
	}
	for range maxAskers {
		ask(id)
	}
	if over := ask(id); *over != ErrBusy.Error() {
		t.Errorf("got %q", *over)
	}
	// Offline the copy is the answer at once.
	id.twin.asking, id.twin.link = nil, nil
	if offline := ask(id); *offline != *first {
		t.Errorf("got %q", *offline)
	}
}

func TestReportedPropertiesHaveVersions(t *testing.T) {
	id := byHand(t, everything("press-7"))
	id.twinConnected(&fakeLink{done: make(chan struct{})})
	id.gotTwin([]byte(`{"desired":{"$version":1},"reported":{"$version":7}}`))
	patch := func(base int64, body string) (version int64, err error) {
		id.patch([]byte(body), base, func(v int64, e error) { version, err = v, e })
		id.flushTwin()
		return version, err
	}
	for i, tc := range []struct {
		base, want int64
		err        error
	}{{0, 8, nil}, {8, 9, nil}, {8, 0, downstream.ErrVersion}, {0, 10, nil}} {
		if v, err := patch(tc.base, fmt.Sprintf(`{"a":%d}`, i)); v != tc.want || !errors.Is(err, tc.err) {
			t.Errorf("%d: version %d, %v", i, v, err)
		}
	}
	// A restart goes on where it was.
	again := &twin{}
	var kept reportedFileContent
	if err := json.Unmarshal(id.twin.content(), &kept); err != nil {
		t.Fatal(err)
	}
	again.restore(kept)
	if again.edition != 10 {
		t.Errorf("edition %d after a restart", again.edition)
	}
}

// FuzzDifference: the patch between two documents makes one of the other.
func FuzzDifference(f *testing.F) {
	f.Add(`{"a":1,"b":{"c":2,"d":[1]}}`, `{"b":{"c":3},"e":{"f":{}}}`)
	f.Add(`{"a":{}}`, `{"a":{"b":{}}}`)
	f.Add(`{"a":1}`, `{"a":{}}`)
	f.Fuzz(func(t *testing.T, a, b string) {
		before, err1 := decodeObject([]byte(a))
		after, err2 := decodeObject([]byte(b))
		if err1 != nil || err2 != nil || hasNull(after) {
			return // a null is no value that a twin has
		}
		d := difference(before, after)
		if got := merge(before, d); !reflect.DeepEqual(got, after) {
			t.Errorf("%s with %s is %s, want %s", encode(before), encode(d), encode(got), encode(after))
		}
	})
}

func hasNull(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case object:
		for _, e := range v {
			if hasNull(e) {
				return true
			}
		}
	}
	return false
}
