package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/e2e/rig"
	"github.com/tidegate-mesh/tidegate/libs/api/client"
)

// dashboard has the fields that Grafana needs to show one.
type dashboard struct {
	UID, Title    string
	Description   string
	SchemaVersion int
	Refresh       string
	Time          struct{ From, To string }
	Links         []struct{ Title, Type, URL string }
	Templating    struct{ List []variable }
	Annotations   struct{ List []struct{ Name, Expr string } }
	Panels        []panel
}

type variable struct {
	Name, Type string
	AllValue   string
	Definition string
	Current    struct{ Value any }
}

type panel struct {
	ID                       int
	Type, Title, Description string
	Datasource               struct{ Type, UID string }
	GridPos                  struct{ X, Y, W, H int }
	FieldConfig              struct {
		Defaults struct {
			Unit       string
			Thresholds struct {
				Mode  string
				Steps []struct {
					Color string
					Value *float64
				}
			}
		}
	}
	Targets []struct {
		RefID, Expr string
		Datasource  struct{ Type, UID string }
	}
}

var dashboardFiles = []string{"overview", "data-plane", "pipeline", "persistence"}

func readDashboard(t *testing.T, name string) *dashboard {
	t.Helper()
	b, err := os.ReadFile(rig.Deploy(t, "grafana", "dashboards", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	d := &dashboard{}
	if err := json.Unmarshal(b, d); err != nil {
		t.Fatalf("%s.json: %v", name, err)
	}
	return d
}

// TestDashboardFiles: the dashboards are valid without a Grafana at hand: what it needs is there, ids are unique, panels
// do not overlap, every variable is defined.
func TestDashboardFiles(t *testing.T) {
	for _, name := range dashboardFiles {
		t.Run(name, func(t *testing.T) {
			d := readDashboard(t, name)
			if d.UID != "tidegate-"+name || d.Title == "" || d.SchemaVersion < 36 || d.Time.From == "" || d.Refresh == "" || len(d.Links) < 3 {
				t.Errorf("uid %q, title %q, schema %d, time %+v, refresh %q, %d links", d.UID, d.Title, d.SchemaVersion, d.Time, d.Refresh, len(d.Links))
			}
			known := map[string]bool{"__rate_interval": true}
			for _, v := range d.Templating.List {
				known[v.Name] = true
			}
			used := regexp.MustCompile(`\$\{?([A-Za-z_]+)`)
			check := func(where, text string) {
				for _, m := range used.FindAllStringSubmatch(text, -1) {
					if !known[m[1]] {
						t.Errorf("%s: no variable %s", where, m[1])
					}
				}
			}
			for _, l := range d.Links {
				check(l.Title, l.URL)
			}
			ids := map[int]bool{}
			taken := map[[2]int]string{}
			for _, p := range d.Panels {
				if ids[p.ID] || p.ID == 0 || p.Title == "" {
					t.Errorf("panel %q has id %d, which is used or 0", p.Title, p.ID)
				}
				ids[p.ID] = true
				g := p.GridPos
				if g.W < 1 || g.H < 1 || g.X < 0 || g.X+g.W > 24 {
					t.Errorf("%s lies outside: %+v", p.Title, g)
				}
				for x := g.X; x < g.X+g.W; x++ {
					for y := g.Y; y < g.Y+g.H; y++ {
						if other := taken[[2]int{x, y}]; other != "" {
							t.Fatalf("%s lies on %s", p.Title, other)
						}
						taken[[2]int{x, y}] = p.Title
					}
				}
				if p.Type == "row" {
					continue
				}
				steps := p.FieldConfig.Defaults.Thresholds.Steps
				if p.Description == "" || p.FieldConfig.Defaults.Unit == "" || len(steps) == 0 || steps[0].Value != nil || len(p.Targets) == 0 {
					t.Errorf("%s lacks a description, a unit, thresholds or queries", p.Title)
				}
				for _, q := range p.Targets {
					if q.Datasource.UID != "${datasource}" || q.Datasource.Type != "prometheus" || q.RefID == "" {
						t.Errorf("%s: query %q on %+v", p.Title, q.RefID, q.Datasource)
					}
					check(p.Title, q.Expr)
				}
			}
		})
	}
}

// TestRules runs promtool's unit tests of the recording and alerting rules, and its checks of the configuration.
func TestRules(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	rig.Need(t, err == nil, "promtool (make setup)")
	rules, _ := filepath.Glob(rig.Deploy(t, "prometheus", "rules", "*.yaml"))
	tests, _ := filepath.Glob(rig.Deploy(t, "prometheus", "tests", "*.yaml"))
	if len(rules) < 2 || len(tests) == 0 {
		t.Fatalf("rules %v, tests %v", rules, tests)
	}
	for _, args := range [][]string{
		{"check", "config", rig.Deploy(t, "prometheus", "prometheus.yml")},
		append([]string{"check", "rules", "--lint-fatal"}, rules...),
		append([]string{"test", "rules"}, tests...),
	} {
		if out, err := exec.CommandContext(t.Context(), promtool, args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args[:2], " "), err, out)
		}
	}
	// Every alert has a test that sees it fire.
	var text strings.Builder
	for _, f := range tests {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		text.Write(b)
	}
	b, err := os.ReadFile(rig.Deploy(t, "prometheus", "rules", "alerts.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`alert: (\w+)`).FindAllStringSubmatch(string(b), -1) {
		if !strings.Contains(text.String(), "alertname: "+m[1]+"\n") {
			t.Errorf("no test sees %s fire", m[1])
		}
	}
}

// rateInterval is what Grafana takes for $__rate_interval: four times the scrape interval.
const rateInterval = "20s"

// grafana replaces variables as Grafana does, with every variable at "All".
func (d *dashboard) grafana(text string) string {
	text = strings.ReplaceAll(text, "$__rate_interval", rateInterval)
	for _, v := range d.Templating.List {
		value := v.AllValue
		if value == "" {
			value = fmt.Sprint(v.Current.Value)
		}
		text = strings.NewReplacer("${"+v.Name+"}", value, "$"+v.Name, value).Replace(text)
	}
	return text
}

// labelValues is the one form of variable query that the dashboards use.
var labelValues = regexp.MustCompile(`^label_values\((.+), (\w+)\)$`)

// TestFullDashboardsHaveData: every query of every dashboard gives data from a real Prometheus that scrapes the demo, and
// metrics have only labels whose values are bounded. It takes 30 s, longer on a machine that is busy with other things.
func TestFullDashboardsHaveData(t *testing.T) {
	rig.NeedRoot(t)
	metrics, gateway := rig.FreeAddr(t), rig.FreeAddr(t)
	local := filepath.Join(t.TempDir(), "local.json")
	prom := rig.StartPrometheus(t, map[string]string{"tidegate": metrics})
	demo := rig.Start(t, rig.Binary(t, "tidegate"), nil, "demo", "--json", "--for", "110s", "--warm-up", "3s", "--attack-for", "4s", "--rest", "2s",
		"--pps", "5000", "--rate", "20",
		"--listen", rig.FreeAddr(t), "--metrics", metrics, "--gateway-listen", gateway, "--local-credentials", local)
	queries := map[string]string{} // by where it is
	variables := map[string][]string{}
	for _, name := range dashboardFiles {
		d := readDashboard(t, name)
		for _, v := range d.Templating.List {
			if v.Type == "query" {
				m := labelValues.FindStringSubmatch(v.Definition)
				if m == nil {
					t.Fatalf("%s: variable %s asks %q", name, v.Name, v.Definition)
				}
				variables[name+": variable "+v.Name] = m
			}
		}
		for _, a := range d.Annotations.List {
			queries[name+": annotation "+a.Name] = d.grafana(a.Expr)
		}
		for _, p := range d.Panels {
			for _, q := range p.Targets {
				queries[name+": "+p.Title+" "+q.RefID] = d.grafana(q.Expr)
			}
		}
	}
	t.Logf("%d queries, %d variables", len(queries), len(variables))
	err := rig.Eventually(100*time.Second, func() error {
		if err := askStatus(t.Context(), local); err != nil { // so that there are requests
			return err
		}
		for where, expr := range queries {
			n, err := prom.Range(t.Context(), expr, 2*time.Minute)
			if err != nil {
				return fmt.Errorf("%s: %s: %w", where, expr, err)
			}
			if n > 0 {
				delete(queries, where)
			}
		}
		for where, m := range variables {
			values, err := prom.LabelValues(t.Context(), m[2], m[1])
			if err != nil {
				return fmt.Errorf("%s: %w", where, err)
			}
			if len(values) > 0 {
				delete(variables, where)
			}
		}
		if len(queries)+len(variables) == 0 {
			return nil
		}
		time.Sleep(time.Second)
		return errors.New("some gave nothing")
	})
	if err != nil {
		t.Errorf("%v: %v %v", err, slices.Sorted(maps.Keys(variables)), slices.Sorted(maps.Keys(queries)))
	}
	boundedMetrics(t.Context(), t, prom)
	_ = demo.Stop(15 * time.Second)
}

// askStatus asks the gateway with the credentials that the demo left for this machine.
func askStatus(ctx context.Context, local string) error {
	credentials, err := client.LoadCredentials(local)
	if err != nil {
		return err
	}
	o, err := credentials.Options()
	if err != nil {
		return err
	}
	c, err := client.New(o)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Status(ctx)
	return err
}

// contractLabels are the labels of the metrics whose names are fixed (DESIGN 5).
var contractLabels = map[string]string{
	"tidegate_ingest_packets_total": "iface queue sensor", "tidegate_ingest_bytes_total": "iface queue sensor",
	"tidegate_ingest_drops_total": "iface reason sensor", "tidegate_ingest_flows_active": "", "tidegate_ingest_batches_total": "result",
	"tidegate_classify_flows_total": "app", "tidegate_classify_verdicts_total": "action type",
	"tidegate_classify_latency_seconds_count": "", "tidegate_xdp_packets_total": "action iface", "tidegate_xdp_bytes_total": "action iface",
	"tidegate_enforce_rules": "action state", "tidegate_enforce_apply_seconds_count": "", "tidegate_enforce_refusals_total": "reason",
	"tidegate_persist_rows_total": "table", "tidegate_persist_insert_seconds_count": "", "tidegate_persist_backlog_messages": "",
	"tidegate_gateway_requests_seconds_count": "code route", "tidegate_time_to_first_drop_seconds_count": "",
	"tidegate_ledger": "stage", "tidegate_ledger_difference": "", "tidegate_grpc_requests_seconds_count": "code method service",
	"tidegate_build_info": "go_version revision service version", "go_goroutines": "", "go_memstats_heap_alloc_bytes": "",
}

// boundedLabels is every label that a metric of ours may have. Each has a set of values fixed by the code, the machine or
// the configuration; none comes from a packet or a request.
var boundedLabels = strings.Fields(`action app capture classifier code event go_version iface instance job le method op queue reason result revision
	route sensor service stage state stream table tunnel type version`)

// boundedMetrics checks the labels of what was scraped.
func boundedMetrics(ctx context.Context, t *testing.T, prom *rig.Prometheus) {
	t.Helper()
	series, err := prom.Series(ctx, `{__name__=~"tidegate_.+|go_goroutines|go_memstats_heap_alloc_bytes"}`)
	if err != nil {
		t.Fatal(err)
	}
	labels, number := map[string]string{}, map[string]int{}
	for _, s := range series {
		name := s["__name__"]
		delete(s, "__name__")
		delete(s, "job")
		delete(s, "instance")
		number[name]++
		keys := slices.Sorted(maps.Keys(s))
		labels[name] = strings.Join(keys, " ")
		for _, k := range keys {
			if !slices.Contains(boundedLabels, k) {
				t.Errorf("%s has the label %s", name, k)
			}
		}
	}
	for name, want := range contractLabels {
		if have, ok := labels[name]; !ok || have != want {
			t.Errorf("%s has labels %q (there: %v), want %q", name, have, ok, want)
		}
	}
	for name, n := range number {
		if n > 500 {
			t.Errorf("%s has %d series", name, n)
		}
	}
}
