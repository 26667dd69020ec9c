package statuspage

import (
	"context"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
)

const goodToken = "a-token-of-enough-length"

func knownTokens(token string) (string, bool) { return "anna", token == goodToken }

// request makes one that arrived on local from remote.
func request(method, target, local, remote string) *http.Request {
	r := httptest.NewRequest(method, target, nil)
	r.RemoteAddr = remote
	var a net.Addr = &net.UnixAddr{Name: local, Net: "unix"}
	if !strings.HasPrefix(local, "/") {
		a = net.TCPAddrFromAddrPort(netip.MustParseAddrPort(local))
	}
	return r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, a))
}

func TestOnlyThisMachinesNamesAreAnsweredOnLoopback(t *testing.T) {
	t.Parallel()
	h := NewGuard(nil).Local("GW-1", http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	for host, want := range map[string]int{
		"127.0.0.1:9180": 200, "[::1]:9180": 200, "localhost": 200, "localhost:1": 200, "gw-1:9180": 200, "gatewayd": 200, "a.localhost": 200, "10.0.0.7": 200,
		"evil.example:9180": 421, "localhost.evil.example": 421, "127.0.0.1.evil.example": 421, "": 421, "gw-1.evil.example": 421,
	} {
		r := request("GET", "/status", "127.0.0.1:9180", "127.0.0.1:50000")
		r.Host = host
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("host %q on loopback: %d, want %d", host, w.Code, want)
		}
	}
	r := request("GET", "/status", "10.0.0.7:9180", "10.0.0.9:50000")
	r.Host = "gateway.plant.example"
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code != 200 {
		t.Errorf("a name of the site on a site's address: %d", w.Code)
	}
}

