package bag

import (
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"gatewayd/internal/queue"
)

func TestBagsOfTheSDKsAreRead(t *testing.T) {
	for _, tc := range []struct {
		bag  string
		want []queue.Property
	}{
		{"", nil},
		{"/", nil},
		{"a=1&b=2", []queue.Property{{Key: "a", Value: "1"}, {Key: "b", Value: "2"}}},
		{"%24.mid=m&$.ct=application%2Fjson/", []queue.Property{{Key: "$.mid", Value: "m"}, {Key: "$.ct", Value: "application/json"}}},
		{"a+b=c+d", []queue.Property{{Key: "a+b", Value: "c+d"}}},
		{"null&empty=&=x", []queue.Property{{Key: "null"}, {Key: "empty"}}},
		{"stray=100%", []queue.Property{{Key: "stray", Value: "100%"}}},
		{"n=%00", []queue.Property{{Key: "n", Value: "\uFFFD"}}},
	} {
		if got := Parse(tc.bag); !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%q: %q, want %q", tc.bag, got, tc.want)
		}
	}
	if n := len(Parse(strings.Repeat("a=1&", 5000))); n != Most {
		t.Errorf("%d properties", n)
	}
}

func TestMessageIDs(t *testing.T) {
	for id, want := range map[string]bool{
		"m-1": true, "": false, "a b": false, "a/b": false, "a~b": false, "é": false, "-:.+%_#*?!(),=@;$'": true,
		strings.Repeat("x", MaxMessageID): true, strings.Repeat("x", MaxMessageID+1): false,
	} {
		if ValidMessageID(id) != want {
			t.Errorf("%q: %v", id, !want)
		}
	}
	if FromDevice("$.cdid") || FromDevice("mid") || !FromDevice("$.mid") {
		t.Error("a device may say another sender, or not its own id")
	}
}

// FuzzBag: what is written is read as the same, and is what MQTT can carry.
func FuzzBag(f *testing.F) {
	for _, s := range []string{"a=1&b=2", "%24.mid=x", "a%zz&%=", "%00=%ff", "a+b= c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if strings.ContainsRune(s, 0) || !utf8.ValidString(s) {
			return // no topic is like this
		}
		first := Parse(s)
		text := string(Append(nil, first))
		if strings.ContainsAny(text, "+#/\x00 ") || !utf8.ValidString(text) {
			t.Errorf("%q becomes %q", s, text)
		}
		for _, p := range first {
			if n := len(Escape(p.Value)); EscapedLen(p.Value) != n {
				t.Errorf("%q has %d bytes and not %d", p.Value, n, EscapedLen(p.Value))
			}
			if p.Key == "" {
				t.Errorf("%q has a pair without a name", s)
			}
		}
		if again := Parse(text); !reflect.DeepEqual(again, first) {
			t.Errorf("%q is read as %q, then as %q", s, first, again)
		}
	})
}
