package hostlist

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/policy"
)

func key(src, dst string, port uint16) flow.Key {
	return flow.Key{Src: netip.MustParseAddr(src).As16(), Dst: netip.MustParseAddr(dst).As16(), SrcPort: 40000, DstPort: port, Protocol: 6}
}

func TestFind(t *testing.T) {
	table, out := New([]List{
		{Name: "count", Action: policy.Count, Text: []byte("deep.bad.example\nwatched.example\n")},
		{Name: "bad", Action: policy.Drop, Text: []byte("bad.example\nlisted.example\nx-bad.test\n")},
		{Name: "good", Action: policy.Allow, Text: []byte("fine.bad.example\n")},
		{Name: "slow", Action: policy.RateLimit, RatePPS: 5, Text: []byte("listed.example\nslow.example\nBad.Line\nno-end")},
	}, nil)
	for host, want := range map[string]string{
		"bad.example": "drop bad bad.example", "www.bad.example": "drop bad bad.example", "a.b.c.d.e.f.bad.example": "drop bad bad.example",
		"deep.bad.example": "drop bad bad.example", "fine.bad.example": "allow good fine.bad.example", "x.fine.bad.example": "allow good fine.bad.example",
		"notbad.example": "", "bad.example.org": "", "example": "", "": "", ".": "", "..": "", "bad.example.": "", ".bad.example": "drop bad bad.example",
		"listed.example": "drop bad listed.example", "s.slow.example": "rate-limit slow slow.example", "watched.example": "count count watched.example",
		"x-bad.test": "drop bad x-bad.test", "bad.test": "", "bad.line": "", "192.0.2.1": "", strings.Repeat("a.", 200) + "bad.example": "",
	} {
		got := ""
		if f, ok := table.Find(host, &flow.Key{}, 0); ok {
			got = fmt.Sprint(f.Action, " ", f.List, " ", f.Entry)
		}
		if got != want {
			t.Errorf("%q: %q, want %q", host, got, want)
		}
	}
	if want := (Outcome{Taken: 2, Invalid: 2}); out["slow"] != want || out["bad"].Taken != 3 {
		t.Errorf("outcomes %+v", out)
	}
	if n := table.Entries(); n != 7 {
		t.Errorf("%d distinct domains", n)
	}
	if _, ok := (*Table)(nil).Find("bad.example", &flow.Key{}, 0); ok {
		t.Error("no table finds something")
	}
}

func TestRulesBeforeLists(t *testing.T) {
	now := time.Unix(1000, 0)
	r := func(id, host string, a policy.Action, edit func(*policy.Rule)) policy.Rule {
		x := policy.Rule{ID: id, Action: a, Match: policy.Match{Host: host}}
		if edit != nil {
			edit(&x)
		}
		return x
	}
	table, _ := New([]List{{Name: "bad", Action: policy.Drop, Text: []byte("listed.example\n")}}, []policy.Rule{
		r("wide", "rule.example", policy.Drop, nil),
		r("deep", "ok.rule.example", policy.Allow, nil),
		r("low", "two.example", policy.Drop, nil),
		r("high", "two.example", policy.Count, func(x *policy.Rule) { x.Priority = 5 }),
		r("partner", "listed.example", policy.Allow, func(x *policy.Rule) { x.Match.Src = netip.MustParsePrefix("10.1.0.0/16") }),
		r("over", "over.example", policy.Drop, func(x *policy.Rule) { x.Expires = now }),
		r("tls", "port.example", policy.Drop, func(x *policy.Rule) {
			x.Match.Protocol, x.Match.HasProtocol, x.Match.DstPort, x.Match.HasDstPort = 6, true, 443, true
		}),
		{ID: "other", Action: policy.Drop},
	})
	for _, c := range []struct {
		host string
		key  flow.Key
		want string
	}{
		{"a.rule.example", key("10.0.0.1", "192.0.2.1", 443), "drop wide rule.example"},
		{"a.ok.rule.example", key("10.0.0.1", "192.0.2.1", 443), "allow deep ok.rule.example"},
		{"two.example", key("10.0.0.1", "192.0.2.1", 443), "count high two.example"},
		{"listed.example", key("10.0.0.1", "192.0.2.1", 443), "drop  listed.example"},
		{"listed.example", key("10.1.0.1", "192.0.2.1", 443), "allow partner listed.example"},
		{"over.example", key("10.1.0.1", "192.0.2.1", 443), ""},
		{"port.example", key("10.1.0.1", "192.0.2.1", 443), "drop tls port.example"},
		{"port.example", key("10.1.0.1", "192.0.2.1", 80), ""},
	} {
		got := ""
		if f, ok := table.Find(c.host, &c.key, now.UnixNano()); ok {
			got = fmt.Sprint(f.Action, " ", f.RuleID, " ", f.Entry)
		}
		if got != c.want {
			t.Errorf("%s to port %d: %q, want %q", c.host, c.key.DstPort, got, c.want)
		}
	}
}

