package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/e2e/rig"
	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/pcapfile"
)

// content is what one side finds in a capture.
type content struct {
	packets, bytes uint64 // records, and what they had on the wire
	flows          map[tuple]amount
	notes          map[tuple]string // of tshark's: what may be the reason of a difference
	tcp            map[tuple]*connection
}

// tuple is a flow on both sides: addresses with ports, the lower one first, IP protocol by our name, and VLAN. Ports are 0
// for protocols without ports and for fragments after the first. A tunnelled packet is one of the flow inside.
type tuple struct {
	a, b      netip.AddrPort
	transport string
	vlan      uint16
}

// amount is what a flow carried: packets, and bytes of its IP packets.
type amount struct{ packets, bytes uint64 }

func newContent() *content {
	return &content{flows: map[tuple]amount{}, notes: map[tuple]string{}, tcp: map[tuple]*connection{}}
}

func (c *content) add(a, b netip.AddrPort, transport string, vlan uint16, n amount) tuple {
	if b.Compare(a) < 0 {
		a, b = b, a
	}
	k := tuple{a, b, transport, vlan}
	old := c.flows[k]
	c.flows[k] = amount{old.packets + n.packets, old.bytes + n.bytes}
	return k
}

// differs tells in which of the counts, and for which flows, two sides differ.
func (c *content) differs(o *content) (counts []string, flows []tuple) {
	for _, m := range []struct {
		name string
		a, b uint64
	}{{"packets", c.packets, o.packets}, {"bytes", c.bytes, o.bytes}, {"flows", uint64(len(c.flows)), uint64(len(o.flows))}} {
		if m.a != m.b {
			counts = append(counts, fmt.Sprintf("%s %d, tshark %d", m.name, m.a, m.b))
		}
	}
	both := maps.Clone(c.flows)
	maps.Copy(both, o.flows)
	for k := range both {
		if c.flows[k] != o.flows[k] {
			flows = append(flows, k)
		}
	}
	return counts, flows
}

// ours replays the captures, and reads them for the lengths on the wire, which no flow has.
func ours(t *testing.T, files []string) map[string]*content {
	t.Helper()
	found := map[string]*content{}
	var links []string
	dir := t.TempDir()
	var packets uint64
	for i, path := range files {
		c := newContent()
		in, err := pcapfile.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		for err == nil {
			var r pcapfile.Record
			if r, err = in.Next(nil); err == nil {
				c.packets++
				c.bytes += uint64(r.WireLen) //nolint:gosec // not negative
			}
		}
		if !errors.Is(err, io.EOF) {
			t.Log(err) // what is before the damage counts
		}
		if err := in.Close(); err != nil {
			t.Error(err)
		}
		packets += c.packets
		// Replay tells a file's base name, and those of the corpus are not unique.
		name := fmt.Sprintf("%04d", i)
		links = append(links, filepath.Join(dir, name))
		if err := os.Symlink(path, links[i]); err != nil {
			t.Fatal(err)
		}
		found[name] = c
	}
	for _, l := range replay(t, links...) {
		switch l.Kind {
		case "flow":
			a, err1 := netip.ParseAddr(l.SrcIP)
			b, err2 := netip.ParseAddr(l.DstIP)
			if err := errors.Join(err1, err2); err != nil {
				t.Fatal(err)
			}
			k := found[l.Pcap].add(netip.AddrPortFrom(a, uint16(l.SrcPort)), netip.AddrPortFrom(b, uint16(l.DstPort)), //nolint:gosec // ports
				l.Transport, l.VLAN, amount{l.Packets, l.Bytes})
			if l.Transport == "tcp" && l.TCP != nil {
				found[l.Pcap].replayedTCP(k, l.TCP)
			}
		case "ledger":
			if l.Packets != packets || l.Difference != 0 {
				t.Errorf("replayed %d of %d packets, ledger difference %d", l.Packets, packets, l.Difference)
			}
		}
	}
	byPath := map[string]*content{}
	for i, path := range files {
		byPath[path] = found[filepath.Base(links[i])]
	}
	return byPath
}

