package main

import (
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/loadgen"
	"github.com/tidegate-mesh/tidegate/libs/packet"
	"github.com/tidegate-mesh/tidegate/libs/pcapfile"
)

const captured = int64(1_700_000_000_000_000_000)

// found replays a capture that write makes and returns the attacks in it, as type and target, with their rules.
func found(t *testing.T, write func(frame func(timeNs int64, f []byte))) (attacks, rules []string) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "made.pcap")
	file, err := os.Create(name) //nolint:gosec // a temporary file
	if err != nil {
		t.Fatal(err)
	}
	w, err := pcapfile.NewWriter(file, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	write(func(timeNs int64, f []byte) {
		if err := w.Write(timeNs, f, 0); err != nil {
			t.Fatal(err)
		}
	})
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	p := &player{ctx: t.Context(), cmd: &replayCmd{Detect: true}, name: name, apps: map[string]*appTotal{}, risks: map[string]uint64{},
		evidence: map[string]map[string]any{}}
	p.print = func(v any) error {
		o, ok := v.(attackObject)
		if !ok {
			return nil
		}
		attacks = append(attacks, o.Type+" "+o.Target)
		if list, ok := o.Evidence["rules"].([]string); ok {
			rules = append(rules, list...)
		}
		return nil
	}
	ledger, err := p.play(name)
	if err != nil || ledger.Difference != 0 {
		t.Errorf("ledger %+v: %v", ledger, err)
	}
	return attacks, rules
}

// TestReplayCarpet: a flood over a network, so thin that no host is over its threshold, is one attack whose rule names the
// network; the same over a network four times as wide is below every threshold.
func TestReplayCarpet(t *testing.T) {
	for name, tt := range map[string]struct {
		kind      string
		bits, pps int
		want      string
		rule      string
	}{
		"SYN over a /24":         {loadgen.SYNFlood, 24, 3000, "carpet_bombing 198.51.100.0/24", "dst 198.51.100.0/24"},
		"SYN over a /16":         {loadgen.SYNFlood, 16, 12000, "carpet_bombing 198.51.0.0/16", "dst 198.51.0.0/16"},
		"DNS answers over a /24": {loadgen.AmpDNS, 24, 6000, "carpet_bombing 198.51.100.0/24", "dst 198.51.100.0/24"},
		"thin over a /16":        {loadgen.SYNFlood, 16, 1500, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			gen, err := loadgen.NewFrames(loadgen.Attack{Kind: tt.kind, Seed: 7, Target: netip.MustParseAddr("198.51.100.9"), Carpet: tt.bits})
			if err != nil {
				t.Fatal(err)
			}
			attacks, rules := found(t, func(frame func(int64, []byte)) {
				for i := range 3 * tt.pps {
					frame(captured+int64(i)*1e9/int64(tt.pps), gen.Next(nil))
				}
			})
			if tt.want == "" {
				if len(attacks) > 0 {
					t.Errorf("got %v", attacks)
				}
				return
			}
			if len(attacks) != 1 || attacks[0] != tt.want {
				t.Errorf("got %v, want %s", attacks, tt.want)
			}
			if !slices.ContainsFunc(rules, func(r string) bool { return strings.Contains(r, tt.rule) }) {
				t.Errorf("rules %v, want one with %q", rules, tt.rule)
			}
		})
	}
}

// TestReplayARP: who stands between a host and its gateway by ARP is found; hosts that ask and answer, move and announce
// themselves are not.
func TestReplayARP(t *testing.T) {
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}) } //nolint:gosec // few
	mac := func(i int) [6]byte { return [6]byte{2, 0, 0, 0, 0, byte(i)} }                  //nolint:gosec // few
	reply := func(claimed, station, to int) []byte {
		h := packet.Header{SrcMAC: mac(station), DstMAC: mac(to), Src: addr(claimed), Dst: addr(to)}
		return h.AppendARP(nil, 2, mac(to))
	}
	ask := func(from, station, about int) []byte {
		h := packet.Header{SrcMAC: mac(station), DstMAC: [6]byte{255, 255, 255, 255, 255, 255}, Src: addr(from), Dst: addr(about)}
		return h.AppendARP(nil, 1, [6]byte{})
	}
	attacks, _ := found(t, func(frame func(int64, []byte)) {
		for i := range int64(20) { // 66 tells 7 that it is 1, and 1 that it is 7
			frame(captured+i*2e9, reply(1, 66, 7))
			frame(captured+i*2e9+1e5, reply(7, 66, 1))
		}
	})
	slices.Sort(attacks)
	if want := []string{"arp_spoof 192.0.2.1", "arp_spoof 192.0.2.7"}; !slices.Equal(attacks, want) {
		t.Errorf("got %v, want %v", attacks, want)
	}
	rng := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // reproducible
	attacks, _ = found(t, func(frame func(int64, []byte)) {
		station := func(i, at int) int { // 20 moves after 300 s; 30 is given to another every 100 s
			switch {
			case i == 20 && at > 300:
				return 120
			case i == 30:
				return 130 + at/100
			}
			return i
		}
		for at := range 600 {
			from, to := 1+rng.IntN(40), 1+rng.IntN(40)
			if from == to {
				to = 41
			}
			frame(captured+int64(at)*1e9, ask(from, station(from, at), to))
			h := packet.Header{SrcMAC: mac(station(to, at)), DstMAC: mac(station(from, at)), Src: addr(to), Dst: addr(from)}
			frame(captured+int64(at)*1e9+1e6, h.AppendARP(nil, 2, mac(station(from, at))))
			if at%50 == 0 {
				frame(captured+int64(at)*1e9+2e6, ask(20, station(20, at), 20)) // an announcement
			}
		}
	})
	if len(attacks) > 0 {
		t.Errorf("usual ARP is %v", attacks)
	}
}