// TestAgainstScan compares the table with looking at every entry.
func TestAgainstScan(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4)) //nolint:gosec // reproducible
	name := func() string {
		labels := make([]string, 2+rnd.IntN(3))
		for i := range labels {
			labels[i] = string([]byte{'a' + byte(rnd.IntN(4)), 'a' + byte(rnd.IntN(4))})
		}
		return strings.Join(labels, ".")
	}
	var lists []List
	entries := make([][]string, 4)
	for i, a := range []policy.Action{policy.Allow, policy.Drop, policy.RateLimit, policy.Count} {
		for range 150 {
			entries[i] = append(entries[i], name())
		}
		lists = append(lists, List{Name: a.String(), Action: a, Text: policy.FormatDomains(entries[i])})
	}
	table, _ := New(lists, nil)
	hits := 0
	for range 20_000 {
		host := name()
		want := ""
		for i := range entries {
			for _, d := range entries[i] {
				if want == "" && policy.InDomain(host, d) {
					want = lists[i].Name
				}
			}
		}
		f, _ := table.Find(host, &flow.Key{}, 0)
		if f.List != want || want != "" && !policy.InDomain(host, f.Entry) {
			t.Fatalf("%s: %+v, want list %q", host, f, want)
		}
		if want != "" {
			hits++
		}
	}
	if hits < 1000 || hits > 19_000 {
		t.Errorf("%d of 20000 hosts are listed: the test says little", hits)
	}
}

func TestFindDoesNotAllocate(t *testing.T) {
	table, _ := New([]List{{Name: "bad", Action: policy.Drop, Text: []byte("bad.example\n")}}, []policy.Rule{{ID: "r", Action: policy.Drop, Match: policy.Match{Host: "r.example"}}})
	k := key("10.0.0.1", "192.0.2.1", 443)
	if n := testing.AllocsPerRun(100, func() {
		for _, h := range []string{"www.bad.example", "other.example", "x.r.example"} {
			table.Find(h, &k, 1)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzFind(f *testing.F) {
	f.Add("bad.example\nx.y\n", "www.bad.example")
	f.Fuzz(func(t *testing.T, text, host string) {
		read, err := policy.ParseDomains([]byte(text), 100)
		if err != nil {
			return
		}
		table, out := New([]List{{Name: "l", Action: policy.Drop, Text: policy.FormatDomains(read.Entries)}}, nil)
		if out["l"].Taken != len(read.Entries) {
			t.Errorf("%d of %d domains taken", out["l"].Taken, len(read.Entries))
		}
		want := false
		for _, d := range read.Entries {
			want = want || len(host) <= policy.MaxDomain && policy.InDomain(host, d)
		}
		if got, ok := table.Find(host, &flow.Key{}, 0); ok != want || ok && !policy.InDomain(host, got.Entry) {
			t.Errorf("%q in %q: %v, want %v", host, read.Entries, ok, want)
		}
	})
}

// million is a list of a million domains of usual lengths.
func million() []byte {
	var b strings.Builder
	for i := range 1_000_000 {
		fmt.Fprintf(&b, "host-%07d.zone%03d.example\n", i*7919%10_000_000, i%1000)
	}
	return []byte(b.String())
}

func BenchmarkFind(b *testing.B) {
	text := million()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	began := time.Now()
	table, out := New([]List{{Name: "bad", Action: policy.Drop, Text: text}}, nil)
	took := time.Since(began)
	runtime.GC()
	runtime.ReadMemStats(&after)
	if out["bad"].Taken != 1_000_000 {
		b.Fatalf("%+v", out)
	}
	hosts := make([]string, 1<<16)
	for i := range hosts {
		if i%2 == 0 {
			n := i * 15 % 1_000_000
			hosts[i] = fmt.Sprintf("www.host-%07d.zone%03d.example", n*7919%10_000_000, n%1000)
		} else {
			hosts[i] = fmt.Sprintf("cdn%d.assets.shop-%d.example", i%7, i)
		}
	}
	k := key("10.0.0.1", "192.0.2.1", 443)
	b.ReportAllocs()
	b.ResetTimer()
	found := 0
	for i := range b.N {
		if _, ok := table.Find(hosts[i&(len(hosts)-1)], &k, 1); ok {
			found++
		}
	}
	b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(1<<20), "MiB-table")
	b.ReportMetric(float64(len(text))/(1<<20), "MiB-text")
	b.ReportMetric(took.Seconds(), "s-build")
	if b.N > 1000 && (found < b.N/3 || found > b.N*2/3) {
		b.Errorf("%d of %d found", found, b.N)
	}
	runtime.KeepAlive(table)
}
