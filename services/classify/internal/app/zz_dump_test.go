package app

import (
	"encoding/csv"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/packet"
	"github.com/tidegate-mesh/tidegate/libs/pcapfile"
	"github.com/tidegate-mesh/tidegate/libs/pcapfile/corpustest"
)

func TestZZDump(t *testing.T) {
	dir := filepath.Join(corpustest.Dir(t), "ndpi")
	in, _ := os.Open(filepath.Join(dir, "flows.tsv"))
	reader := csv.NewReader(in)
	reader.Comma, reader.LazyQuotes, reader.FieldsPerRecord = '\t', true, -1
	rows, _ := reader.ReadAll()
	wants := map[string]bool{}
	for _, l := range strings.Fields(os.Getenv("LABELS")) {
		wants[l] = true
	}
	max := 3
	fmt.Sscan(os.Getenv("MAXF"), &max)
	width := 48
	fmt.Sscan(os.Getenv("WIDTH"), &width)
	npk := 4
	fmt.Sscan(os.Getenv("NPK"), &npk)
	flowsOf := map[string]map[string]string{}
	n := map[string]int{}
	e := NewEngine()
	out := map[string][]string{}
	for _, row := range rows[1:] {
		if len(wants) > 0 && !wants[row[8]] {
			continue
		}
		addr := func(s string) string {
			s = strings.Split(strings.Trim(s, "[]"), "%")[0]
			if a, err := netip.ParseAddr(s); err == nil {
				return a.String()
			}
			return s
		}
		k := endpoints(strings.ToLower(row[1]), addr(row[2]), portOf(row[3]), addr(row[4]), portOf(row[5]))
		if flowsOf[row[0]] == nil {
			flowsOf[row[0]] = map[string]string{}
		}
		flowsOf[row[0]][k] = row[8]
	}
	for _, path := range corpustest.Captures(t, filepath.Join(dir, "pcap")) {
		name := filepath.Base(path)
		w := flowsOf[name]
		if w == nil {
			continue
		}
		bad := map[string]string{}
		right := map[string]bool{}
		replay(path, e, func(k flow.Key, r Result) {
			key := endpoints(flow.ProtocolName(k.Protocol), flow.Addr(k.Src).String(), fmt.Sprint(k.SrcPort), flow.Addr(k.Dst).String(), fmt.Sprint(k.DstPort))
			if l, ok := w[key]; ok {
				if r.App == l {
					right[key] = true
				}
				bad[key] = r.App
			}
		})
		r, err := pcapfile.Open(path)
		if err != nil {
			continue
		}
		seen := map[string]int{}
		perfile := map[string]int{}
		var p packet.Packet
		for {
			rec, err := r.Next(nil)
			if err != nil {
				break
			}
			if p.DecodeLink(rec.LinkType, rec.Data) != packet.OK {
				continue
			}
			for range 2 {
				var in packet.Packet
				if !p.Inner(rec.Data, &in) {
					break
				}
				p = in
			}
			k := p.Key()
			key := endpoints(flow.ProtocolName(k.Protocol), flow.Addr(k.Src).String(), fmt.Sprint(k.SrcPort), flow.Addr(k.Dst).String(), fmt.Sprint(k.DstPort))
			l, ok := w[key]
			if !ok || (right[key] && os.Getenv("ALL") == "") || p.PayloadLen == 0 {
				continue
			}
			if seen[key] == 0 {
				if n[l] >= max || perfile[l] >= max-1 && max > 1 && os.Getenv("ALLF") == "" {
					continue
				}
				n[l]++
				perfile[l]++
				out[l] = append(out[l], fmt.Sprintf("## %s  got=%s %s %s", l, bad[key], name, key))
			}
			seen[key]++
			if seen[key] > npk {
				continue
			}
			data := rec.Data[p.Payload : p.Payload+p.PayloadLen]
			d := data[:min(len(data), width)]
			asc := make([]byte, len(d))
			pr := 0
			for i, c := range d {
				asc[i] = '.'
				if c >= 32 && c < 127 {
					asc[i] = c
					pr++
				}
			}
			s := fmt.Sprintf("%d>%d %4d ", k.SrcPort, k.DstPort, p.PayloadLen)
			if pr > len(d)*4/5 {
				s += string(asc)
			} else {
				s += fmt.Sprintf("%x", d)
				if pr > len(d)/4 {
					s += " " + string(asc)
				}
			}
			out[l] = append(out[l], s)
		}
		r.Close()
	}
	var b strings.Builder
	for _, row := range rows[1:] {
		for _, s := range out[row[8]] {
			b.WriteString(s + "\n")
		}
		delete(out, row[8])
	}
	os.WriteFile("/tmp/cl-dump.txt", []byte(b.String()), 0o644)
}
