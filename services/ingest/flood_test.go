package ingest

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/loadgen"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
)

// TestFloodIsAccounted offers more than one core bridges and asks where every frame went.
func TestFloodIsAccounted(t *testing.T) {
	for _, c := range []struct {
		mode, capture string
		queues        int
	}{{ModeInline, CaptureAFXDP, 1}, {ModeInline, CaptureAFXDP, 2}, {ModeTap, CaptureAFXDP, 1}, {ModeTap, CaptureAFPacket, 1}} {
		t.Run(c.mode+" "+c.capture, func(t *testing.T) { flood(t, c.mode, c.capture, c.queues) })
	}
}

func flood(t *testing.T, mode, capture string, queues int) {
	if os.Geteuid() != 0 {
		if os.Getenv("TIDEGATE_CI") == "1" {
			t.Fatal("the sensor's tests need root")
		}
		t.Skip("the sensor's tests need root")
	}
	l, err := loadgen.NewLink(loadgen.LinkOptions{Prefix: "tgf", Queues: queues, Sink: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = xdp.Remove(l.BPFFS, l.PortA)
		_ = xdp.Remove(l.BPFFS, l.PortB)
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}()
	f := newFakeClassify(t)
	cfg := DefaultConfig()
	cfg.Mode, cfg.Ifaces, cfg.BPFFS, cfg.Sensor, cfg.CPUs = mode, []string{l.PortA, l.PortB}, l.BPFFS, "test-sensor", []int{0}
	cfg.Capture, cfg.PacketWorkers = capture, 1
	if mode == ModeTap {
		cfg.Ifaces = cfg.Ifaces[:1]
	}
	s, _, stop := start(t, cfg, f.client)
	const span = time.Second
	before := s.Ledger()["received"]
	begun := time.Now()
	streamed, err := l.Stream(1000, 16, 1024, 18, 1).Run(context.Background(), span)
	if err != nil {
		t.Fatal(err)
	}
	took, sent := time.Since(begun), streamed.Frames
	eventually(t, "ledger", func() error {
		if mode == ModeTap {
			l := s.Ledger()
			l["transmitted"] = l["received"]
			return balance(l)
		}
		return settled(s)
	})
	n := s.Ledger()
	t.Logf("offered %.2f Mpps, received %.2f, transmitted %.2f; ring drops %.1f%%, tx drops %.1f%%",
		float64(sent)/took.Seconds()/1e6, float64(n["received"]-before)/took.Seconds()/1e6,
		float64(n["transmitted"])/took.Seconds()/1e6, 100*float64(n["ring_drops"])/float64(sent),
		100*float64(n["tx_dropped"])/float64(sent))
	if n["xdp_seen"] < sent {
		t.Errorf("%d frames were sent, the program saw %d", sent, n["xdp_seen"])
	}
	if mode == ModeInline {
		got, err := l.Counter.Counts()
		if err != nil {
			t.Fatal(err)
		}
		if sum := got.Benign + got.Attack + got.Other; sum < n["transmitted"]*999/1000 || sum > n["transmitted"]+100 {
			t.Errorf("transmitted %d frames, %d arrived", n["transmitted"], sum)
		}
	}
	stop()
	f.mu.Lock()
	defer f.mu.Unlock()
	if a := s.Ledger()["accounted"]; f.packets != a {
		t.Errorf("windows hold %d packets, accounted were %d", f.packets, a)
	}
}
