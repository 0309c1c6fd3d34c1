package e2e

import (
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"net"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/net/idna"
	"gopkg.in/yaml.v3"

	"github.com/tidegate-mesh/tidegate/e2e/rig"
)

// expected is one flow as another project sees it. Ends that are not known are zero and fit every flow.
type expected struct {
	test      string   // where it stands
	captures  []string // base names; Zeek's results name none, so there may be several that fit
	transport string
	src, dst  netip.AddrPort
	names     []string // their protocols of this flow: agreeing with one of them is enough
	hosts     []string
}

func (e *expected) fits(f *replayed) bool {
	if !slices.Contains(e.captures, f.Pcap) || e.transport != "" && e.transport != f.Transport {
		return false
	}
	src, dst := endOf(f.SrcIP, strconv.Itoa(f.SrcPort)), endOf(f.DstIP, strconv.Itoa(f.DstPort))
	is := func(want, got netip.AddrPort) bool {
		return (!want.Addr().IsValid() || want.Addr() == got.Addr()) && (want.Port() == 0 || want.Port() == got.Port())
	}
	return is(e.src, src) && is(e.dst, dst) || is(e.src, dst) && is(e.dst, src)
}

func endOf(addr, port string) netip.AddrPort {
	a, _ := netip.ParseAddr(strings.Trim(addr, "[]"))
	p, _ := strconv.ParseUint(port, 10, 16)
	return netip.AddrPortFrom(a, uint16(p))
}

// TestFullPeers holds labels and host names against what Zeek, Suricata and Arkime expect of their own captures; the
// table is in docs/accuracy.md.
func TestFullPeers(t *testing.T) {
	corpus := filepath.Join(rig.Shared(t), "corpus")
	for _, project := range []struct {
		name string
		read func(t *testing.T, dir string, flows []replayed) []*expected
	}{{"zeek", zeekExpects}, {"suricata", suricataExpects}, {"arkime", arkimeExpects}} {
		t.Run(project.name, func(t *testing.T) {
			dir := filepath.Join(corpus, project.name)
			flows := replay(t, captures(t, dir)...)
			flows = slices.DeleteFunc(flows, func(l replayed) bool { return l.Kind != "flow" })
			var all, right, outside, hosts, rightHosts int
			for _, e := range project.read(t, dir, flows) {
				var labels []string
				for _, name := range e.names {
					ours, ok := ourLabels[name]
					if !ok {
						t.Errorf("%s: %q is not in the table", e.test, name)
					}
					labels = append(labels, strings.Fields(ours)...)
				}
				if len(labels) == 0 {
					outside++
					continue
				}
				got, gotHosts := map[string]bool{}, map[string]bool{}
				for i := range flows {
					if e.fits(&flows[i]) {
						got[flows[i].App], gotHosts[flows[i].Host] = true, true
					}
				}
				all++
				if slices.ContainsFunc(labels, func(l string) bool { return got[l] }) {
					right++
				} else {
					t.Logf("%s: %v → %v, expected %v, got %v", e.test, e.src, e.dst, e.names, slices.Sorted(maps.Keys(got)))
				}
				if len(e.hosts) > 0 {
					hosts++
					if slices.ContainsFunc(e.hosts, func(h string) bool { return gotHosts[strings.ToLower(h)] || gotHosts[hostOnly(h)] }) {
						rightHosts++
					} else {
						t.Logf("%s: %v → %v, expected host %v, got %v", e.test, e.src, e.dst, e.hosts, slices.Sorted(maps.Keys(gotHosts)))
					}
				}
			}
			labelShare, hostShare := float64(right)/float64(all), float64(rightHosts)/float64(hosts)
			t.Logf("%s: %d of %d labels (%.3f), %d of %d hosts (%.3f); %d outside the label set", project.name,
				right, all, labelShare, rightHosts, hosts, hostShare, outside)
			if labelShare < 0.95 || hostShare < 0.95 {
				t.Errorf("agreement of labels %.3f and hosts %.3f, want 0.95 of each", labelShare, hostShare)
			}
			if all < 200 || hosts < 25 {
				t.Errorf("only %d flows and %d hosts were expected: the results are not read", all, hosts)
			}
		})
	}
}

