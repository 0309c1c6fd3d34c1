package rig

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Deploy is a path below the repository's deploy folder.
func Deploy(t testing.TB, path ...string) string {
	t.Helper()
	return filepath.Join(append([]string{root(t), "deploy"}, path...)...)
}

// ScrapeInterval is that of StartPrometheus, as Prometheus writes it.
const ScrapeInterval = "5s"

// Prometheus is a running Prometheus server.
type Prometheus struct{ URL string }

// StartPrometheus starts a real Prometheus with the repository's rules that scrapes each job's address every
// ScrapeInterval, as deploy/prometheus does; it is stopped when the test ends.
func StartPrometheus(t testing.TB, targets map[string]string) *Prometheus {
	t.Helper()
	path, err := exec.LookPath("prometheus")
	Need(t, err == nil, "prometheus (make setup)")
	dir := t.TempDir()
	var config strings.Builder
	fmt.Fprintf(&config, "global: {scrape_interval: %s, evaluation_interval: %[1]s}\nrule_files: [%q]\nscrape_configs:\n",
		ScrapeInterval, Deploy(t, "prometheus", "rules", "*.yaml"))
	for job, addr := range targets {
		fmt.Fprintf(&config, "  - {job_name: %q, static_configs: [{targets: [%q]}]}\n", job, addr)
	}
	file := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(file, []byte(config.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	addr := FreeAddr(t)
	p := &Prometheus{URL: "http://" + addr}
	Start(t, path, nil, "--config.file", file, "--storage.tsdb.path", filepath.Join(dir, "data"), "--web.listen-address", addr, "--log.level", "warn")
	if err := Eventually(30*time.Second, func() error { return p.get(t.Context(), "/api/v1/status/config", nil, &struct{}{}) }); err != nil {
		t.Fatalf("Prometheus does not answer: %v", err)
	}
	return p
}

// Range is the number of series that an expression gives over a time until now, those of nothing but NaN left out.
func (p *Prometheus) Range(ctx context.Context, expr string, span time.Duration) (series int, err error) {
	var data struct {
		Result []struct {
			Values [][2]any
		}
	}
	now := time.Now()
	err = p.get(ctx, "/api/v1/query_range", url.Values{
		"query": {expr}, "step": {"1"}, "start": {seconds(now.Add(-span))}, "end": {seconds(now)},
	}, &data)
	for _, r := range data.Result {
		for _, v := range r.Values {
			if v[1] != "NaN" {
				series++
				break
			}
		}
	}
	return series, err
}

// LabelValues are a label's values among the series of a selector.
func (p *Prometheus) LabelValues(ctx context.Context, label, selector string) (values []string, err error) {
	return values, p.get(ctx, "/api/v1/label/"+url.PathEscape(label)+"/values", url.Values{"match[]": {selector}}, &values)
}

// Series are the label sets of a selector.
func (p *Prometheus) Series(ctx context.Context, selector string) (sets []map[string]string, err error) {
	return sets, p.get(ctx, "/api/v1/series", url.Values{"match[]": {selector}}, &sets)
}

func seconds(t time.Time) string { return fmt.Sprintf("%.3f", float64(t.UnixMilli())/1000) }

func (p *Prometheus) get(ctx context.Context, path string, q url.Values, data any) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.URL+path+"?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	var answer struct {
		Status, Error string
		Data          json.RawMessage
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return fmt.Errorf("read Prometheus's answer (%s): %w", resp.Status, err)
	}
	if answer.Status != "success" {
		return fmt.Errorf("Prometheus: %s", answer.Error) //nolint:staticcheck // a name
	}
	return json.Unmarshal(answer.Data, data)
}
