package statuspage

import (
	"crypto/rand"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Bounds of logins.
const (
	sessionLife   = 12 * time.Hour
	maxSessions   = 64
	loginsPerSec  = 1
	loginBurst    = 10
	sessionCookie = "gatewayd"
)

// Guard says who may read and who may change. Without tokens everybody who reaches
// the listener may read and nobody may change anything. With tokens, readers on
// this machine need none; readers on others, and whoever changes something, need
// one: "Authorization: Bearer TOKEN", or a login.
type Guard struct {
	tokens func(token string) (name string, ok bool)
	cross  *http.CrossOriginProtection
	wrong  *rate.Limiter // guesses

	mu       sync.Mutex
	sessions map[string]session // by the cookie's value; guarded by mu
}

// session is a login. The token is looked up at each request, so that one that is
// taken out of the file ends its logins.
type session struct {
	token string
	until time.Time
}

// NewGuard makes a guard; tokens is nil without any.
func NewGuard(tokens func(token string) (name string, ok bool)) *Guard {
	return &Guard{tokens: tokens, cross: http.NewCrossOriginProtection(), wrong: rate.NewLimiter(loginsPerSec, loginBurst),
		sessions: make(map[string]session)}
}

// Enabled tells whether there are tokens.
func (g *Guard) Enabled() bool { return g.tokens != nil }

// Local is around everything: on a loopback address, which any web page can make a
// browser of this machine connect to, it admits only requests that name this
// machine as the host. Else a page of somebody's domain whose name has just been
// pointed to 127.0.0.1 could read all (DNS rebinding).
func (g *Guard) Local(machine string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if onLoopback(r) && !namesThisMachine(r.Host, machine) {
			http.Error(w, "this address answers to localhost, to IP addresses and to the name of this machine only", http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// namesThisMachine knows "gatewayd" as well: this program's own commands say it.
func namesThisMachine(host, machine string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return true
	}
	switch host {
	case "localhost", "gatewayd", strings.ToLower(machine):
		return host != ""
	}
	return strings.HasSuffix(host, ".localhost")
}

func localAddr(r *http.Request) net.Addr {
	a, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	return a
}

func onLoopback(r *http.Request) bool {
	a, ok := localAddr(r).(*net.TCPAddr)
	return ok && a.IP.IsLoopback()
}

// onThisMachine tells whether the other end is a program of this machine: it comes
// over a socket file, from a loopback address, or from the address that it connects to.
func onThisMachine(r *http.Request) bool {
	switch a := localAddr(r).(type) {
	case *net.UnixAddr:
		return true
	case *net.TCPAddr:
		from, err := netip.ParseAddrPort(r.RemoteAddr)
		if err != nil {
			return false
		}
		ip := net.IP(from.Addr().Unmap().AsSlice())
		return ip.IsLoopback() || ip.Equal(a.IP)
	}
	return false
}

// Read is around what shows something.
func (g *Guard) Read(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case g.tokens == nil || onThisMachine(r):
		case g.locked(w):
			return
		case g.shown(r):
		case strings.Contains(r.Header.Get("Accept"), "text/html"):
			g.guessed(r)
			http.Redirect(w, r, "/login?next="+nextQuery(r), http.StatusSeeOther)
			return
		default:
			g.guessed(r)
			unauthorized(w)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// Token is around what changes something or looks deep inside: it needs a token
// wherever the request comes from, and a browser must have been told by a page of
// this very server. Without tokens it does not exist.
func (g *Guard) Token(next http.Handler) http.Handler {
	guarded := g.cross.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case g.locked(w):
		case g.shown(r):
			next.ServeHTTP(w, r)
		default:
			g.guessed(r)
			unauthorized(w)
		}
	}))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if g.tokens == nil {
			http.Error(w, "this needs admin.token_file in the configuration", http.StatusNotFound)
			return
		}
		guarded.ServeHTTP(w, r)
	})
}

func unauthorized(w http.ResponseWriter) {
	w.Header().Set("WWW-Authenticate", `Bearer realm="gatewayd"`)
	http.Error(w, "a token of admin.token_file is needed", http.StatusUnauthorized)
}

// locked answers when there were too many wrong tokens lately, right ones too: a
// guess must not be told apart by its speed.
func (g *Guard) locked(w http.ResponseWriter) bool {
	if g.wrong.Tokens() >= 1 {
		return false
	}
	w.Header().Set("Retry-After", "10")
	http.Error(w, "too many wrong tokens, try again in a few seconds", http.StatusTooManyRequests)
	return true
}

// guessed counts a request that came with a token, and with a wrong one.
func (g *Guard) guessed(r *http.Request) {
	if r.Header.Get("Authorization") != "" {
		g.wrong.Allow()
	}
}

// shown tells whether the request has a token or a login.
func (g *Guard) shown(r *http.Request) bool {
	_, ok := g.who(r)
	return ok
}

// who names the token that a request comes with.
func (g *Guard) who(r *http.Request) (name string, ok bool) {
	if g.tokens == nil {
		return "", false
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if strings.EqualFold(scheme, "Bearer") {
		return g.tokens(strings.TrimSpace(token))
	}
	c, err := r.Cookie(sessionCookie)
	if err != nil {
		return "", false
	}
	g.mu.Lock()
	s, found := g.sessions[c.Value]
	g.mu.Unlock()
	if !found || time.Now().After(s.until) {
		return "", false
	}
	return g.tokens(s.token)
}

// stillMayRead is Read for a stream that goes on.
func (g *Guard) stillMayRead(r *http.Request) bool {
	return g.tokens == nil || onThisMachine(r) || g.shown(r)
}

// login makes a session for a token.
func (g *Guard) login(token string) (cookie string, ok bool) {
	if _, ok := g.tokens(token); !ok {
		g.wrong.Allow()
		return "", false
	}
	cookie = rand.Text()
	now := time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	var oldest string
	for id, s := range g.sessions {
		if now.After(s.until) {
			delete(g.sessions, id)
		} else if oldest == "" || s.until.Before(g.sessions[oldest].until) {
			oldest = id
		}
	}
	if len(g.sessions) >= maxSessions {
		delete(g.sessions, oldest)
	}
	g.sessions[cookie] = session{token, now.Add(sessionLife)}
	return cookie, true
}

func (g *Guard) logout(r *http.Request) {
	c, err := r.Cookie(sessionCookie)
	if err != nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.sessions, c.Value)
}
