package afxdp_test

import (
	"errors"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/afxdp"
	"github.com/tidegate-mesh/tidegate/libs/afxdp/afxdptest"
)

func TestNative(t *testing.T) { afxdptest.Run(t, afxdp.Native) }
func TestAsavie(t *testing.T) { afxdptest.Run(t, afxdp.Asavie) }

func TestNativePair(t *testing.T) { afxdptest.RunPair(t, afxdp.Native, true, afxdp.Inventory) }
func TestAsaviePair(t *testing.T) { afxdptest.RunPair(t, afxdp.Asavie, false, afxdp.Inventory) }

func TestOpenRefuses(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*afxdp.Config)
		want   error
	}{
		{"no such interface", func(c *afxdp.Config) { c.Iface = "tg-absent" }, afxdp.ErrNoInterface},
		{"negative queue", func(c *afxdp.Config) { c.Queue = -1 }, nil},
		{"frames no power of two", func(c *afxdp.Config) { c.Frames = 1000 }, nil},
		{"rings no power of two", func(c *afxdp.Config) { c.RxRing = 3 }, nil},
		{"rings too large", func(c *afxdp.Config) { c.TxRing = 1 << 21 }, nil},
		{"frame size", func(c *afxdp.Config) { c.FrameSize = 1500 }, nil},
		{"backend", func(c *afxdp.Config) { c.Backend = "other" }, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := afxdp.DefaultConfig("lo", 0)
			c.change(&cfg)
			s, err := afxdp.Open(cfg)
			if err == nil {
				_ = s.Close()
				t.Fatal("opened")
			}
			if c.want != nil && !errors.Is(err, c.want) {
				t.Fatalf("%v, want %v", err, c.want)
			}
		})
	}
}

func TestLost(t *testing.T) {
	s := afxdp.Stats{RxDropped: 3, RxRingFull: 4, RxFillEmpty: 3}
	if s.Lost() != 7 {
		t.Fatalf("Lost() = %d, want 7", s.Lost())
	}
}