// hostOnly takes off the port that Zeek keeps, folds the case and gives a name in Unicode, as Arkime has them, its form
// on the wire (RFC 5891).
func hostOnly(s string) string {
	if host, _, err := net.SplitHostPort(s); err == nil {
		s = host
	}
	if ascii, err := idna.ToASCII(s); err == nil {
		s = ascii
	}
	return strings.ToLower(s)
}

// join adds to a list of expectations what is new, one for each capture and flow.
type join struct {
	list  []*expected
	known map[string]*expected
}

func (j *join) add(e expected, apart string) {
	x, y := e.src, e.dst
	if y.Compare(x) < 0 {
		x, y = y, x
	}
	k := fmt.Sprint(e.captures, e.transport, x, y, apart)
	old := j.known[k]
	if old == nil {
		if j.known == nil {
			j.known = map[string]*expected{}
		}
		old = &e
		j.known[k] = old
		j.list = append(j.list, old)
		return
	}
	old.names, old.hosts = union(old.names, e.names), union(old.hosts, e.hosts)
}

func union(a, b []string) []string {
	for _, s := range b {
		if !slices.Contains(a, s) {
			a = append(a, s)
		}
	}
	return a
}

// zeekExpects reads Zeek's logs: the service column of conn.log, and the name of every log of a protocol. They do not
// name their capture, so it is the one with most of their connections.
func zeekExpects(t *testing.T, dir string, flows []replayed) []*expected {
	logs, err := filepath.Glob(filepath.Join(dir, "Baseline", "*", "*.log"))
	if err != nil {
		t.Fatal(err)
	}
	byTest := map[string][]expected{}
	for _, log := range logs {
		test := filepath.Base(filepath.Dir(log))
		b, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for line := range strings.Lines(string(b)) {
			fields := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
			if fields[0] == "#fields" {
				names = fields[1:]
			}
			row := map[string]string{}
			for i, v := range fields {
				if i < len(names) && v != "-" && v != "(empty)" {
					row[names[i]] = v
				}
			}
			e := expected{
				test: test, transport: row["proto"],
				src: endOf(row["id.orig_h"], row["id.orig_p"]), dst: endOf(row["id.resp_h"], row["id.resp_p"]),
			}
			if strings.HasPrefix(line, "#") || !e.src.Addr().IsValid() || e.src.Port() == 0 {
				continue
			}
			switch name := strings.TrimSuffix(filepath.Base(log), ".log"); name {
			case "conn":
				if row["service"] == "" {
					continue
				}
				e.names = strings.Split(row["service"], ",")
			case "dns", "http", "quic", "ssl":
				e.names, e.hosts = []string{name}, union(nil, strings.Fields(row["query"]+" "+row["host"]+" "+row["server_name"]))
			default:
				if _, ok := ourLabels[name]; !ok {
					continue // of no one protocol
				}
				e.names = []string{name}
			}
			byTest[test] = append(byTest[test], e)
		}
	}
	var all join
	for _, test := range slices.Sorted(maps.Keys(byTest)) {
		count := map[string]int{}
		for _, e := range byTest[test] {
			seen := map[string]bool{}
			for i := range flows {
				e.captures = []string{flows[i].Pcap}
				if !seen[flows[i].Pcap] && e.fits(&flows[i]) {
					seen[flows[i].Pcap] = true
					count[flows[i].Pcap]++
				}
			}
		}
		most := 0
		for _, n := range count {
			most = max(most, n)
		}
		maps.DeleteFunc(count, func(_ string, n int) bool { return n < most })
		if most == 0 {
			t.Logf("%s: its capture is not here", test)
			continue
		}
		for _, e := range byTest[test] {
			e.captures = slices.Sorted(maps.Keys(count))
			e.transport = "" // most logs do not tell
			all.add(e, "")
		}
	}
	return all.list
}

