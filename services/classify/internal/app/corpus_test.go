package app

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/packet"
	"github.com/tidegate-mesh/tidegate/libs/pcapfile"
	"github.com/tidegate-mesh/tidegate/libs/pcapfile/corpustest"
)

// tracked is one flow of the harness, which plays ingest's part: it hands over the first packets of each
// direction.
type tracked struct {
	key     flow.Key
	f       *Flow
	base    [2]uint32
	started [2]bool
	packets [2]int
	bytes   [2]int
	fin     bool
	parts   []part // what was handed over, if asked for
}

// replay classifies a capture and calls done for every flow. keep fills in the flows' parts.
func replay(path string, e *Engine, keep bool, done func(t *tracked, r Result)) error {
	r, err := pcapfile.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	flows := map[flow.Key]*tracked{}
	var order []*tracked
	var p packet.Packet
	for {
		rec, err := r.Next(nil)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, pcapfile.ErrFormat) {
			break
		}
		if err != nil {
			return err
		}
		if p.DecodeLink(rec.LinkType, rec.Data) != packet.OK {
			continue
		}
		for range 2 { // the innermost packet of tunnels, as the reference does
			var in packet.Packet
			if !p.Inner(rec.Data, &in) {
				break
			}
			p = in
		}
		key := p.Key()
		dir := uint8(0)
		t := flows[key]
		if t == nil {
			if t = flows[key.Reverse()]; t != nil {
				dir = 1
			}
		}
		syn := p.Proto == packet.ProtoTCP && p.TCPFlags&(packet.FlagSYN|packet.FlagACK) == packet.FlagSYN
		if t != nil && syn && t.fin {
			delete(flows, t.key)
			t, dir = nil, 0
		}
		if t == nil {
			t = &tracked{key: key, f: e.Open(key)}
			flows[key] = t
			order = append(order, t)
		}
		if p.Proto == packet.ProtoTCP {
			if p.TCPFlags&packet.FlagSYN != 0 {
				t.base[dir], t.started[dir] = p.Seq+1, true
			}
			if p.TCPFlags&(packet.FlagFIN|packet.FlagRST) != 0 {
				t.fin = true
			}
		}
		if p.PayloadLen == 0 || p.LaterFragment || t.packets[dir] >= MaxPackets || t.bytes[dir] >= MaxBytes {
			continue
		}
		if !t.started[dir] {
			t.base[dir], t.started[dir] = p.Seq, true
		}
		data := rec.Data[p.Payload : p.Payload+p.PayloadLen]
		data = data[:min(len(data), MaxBytes-t.bytes[dir])]
		offset := uint32(t.bytes[dir])
		if p.Proto == packet.ProtoTCP {
			offset = p.Seq - t.base[dir]
		}
		t.packets[dir]++
		t.bytes[dir] += len(data)
		if keep {
			t.parts = append(t.parts, part{dir, offset, bytes.Clone(data)})
		}
		t.f.Segment(dir, offset, data)
	}
	for _, t := range order {
		done(t, t.f.Result())
		t.f.Release()
	}
	return nil
}

// endpoints names a flow whatever its direction, as the score tool does.
func endpoints(l4, a, ap, b, bp string) string {
	if l4 != "tcp" && l4 != "udp" && l4 != "sctp" {
		ap, bp = "0", "0"
	}
	x, y := a+"|"+ap, b+"|"+bp
	if x > y {
		x, y = y, x
	}
	return l4 + "|" + x + "|" + y
}

func portOf(s string) string {
	if n, err := strconv.Atoi(s); err == nil {
		return strconv.Itoa(n)
	}
	return "0"
}

