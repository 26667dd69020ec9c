package statuspage

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Actions are what can be changed from the page, and with a token over HTTP. The
// texts say what was done.
type Actions struct {
	Reload   func(ctx context.Context, who string) (string, error)
	Requeue  func(ctx context.Context, who, identity string) (string, error)
	SetLevel func(ctx context.Context, who, level string) (string, error)
	Level    func() string
}

func (a Actions) level() string {
	if a.Level == nil {
		return ""
	}
	return a.Level()
}

// maxForm bounds the body of a request that changes something.
const maxForm = 8 << 10

func (p *Page) registerActions(mux *http.ServeMux) {
	act := func(name string, do func(ctx context.Context, who string, f url.Values) (string, error)) {
		mux.Handle("POST /act/"+name, p.o.Guard.Token(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			r.Body = http.MaxBytesReader(w, r.Body, maxForm)
			if err := r.ParseForm(); err != nil {
				http.Error(w, "the form cannot be read", http.StatusBadRequest)
				return
			}
			who, _ := p.o.Guard.who(r)
			text, err := do(r.Context(), who, r.PostForm)
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			w.Header().Set("Cache-Control", "no-store")
			secure(w.Header())
			if err != nil {
				w.WriteHeader(http.StatusConflict)
				text = err.Error()
			}
			_, _ = w.Write([]byte(text + "\n")) // the reader may be gone
		})))
	}
	a := p.o.Actions
	act("reload", func(ctx context.Context, who string, _ url.Values) (string, error) { return a.Reload(ctx, who) })
	act("requeue", func(ctx context.Context, who string, f url.Values) (string, error) {
		return a.Requeue(ctx, who, f.Get("identity"))
	})
	act("log-level", func(ctx context.Context, who string, f url.Values) (string, error) {
		return a.SetLevel(ctx, who, f.Get("level"))
	})
}

// nextQuery is where a login leads to, as a query's value.
func nextQuery(r *http.Request) string { return url.QueryEscape(r.URL.RequestURI()) }

// localPath admits only paths of this server.
func localPath(next string) string {
	u, err := url.Parse(next)
	if err != nil || u.Scheme != "" || u.Host != "" || !strings.HasPrefix(next, "/") || strings.HasPrefix(next, "//") || strings.ContainsAny(next, "\\\r\n\t") {
		return "/"
	}
	return next
}

func (p *Page) loginPage(w http.ResponseWriter, r *http.Request) {
	if !p.o.Guard.Enabled() {
		http.Redirect(w, r, "/", http.StatusSeeOther)
		return
	}
	p.render(w, http.StatusOK, "login.html", shell{Next: localPath(r.URL.Query().Get("next"))})
}

func (p *Page) login(w http.ResponseWriter, r *http.Request) {
	if err := p.o.Guard.cross.Check(r); err != nil || !p.o.Guard.Enabled() {
		http.Error(w, "not from here", http.StatusForbidden)
		return
	}
	if p.o.Guard.locked(w) {
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		http.Error(w, "the form cannot be read", http.StatusBadRequest)
		return
	}
	next := localPath(r.PostForm.Get("next"))
	cookie, ok := p.o.Guard.login(strings.TrimSpace(r.PostForm.Get("token")))
	if !ok {
		p.render(w, http.StatusUnauthorized, "login.html", shell{Wrong: true, Next: next})
		return
	}
	setCookie(w, cookie, sessionLife)
	http.Redirect(w, r, next, http.StatusSeeOther)
}

func (p *Page) logout(w http.ResponseWriter, r *http.Request) {
	if err := p.o.Guard.cross.Check(r); err != nil {
		http.Error(w, "not from here", http.StatusForbidden)
		return
	}
	p.o.Guard.logout(r)
	setCookie(w, "", -time.Second)
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

// setCookie: the page is plain HTTP, so the cookie cannot be Secure.
func setCookie(w http.ResponseWriter, value string, life time.Duration) {
	http.SetCookie(w, &http.Cookie{Name: sessionCookie, Value: value, Path: "/", HttpOnly: true, SameSite: http.SameSiteStrictMode,
		MaxAge: int(life.Seconds())})
}
