package classify

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/loadgen"
	"github.com/tidegate-mesh/tidegate/libs/packet"
	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/libs/sketch"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/detect"
)

// scan fills the window with n of a port scan's frames and says what a sensor tells of their source.
func (l *lab) scan(f *loadgen.Frames, n int) *flowv1.Source {
	l.attack(f, n)
	var hosts, ports sketch.HLL
	hosts.Add(sketch.Mix(1))
	for i := range uint64(n) { //nolint:gosec // not negative
		ports.Add(sketch.Mix(i))
	}
	var samples []*flowv1.HeaderSample
	for range 8 {
		samples = append(samples, &flowv1.HeaderSample{TimeNs: l.now, Length: 44, Header: f.Next(nil)[14:]})
	}
	src, top := facts(l.t, f.Next(nil)).Src, victim.As16()
	return &flowv1.Source{Addr: src[:], TopHost: top[:], Attempts: uint64(n), TopHostAttempts: uint64(n), AttemptHosts: hosts[:], //nolint:gosec // not negative
		AttemptPorts: ports[:], TopHostPorts: ports[:], FirstNs: l.now, Samples: samples}
}

// TestScanAfterFlood: a port scan is told as one although a flood of SYNs was there seconds ago, whose rules are still in force
// and which would be taken for changed. Among the samples of a fast scan a client's SYN stands for as many packets as the
// flood's threshold; a slow scan is not nearly all there is of SYNs at a busy host.
func TestScanAfterFlood(t *testing.T) {
	for _, flooded := range []bool{true, false} {
		for _, tt := range []struct{ clients, syns, sampled int }{{4, 10_000, 0}, {4, 10_000, 1}, {4, 10_000, 3}, {4, 10_000, 6}, {13, 100, 7}} {
			t.Run(fmt.Sprintf("%+v, flood %v", tt, flooded), func(t *testing.T) {
				l := newLab(t)
				known := clients(16)
				quiet := func() {
					for range 40 {
						l.benign(known, tt.clients)
						if out := l.close(); len(out.Verdicts) > 0 {
							t.Fatalf("verdicts on clients alone: %v", out.Verdicts)
						}
					}
				}
				quiet()
				if flooded {
					flood, err := loadgen.NewFrames(loadgen.Attack{Kind: loadgen.SYNFlood, Seed: 19, Target: victim})
					if err != nil {
						t.Fatal(err)
					}
					l.attack(flood, 2000)
					if out := l.close(); len(out.Verdicts) != 1 {
						t.Fatalf("%d verdicts on the flood", len(out.Verdicts))
					}
					quiet()
				}
				scan, err := loadgen.NewFrames(loadgen.Attack{Kind: loadgen.PortScan, Seed: 19, Target: victim})
				if err != nil {
					t.Fatal(err)
				}
				l.benign(known, tt.clients)
				source := l.scan(scan, tt.syns)
				samples := l.of(netip.PrefixFrom(victim, 32)).GetSamples()
				for i := range samples { // those that the case asks for
					h := packet.Header{Src: known[i%len(known)], Dst: victim, TTL: 64, DontFragment: true}
					tcp := packet.TCP{SrcPort: 40000, DstPort: 443, Flags: policy.SYN, Window: 64240}
					if i >= tt.sampled {
						h.Src, tcp = flow.AddrBytes(source.GetAddr()), packet.TCP{SrcPort: 40000, DstPort: uint16(1 + i), Flags: policy.SYN, Window: 1024} //nolint:gosec // few
					}
					samples[i].Header = h.AppendTCP(nil, &tcp, nil)[14:]
				}
				out := l.close(source)
				if got := begun(out); len(got) != 1 || got[0] != detect.PortScan+" "+victim.String() {
					t.Errorf("began %v, want %s", got, detect.PortScan)
				}
				if len(out.Verdicts) != 1 || out.Verdicts[0].GetType() != detect.PortScan {
					t.Fatalf("verdicts %v, want one on the scan", out.Verdicts)
				}
				rules := rulesOf(t, out)
				if f := facts(t, scan.Next(nil)); !dropped(&f, rules) {
					t.Errorf("the scan is not dropped: %v", rules)
				}
			})
		}
	}
}

