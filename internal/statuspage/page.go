package statuspage

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"html/template"
	"io/fs"
	"mime"
	"net/http"
	"net/url"
	"path"
	"sync"
)

//go:embed assets
var files embed.FS

// Options are what a page is made of.
type Options struct {
	Gateway Gateway
	Events  *Recorder
	Guard   *Guard
	Actions Actions
}

// Page is the status page.
type Page struct {
	o      Options
	joined chan struct{} // one slot: a reader is new
	ended  chan struct{} // closed when Run has ended
	latest *snapshot     // belongs to Run

	chartsMu sync.Mutex
	charts   *history // guarded by chartsMu

	mu   sync.Mutex
	subs map[*reader]struct{} // guarded by mu

	assets func() assets
}

// assets are the embedded files, read when somebody asks for the first time.
type assets struct {
	files map[string]asset
	pages *template.Template
}

type asset struct {
	body       []byte
	kind, etag string
}

// New makes a page; it starts nothing.
func New(o Options) *Page {
	return &Page{o: o, joined: make(chan struct{}, 1), ended: make(chan struct{}), charts: newHistory(),
		subs: make(map[*reader]struct{}), assets: sync.OnceValue(loadAssets)}
}

// loadAssets cannot fail for files that are part of the program; a test loads them.
func loadAssets() assets {
	a := assets{files: make(map[string]asset), pages: template.Must(template.New("").Funcs(template.FuncMap{
		"levels": func() []string { return []string{"debug", "info", "warn", "error"} },
		"query":  url.QueryEscape,
	}).ParseFS(files, "assets/*.html"))}
	names, _ := fs.Glob(files, "assets/*")
	for _, name := range names {
		kind := mime.TypeByExtension(path.Ext(name))
		if body, err := files.ReadFile(name); err == nil && path.Ext(name) != ".html" {
			if path.Ext(name) == ".js" {
				kind = "text/javascript; charset=utf-8" // whatever the machine's own list says
			}
			sum := sha256.Sum256(body)
			a.files[path.Base(name)] = asset{body, kind, `"` + hex.EncodeToString(sum[:8]) + `"`}
		}
	}
	return a
}

// Register adds the page to mux: /, /identity, /live, /sensors, /assets/, /login, /logout and
// /act/. The guard is around what needs one.
func (p *Page) Register(mux *http.ServeMux) {
	read := func(pattern string, h http.HandlerFunc) { mux.Handle(pattern, p.o.Guard.Read(h)) }
	read("GET /{$}", p.overview)
	read("GET /identity", p.identity)
	read("GET /live", p.live)
	read("GET /sensors", p.sensors)
	// A login page needs its style, which is no secret.
	mux.HandleFunc("GET /assets/{file}", p.asset)
	mux.HandleFunc("GET /login", p.loginPage)
	mux.HandleFunc("POST /login", p.login)
	mux.HandleFunc("POST /logout", p.logout)
	p.registerActions(mux)
}

// shell is what the HTML holds before the first event.
type shell struct {
	Head
	Identity string
	MayAct   bool // tokens exist
	Acting   bool // this reader has shown one
	Level    string
	Wrong    bool // the login was refused
	Next     string
}

func (p *Page) shell(r *http.Request) shell {
	return shell{Head: p.o.Gateway.View().Head, MayAct: p.o.Guard.Enabled(), Acting: p.o.Guard.shown(r), Level: p.o.Actions.level()}
}

func (p *Page) overview(w http.ResponseWriter, r *http.Request) {
	p.render(w, http.StatusOK, "overview.html", p.shell(r))
}

func (p *Page) identity(w http.ResponseWriter, r *http.Request) {
	s := p.shell(r)
	s.Identity = r.URL.Query().Get("name")
	code, page := http.StatusOK, "identity.html"
	if _, ok := p.o.Gateway.Detail(s.Identity); !ok {
		code, page = http.StatusNotFound, "unknown.html"
	}
	p.render(w, code, page, s)
}

func (p *Page) render(w http.ResponseWriter, code int, name string, s shell) {
	var b bytes.Buffer
	if err := p.assets().pages.ExecuteTemplate(&b, name, s); err != nil {
		http.Error(w, "the page cannot be shown", http.StatusInternalServerError)
		return
	}
	secure(w.Header())
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_, _ = w.Write(b.Bytes()) // the reader may be gone
}

func (p *Page) asset(w http.ResponseWriter, r *http.Request) {
	a, ok := p.assets().files[r.PathValue("file")]
	if !ok {
		http.NotFound(w, r)
		return
	}
	secure(w.Header())
	w.Header().Set("Content-Type", a.kind)
	w.Header().Set("Cache-Control", "no-cache") // ask again, and hear that it is the same
	w.Header().Set("ETag", a.etag)
	if r.Header.Get("If-None-Match") == a.etag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	_, _ = w.Write(a.body) // the reader may be gone
}

// secure says what a browser may do with an answer: nothing but show it with this
// program's own files. Script cannot make HTML out of text either.
func secure(h http.Header) {
	h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "+
		"form-action 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
}
