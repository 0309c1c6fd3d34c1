package detect

import (
	"strings"
	"testing"

	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

// TestStations: an address that two stations claim in turn is spoofed; one that moves, however often, is not.
func TestStations(t *testing.T) {
	th := DefaultThresholds()
	real := func(n int) []byte { return []byte{2, 0, 0, 0, 0, byte(n)} } //nolint:gosec // few
	gateway := func(n int) []byte { return []byte{0, 7, 0xB4, 0, 1, byte(n)} }
	type told struct {
		mac    []byte
		sensor string
		vlan   uint32
	}
	for name, tt := range map[string]struct {
		next  func(i int) told
		every int64
		want  int // message with which it is found, from 1
	}{
		"two in turn":               {func(i int) told { return told{mac: real(i % 2)} }, 1e9, 6},
		"said over and over":        {func(i int) told { return told{mac: real(min(1, i%10))} }, 1e9, 22}, // the owner speaks once in ten
		"three in turn":             {func(i int) told { return told{mac: real(i % 3)} }, 1e9, 7},
		"slowly":                    {func(i int) told { return told{mac: real(i % 2)} }, 110e9, 0},
		"moved":                     {func(i int) told { return told{mac: real(min(1, i/50))} }, 1e9, 0},
		"moved back once":           {func(i int) told { return told{mac: real(i / 50 % 2)} }, 1e9, 0},
		"a lease for many":          {func(i int) told { return told{mac: real(i)} }, 1e9, 0},
		"one gateway of several":    {func(i int) told { return told{mac: gateway(i % 3)} }, 1e9, 0},
		"posing as virtual gateway": {func(i int) told { return told{mac: [][]byte{gateway(1), real(1)}[i%2]} }, 1e9, 6},
		"two sites":                 {func(i int) told { return told{real(i % 2), []string{"a", "b"}[i%2], 0} }, 1e9, 0},
		"two VLANs":                 {func(i int) told { return told{real(i % 2), "a", uint32(i % 2)} }, 1e9, 0}, //nolint:gosec // few
	} {
		t.Run(name, func(t *testing.T) {
			s, got := NewStations(), 0
			addr := host.As16()
			for i := range 100 {
				m := tt.next(i)
				b := &flowv1.ArpBinding{Addr: addr[:], Mac: m.mac, Vlan: m.vlan, Messages: 1, FirstNs: 1e18 + int64(i)*tt.every}
				scan, text, ok := s.Add(m.sensor, b, &th)
				if !ok || got != 0 {
					continue
				}
				got = i + 1
				if scan.Type != ARPSpoof || !scan.Alert || scan.Host != host || scan.FirstNs == 0 || scan.Measure.Level != 1 ||
					!strings.Contains(text, mac(m.mac).String()) {
					t.Errorf("found %q %+v", text, scan)
				}
			}
			if got != tt.want {
				t.Errorf("found with message %d, want %d", got, tt.want)
			}
		})
	}
	s := NewStations()
	for _, b := range []*flowv1.ArpBinding{nil, {Addr: []byte{1}, Mac: real(1)}, {Addr: make([]byte, 16), Mac: []byte{1}}} {
		if _, _, ok := s.Add("a", b, &th); ok || len(s.places) > 0 {
			t.Errorf("took %v", b)
		}
	}
}