// TestFloodBesideScan: a flood of SYNs with a tenth of a scan's rate, beside it, is found from the second's samples.
func TestFloodBesideScan(t *testing.T) {
	l := newLab(t)
	known := clients(16)
	for range 20 {
		l.benign(known, 4)
		l.close()
	}
	var frames []*loadgen.Frames
	for _, kind := range []string{loadgen.PortScan, loadgen.SYNFlood} {
		f, err := loadgen.NewFrames(loadgen.Attack{Kind: kind, Seed: 19, Target: victim})
		if err != nil {
			t.Fatal(err)
		}
		frames = append(frames, f)
	}
	var found []string
	for range 10 {
		l.benign(known, 4)
		source := l.scan(frames[0], 4000)
		l.attack(frames[1], 250)
		found = append(found, begun(l.close(source))...)
	}
	for _, want := range []string{detect.PortScan, detect.SYNFlood} {
		if !slices.Contains(found, want+" "+victim.String()) {
			t.Errorf("found %v, and no %s", found, want)
		}
	}
}

// failing is a source that tried ports of the victim that refused.
func failing(src netip.Addr, now int64) *flowv1.Source {
	var hosts, ports sketch.HLL
	hosts.Add(sketch.Mix(1))
	for i := range uint64(20) {
		ports.Add(sketch.Mix(i + 7))
	}
	s, top := src.As16(), victim.As16()
	h := packet.Header{Src: src, Dst: victim, TTL: 64}
	f := h.AppendTCP(nil, &packet.TCP{SrcPort: 40000, DstPort: 99, Flags: policy.SYN}, nil)
	return &flowv1.Source{Addr: s[:], TopHost: top[:], Attempts: 20, Failed: 20, TopHostAttempts: 20, AttemptHosts: hosts[:], FailedHosts: hosts[:],
		AttemptPorts: ports[:], FailedPorts: ports[:], TopHostPorts: ports[:], TopHostFailedPorts: ports[:], FirstNs: now,
		Samples: []*flowv1.HeaderSample{{TimeNs: now, Length: 40, Header: f[14:]}}}
}

func nth(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}) } //nolint:gosec // few

// TestScanThatLasts: an attack on which sources take turns goes on for as long as they do. Each of them is blocked,
// however many there were before, and again when it comes back after its rule has ended.
func TestScanThatLasts(t *testing.T) {
	l := newLab(t)
	blocked := func(out *WindowResult) map[netip.Addr]bool {
		m := make(map[netip.Addr]bool)
		for _, r := range rulesOf(t, out) {
			m[r.Match.Src.Addr()] = true
		}
		return m
	}
	id := ""
	for i := range 40 {
		src := nth(i + 1)
		out := l.close(failing(src, l.now))
		if !blocked(out)[src] {
			t.Errorf("source %d is not blocked", i+1)
		}
		for _, a := range out.Attacks {
			if id == "" {
				id = a.GetId()
			}
			if a.GetId() != id || a.GetState() == eventv1.AttackState_ATTACK_STATE_ENDED {
				t.Fatalf("another attack: %v", a)
			}
		}
		for range 20 {
			l.close()
		}
	}
	l.close(failing(nth(1), l.now))
	if out := l.close(failing(nth(1), l.now)); !blocked(out)[nth(1)] {
		t.Error("the first source came back after its rule had ended, and is not blocked")
	}
	if n := len(l.e.blocked); n != 40 {
		t.Errorf("%d sources are held for blocked, want 40", n)
	}
	// Many at once.
	l = newLab(t)
	var many []*flowv1.Source
	for i := range 40 {
		many = append(many, failing(nth(i+1), l.now))
	}
	got := make(map[netip.Addr]bool)
	for range 4 {
		for a := range blocked(l.close(many...)) {
			got[a] = true
		}
	}
	if len(got) != 40 {
		t.Errorf("%d of 40 sources are blocked", len(got))
	}
}