// TestCorpusLabels measures labels against nDPI's on its own captures.
func TestCorpusLabels(t *testing.T) {
	dir := filepath.Join(corpustest.Dir(t), "ndpi")
	in, err := os.Open(filepath.Join(dir, "flows.tsv"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close() }()
	reader := csv.NewReader(in)
	reader.Comma, reader.LazyQuotes, reader.FieldsPerRecord = '\t', true, -1
	rows, err := reader.ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	column := map[string]int{}
	for i, name := range rows[0] {
		column[name] = i
	}
	byFile := map[string][][]string{}
	for _, row := range rows[1:] {
		byFile[row[column["pcap"]]] = append(byFile[row[column["pcap"]]], row)
	}
	show := os.Getenv("TIDEGATE_SHOW")
	e := NewEngine()
	right, all := map[string]int{}, map[string]int{}
	var flows, wrong, hosts, hostsRight int
	confusion := map[string]int{}
	for _, path := range corpustest.Captures(t, filepath.Join(dir, "pcap")) {
		name := filepath.Base(path)
		got := map[string][]Result{}
		if err := replay(path, e, false, func(t *tracked, r Result) {
			k := t.key
			key := endpoints(flow.ProtocolName(k.Protocol), flow.Addr(k.Src).String(), fmt.Sprint(k.SrcPort), flow.Addr(k.Dst).String(), fmt.Sprint(k.DstPort))
			got[key] = append(got[key], r)
		}); err != nil {
			t.Error(err)
		}
		for _, row := range byFile[name] {
			want := row[column["label"]]
			addr := func(s string) string {
				s = strings.Split(strings.Trim(s, "[]"), "%")[0]
				if a, err := netip.ParseAddr(s); err == nil {
					return a.String()
				}
				return s
			}
			rs := got[endpoints(strings.ToLower(row[1]), addr(row[2]), portOf(row[3]), addr(row[4]), portOf(row[5]))]
			flows++
			all[want]++
			known, ok := "", false
			if len(rs) == 0 {
				known = "missing"
			}
			for _, r := range rs {
				if r.App == want {
					ok = true
				} else if r.App != Unknown {
					known = r.App
				}
			}
			if h := strings.ToLower(row[column["hostname"]]); strings.Contains(h, ".") && (want == "tls" || want == "http" || want == "quic") {
				hosts++
				found := false
				for _, r := range rs {
					found = found || r.Host == strings.Split(h, ":")[0]
				}
				if found {
					hostsRight++
				} else if show == "hosts" {
					t.Logf("host %s %v got %+v", name, row[1:11], rs)
				}
			}
			switch {
			case ok:
				right[want]++
				continue
			case known != "" && known != "missing":
				wrong++
			}
			confusion[fmt.Sprintf("%-22s %s", want, known)]++
			if known != "" && known != "missing" && show == "wrong" || show == want {
				t.Logf("%s %v: %q", name, row[1:11], known)
			}
		}
	}
	if show != "" {
		var lines []string
		for c, n := range confusion {
			lines = append(lines, fmt.Sprintf("%5d %s", n, c))
		}
		sort.Sort(sort.Reverse(sort.StringSlice(lines)))
		t.Log("\n" + strings.Join(lines[:min(70, len(lines))], "\n"))
	}
	mean, rightFlows := 0.0, 0
	for label, n := range all {
		recall := float64(right[label]) / float64(n)
		mean += recall / float64(len(all))
		rightFlows += right[label]
		// The share of labels with few flows says little, and the mean has it.
		if n >= 10 && recall < 0.6 {
			t.Errorf("%s: recall %.4f of %d flows, want 0.6", label, recall, n)
		}
	}
	share := float64(wrong) / float64(max(flows, 1))
	recall := float64(rightFlows) / float64(max(flows, 1))
	t.Logf("right by flows %.4f, mean over labels %.4f", recall, mean)
	if recall < 0.98 || mean < 0.93 {
		t.Errorf("right by flows %.4f, mean over labels %.4f; want 0.98 and 0.93", recall, mean)
	}
	t.Logf("%d flows, wrong %d (%.4f), hosts %d of %d (%.4f)", flows, wrong, share, hostsRight, hosts, float64(hostsRight)/float64(max(hosts, 1)))
	if share > 0.003 {
		t.Errorf("wrong labels: %.4f of the flows, want at most 0.003", share)
	}
	if hostsRight < hosts*99/100 {
		t.Errorf("hosts: %d of %d, want 0.99", hostsRight, hosts)
	}
}

// TestCorpusAll classifies every shared capture, those made to break decoders among them. What it checks is
// that each flow ends with a label of the table; TIDEGATE_SHOW=ports lists labels by port.
func TestCorpusAll(t *testing.T) {
	ours := map[string]bool{Unknown: true}
	for _, l := range Labels() {
		ours[l] = true
	}
	e := NewEngine()
	flows := 0
	ports := map[string]int{}
	for _, path := range corpustest.Captures(t, corpustest.Dir(t)) {
		if err := replay(path, e, false, func(f *tracked, r Result) {
			flows++
			if !ours[r.App] {
				t.Errorf("%s: label %q", path, r.App)
			}
			if r.App != Unknown {
				ports[fmt.Sprintf("%s %s/%d", r.App, flow.ProtocolName(f.key.Protocol), min(f.key.SrcPort, f.key.DstPort))]++
			}
		}); err != nil {
			t.Error(err)
		}
	}
	if flows < 10_000 {
		t.Errorf("%d flows, the corpus has more", flows)
	}
	if os.Getenv("TIDEGATE_SHOW") == "ports" {
		for p, n := range ports {
			t.Logf("%6d %s", n, p)
		}
	}
}
