package ingest

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"github.com/google/go-cmp/cmp"

	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	classifyv1 "github.com/tidegate-mesh/tidegate/proto/classify/v1"
)

func TestDefaultsAreTheTags(t *testing.T) {
	var c struct { // its own Validate is not the parser's
		Config Config `embed:""`
	}
	k, err := kong.New(&c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Parse(nil); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(DefaultConfig(), c.Config); d != "" {
		t.Errorf("tags differ from DefaultConfig:\n%s", d)
	}
}

func TestConfigMistakes(t *testing.T) {
	for _, c := range []struct {
		change func(*Config)
		want   string
	}{
		{func(c *Config) { c.Ifaces = nil }, "no interface"},
		{func(c *Config) { c.Ifaces = []string{"a"} }, "inline bridges two interfaces"},
		{func(c *Config) { c.Ifaces = []string{"a", "a"} }, "both interfaces are a"},
		{func(c *Config) { c.Ifaces = []string{"a", "b", "c"} }, "one or two"},
		{func(c *Config) { c.Mode = "span" }, "none of inline, tap, host and pcap"},
		{func(c *Config) { c.BatchInterval = 0 }, "batch interval"},
		{func(c *Config) { c.WindowInterval = time.Millisecond }, "window interval"},
		{func(c *Config) { c.BufferBytes = 10 }, "buffer of 10 bytes"},
		{func(c *Config) { c.MaxFlows = 1 }, "flows"},
		{func(c *Config) { c.Spin = -1 }, "spin"},
		{func(c *Config) { c.Sensor = "edge\xff" }, `sensor name "edge\xff"`},
		{func(c *Config) { c.Sensor = strings.Repeat("x", 256) }, "at most 255 bytes"},
		{func(c *Config) { c.IdleUDP = 0 }, "0s (UDP)"},
		{func(c *Config) { c.ActiveTimeout = -time.Second }, "active timeout of -1s"},
		{func(c *Config) { c.CPUs = []int{0, -1} }, "numbered from 0"},
		{func(c *Config) { c.Nice = -21 }, "priority"},
		{func(c *Config) { c.MaxForwarded = 1 << 20 }, "forwarded flows"},
		{func(c *Config) { c.Capture = "pcap" }, "none of auto, af_xdp and af_packet"},
		{func(c *Config) { c.Capture = CaptureAFPacket }, "--capture af_packet is for --mode tap"},
		{func(c *Config) { c.Mode, c.Capture = ModeHost, CaptureAFPacket }, "--capture af_packet is for --mode tap"},
		{func(c *Config) { c.PacketWorkers = 257 }, "AF_PACKET workers"},
		{func(c *Config) { c.PacketFanout = "queue" }, "AF_PACKET: fanout"},
		{func(c *Config) { c.PacketRing = 1000 }, "AF_PACKET: ring of 1000 bytes"},
		{func(c *Config) { c.Frames = 1000 }, "AF_XDP: frames (1000)"},
	} {
		cfg := DefaultConfig()
		cfg.Ifaces = []string{"a", "b"}
		c.change(&cfg)
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %q", err, c.want)
		}
	}
	cfg := DefaultConfig()
	cfg.Ifaces = []string{"a", "b"}
	if err := cfg.Validate(); err != nil || cfg.Sensor == "" {
		t.Errorf("a good configuration: %v, sensor %q", err, cfg.Sensor)
	}
}

// TestAbsentCPU: it ends the start, where capture would be tried for ever.
func TestAbsentCPU(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Mode, cfg.Ifaces, cfg.CPUs = ModeTap, []string{"tg-absent"}, []int{0, 1023}
	s, err := New(cfg, Deps{Telemetry: telemetry.Discard("ingest"), Classify: []classifyv1.ClassifyServiceClient{newFakeClassify(t).client}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "--cpus names CPU 1023") {
		t.Errorf("%v", err)
	}
}

func TestStartFailsInOneSentence(t *testing.T) {
	r := newRig(t)
	f := newFakeClassify(t)
	for _, c := range []struct{ second, want string }{
		{"tg-absent", "tg-absent"},
		{"lo", "loopback"}, // it must stay as it is: everything here talks over it
	} {
		cfg := r.config()
		cfg.Ifaces[1] = c.second
		s, err := New(cfg, Deps{Telemetry: telemetry.Discard("ingest"), Classify: []classifyv1.ClassifyServiceClient{f.client}})
		if err != nil {
			t.Fatal(err)
		}
		err = s.Run(context.Background())
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("Run with %s: %v", c.second, err)
		}
	}
}