// sharkFields are asked of tshark, in this order.
var sharkFields = []string{
	"frame.len", "frame.protocols", "vlan.id", "ip.src", "ip.dst", "ip.proto", "ip.len", "ipv6.src", "ipv6.dst", "ipv6.nxt", "ipv6.plen",
	"tcp.srcport", "tcp.dstport", "udp.srcport", "udp.dstport", "sctp.srcport", "sctp.dstport", "tcp.hdr_len",
	"tcp.stream", "tcp.flags", "tcp.analysis.initial_rtt", "tcp.analysis.retransmission", "tcp.analysis.fast_retransmission",
	"tcp.analysis.spurious_retransmission",
	"ipv6.hopopts.nxt", "ipv6.dstopts.nxt", "ipv6.routing.nxt", "ipv6.fraghdr.nxt", "ah.next_header",
	"_ws.short", "_ws.malformed", // where a header is cut or broken
}

// shark dissects a capture and hands over every packet's fields. ICMP's dissector is off, so that what a message quotes is
// not taken for packets; fragments and streams stay as they are.
func shark(t *testing.T, path string, row func(fields []string) error) {
	t.Helper()
	args := []string{"-n", "-r", path, "-o", "ip.defragment:FALSE", "-o", "ipv6.defragment:FALSE", "-o", "tcp.desegment_tcp_streams:FALSE",
		"--disable-protocol", "icmp", "--disable-protocol", "icmpv6", "-T", "fields", "-E", "occurrence=a", "-E", "aggregator=,"}
	for _, f := range sharkFields {
		args = append(args, "-e", f)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "tshark", args...) //nolint:gosec // a capture of the corpus
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	sc := bufio.NewScanner(out)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		if err := row(strings.Split(sc.Text(), "\t")); err != nil {
			t.Errorf("%v in %q", err, sc.Text())
		}
	}
	if err := errors.Join(sc.Err(), cmd.Wait()); err != nil {
		t.Log(filepath.Base(path), err) // what is before the damage counts
	}
}

// dissected counts a packet as tshark sees it: it walks the layers, each of which takes the next values of its fields.
func (c *content) dissected(fields []string) error {
	if len(fields) != len(sharkFields) {
		return fmt.Errorf("%d fields", len(fields))
	}
	values := map[string][]string{}
	for i, f := range fields {
		if f != "" {
			values[sharkFields[i]] = strings.Split(f, ",")
		}
	}
	next := func(field string) string {
		v := values[field]
		if len(v) == 0 {
			return ""
		}
		values[field] = v[1:]
		return v[0]
	}
	number := func(field string) uint64 {
		n, _ := strconv.ParseUint(next(field), 0, 64)
		return n
	}
	c.packets++
	c.bytes += number("frame.len")
	var src, dst netip.Addr
	var sport, dport, proto, size, vlan, tag uint64 // tag is the outermost since the last IP header
	note := ""
	for _, layer := range strings.Split(fields[1], ":") {
		switch layer {
		case "vlan":
			if id := number("vlan.id"); tag == 0 {
				tag = id
			}
		case "ip", "ipv6":
			a, err1 := netip.ParseAddr(next(layer + ".src"))
			b, err2 := netip.ParseAddr(next(layer + ".dst"))
			if errors.Join(err1, err2) != nil {
				break // cut: the packet belongs to the flow outside
			}
			if tag != 0 {
				vlan, tag = tag, 0
			}
			src, dst, sport, dport = a, b, 0, 0
			if layer == "ip" {
				proto, size = number("ip.proto"), number("ip.len")
			} else {
				proto, size = number("ipv6.nxt"), 40+number("ipv6.plen")
			}
		case "ipv6.hopopts", "ipv6.dstopts", "ipv6.routing", "ipv6.fraghdr":
			proto = number(layer + ".nxt")
		case "ah":
			proto = number("ah.next_header")
			note = "AH"
		case "tcp", "udp", "sctp":
			sport, dport = number(layer+".srcport"), number(layer+".dstport")
			if layer == "tcp" && number("tcp.hdr_len") < 20 {
				note = "header"
			}
		case "teredo", "sflow", "cfp", "ieee8021ah":
			note = layer
		}
	}
	if !src.IsValid() {
		return nil
	}
	if broken := fields[len(fields)-2] + fields[len(fields)-1]; note == "" && broken != "" {
		note = "header"
	}
	k := c.add(netip.AddrPortFrom(src, uint16(sport)), netip.AddrPortFrom(dst, uint16(dport)), //nolint:gosec // ports
		flow.ProtocolName(uint8(proto)), uint16(vlan), amount{1, size}) //nolint:gosec // a byte and twelve bits
	if note != "" {
		c.notes[k] = note
	}
	if proto == 6 {
		return c.dissectedTCP(k, next)
	}
	return nil
}

