package hubtest

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// patch sends a reported patch and returns status, query and body of the answer.
func (c *client) patch(rest, body string) (status, query, reply string) {
	c.Helper()
	c.publish(0, "$iothub/twin/PATCH/properties/reported/"+rest, body)
	p := c.wantPublish()
	status, query, ok := strings.Cut(strings.TrimPrefix(p.Topic, "$iothub/twin/res/"), "/?")
	if !ok || p.QoS != 0 {
		c.Fatalf("answer %q QoS %d", p.Topic, p.QoS)
	}
	return status, query, string(p.Payload)
}

func (c *client) wantStatus(want, body string) {
	c.Helper()
	status, query, reply := c.patch("?$rid=r-1", body)
	if status != want || !strings.HasPrefix(query, "$rid=r-1") {
		c.Fatalf("status %s %s %s for %.80s, want %s", status, query, reply, body, want)
	}
	if status != "204" && !json.Valid([]byte(reply)) {
		c.Fatalf("error body %q is not JSON", reply)
	}
}

func nested(depth int) string {
	return strings.Repeat(`{"a":`, depth) + "1" + strings.Repeat("}", depth)
}

func twinRows() []rowTest {
	return []rowTest{
		closedFor(53, "53 GET without rid", "$iothub/twin/GET/", ""),
		closedFor(53, "53 GET with empty rid", "$iothub/twin/GET/?$rid=", ""),
		closedFor(53, "53 PATCH without rid", "$iothub/twin/PATCH/properties/reported/?$version=1", "{}"),
		{54, "54 not an object", Options{}, func(r *rig) {
			c := r.online("press-7")
			c.wantCodes("01", filterReplies)
			for _, body := range []string{"", "[]", `"a"`, "1", "null", "{", `{"a":1}x`, "\xff"} {
				c.wantStatus("400", body)
			}
		}},
		{55, "55 limits", Options{}, func(r *rig) {
			c := r.online("press-7")
			c.wantCodes("01", filterReplies)
			for _, tt := range []struct{ status, body string }{
				{"204", nested(10)},
				{"400", nested(11)},
				{"400", `{"a.b":1}`},
				{"400", `{"a$b":1}`},
				{"400", `{"a b":1}`},
				{"400", `{"":1}`},
				{"400", `{"a":{"$version":1}}`},
				{"400", "{\"a\\u0001\":1}"},
				{"204", `{"` + strings.Repeat("k", maxKey) + `":1}`},
				{"400", `{"` + strings.Repeat("k", maxKey+1) + `":1}`},
				{"204", `{"v":"` + strings.Repeat("v", maxValue) + `"}`},
				{"400", `{"v":"` + strings.Repeat("v", maxValue+1) + `"}`},
				{"400", `{"v":["` + strings.Repeat("v", maxValue) + `"]}`},
				{"204", `{"i":4503599627370495,"j":-4503599627370496,"f":1.5e20,"b":true,"l":[1,"x",{"y":2}]}`},
				{"400", `{"i":4503599627370496}`},
				{"400", `{"i":-4503599627370497}`},
				{"400", `{"i":99999999999999999999}`},
				{"400", `{"f":1e999}`},
			} {
				c.wantStatus(tt.status, tt.body)
			}
			for i := range 6 {
				c.wantStatus("204", fmt.Sprintf(`{"s%d":"%s"}`, i, strings.Repeat("v", 4000)))
			}
			c.wantStatus("400", fmt.Sprintf(`{"s9":"%s"}`, strings.Repeat("v", 4000)))
		}},
		{56, "56 version condition", Options{}, func(r *rig) {
			c := r.online("press-7")
			c.wantCodes("01", filterReplies)
			if status, query, _ := c.patch("?$rid=1", `{"a":1}`); status != "204" || query != "$rid=1&$version=2" {
				r.Fatalf("status %s query %s", status, query)
			}
			if status, _, _ := c.patch("?$rid=2&$version=1", `{"a":2}`); status != "412" {
				r.Fatalf("old version: status %s, want 412", status)
			}
			if status, query, _ := c.patch("?%24rid=3&$version=2", `{"a":null,"b":{"c":1}}`); status != "204" || query != "$rid=3&$version=3" {
				r.Fatalf("right version: status %s query %s", status, query)
			}
			c.publish(0, "$iothub/twin/GET/?$rid=g", " ")
			p := c.wantPublish()
			want := `{"desired":{"$version":1},"reported":{"$version":3,"b":{"c":1}}}`
			if p.Topic != "$iothub/twin/res/200/?$rid=g" || string(p.Payload) != want {
				r.Fatalf("GET %q %s, want %s", p.Topic, p.Payload, want)
			}
		}},
		{56, "56 the other statuses", Options{ConditionalStatus: 409, TooLargeStatus: 413, AnswerUnsubscribed: true}, func(r *rig) {
			c := r.online("press-7")
			if status, _, _ := c.patch("?$rid=1&$version=7", `{"a":2}`); status != "409" {
				r.Fatalf("old version: status %s, want 409", status)
			}
			for i := range 8 {
				c.wantStatus("204", fmt.Sprintf(`{"s%d":"%s"}`, i, strings.Repeat("v", 4000)))
			}
			c.wantStatus("413", fmt.Sprintf(`{"s9":"%s"}`, strings.Repeat("v", 4000)))
		}},
		{57, "57 rate", Options{}, func(r *rig) {
			c := r.online("press-7")
			c.wantCodes("01", filterReplies)
			r.hub.ThrottleTwin(1)
			c.wantStatus("204", `{"a":1}`)
			c.wantStatus("429", `{"a":2}`)
			time.Sleep(time.Second)
			c.wantStatus("204", `{"a":3}`)
			r.hub.ThrottleTwin(0)
			_ = r.hub.FailTwin("press-7", 500, 1)
			c.wantStatus("500", `{"a":4}`)
			c.wantStatus("204", `{"a":4}`)
		}},
		{58, "58 not subscribed", Options{}, func(r *rig) {
			c := r.online("press-7")
			c.publish(0, "$iothub/twin/PATCH/properties/reported/?$rid=1", `{"a":1}`)
			c.alive()
			if got := string(r.hub.Twin("press-7").Reported); got != `{"$version":2,"a":1}` {
				r.Fatalf("reported %s", got)
			}
		}},
	}
}
