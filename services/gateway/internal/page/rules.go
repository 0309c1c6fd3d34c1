package page

import (
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/tidegate-mesh/tidegate/libs/api"
)

// rulesView is the table of rules.
type rulesView struct {
	Rules   []api.Rule
	Total   int
	Problem *api.Problem // instead of the table
}

func (p *Page) listRules(r *http.Request) rulesView {
	rules, err := p.d.Operations.Rules(r.Context())
	if err != nil {
		return rulesView{Problem: p.words(r, err)}
	}
	// Those whose time is over stay known for a while; the page is about those that count. The list is shared.
	kept := make([]api.Rule, 0, len(rules))
	for i := range rules {
		if rules[i].State != "expired" {
			kept = append(kept, rules[i])
		}
	}
	return rulesView{Rules: kept[:min(len(kept), rulesMax)], Total: len(kept)}
}

func (p *Page) rules(w http.ResponseWriter, r *http.Request) {
	v := p.view(r, "")
	v.Rules = p.listRules(r)
	p.render(w, r, http.StatusOK, "rules", v)
}

// previewView is the answer to the form.
type previewView struct {
	Dry   *api.DryRun
	Added *api.Rule
}

func (p *Page) preview(w http.ResponseWriter, r *http.Request) {
	in, err := readRule(w, r)
	if err != nil {
		p.problem(w, r, err)
		return
	}
	dry, err := p.d.Operations.DryRun(r.Context(), in)
	if err != nil {
		p.problem(w, r, err)
		return
	}
	p.render(w, r, http.StatusOK, "preview", previewView{Dry: &dry})
}

func (p *Page) addRule(w http.ResponseWriter, r *http.Request) {
	in, err := readRule(w, r)
	if err != nil {
		p.problem(w, r, err)
		return
	}
	rule, err := p.d.Operations.AddRule(r.Context(), in)
	if err != nil {
		p.problem(w, r, err)
		return
	}
	w.Header().Set("HX-Trigger", "tg-rules, tg-added")
	p.render(w, r, http.StatusOK, "preview", previewView{Added: &rule})
}

func (p *Page) revoke(w http.ResponseWriter, r *http.Request) {
	if err := p.d.Operations.Revoke(r.Context(), r.PathValue("id")); err != nil {
		p.problem(w, r, err)
		return
	}
	w.Header().Set("HX-Trigger", "tg-rules")
	p.render(w, r, http.StatusOK, "done", "Rule "+r.PathValue("id")+" is revoked.")
}

func (p *Page) panic(w http.ResponseWriter, r *http.Request) {
	form, err := readForm(w, r)
	if err != nil {
		p.problem(w, r, err)
		return
	}
	on, err := strconv.ParseBool(form.Get("on"))
	if err != nil {
		p.problem(w, r, &api.Problem{Status: http.StatusBadRequest, Title: "Unclear request", Detail: "Reload the page and try again."})
		return
	}
	result, err := p.d.Operations.Panic(r.Context(), on, strings.TrimSpace(form.Get("reason")))
	if err != nil {
		p.problem(w, r, err)
		return
	}
	w.Header().Set("HX-Trigger", "tg-rules, tg-live, tg-panic")
	p.render(w, r, http.StatusOK, "panicked", result)
}

// readRule reads the form of a rule. What a match means is checked by whom it is handed to.
func readRule(w http.ResponseWriter, r *http.Request) (api.RuleInput, error) {
	form, err := readForm(w, r)
	if err != nil {
		return api.RuleInput{}, err
	}
	f := fields{form: form}
	in := api.RuleInput{
		Action: f.text("action"),
		Scope:  f.text("scope"), Shadow: f.text("shadow") == "true",
		Match: api.Match{
			Host: f.text("host"), Src: f.text("src"), Dst: f.text("dst"), Proto: f.text("proto"), SrcPort: f.port("sport"), DstPort: f.port("dport"),
			TCPFlags: f.text("tcp_flags"), Length: f.text("length"), TTL: f.text("ttl"), Fragment: f.choice("fragment"), OutOfState: f.text("out_of_state") == "true",
		},
		Priority: int32(f.number("priority", math.MinInt32, math.MaxInt32)), Comment: f.text("comment"), For: f.text("for"),
	}
	if in.Action == "rate-limit" {
		in.PerSource, in.Escalate = f.text("per_source") == "true", f.text("escalate_after")
		rate := uint64(f.number("rate", 1, math.MaxInt64))
		if f.text("rate_unit") == "bps" {
			in.RateBPS = rate
		} else {
			in.RatePPS = rate
		}
	}
	if len(f.wrong) > 0 {
		return in, &api.Problem{Status: http.StatusUnprocessableEntity, Title: "The rule is not complete", Errors: f.wrong}
	}
	return in, nil
}

// fields reads form values and collects what is wrong with them.
type fields struct {
	form  url.Values
	wrong []api.ProblemDetail
}

func (f *fields) text(name string) string { return strings.TrimSpace(f.form.Get(name)) }

func (f *fields) bad(name, message string) {
	f.wrong = append(f.wrong, api.ProblemDetail{Location: name, Message: message, Value: f.text(name)})
}

// number is 0 for an empty field, which is wrong when 0 is out of range.
func (f *fields) number(name string, least, most int64) int64 {
	s := f.text(name)
	if s == "" && least <= 0 {
		return 0
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < least || n > most {
		f.bad(name, "give a whole number from "+strconv.FormatInt(least, 10)+" on")
		return 0
	}
	return n
}

func (f *fields) port(name string) *uint16 {
	s := f.text(name)
	if s == "" {
		return nil
	}
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		f.bad(name, "give a port from 0 to 65535")
		return nil
	}
	v := uint16(n)
	return &v
}

func (f *fields) choice(name string) *bool {
	v, err := strconv.ParseBool(f.text(name))
	if err != nil {
		return nil // either
	}
	return &v
}
