package main

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/api/client"
)

const (
	goodToken = "good.token.x"
	t0        = api.Nanos(1767225600_000000000) // 2026-01-01T00:00:00Z
	ms        = api.Nanos(time.Millisecond)
)

// fakeGateway is an API over TLS with fixed objects. asked are the requests: method, path, query, body.
type fakeGateway struct {
	*httptest.Server
	ca string // file

	mu     sync.Mutex
	asked  []string
	header http.Header // of the last request
}

func newGateway(t *testing.T, routes map[string]http.HandlerFunc) *fakeGateway {
	t.Helper()
	g := &fakeGateway{}
	mux := http.NewServeMux()
	for pattern, h := range routes {
		mux.HandleFunc(pattern, h)
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		refuse(w, api.Problem{Status: 404, Detail: "there is no " + r.URL.Path})
	})
	g.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		g.mu.Lock()
		g.asked = append(g.asked, strings.TrimSpace(r.Method+" "+strings.TrimPrefix(r.URL.RequestURI(), "/api/v1/")+" "+string(body)))
		g.header = r.Header
		g.mu.Unlock()
		if r.Header.Get("Authorization") != "Bearer "+goodToken {
			refuse(w, api.Problem{Status: 401, Reason: "unauthorized", Detail: "the token is not good", RequestID: "req-401"})
			return
		}
		mux.ServeHTTP(w, r)
	}))
	g.Config.ErrorLog = log.New(io.Discard, "", 0)
	g.StartTLS()
	t.Cleanup(g.Close)
	g.ca = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(g.ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: g.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return g
}

// last is the last request.
func (g *fakeGateway) last() (string, http.Header) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.asked[len(g.asked)-1], g.header
}

// loggedIn makes commands without flags ask the gateway.
func (g *fakeGateway) loggedIn(t *testing.T) {
	t.Helper()
	ca, err := os.ReadFile(g.ca)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "credentials.json")
	if err := client.SaveCredentials(file, client.Credentials{URL: g.URL, CA: string(ca), Token: goodToken}); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TIDEGATE_CREDENTIALS", file)
}

func answer(v any) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v)
	}
}

func refuse(w http.ResponseWriter, p api.Problem) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p)
}

// command runs the command line with an input.
func command(t *testing.T, input string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	in, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if _, err := w.WriteString(input); err != nil {
		t.Fatal(err)
	}
	w.Close()
	var out, errs bytes.Buffer
	err = run(args, &terminal{in: in, out: &out, err: &errs})
	return out.String(), errs.String(), err
}

