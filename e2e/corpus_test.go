package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/e2e/rig"
	"github.com/tidegate-mesh/tidegate/libs/api"
)

// firstLabels are the applications that classify must know; see the measure of the same name in docs/accuracy.md.
var firstLabels = []string{"tls", "quic", "http", "dns", "ssh", "icmp", "icmpv6", "dhcp", "ntp", "ssdp", "mdns"}

// replayed is a line of replay --json.
type replayed struct {
	Kind        string            `json:"kind"`
	Pcap        string            `json:"pcap"`
	SrcIP       string            `json:"src_ip"`
	SrcPort     int               `json:"src_port"`
	DstIP       string            `json:"dst_ip"`
	DstPort     int               `json:"dst_port"`
	Transport   string            `json:"transport"`
	App         string            `json:"app"`
	Host        string            `json:"host"`
	Type        string            `json:"type"`
	VLAN        uint16            `json:"vlan"`
	TCP         *api.TCPFacts     `json:"tcp"`
	Packets     uint64            `json:"packets"`
	Bytes       uint64            `json:"bytes"`
	Undecodable map[string]uint64 `json:"undecodable"`
	Flows       uint64            `json:"flows"`
	Difference  int64             `json:"difference"`
}

func captures(t *testing.T, dir string) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		name := strings.TrimSuffix(p, ".gz")
		switch filepath.Ext(name) {
		case ".pcap", ".pcapng", ".cap", ".trace", ".dmp":
			if err == nil && !d.IsDir() {
				files = append(files, p)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func replay(t *testing.T, args ...string) []replayed {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	out, err := rig.Output(ctx, rig.Binary(t, "tidegate"), append([]string{"replay", "--json"}, args...)...)
	if err != nil {
		t.Log(err) // a damaged capture is reported, and the others are still replayed
	}
	var lines []replayed
	sc := bufio.NewScanner(bytes.NewReader(out))
	sc.Buffer(nil, 16<<20)
	for sc.Scan() {
		var l replayed
		if err := json.Unmarshal(sc.Bytes(), &l); err != nil {
			t.Fatalf("%v in %s", err, sc.Text())
		}
		lines = append(lines, l)
	}
	if len(lines) == 0 || lines[len(lines)-1].Kind != "ledger" {
		t.Fatalf("replay does not end with its ledger: %v", err)
	}
	return lines
}

// TestReplayEveryCapture: no crash, no hang, and every packet accounted for.
func TestReplayEveryCapture(t *testing.T) {
	files := captures(t, filepath.Join(rig.Shared(t), "corpus"))
	if len(files) < 1000 {
		t.Fatalf("only %d captures found", len(files))
	}
	lines := replay(t, append([]string{"--detect"}, files...)...)
	l := lines[len(lines)-1]
	if l.Difference != 0 || l.Packets == 0 || l.Flows == 0 {
		t.Errorf("ledger %+v: want difference 0", l)
	}
	t.Logf("%d captures, %d packets, %d flows, undecodable %v", len(files), l.Packets, l.Flows, l.Undecodable)
}

type flowKey struct {
	pcap, transport string
	a, b            netip.AddrPort
}

func keyOf(pcap, transport, src, sport, dst, dport string) (flowKey, bool) {
	plain := func(s string) string {
		s, _, _ = strings.Cut(strings.Trim(s, "[]"), "%")
		return s
	}
	a, err1 := netip.ParseAddr(plain(src))
	b, err2 := netip.ParseAddr(plain(dst))
	if err1 != nil || err2 != nil {
		return flowKey{}, false
	}
	var p, q uint64
	if transport == "tcp" || transport == "udp" || transport == "sctp" {
		p, _ = strconv.ParseUint(sport, 10, 16)
		q, _ = strconv.ParseUint(dport, 10, 16)
	}
	x, y := netip.AddrPortFrom(a, uint16(p)), netip.AddrPortFrom(b, uint16(q))
	if y.Compare(x) < 0 {
		x, y = y, x
	}
	return flowKey{filepath.Base(pcap), transport, x, y}, true
}

func tsv(t *testing.T, path string) []map[string]string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	names := strings.Split(lines[0], "\t")
	var out []map[string]string
	for _, line := range lines[1:] {
		m := map[string]string{}
		for i, v := range strings.Split(line, "\t") {
			if i < len(names) {
				m[names[i]] = v
			}
		}
		out = append(out, m)
	}
	return out
}

// TestFirstLabels measures the labels against flows that another project labelled.
func TestFirstLabels(t *testing.T) {
	shared := rig.Shared(t)
	got := map[flowKey][]string{}
	for _, l := range replay(t, captures(t, filepath.Join(shared, "corpus", "ndpi"))...) {
		if l.Kind != "flow" {
			continue
		}
		if k, ok := keyOf(l.Pcap, l.Transport, l.SrcIP, strconv.Itoa(l.SrcPort), l.DstIP, strconv.Itoa(l.DstPort)); ok {
			got[k] = append(got[k], l.App)
		}
	}
	type score struct{ all, right int }
	scores := map[string]*score{}
	wrong, all := 0, 0
	for _, row := range tsv(t, filepath.Join(shared, "corpus", "ndpi", "flows.tsv")) {
		k, ok := keyOf(row["pcap"], strings.ToLower(row["l4"]), row["src"], row["sport"], row["dst"], row["dport"])
		if !ok {
			continue
		}
		all++
		s := scores[row["label"]]
		if s == nil {
			s = &score{}
			scores[row["label"]] = s
		}
		s.all++
		right, known := false, false
		for _, app := range got[k] {
			right = right || app == row["label"]
			known = known || app != "unknown"
		}
		if right {
			s.right++
		} else if known {
			wrong++
		}
	}
	for _, label := range firstLabels {
		s := scores[label]
		if s == nil {
			t.Errorf("no flow of %s in the captures", label)
			continue
		}
		recall := float64(s.right) / float64(s.all)
		t.Logf("%-7s recall %.3f (%d of %d)", label, recall, s.right, s.all)
		if recall < 0.9 {
			t.Errorf("%s: recall %.3f, want at least 0.9", label, recall)
		}
	}
	t.Logf("wrong labels: %d of %d flows (%.4f)", wrong, all, float64(wrong)/float64(all))
	if float64(wrong) > 0.01*float64(all) {
		t.Errorf("%d of %d flows have a wrong label, want at most 1%%", wrong, all)
	}
}

// firstDetectors are the attack types that must be found in captures of their classes.
var firstDetectors = []string{"syn_flood", "udp_flood", "icmp_flood", "amp_dns", "amp_ntp", "port_scan", "host_sweep",
	"flow_flood", "synack_reflection", "fragment_flood", "amp_snmp", "amp_isakmp", "brute_force", "slowloris", "dns_tunnel", "icmp_tunnel", "arp_spoof"}

// notFound is a tunnel over HTTPS: from outside it is DNS over HTTPS.
const notFound = "dns2tcp_tunnel.pcap"

// TestFirstDetectors replays labelled attacks and benign look-alikes.
func TestFirstDetectors(t *testing.T) {
	corpus := filepath.Join(rig.Shared(t), "corpus")
	typesOf := map[string][]string{}
	for _, row := range tsv(t, filepath.Join(corpus, "attack-types.tsv")) {
		for _, class := range strings.Split(row["classes"], ",") {
			typesOf[class] = append(typesOf[class], row["type"])
		}
	}
	first := map[string]bool{}
	for _, d := range firstDetectors {
		first[d] = true
	}
	fired, expected, benign := map[string]int{}, map[string]int{}, 0
	for _, row := range tsv(t, filepath.Join(corpus, "attacks", "labels.tsv")) {
		var want []string
		for _, typ := range typesOf[row["class"]] {
			if first[typ] {
				want = append(want, typ)
			}
		}
		if row["verdict"] != "benign" && (len(want) == 0 || filepath.Base(row["pcap"]) == notFound) {
			continue
		}
		found := map[string]bool{}
		for _, l := range replay(t, "--detect", filepath.Join(corpus, row["pcap"])) {
			if l.Kind == "attack" {
				found[l.Type] = true
			}
		}
		if row["verdict"] == "benign" {
			benign++
			if len(found) > 0 {
				t.Errorf("%s is benign and was reported as %v", row["pcap"], found)
			}
			continue
		}
		hit := false
		for _, typ := range want {
			expected[typ]++
			if found[typ] {
				fired[typ]++
				hit = true
			}
		}
		if !hit {
			t.Errorf("%s (%s): found %v, want one of %v", row["pcap"], row["class"], found, want)
		}
	}
	t.Logf("fired %v of %v; %d benign captures", fired, expected, benign)
	if benign < 11 {
		t.Errorf("only %d benign captures", benign)
	}
}
