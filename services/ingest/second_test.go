package ingest

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
	classifyv1 "github.com/tidegate-mesh/tidegate/proto/classify/v1"
)

// TestSecondSensor: one that is started beside another ends with a sentence, in any mode, and leaves the interface as it is.
func TestSecondSensor(t *testing.T) {
	r := newRig(t)
	f := newFakeClassify(t)
	first := r.config()
	start(t, first, f.client)
	for _, c := range []struct{ mode, capture string }{
		{ModeInline, CaptureAuto}, {ModeTap, CaptureAuto}, {ModeTap, CaptureAFPacket}, {ModeHost, CaptureAuto},
	} {
		cfg, mode := r.config(), c.mode+" by "+c.capture
		if cfg.Mode, cfg.Capture = c.mode, c.capture; c.mode != ModeInline {
			cfg.Ifaces = cfg.Ifaces[:1]
		}
		s, err := New(cfg, Deps{Telemetry: telemetry.Discard("ingest"), Classify: []classifyv1.ClassifyServiceClient{f.client}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		if err := s.Run(ctx); err == nil || !strings.Contains(err.Error(), "another") {
			t.Errorf("a second sensor in mode %s: %v", mode, err)
		}
		cancel()
		g, err := xdp.Open(xdp.Options{Iface: first.Ifaces[0], BPFFS: first.BPFFS})
		if err != nil {
			t.Fatal(err)
		}
		if m := g.Mode(); m != xdp.ModeInline {
			t.Errorf("after a start in mode %s the interface's is %s", mode, m)
		}
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestFailedStart: a start in vain leaves an interface that passed its packets as it was, and one that bridged, too.
func TestFailedStart(t *testing.T) {
	r := newRig(t)
	f := newFakeClassify(t)
	fails := func(mode, capture string) {
		t.Helper()
		cfg := r.config()
		cfg.Mode, cfg.Capture, cfg.FailClosed, cfg.ZeroCopy = mode, capture, true, "required" // veth's driver has none
		s, err := New(cfg, Deps{Telemetry: telemetry.Discard("ingest"), Classify: []classifyv1.ClassifyServiceClient{f.client}})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "zero-copy") {
			t.Fatalf("mode %s: %v", mode, err)
		}
	}
	mode := func(want xdp.Mode) {
		t.Helper()
		for _, name := range []string{r.a, r.b} {
			g, err := xdp.Open(xdp.Options{Iface: name, BPFFS: r.bpffs})
			if err != nil {
				t.Fatal(err)
			}
			if m := g.Mode(); m != want {
				t.Errorf("%s is in mode %s, not %s", name, m, want)
			}
			_ = g.Close()
		}
	}
	fails(ModeInline, CaptureAuto)
	mode(xdp.ModeHost)
	fails(ModeTap, CaptureAFXDP)
	mode(xdp.ModeHost)
	_, _, stop := start(t, r.config(), f.client)
	stop()
	mode(xdp.ModeInline)
	fails(ModeInline, CaptureAuto)
	mode(xdp.ModeInline)
}