// readAll gives what the files of a folder with an ending hold, by their names without it. What cannot be read as T is told.
func readAll[T any](t *testing.T, dir, ending string, unmarshal func([]byte, any) error) iter.Seq2[string, T] {
	return func(yield func(string, T) bool) {
		files, err := filepath.Glob(filepath.Join(dir, "*"+ending))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var v T
			if err := unmarshal(b, &v); err != nil {
				t.Logf("%s: %v", file, err)
				continue
			}
			if !yield(strings.TrimSuffix(filepath.Base(file), ending), v) {
				return
			}
		}
	}
}

// suricataExpects reads the checks of Suricata's tests that an event of a protocol occurs.
func suricataExpects(t *testing.T, dir string, _ []replayed) []*expected {
	type suricataTest struct {
		Pcap   any
		Checks []struct {
			Filter struct {
				Count any
				Match map[string]any
			}
		}
	}
	var all join
	for name, test := range readAll[suricataTest](t, filepath.Join(dir, "expected"), ".test.yaml", yaml.Unmarshal) {
		capture := name
		if p, ok := test.Pcap.(string); ok && strings.Contains(p, "/") { // of another test's folder
			capture = strings.ReplaceAll(path.Dir(path.Join(strings.ReplaceAll(name, "__", "/"), p)), "/", "__")
		}
		if _, err := os.Stat(filepath.Join(dir, "pcap", capture+".pcap")); err != nil {
			continue
		}
		for _, c := range test.Checks {
			m := map[string]string{}
			flatten(m, "", c.Filter.Match)
			if fmt.Sprint(c.Filter.Count) == "0" {
				continue
			}
			e := expected{test: name, captures: []string{capture + ".pcap"}, transport: strings.ToLower(m["proto"]),
				src: endOf(m["src_ip"], m["src_port"]), dst: endOf(m["dest_ip"], m["dest_port"])}
			what := m["app_proto"]
			if _, ok := ourLabels[m["event_type"]]; ok {
				what = m["event_type"]
			}
			if what == "" || what == "failed" {
				continue
			}
			e.names = []string{what}
			for k, v := range m {
				if k == "tls.sni" || k == "http.hostname" || strings.HasPrefix(k, "dns.queries") && strings.HasSuffix(k, ".rrname") {
					e.hosts = union(e.hosts, []string{v})
				}
			}
			apart := ""
			if e.src.Port() == 0 || e.dst.Port() == 0 {
				apart = what // some flow of the capture
			}
			all.add(e, apart)
		}
	}
	return all.list
}

func flatten(into map[string]string, at string, v any) {
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			flatten(into, strings.TrimPrefix(at+"."+k, "."), x)
		}
	case []any:
		for i, x := range v {
			flatten(into, fmt.Sprintf("%s[%d]", at, i), x)
		}
	default:
		into[at] = fmt.Sprint(v)
	}
}

// arkimeExpects reads Arkime's sessions.
func arkimeExpects(t *testing.T, dir string, _ []replayed) []*expected {
	type end struct {
		IP   string
		Port int
	}
	type arkimeTest struct {
		Sessions []struct {
			Body struct {
				Source, Destination end
				Protocol            []string
				IPProtocol          int
				HTTP, QUIC          struct{ Host []string }
				DNS                 json.RawMessage // one, or a list with one for each message
			}
		} `json:"sessions3"`
	}
	var all join
	for name, test := range readAll[arkimeTest](t, dir, ".test", json.Unmarshal) {
		for _, s := range test.Sessions {
			s := s.Body
			var dns []struct{ QueryHost string }
			var hosts []string
			if json.Unmarshal(s.DNS, &dns) == nil {
				for _, d := range dns {
					if d.QueryHost != "<root>" { // no name
						hosts = union(hosts, []string{d.QueryHost})
					}
				}
			}
			all.add(expected{
				test: name, captures: []string{name + ".pcap"},
				transport: map[int]string{6: "tcp", 17: "udp", 132: "sctp"}[s.IPProtocol],
				src:       endOf(s.Source.IP, strconv.Itoa(s.Source.Port)), dst: endOf(s.Destination.IP, strconv.Itoa(s.Destination.Port)),
				names: s.Protocol, hosts: slices.Concat(s.HTTP.Host, s.QUIC.Host, hosts),
			}, "")
		}
	}
	return all.list
}
