package detect

import (
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/packet"
	"github.com/tidegate-mesh/tidegate/services/classify/internal/header"
)

// TestEchoes: answers with other data than was sent are a tunnel; ping, lost requests and a router that cuts some are not.
func TestEchoes(t *testing.T) {
	th := DefaultThresholds()
	echo := func(typ uint8, seq int, data string) header.Echo {
		h := packet.Header{Src: stranger, Dst: host}
		facts, raw := sampled(t, h.AppendICMP(nil, typ, 0, 7<<16|uint32(seq), []byte(data))) //nolint:gosec // few
		e, ok := header.ReadEcho(raw[0], facts[0].Length)
		if !ok {
			t.Fatal("no echo message")
		}
		return e
	}
	for name, tt := range map[string]struct {
		answer func(i int) string
		asked  bool
		every  int64
		want   int // answer with which it is found
	}{
		"tunnel":              {func(i int) string { return "other data " + string(rune('a'+i)) }, true, 1e9, 10},
		"slow tunnel":         {func(i int) string { return "other data " + string(rune('a'+i)) }, true, 60e9, 0},
		"ping":                {func(int) string { return "abcdefgh" }, true, 1e9, 0},
		"nobody asked":        {func(i int) string { return "other data " + string(rune('a'+i)) }, false, 1e9, 0},
		"one in ten is wrong": {func(i int) string { return map[bool]string{true: "bad", false: "abcdefgh"}[i%10 == 0] }, true, 1e9, 0},
	} {
		t.Run(name, func(t *testing.T) {
			e := NewEchoes()
			got := 0
			for i := range 200 {
				at := 1e18 + int64(i)*tt.every
				if tt.asked {
					e.Add(stranger, host, echo(8, i, "abcdefgh"), at, &th)
				}
				if scan, ok := e.Add(host, stranger, echo(0, i, tt.answer(i)), at+1e6, &th); ok && got == 0 {
					got = i + 1
					if scan.Type != ICMPTunnel || !scan.Alert || scan.Host != host {
						t.Errorf("found %+v", scan)
					}
				}
			}
			if got != tt.want {
				t.Errorf("found with answer %d, want %d", got, tt.want)
			}
		})
	}
}