// TestAttackLimit: an attack that makes room for another one is told as ended.
func TestAttackLimit(t *testing.T) {
	l := newLab(t)
	on := make(map[string]bool)
	for i := range maxAttacks + 50 {
		src := netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}) //nolint:gosec // few
		s := failing(src, l.now)
		top := netip.AddrFrom4([4]byte{10, 88, byte(i >> 8), byte(i)}).As16()
		s.TopHost = top[:]
		for _, a := range l.close(s).Attacks {
			on[a.GetId()] = a.GetState() != eventv1.AttackState_ATTACK_STATE_ENDED
		}
		l.now -= labSlot - 1e6
	}
	n := 0
	for _, is := range on {
		if is {
			n++
		}
	}
	if n != int(l.e.Stats().Attacks) {
		t.Errorf("%d of %d attacks are told to be on, %d are", n, len(on), l.e.Stats().Attacks)
	}
}

// TestSensorGoneDuringSlowloris: connections whose end no sensor will tell do not keep an attack on for ever.
func TestSensorGoneDuringSlowloris(t *testing.T) {
	l := newLab(t)
	src := netip.MustParseAddr("192.0.2.1")
	flow.Reset(&l.batch)
	l.batch.Sensor, l.batch.Epoch = "lab", 1
	for i := range uint64(40) {
		k := flow.Key{Src: src.As16(), Dst: victim.As16(), SrcPort: uint16(1000 + i), DstPort: 80, Protocol: 6} //nolint:gosec // few
		flow.AppendOpen(&l.batch, &flow.Open{ID: i + 1, Key: k, FirstNs: l.now})
		flow.AppendSegment(&l.batch, i+1, 0, 0, l.now, []byte("GET / HTTP/1.1\r\nHost: a\r\n"))
	}
	var out BatchResult
	if err := l.e.Batch(&l.batch, &out); err != nil {
		t.Fatal(err)
	}
	ended := false
	began := false
	for range 45 * 60 {
		l.now += 9 * labSlot
		for _, a := range l.close().Attacks {
			began = began || a.GetType() == detect.Slowloris
			ended = ended || a.GetState() == eventv1.AttackState_ATTACK_STATE_ENDED
		}
	}
	if !began || !ended {
		t.Errorf("began %v, ended %v", began, ended)
	}
}

// TestLongSessionsEnd: many sessions of hours that end together, as when a jump host restarts, are no log-ins that failed, though
// the last part of each was short.
func TestLongSessionsEnd(t *testing.T) {
	for part, want := range map[uint16]int{0: 1, 100: 0} {
		l := newLab(t)
		src := netip.MustParseAddr("192.0.2.1")
		flow.Reset(&l.batch)
		l.batch.Sensor, l.batch.Epoch = "lab", 1
		for i := range uint64(40) {
			k := flow.Key{Src: src.As16(), Dst: victim.As16(), SrcPort: uint16(1000 + i), DstPort: 22, Protocol: 6} //nolint:gosec // few
			flow.AppendOpen(&l.batch, &flow.Open{ID: i + 1, Key: k, FirstNs: l.now})
			for dir := range uint8(2) {
				flow.AppendSegment(&l.batch, i+1, dir, 0, l.now, []byte("SSH-2.0-OpenSSH_9.2\r\n"))
			}
			flow.AppendEnd(&l.batch, &flow.End{ID: i + 1, Key: k, FirstNs: l.now - 10e9, LastNs: l.now, Part: part, Totals: flow.Totals{PacketsFwd: 4, PacketsRev: 4, BytesFwd: 500, BytesRev: 500}})
		}
		var out BatchResult
		if err := l.e.Batch(&l.batch, &out); err != nil {
			t.Fatal(err)
		}
		if got := len(l.close().Verdicts); got != want {
			t.Errorf("part %d: %d verdicts, want %d", part, got, want)
		}
	}
}
