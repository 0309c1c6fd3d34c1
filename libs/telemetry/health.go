package telemetry

import (
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Check adds a readiness check under a name. f returns nil when ready, else an error whose text is one sentence for
// the operator. It is called at every /readyz, from several goroutines, and should answer at once from known state.
// A later check of the same name replaces the earlier.
func (t *Telemetry) Check(name string, f func() error) {
	t.core.mu.Lock()
	defer t.core.mu.Unlock()
	for i := range t.core.checks {
		if t.core.checks[i].name == name {
			t.core.checks[i].f = f
			return
		}
	}
	t.core.checks = append(t.core.checks, check{name, f})
}

// Ready runs all checks and returns one "name: sentence" for each sentence of those that fail, in order of Check.
func (t *Telemetry) Ready() []string {
	var failing []string
	for _, c := range t.checks() {
		for _, sentence := range c.run() {
			failing = append(failing, c.name+": "+sentence)
		}
	}
	return failing
}

// Problems are the sentences of the named checks that fail now.
func (t *Telemetry) Problems(names ...string) []string {
	var failing []string
	for _, c := range t.checks() {
		if slices.Contains(names, c.name) {
			failing = append(failing, c.run()...)
		}
	}
	return failing
}

func (t *Telemetry) checks() []check {
	t.core.mu.Lock()
	defer t.core.mu.Unlock()
	return slices.Clone(t.core.checks)
}

// run gives a sentence for each error that the check has joined.
func (c check) run() []string {
	if err := c.f(); err != nil {
		return strings.Split(err.Error(), "\n")
	}
	return nil
}

// SetExpiry is told where to ask when the certificate in use ends; a later call replaces an earlier. first tells whether
// there was none.
func (t *Telemetry) SetExpiry(f func() time.Time) (first bool) {
	t.core.mu.Lock()
	defer t.core.mu.Unlock()
	first = t.core.expiry == nil
	t.core.expiry = f
	return first
}

// ExpiryNs is the end of the certificate that the process has for its peers, in Unix ns; 0 without one.
func (t *Telemetry) ExpiryNs() int64 {
	t.core.mu.Lock()
	f := t.core.expiry
	t.core.mu.Unlock()
	if f == nil {
		return 0
	}
	return f().UnixNano()
}

// Handler serves /metrics, /healthz and /readyz, and /debug/pprof when the metrics address is a loopback one: profiles
// show memory contents.
func (t *Telemetry) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(t.Registry, promhttp.HandlerOpts{
		Registry:          t.Registry,
		EnableOpenMetrics: true,
		ErrorHandling:     promhttp.ContinueOnError,
	}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = fmt.Fprintln(w, "alive")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		failing := t.Ready()
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if len(failing) == 0 {
			_, _ = fmt.Fprintln(w, "ready")
			return
		}
		w.WriteHeader(http.StatusServiceUnavailable)
		for _, sentence := range failing {
			_, _ = fmt.Fprintln(w, sentence)
		}
	})
	if loopback(t.Addr()) {
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	}
	return mux
}

func loopback(addr net.Addr) bool {
	tcp, ok := addr.(*net.TCPAddr)
	return ok && tcp.IP.IsLoopback()
}
