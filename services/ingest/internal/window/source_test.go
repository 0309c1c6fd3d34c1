package window

import (
	"math"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/packet"
)

func TestSources(t *testing.T) {
	r, b := newRig(t), New(Config{})
	scanner, victim := v4(203, 0, 113, 9), v4(198, 51, 100, 7)
	h, back := header(scanner, victim), header(victim, scanner)
	first := r.now
	for port := range uint16(100) {
		r.add(h.AppendTCP(nil, &packet.TCP{SrcPort: 4000, DstPort: port + 1, Flags: packet.FlagSYN}, nil), b)
		if port < 90 {
			r.add(back.AppendTCP(nil, &packet.TCP{SrcPort: port + 1, DstPort: 4000, Flags: packet.FlagRST | packet.FlagACK}, nil), b)
		}
	}
	sweeper := v4(203, 0, 113, 10)
	for i := range 50 {
		h := header(sweeper, v4(198, 51, 101, i))
		r.add(h.AppendTCP(nil, &packet.TCP{SrcPort: 4000, DstPort: 22, Flags: packet.FlagFIN}, nil), b)
	}
	r.silence(b)
	for i := range 30 {
		h := header(v4(10, 0, 0, 1), v4(10, 0, 0, 2+i))
		r.add(h.AppendARP(nil, 1, [6]byte{}), b)
	}
	h = header(v4(10, 0, 0, 3), v4(10, 0, 0, 3)) // an announcement
	r.add(h.AppendARP(nil, 1, [6]byte{}), b)
	w := encode(t, b)
	if len(w.Sources) != 3 {
		t.Fatalf("%d sources", len(w.Sources))
	}
	near := func(name string, registers []byte, want float64) {
		t.Helper()
		if d := distinct(registers); math.Abs(d-want) > want/8+0.6 {
			t.Errorf("%s: %.1f, want about %v", name, d, want)
		}
	}
	s := w.Sources[0]
	if flow.AddrBytes(s.Addr) != scanner || s.Attempts != 100 || s.Failed != 100 || s.FirstNs != first ||
		flow.AddrBytes(s.TopHost) != victim || s.TopHostAttempts != 100 || s.InvalidFlags != 0 || len(s.Samples) != 8 {
		t.Errorf("scanner: %v", s)
	}
	near("hosts", s.AttemptHosts, 1)
	near("ports", s.AttemptPorts, 100)
	near("failed hosts", s.FailedHosts, 1)
	near("failed ports", s.FailedPorts, 100)
	near("top host's ports", s.TopHostPorts, 100)
	near("top host's failed ports", s.TopHostFailedPorts, 100)
	s = w.Sources[1]
	if flow.AddrBytes(s.Addr) != sweeper || s.Attempts != 50 || s.Failed != 50 || s.InvalidFlags != 50 || s.DstPorts[0].Port != 22 || s.DstPorts[0].Packets != 50 {
		t.Errorf("sweeper: %v", s)
	}
	near("hosts", s.AttemptHosts, 50)
	near("failed hosts", s.FailedHosts, 50)
	s = w.Sources[2]
	if flow.AddrBytes(s.Addr) != v4(10, 0, 0, 1) || s.ArpRequests != 30 || s.Attempts != 0 {
		t.Errorf("ARP sweeper: %v", s)
	}
	near("ARP targets", s.AttemptHosts, 30)
}