// theirs runs tshark over the captures. A start of it takes longer than most of them do, so all sound ones go through one
// run, one behind the other; how many packets each has is capinfos's word.
func theirs(t *testing.T, files []string) map[string]*content {
	t.Helper()
	found := map[string]*content{}
	table, err := rig.Output(t.Context(), "capinfos", append([]string{"-T", "-M", "-r", "-c", "-K"}, files...)...)
	if err != nil {
		t.Log(err)
	}
	var sound []string
	var counts []uint64
	for line := range strings.Lines(string(table)) {
		name, n, ok := strings.Cut(strings.TrimSpace(line), "\t")
		if !ok {
			continue
		}
		count, err := strconv.ParseUint(n, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		sound, counts = append(sound, name), append(counts, count)
		found[name] = newContent()
	}
	all := filepath.Join(t.TempDir(), "all.pcapng")
	if _, err := rig.Output(t.Context(), "mergecap", append([]string{"-a", "-I", "none", "-w", all}, sound...)...); err != nil {
		t.Fatal(err)
	}
	at := 0
	shark(t, all, func(fields []string) error {
		for at < len(sound) && counts[at] == 0 {
			at++
		}
		if at == len(sound) {
			return errors.New("more packets than capinfos counted")
		}
		counts[at]--
		return found[sound[at]].dissected(fields)
	})
	for i := at; i < len(counts); i++ {
		if counts[i] > 0 {
			t.Fatalf("tshark ended %d packets before the end of %s", counts[i], sound[i])
		}
	}
	for _, f := range files {
		if found[f] == nil {
			found[f] = newContent()
			shark(t, f, found[f].dissected)
		}
	}
	return found
}

// TestFullTshark compares what replay finds in every capture of the corpus with what tshark finds: packets, bytes on the
// wire, flows, each flow's packets and bytes, and the round trip and retransmits of TCP. docs/accuracy.md has the differences with their reasons.
func TestFullTshark(t *testing.T) {
	for _, tool := range []string{"tshark", "capinfos", "mergecap"} {
		_, err := exec.LookPath(tool)
		rig.Need(t, err == nil, tool+" (make setup)")
	}
	files := captures(t, filepath.Join(rig.Shared(t), "corpus"))
	a, b := ours(t, files), theirs(t, files)
	var packets, flows uint64
	byCounts, byFlows := 0, 0
	categories := map[string][]string{}
	for _, f := range files {
		packets += b[f].packets
		flows += uint64(len(b[f].flows))
		counts, tuples := a[f].differs(b[f])
		if len(counts) == 0 && len(tuples) == 0 {
			continue
		}
		byFlows++
		if len(counts) > 0 {
			byCounts++
		}
		name, why := filepath.Base(f), "other"
		for _, k := range tuples {
			if note := b[f].notes[k]; note != "" {
				why = note
			}
		}
		categories[why] = append(categories[why], name)
		t.Logf("%s (%s): %s", name, why, strings.Join(counts, "; "))
		for _, k := range tuples[:min(len(tuples), 4)] {
			t.Logf("    %v %v %s vlan %d: %v, tshark %v", k.a, k.b, k.transport, k.vlan, a[f].flows[k], b[f].flows[k])
		}
	}
	for _, why := range slices.Sorted(maps.Keys(categories)) {
		t.Logf("%-10s %s", why, strings.Join(categories[why], ", "))
	}
	t.Logf("%d captures, %d packets, %d flows: %d captures differ in a count, %d in the packets and bytes of a flow or in a count",
		len(files), packets, flows, byCounts, byFlows)
	compareTCP(t, files, a, b)
	if 50*byFlows > len(files) {
		t.Errorf("%d of %d captures differ, at most 2%% may", byFlows, len(files))
	}
	if packets < 100_000 || flows < 10_000 {
		t.Errorf("only %d packets and %d flows compared", packets, flows)
	}
}