func TestWhoMayReadAndWhoMayChange(t *testing.T) {
	t.Parallel()
	ok := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	for _, tt := range []struct {
		name          string
		tokens        bool
		local, remote string
		bearer        string
		read, change  int
	}{
		{"this machine, no tokens", false, "127.0.0.1:1", "127.0.0.1:2", "", 200, 404},
		{"another machine, no tokens", false, "10.0.0.7:1", "10.0.0.9:2", "", 200, 404},
		{"this machine", true, "127.0.0.1:1", "127.0.0.1:2", "", 200, 401},
		{"this machine over its own address", true, "10.0.0.7:1", "10.0.0.7:2", "", 200, 401},
		{"a socket", true, "/run/x.sock", "@", "", 200, 401},
		{"another machine", true, "10.0.0.7:1", "10.0.0.9:2", "", 401, 401},
		{"another machine, right token", true, "10.0.0.7:1", "10.0.0.9:2", goodToken, 200, 200},
		{"another machine, wrong token", true, "10.0.0.7:1", "10.0.0.9:2", "wrong", 401, 401},
		{"this machine, right token", true, "127.0.0.1:1", "127.0.0.1:2", goodToken, 200, 200},
		{"mapped addresses", true, "[::ffff:10.0.0.7]:1", "[::ffff:10.0.0.9]:2", "", 401, 401},
	} {
		g := NewGuard(nil)
		if tt.tokens {
			g = NewGuard(knownTokens)
		}
		for what, want := range map[string]int{"GET": tt.read, "POST": tt.change} {
			h := g.Read(ok)
			if what == "POST" {
				h = g.Token(ok)
			}
			r := request(what, "http://gw/x", tt.local, tt.remote)
			if tt.bearer != "" {
				r.Header.Set("Authorization", "Bearer "+tt.bearer)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code != want {
				t.Errorf("%s: %s is answered with %d, want %d", tt.name, what, w.Code, want)
			}
		}
	}
	w, r := httptest.NewRecorder(), request("GET", "http://gw/identity?name=a%26b", "10.0.0.7:1", "10.0.0.9:2")
	r.Header.Set("Accept", "text/html,*/*")
	NewGuard(knownTokens).Read(ok).ServeHTTP(w, r)
	if at := w.Header().Get("Location"); w.Code != http.StatusSeeOther || at != "/login?next=%2Fidentity%3Fname%3Da%2526b" {
		t.Errorf("a browser is answered with %d, %s", w.Code, at)
	}
}

func TestGuessingIsSlow(t *testing.T) {
	t.Parallel()
	g := NewGuard(knownTokens)
	h := g.Token(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	codes := map[int]int{}
	for range 100 {
		r := request("POST", "/act/reload", "127.0.0.1:1", "127.0.0.1:2")
		r.Header.Set("Authorization", "Bearer guess")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		codes[w.Code]++
	}
	if codes[http.StatusUnauthorized] > loginBurst+2 || codes[http.StatusTooManyRequests] < 80 {
		t.Errorf("answers to 100 guesses: %v", codes)
	}
}

func TestLoginsWorkAndOtherSitesCannotUseThem(t *testing.T) {
	t.Parallel()
	valid := true
	tokens := func(token string) (string, bool) { return "anna", valid && token == goodToken }
	var done []string
	act := func(what string) func(context.Context, string, string) (string, error) {
		return func(_ context.Context, who, arg string) (string, error) {
			done = append(done, what+" "+who+" "+arg)
			return "did it", nil
		}
	}
	_, base := serve(t, Options{Gateway: fleetOf(1), Guard: NewGuard(tokens), Actions: Actions{
		Reload:  func(_ context.Context, who string) (string, error) { return act("reload")(nil, who, "") },
		Requeue: act("requeue"), SetLevel: act("level"), Level: func() string { return "info" }}})
	jar, _ := cookiejar.New(nil)
	c := &http.Client{Jar: jar, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	post := func(path string, form url.Values, header ...string) int {
		t.Helper()
		r, _ := http.NewRequest("POST", base+path, strings.NewReader(form.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		for i := 0; i < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		resp, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if path == "/login" && resp.StatusCode == http.StatusSeeOther && resp.Header.Get("Location") != "/" {
			t.Errorf("a login leads to %s", resp.Header.Get("Location"))
		}
		return resp.StatusCode
	}
	want := func(what string, got, want int) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %d, want %d", what, got, want)
		}
	}
	want("without a login", post("/act/reload", nil), 401)
	want("a wrong token", post("/login", url.Values{"token": {"wrong"}}), 401)
	want("from another site", post("/login", url.Values{"token": {goodToken}}, "Sec-Fetch-Site", "cross-site"), 403)
	want("leading elsewhere", post("/login", url.Values{"token": {goodToken}, "next": {"//evil.example/"}}), 303)
	u, _ := url.Parse(base)
	if len(jar.Cookies(u)) != 1 {
		t.Fatal("no cookie")
	}
	want("reload", post("/act/reload", nil), 200)
	want("level", post("/act/log-level", url.Values{"level": {"debug"}}, "Sec-Fetch-Site", "same-origin"), 200)
	want("requeue", post("/act/requeue", url.Values{"identity": {"d0"}}), 200)
	want("another site's form", post("/act/reload", nil, "Sec-Fetch-Site", "cross-site"), 403)
	want("another origin of the same site", post("/act/reload", nil, "Sec-Fetch-Site", "same-site"), 403)
	want("an old browser on another site", post("/act/reload", nil, "Origin", "http://evil.example"), 403)
	want("a form without end", post("/act/requeue", url.Values{"identity": {strings.Repeat("x", 64<<10)}}), 400)
	if got := strings.Join(done, ", "); got != "reload anna , level anna debug, requeue anna d0" {
		t.Errorf("done: %s", got)
	}
	valid = false
	want("after the token was taken out of the file", post("/act/reload", nil), 401)
	valid = true
	want("log out", post("/logout", nil), 303)
	want("after the log out", post("/act/reload", nil), 401)
}

func TestSessionsAreBounded(t *testing.T) {
	t.Parallel()
	g := NewGuard(knownTokens)
	for range 2 * maxSessions {
		if _, ok := g.login(goodToken); !ok {
			t.Fatal("a login is refused")
		}
	}
	if n := len(g.sessions); n > maxSessions {
		t.Errorf("%d sessions", n)
	}
}

func TestLoginsLeadOnlyHere(t *testing.T) {
	for next, want := range map[string]string{
		"/identity?name=a%2Fb": "/identity?name=a%2Fb", "": "/", "//evil.example": "/", "https://evil.example": "/", `/\evil.example`: "/", "/\n/evil": "/", "identity": "/",
	} {
		if got := localPath(next); got != want {
			t.Errorf("%q leads to %q, want %q", next, got, want)
		}
	}
}
