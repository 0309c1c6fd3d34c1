// Package page is the gateway's live page: server-rendered HTML that htmx refreshes, with a chart that follows the
// event stream. Everything it needs is embedded; no script or style is inline, so that a strict content security
// policy holds.
package page

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"strings"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/caller"
)

// Policy is the content security policy of every page.
const Policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; " +
	"form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

// Operations is what the page can ask and do. Errors that are *api.Problem are shown in their words; others are
// logged and shown as a failure of the gateway.
type Operations interface {
	Rules(ctx context.Context) ([]api.Rule, error)
	DryRun(ctx context.Context, in api.RuleInput) (api.DryRun, error)
	AddRule(ctx context.Context, in api.RuleInput) (api.Rule, error)
	Revoke(ctx context.Context, id string) error
	Panic(ctx context.Context, on bool, reason string) (api.PanicResult, error)
	Attack(ctx context.Context, id string) (api.AttackDetail, error)
}

// Deps is what the page needs.
type Deps struct {
	Telemetry  *telemetry.Telemetry
	Operations Operations
	// Live is the newest state; it must not block.
	Live func() api.Live
	// Login checks a token that somebody pasted and makes the session's cookie. An error that is *api.Problem is
	// shown in its words.
	Login func(r *http.Request, token string) (*http.Cookie, error)
	// Logout makes the cookie that ends the session.
	Logout func(r *http.Request) *http.Cookie
}

const (
	maxForm   = 16 << 10
	rulesMax  = 200 // that the page lists; REST has all
	loginPath = "/login"
)

//go:embed templates
var templateFiles embed.FS

// Page is the handler of /, /login, /logout, /attacks/{id}, /ui/ and /static/.
type Page struct {
	d      Deps
	mux    *http.ServeMux
	tmpl   *template.Template
	assets *assets
}

// New compiles the templates and packs the static files; it fails only when the binary is broken.
func New(d Deps) (*Page, error) {
	a, err := packAssets()
	if err != nil {
		return nil, err
	}
	tmpl, err := template.New("").Funcs(functions).Funcs(template.FuncMap{"asset": a.url}).ParseFS(templateFiles, "templates/*.html")
	if err != nil {
		return nil, fmt.Errorf("page templates: %w", err)
	}
	p := &Page{d: d, mux: http.NewServeMux(), tmpl: tmpl, assets: a}
	p.mux.HandleFunc("GET /{$}", p.home)
	p.mux.HandleFunc("GET /login", p.loginForm)
	p.mux.HandleFunc("POST /login", p.login)
	p.mux.HandleFunc("POST /logout", p.logout)
	p.mux.HandleFunc("GET /attacks/{id}", p.attack)
	p.mux.HandleFunc("GET /ui/live", p.needs(caller.Viewer, p.live))
	p.mux.HandleFunc("GET /ui/rules", p.needs(caller.Viewer, p.rules))
	p.mux.HandleFunc("POST /ui/rules", p.needs(caller.Operator, p.addRule))
	p.mux.HandleFunc("POST /ui/rules/preview", p.needs(caller.Operator, p.preview))
	p.mux.HandleFunc("POST /ui/rules/{id}/revoke", p.needs(caller.Operator, p.revoke))
	p.mux.HandleFunc("POST /ui/panic", p.needs(caller.Operator, p.panic))
	p.mux.Handle("GET /static/", a)
	return p, nil
}

// ServeHTTP expects the caller in the request's context; who has none sees the log-in form.
func (p *Page) ServeHTTP(w http.ResponseWriter, r *http.Request) { p.mux.ServeHTTP(w, r) }

// needs refuses who may not; the page never offers it to them.
func (p *Page) needs(role caller.Role, h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		switch has := caller.From(r.Context()).Role; {
		case has == caller.Nobody:
			p.problem(w, r, &api.Problem{Status: http.StatusUnauthorized, Title: "Logged out", Detail: "Your session is over: log in again."})
		case has < role:
			p.problem(w, r, &api.Problem{Status: http.StatusForbidden, Title: "Not allowed",
				Detail: "This needs the role " + role.String() + "; your token has " + has.String() + "."})
		default:
			h(w, r)
		}
	}
}

// view is what every whole page shows.
type view struct {
	Title    string
	Caller   caller.Caller
	Operator bool
	Live     api.Live
	Refresh  bool // a fragment: its parts replace those of the page
	Rules    rulesView
	Detail   *api.AttackDetail
	Problem  *api.Problem
	Expired  bool
}

func (p *Page) view(r *http.Request, title string) view {
	c := caller.From(r.Context())
	return view{Title: title, Caller: c, Operator: c.Role >= caller.Operator}
}