// The objects of the gateway.
var (
	port443 = uint16(443)

	attackOne = api.Attack{
		ID: "syn_flood-198.51.100.7-1", Type: "syn_flood", Target: "198.51.100.7", State: "ended", Sensor: "edge1", FirstNs: t0, DetectedNs: t0 + 180*ms,
		FirstDropNs: t0 + 210*ms, UpdatedNs: t0 + 9000*ms, EndedNs: t0 + 9000*ms, Packets: 450000, Bytes: 27000000, PPS: 50000, BPS: 24e6, Sources: 41000,
		TopSources: []string{"192.0.2.1", "192.0.2.2"}, TraceID: "4bf92f3577b34da6a3ce929d0e0e4736",
	}
	ruleSpecOne = api.RuleSpec{
		ID: "d-17", Action: "drop", Match: api.Match{Dst: "198.51.100.7/32", Proto: "tcp", DstPort: &port443}, MatchText: "proto 6 dst 198.51.100.7/32 dport 443",
		Origin: "detector", AttackID: attackOne.ID, VerdictID: "v-1", CreatedNs: t0 + 185*ms, ExpiresNs: t0 + 15000*ms, Lease: "15s",
	}
	verdictOne = api.Verdict{
		ID: "v-1", AttackID: attackOne.ID, Type: "syn_flood", Target: "198.51.100.7", Sensor: "edge1", DecidedNs: t0 + 182*ms, Key: "signature",
		Explanation: "50000 SYN a second, 41000 sources", Rules: []api.RuleSpec{ruleSpecOne},
		Evidence: api.Evidence{
			Features: map[string]float64{"syn_pps": 50000, "ratio": 0.97}, Thresholds: map[string]float64{"syn_pps": 300, "sources": 50},
			ConfigVersion: "c1", Windows: []string{"7", "8"}, AttackShare: 0.995, GoodShare: 0.001, Samples: 64,
		},
	}
	listOne = api.List{
		Name: "drop", Kind: "cidr", Action: "drop", URL: "https://lists.example/drop.txt", Every: "1h0m0s", Comment: "ticket 9", Hosts: 1200, Prefixes: 7, Rejected: 1,
		Examples: []api.RejectedLine{{Line: 3, Text: "<html>", Reason: "neither an address nor a prefix in CIDR notation"}}, CreatedNs: t0, UpdatedNs: t0, CheckedNs: t0,
		Problem: "the server answered 404 Not Found", Revision: "7", Nodes: []api.ListNode{},
	}
	listWhole = func() api.List {
		l := listOne
		l.Nodes = []api.ListNode{
			{Node: "edge1", State: "active", Entries: 1206, Refused: map[string]uint64{"never_block": 1}, Examples: []string{"203.0.113.1/32: never_block: it is inside the never-block prefix 203.0.113.1/32"}, Packets: 17, Bytes: 1020, Dropped: 17, AppliedNs: t0},
			{Node: "edge2", State: "unknown", Problem: "enforce at edge2 does not answer"},
		}
		return l
	}()
	ruleOne = api.Rule{
		RuleSpec: ruleSpecOne, Revision: "7", State: "active", Packets: 440000, Bytes: 26400000, FirstDropNs: t0 + 210*ms, AppliedNs: t0 + 190*ms,
		Nodes: []api.RuleNode{{Node: "edge1", State: "active", Packets: 440000, Bytes: 26400000}, {Node: "edge2", State: "refused", Reason: "rule_limit"}},
	}
	ruleTwo = api.Rule{
		RuleSpec: api.RuleSpec{ID: "u-2", Action: "count", MatchText: "proto 17 dport 19", Origin: "user", CreatedNs: t0},
		Revision: "2", State: "refused", Reason: "blast_radius", Nodes: []api.RuleNode{},
	}
	flowOne = api.Flow{
		ID: "f1", Sensor: "edge1", SrcIP: "192.0.2.9", SrcPort: 40001, DstIP: "2001:db8::7", DstPort: 443, Transport: "tcp", App: "tls", Host: "evil\x1b[2J.example",
		Packets: 12, Bytes: 3400, PacketsRev: 5, BytesRev: 1200, EndReason: "fin", FirstNs: t0, LastNs: t0 + 40*ms,
		HostSource: "dns", Confidence: "negotiated", JA4: "t13d1516h2_8daaf6152771_e5627efa2ab1", TLSVersion: "1.3", ALPN: "h2",
		TCP: &api.TCPFacts{RTTUs: 20_310, RTTClientUs: 310, RTTServerUs: 20_000, RetransmitsFwd: 2, RetransmitsRev: 1},
	}
	flowTwo   = api.Flow{ID: "f2", SrcIP: "192.0.2.9", DstIP: "198.51.100.7", Transport: "icmp", App: "unknown", Risks: []api.Risk{{Name: "malformed", Reason: "a length cannot be"}}, Packets: 1, Bytes: 84, FirstNs: t0 + ms, LastNs: t0 + ms}
	ledgerOne = api.Ledger{
		Stages: []api.Stage{{
			Stage: "decode", In: 100, InName: "received", Out: map[string]uint64{"accounted": 97, "undecodable": 2}, Difference: 1,
		}},
		Difference: 1,
	}
	statusOne = api.Status{
		Services: []api.Service{
			{Service: "ingest", Instance: "edge1", Ready: true, Problems: []string{}, CertificateExpiresNs: 4_102_444_800_000_000_000},
			{Service: "enforce", Instance: "edge1", Problems: []string{"NATS is not connected"}, CertificateExpiresNs: 1_577_836_800_000_000_000},
		},
		Missing: []api.Missing{{Service: "persist", Address: "127.0.0.1:50054", Problem: "connection refused"}},
		Interfaces: []api.Interface{{
			Name: "eth1", Mode: "inline", Capture: "af_xdp native copy", Queues: 2, XDPPackets: map[string]uint64{"drop": 9}, XDPBytes: map[string]uint64{"drop": 540},
			Received: 1200000, RingDrops: 3,
		}},
		Streams: []api.ClassifyStream{
			{Sensor: "edge1", Address: "c1:50051", Connected: true, Share: 1, BatchesPending: 2}, {Sensor: "edge1", Address: "c2:50051", Problem: "is away"},
		},
		Panic: api.Panic{On: true, SinceNs: t0, By: "ada", Reason: "wrong rules"}, Ledger: ledgerOne,
	}
	sensorOne = api.Sensor{
		Name: "edge1", Ready: true, Interfaces: statusOne.Interfaces, TopDst: []api.Talker{{Addr: "198.51.100.7", PPS: 50000, BPS: 24e6}}, TopSrc: []api.Talker{},
	}
	groupOne = api.Group{Name: "web", Prefixes: []string{"198.51.100.0/24", "2001:db8::/48"}, Thresholds: map[string]float64{"syn_pps": 300, "sources": 50},
		Learned: []api.LearnedHost{{Host: "198.51.100.7", Thresholds: map[string]float64{"syn_pps": 900}}}}
	groupTwo = api.Group{Name: "default", Prefixes: []string{}, Thresholds: map[string]float64{}, Learned: []api.LearnedHost{}}
	nodeOne  = api.Node{Service: "enforce", Instance: "edge1", Version: "v1", StartedNs: t0, SeenNs: t0 + 5000*ms}
	topOne   = api.Top{By: "app", Rows: []api.TopRow{{Key: "tls", Flows: 4, Packets: 4096, Bytes: 5000000}, {Flows: 1, Packets: 2, Bytes: 100}}}
	series   = api.TimeSeries{StepNs: 60000 * ms, Series: []api.Series{{Key: "tls", Points: []api.Point{{StartNs: t0, Flows: 3, Packets: 2000, Bytes: 1500000}}}}}
	auditOne = api.AuditEntry{
		ID: "a1", TimeNs: t0, Actor: "ada", Role: "operator", Remote: "192.0.2.50", Action: "rule.add", Target: "u-2", Outcome: "refused", Detail: "blast_radius",
		After: map[string]any{"action": "count"}, RequestID: "req-1", Gateway: "gw1",
	}
	identity = api.Identity{Subject: "ada", Role: "operator", ExpiresNs: t0 + 3600_000*ms}
	detail   = api.AttackDetail{
		Attack: attackOne, Verdicts: []api.Verdict{verdictOne}, PcapURL: "/api/v1/attacks/x/pcap",
		Timeline: []api.TimelineEntry{
			{TimeNs: t0, Kind: "first_packet", State: "seen", Node: "edge1", Text: "the first packet"},
			{TimeNs: t0 + 190*ms, Kind: "enforcement", State: "applied", Node: "edge1", RuleID: "d-17", Text: "the rule is in the driver"},
		},
	}
	dryRun = api.DryRun{
		Rule: api.RuleSpec{ID: "u-9", Action: "drop", MatchText: "src 192.0.2.7/32"}, Accepted: true, Replaces: true,
		Matched: &api.Matched{Flows: 3, Packets: 1500, Bytes: 90000, Apps: []api.TopRow{{Key: "dns", Flows: 3, Packets: 1500, Bytes: 90000}}, Approximate: true},
	}
	explanation = api.Explanation{Rule: ruleOne, Text: "drops what the SYN flood sends", Verdict: &verdictOne}
	panicked1   = api.PanicResult{
		Panic: api.Panic{On: true, SinceNs: t0, By: "ada", Reason: "wrong rules"}, Revoked: []api.RuleSpec{ruleTwo.RuleSpec}, Held: 3,
		Nodes: []api.PanicNode{{Node: "edge1", Done: true}, {Node: "edge2", Problem: "does not answer"}},
	}
)