func (p *Page) home(w http.ResponseWriter, r *http.Request) {
	if p.nobody(w, r) {
		return
	}
	v := p.view(r, "Live")
	v.Live = p.d.Live()
	v.Rules = p.listRules(r)
	p.render(w, r, http.StatusOK, "home", v)
}

func (p *Page) live(w http.ResponseWriter, r *http.Request) {
	v := p.view(r, "")
	v.Live, v.Refresh = p.d.Live(), true
	p.render(w, r, http.StatusOK, "live", v)
}

func (p *Page) attack(w http.ResponseWriter, r *http.Request) {
	if p.nobody(w, r) {
		return
	}
	v := p.view(r, "Attack")
	detail, err := p.d.Operations.Attack(r.Context(), r.PathValue("id"))
	if err != nil {
		v.Title, v.Problem = "Attack not shown", p.words(r, err)
		p.render(w, r, v.Problem.Status, "error", v)
		return
	}
	v.Detail = &detail
	p.render(w, r, http.StatusOK, "attack", v)
}

// nobody sends who is not logged in to the form.
func (p *Page) nobody(w http.ResponseWriter, r *http.Request) bool {
	if caller.From(r.Context()).Role != caller.Nobody {
		return false
	}
	w.Header().Set("Cache-Control", "no-store")
	http.Redirect(w, r, loginPath, http.StatusSeeOther)
	return true
}

func (p *Page) loginForm(w http.ResponseWriter, r *http.Request) {
	if caller.From(r.Context()).Role != caller.Nobody {
		http.Redirect(w, r, "/", http.StatusSeeOther)
		return
	}
	v := p.view(r, "Log in")
	v.Expired = r.URL.Query().Has("expired")
	p.render(w, r, http.StatusOK, "login", v)
}

func (p *Page) login(w http.ResponseWriter, r *http.Request) {
	form, err := readForm(w, r)
	if err == nil {
		var c *http.Cookie
		// Copied out of a terminal a token comes with line ends, which are no part of it.
		if c, err = p.d.Login(r, strings.Join(strings.Fields(form.Get("token")), "")); err == nil {
			http.SetCookie(w, c)
			w.Header().Set("Cache-Control", "no-store")
			http.Redirect(w, r, "/", http.StatusSeeOther)
			return
		}
	}
	v := p.view(r, "Log in")
	v.Problem = p.words(r, err)
	p.render(w, r, v.Problem.Status, "login", v)
}

func (p *Page) logout(w http.ResponseWriter, r *http.Request) {
	http.SetCookie(w, p.d.Logout(r))
	w.Header().Set("Cache-Control", "no-store")
	http.Redirect(w, r, loginPath, http.StatusSeeOther)
}

// readForm reads a small form.
func readForm(w http.ResponseWriter, r *http.Request) (url.Values, error) {
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		status := http.StatusBadRequest
		if e := (*http.MaxBytesError)(nil); errors.As(err, &e) {
			status = http.StatusRequestEntityTooLarge
		}
		return nil, &api.Problem{Status: status, Title: "Form not read", Detail: "The form could not be read: reload the page and try again."}
	}
	return r.PostForm, nil
}

// words makes any error a problem that can be shown.
func (p *Page) words(r *http.Request, err error) *api.Problem {
	var shown *api.Problem
	if errors.As(err, &shown) {
		c := *shown
		if c.Status < 400 || c.Status > 599 {
			c.Status = http.StatusInternalServerError
		}
		if c.Title == "" {
			c.Title = http.StatusText(c.Status)
		}
		return &c
	}
	id := caller.From(r.Context()).RequestID
	p.d.Telemetry.Log.ErrorContext(r.Context(), "page", "path", r.URL.Path, "request_id", id, "error", err)
	p.d.Telemetry.CountError("page")
	return &api.Problem{Status: http.StatusInternalServerError, Title: "Something went wrong",
		Detail: "The gateway could not do this. Its log tells more.", RequestID: id}
}

// problem answers a fragment's request in words.
func (p *Page) problem(w http.ResponseWriter, r *http.Request, err error) {
	v := p.words(r, err)
	p.render(w, r, v.Status, "problem", v)
}

// render answers with a template; nothing is sent before it is whole.
func (p *Page) render(w http.ResponseWriter, r *http.Request, status int, name string, v any) {
	var b bytes.Buffer
	if err := p.tmpl.ExecuteTemplate(&b, name, v); err != nil {
		p.d.Telemetry.Log.ErrorContext(r.Context(), "render page", "template", name, "error", err)
		p.d.Telemetry.CountError("page")
		http.Error(w, "the page could not be made; the gateway's log tells more", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", Policy)
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes()) // the client may be gone
}