func page[T any](items ...T) api.Page[T] { return api.Page[T]{Items: items} }

func allRoutes() map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{
		"GET /api/v1/me":                 answer(identity),
		"GET /api/v1/status":             answer(statusOne),
		"GET /api/v1/ledger":             answer(ledgerOne),
		"GET /api/v1/flows":              answer(page(flowOne, flowTwo)),
		"GET /api/v1/top":                answer(topOne),
		"GET /api/v1/timeseries":         answer(series),
		"GET /api/v1/attacks":            answer(page(attackOne)),
		"GET /api/v1/attacks/{id}":       answer(detail),
		"GET /api/v1/verdicts":           answer(page(verdictOne)),
		"GET /api/v1/verdicts/{id}":      answer(verdictOne),
		"GET /api/v1/rules":              rulePages,
		"GET /api/v1/rules/d-17":         answer(ruleOne),
		"GET /api/v1/rules/{id}":         func(w http.ResponseWriter, r *http.Request) { noRule(w, r) },
		"GET /api/v1/rules/x/explain":    func(w http.ResponseWriter, r *http.Request) { noRule(w, r) },
		"GET /api/v1/rules/d-17/explain": answer(explanation),
		"POST /api/v1/rules":             answer(ruleOne),
		"POST /api/v1/rules/dry-run":     answer(dryRun),
		"PUT /api/v1/rules/d-17":         answer(ruleOne),
		"DELETE /api/v1/rules/d-17":      func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) },
		"GET /api/v1/lists":              answer(page(listOne)),
		"GET /api/v1/lists/drop":         answer(listWhole),
		"PUT /api/v1/lists/names":        answer(api.List{Name: "names", Kind: "domain", Action: "rate-limit", Nodes: []api.ListNode{}}),
		"PUT /api/v1/lists/drop":         answer(api.List{Name: "drop", Action: "drop", Nodes: []api.ListNode{}}),
		"PUT /api/v1/lists/drop/entries": answer(listOne),
		"DELETE /api/v1/lists/drop":      func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) },
		"GET /api/v1/groups":             answer(page(groupOne, groupTwo)),
		"GET /api/v1/sensors":            answer(page(sensorOne)),
		"GET /api/v1/nodes":              answer(page(nodeOne)),
		"GET /api/v1/audit":              answer(page(auditOne)),
		"GET /api/v1/panic":              answer(statusOne.Panic),
		"POST /api/v1/panic":             answer(panicked1),
		"DELETE /api/v1/panic":           answer(api.PanicResult{Revoked: []api.RuleSpec{}, Nodes: []api.PanicNode{{Node: "edge1", Done: true}}}),
		"GET /api/v1/attacks/{id}/pcap": func(w http.ResponseWriter, r *http.Request) {
			if r.PathValue("id") != attackOne.ID {
				refuse(w, api.Problem{Status: 404, Detail: "there is no such attack"})
				return
			}
			_, _ = io.WriteString(w, "\xd4\xc3\xb2\xa1 packets")
		},
	}
}

func noRule(w http.ResponseWriter, _ *http.Request) {
	refuse(w, api.Problem{Status: 404, Detail: "there is no such rule", RequestID: "req-404"})
}

// rulePages are two pages of one rule each.
func rulePages(w http.ResponseWriter, r *http.Request) {
	if r.URL.Query().Get("cursor") == "" {
		answer(api.Page[api.Rule]{Items: []api.Rule{ruleOne}, Next: "p2"})(w, r)
		return
	}
	answer(page(ruleTwo))(w, r)
}
