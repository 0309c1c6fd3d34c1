package ingest

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"github.com/google/go-cmp/cmp"

	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
	classifyv1 "github.com/tidegate-mesh/tidegate/proto/classify/v1"
	ingestv1 "github.com/tidegate-mesh/tidegate/proto/ingest/v1"
)

func TestDefaultsAreTheTags(t *testing.T) {
	var c Config
	k, err := kong.New(&c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Parse(nil); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(DefaultConfig(), c); d != "" {
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
		if err := cfg.validate(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want %q", err, c.want)
		}
	}
	cfg := DefaultConfig()
	cfg.Ifaces = []string{"a", "b"}
	if err := cfg.validate(); err != nil || cfg.Sensor == "" {
		t.Errorf("a good configuration: %v, sensor %q", err, cfg.Sensor)
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

func TestInline(t *testing.T) {
	r := newRig(t)
	f := newFakeClassify(t)
	cfg := r.config()
	cfg.KernelForwarding = false
	s, tel, stop := start(t, cfg, f.client)
	r.echo()

	if err := r.ping(3); err != nil {
		t.Fatal(err)
	}
	const connections, size = 20, 20 << 10
	for range connections {
		if err := r.exchange(size); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "ledger", func() error { return settled(s) })

	var st *ingestv1.StatusResponse
	eventually(t, "top talkers", func() (err error) {
		st, err = s.Status(context.Background(), &ingestv1.StatusRequest{})
		if err == nil && (len(st.TopDestinations) == 0 || len(st.TopSources) == 0 || st.TopDestinations[0].Pps <= 0) {
			err = fmt.Errorf("there are none: %v", st)
		}
		return err
	})
	if !st.Status.Ready || len(st.Interfaces) != 2 || st.Interfaces[0].Queues != 1 ||
		!strings.HasPrefix(st.Interfaces[0].Capture, "af_xdp native") {
		t.Errorf("status: %v", st)
	}
	for _, i := range st.Interfaces {
		b, least := i.XdpBytes, i.XdpPackets["redirect"]*14 // every frame has an Ethernet header
		if b["seen"] != b["drop"]+b["rate_limited"]+b["pass"]+b["forward"]+b["redirect"]+b["no_reader"] ||
			b["redirect"] < max(least, connections*size) || b["drop"] != 0 {
			t.Errorf("%s: bytes %v of packets %v", i.Name, b, i.XdpPackets)
		}
	}
	if got := metric(t, tel, "tidegate_ingest_packets_total"); got != float64(s.Ledger()["received"]) {
		t.Errorf("packets metric is %v, received %d", got, s.Ledger()["received"])
	}
	if got := metric(t, tel, "tidegate_ingest_drops_total"); got != 0 {
		t.Errorf("drops metric is %v", got)
	}

	stop()
	f.mu.Lock()
	defer f.mu.Unlock()
	tcp := 0
	for id, o := range f.opens {
		if o.Key.Protocol != 6 || o.Key.DstPort != 7777 {
			continue
		}
		tcp++
		e, ok := f.ends[id]
		if !ok || e.Totals.BytesFwd < size || e.Totals.BytesRev < size {
			t.Errorf("flow %x ended with %+v", id, e)
		}
	}
	if tcp != connections {
		t.Errorf("%d TCP flows, want %d", tcp, connections)
	}
	if !bytes.Contains(f.data, []byte("GET /tidegate HTTP/1.1")) {
		t.Error("no payload arrived")
	}
	if l := s.Ledger(); f.windows == 0 || f.packets != l["accounted"] {
		t.Errorf("%d windows hold %d packets, accounted were %d", f.windows, f.packets, l["accounted"])
	}
	if err := settled(s); err != nil {
		t.Errorf("after the end: %v", err)
	}
	if l := s.Ledger(); l["flows_active"] != 0 || l["lost_at_restart"] != 0 {
		t.Errorf("after the end: %v", l)
	}
}

// metric sums a metric over its labels.
func metric(t *testing.T, tel *telemetry.Telemetry, name string) float64 {
	t.Helper()
	families, err := tel.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum, found := 0.0, false
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		found = true
		for _, m := range f.GetMetric() {
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	if !found {
		t.Errorf("there is no metric %s", name)
	}
	return sum
}

func TestClassifyRestarts(t *testing.T) {
	r := newRig(t)
	f := newFakeClassify(t)
	s, tel, _ := start(t, r.config(), f.client)
	r.echo()
	if err := r.exchange(4096); err != nil {
		t.Fatal(err)
	}
	eventually(t, "first batches", func() error { return settled(s) })

	// A classifier that takes and never answers, then none at all: traffic goes on.
	f.set(func() { f.mute = true })
	for range 5 {
		if err := r.exchange(4096); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "unacknowledged batches", func() error {
		if n := s.Ledger()["batches_pending"]; n == 0 {
			return fmt.Errorf("none is pending")
		}
		return nil
	})
	f.srv.Stop()
	for range 5 {
		if err := r.exchange(4096); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "readiness says so", func() error {
		if p := tel.Ready(); len(p) != 1 || !strings.Contains(p[0], "classify") {
			return fmt.Errorf("problems: %v", p)
		}
		return nil
	})
	f.set(func() { f.mute = false })
	f.start()
	eventually(t, "everything is sent", func() error { return settled(s) })
	l := s.Ledger()
	if l["batches_resent"] == 0 || l["batches_dropped"] != 0 || l["records_dropped"] != 0 {
		t.Errorf("ledger: %v", l)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for n := uint64(1); n <= l["batches_made"]; n++ {
		if f.batches[n] == 0 {
			t.Errorf("batch %d never arrived", n)
		}
	}
}

func TestSilentClassifierIsLeft(t *testing.T) {
	r := newRig(t)
	f := newFakeClassify(t)
	s, _, _ := start(t, r.config(), f.client)
	r.echo()
	f.set(func() { f.mute = true })
	if err := r.exchange(4096); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a new stream", func() error {
		if s.shards.list[0].send.reconnects.Load() == 0 {
			return fmt.Errorf("the stream is the same")
		}
		return nil
	})
	f.set(func() { f.mute = false })
	eventually(t, "everything is sent again", func() error { return settled(s) })
}

func TestKernelForwarding(t *testing.T) {
	r := newRig(t)
	f := newFakeClassify(t)
	f.enough = true
	s, _, stop := start(t, r.config(), f.client)
	r.echo()
	c, err := r.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // closed below too
	if err := echoOn(c, 1024); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the flow is in the kernel", func() error {
		if l := s.Ledger(); l["kernel_flows"] == 0 {
			return fmt.Errorf("no flow is forwarded: %v", l)
		}
		return nil
	})
	const size = 1 << 20
	if err := echoOn(c, size); err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	eventually(t, "ledger", func() error {
		l := s.Ledger()
		// What came before the sockets were connected went past them.
		if l["kernel_metered"] < 2*size/1024 || l["kernel_metered"] != l["xdp_forwarded"]-l["xdp_unread"] {
			return fmt.Errorf("metered %d of %d forwarded packets, %d of them unread", l["kernel_metered"], l["xdp_forwarded"], l["xdp_unread"])
		}
		return settled(s)
	})
	eventually(t, "the kernel forgets the flow", func() error {
		if n := s.Ledger()["kernel_flows"]; n != 0 {
			return fmt.Errorf("%d flows are forwarded", n)
		}
		return nil
	})
	stop()
	l := s.Ledger()
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, o := range f.opens {
		if o.Key.Protocol == 6 {
			if e := f.ends[id]; e.Totals.BytesFwd < size || e.Totals.BytesRev < size {
				t.Errorf("the flow's end misses what the kernel forwarded: %+v", e)
			}
		}
	}
	if f.packets != l["accounted"]+l["kernel_metered"] {
		t.Errorf("windows hold %d packets, accounted %d and metered %d", f.packets, l["accounted"], l["kernel_metered"])
	}
}

func TestKernelForwardsAfterTheEnd(t *testing.T) {
	r := newRig(t)
	f := newFakeClassify(t)
	s, _, stop := start(t, r.config(), f.client)
	r.echo()
	c, err := r.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close() //nolint:errcheck // nothing is left
	if err := echoOn(c, 8192); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := echoOn(c, 8192); err != nil {
		t.Fatalf("the connection did not survive the sensor: %v", err)
	}
	if err := r.exchange(8192); err != nil {
		t.Fatalf("no new connection without the sensor: %v", err)
	}
	if err := settled(s); err != nil {
		t.Error(err)
	}
	g, err := xdp.Open(xdp.Options{Iface: r.a, BPFFS: r.bpffs})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close() //nolint:errcheck // test
	n, err := g.Counters()
	if err != nil || n.Forward == 0 {
		t.Errorf("the kernel forwarded nothing: %+v, %v", n, err)
	}
	// The next sensor begins its own ledger, and has the connection.
	s2, _, _ := start(t, r.config(), f.client)
	if err := echoOn(c, 8192); err != nil {
		t.Fatal(err)
	}
	eventually(t, "second ledger", func() error { return settled(s2) })
	if l := s2.Ledger(); l["received"] == 0 || l["xdp_forwarded"] >= n.Forward {
		t.Errorf("second ledger: %v", l)
	}
}

func TestInterfaceMadeAgain(t *testing.T) {
	r := newRig(t)
	f := newFakeClassify(t)
	s, tel, _ := start(t, r.config(), f.client)
	r.echo()
	if err := r.exchange(4096); err != nil {
		t.Fatal(err)
	}
	before := s.Ledger()["received"]
	if out, err := exec.Command("ip", "link", "del", r.a).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	eventually(t, "readiness says so", func() error {
		if p := tel.Ready(); len(p) == 0 || !strings.Contains(p[0], "capture") {
			return fmt.Errorf("problems: %v", p)
		}
		return nil
	})
	r.wire(r.client, r.a, clientAddr, 1)
	eventually(t, "ready again", func() error {
		if p := tel.Ready(); len(p) != 0 {
			return fmt.Errorf("problems: %v", p)
		}
		return nil
	})
	if err := r.exchange(4096); err != nil {
		t.Fatal(err)
	}
	eventually(t, "ledger", func() error { return settled(s) })
	if l := s.Ledger(); l["received"] <= before {
		t.Errorf("received %d, before %d", l["received"], before)
	}
}

func TestTap(t *testing.T) {
	r := newRig(t)
	f := newFakeClassify(t)
	cfg := r.config()
	cfg.Mode, cfg.Ifaces = ModeTap, []string{r.a}
	s, _, _ := start(t, cfg, f.client)
	r.shout() // nobody answers a mirror port
	eventually(t, "packets", func() error {
		l := s.Ledger()
		if l["received"] == 0 || l["transmitted"] != 0 || l["received"] != l["accounted"] {
			return fmt.Errorf("ledger: %v", l)
		}
		return nil
	})
}

// TestHost: a connection to this machine's own stack becomes a flow, though only the client's packets are seen, and only their
// first bytes. Once its label is final, or as much of it was copied as anybody wants, the kernel meters it and copies no more.
func TestHost(t *testing.T) {
	for _, tt := range []struct {
		name               string
		size               int
		enough, forwarding bool
	}{{"copied", 4 << 10, false, true}, {"all copied", 64 << 10, false, false}, {"label final", 4 << 10, true, true}, {"no more wanted", 64 << 10, false, true}} {
		t.Run(tt.name, func(t *testing.T) {
			metered := tt.forwarding && (tt.enough || tt.size > 8<<10)
			r := newRig(t)
			r.host()
			f := newFakeClassify(t)
			f.enough = tt.enough
			cfg := r.config()
			cfg.Mode, cfg.Ifaces, cfg.KernelForwarding = ModeHost, []string{r.a}, tt.forwarding
			s, _, stop := start(t, cfg, f.client)
			c, err := r.dial()
			if err != nil {
				t.Fatal(err)
			}
			if err := echoOn(c, tt.size); err != nil {
				t.Fatal(err)
			}
			if metered {
				eventually(t, "the kernel meters the flow", func() error {
					if err := echoOn(c, 1024); err != nil {
						return err
					}
					if l := s.Ledger(); l["kernel_metered"] == 0 {
						return fmt.Errorf("ledger: %v", l)
					}
					return nil
				})
			}
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "all is acknowledged", func() error {
				l := s.Ledger()
				if l["batches_pending"] != 0 || l["xdp_passed"] != l["xdp_seen"] || l["received"] == 0 || l["received"] != l["accounted"] ||
					l["raised"] != l["received"]+l["ring_drops"]+l["lost_at_restart"] || !metered && l["raised"] != l["xdp_passed"] {
					return fmt.Errorf("ledger: %v", l)
				}
				return nil
			})
			stop()
			f.mu.Lock()
			defer f.mu.Unlock()
			found := 0
			for id, o := range f.opens {
				if o.Key.DstPort != 7777 {
					continue
				}
				found++
				e := f.ends[id]
				if e.Totals.BytesFwd < uint64(tt.size) || e.Totals.BytesRev != 0 {
					t.Errorf("the flow ended with %+v", e)
				}
			}
			if found != 1 || !bytes.Contains(f.data, []byte("GET /tidegate HTTP/1.1")) {
				t.Errorf("%d flows, payload %.100q", found, f.data)
			}
			if l := s.Ledger(); f.packets != l["accounted"]+l["kernel_metered"] {
				t.Errorf("windows hold %d packets, accounted and metered were %d and %d", f.packets, l["accounted"], l["kernel_metered"])
			}
		})
	}
}

func TestFrameSize(t *testing.T) {
	r := newRig(t)
	for _, c := range []struct{ mtu, want int }{{1500, 2048}, {1770, 2048}, {1771, 4096}, {3400, 4096}} {
		if out, err := exec.Command("ip", "link", "set", r.a, "mtu", fmt.Sprint(c.mtu)).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if got, err := frameSize([]string{r.b, r.a}); err != nil || got != c.want {
			t.Errorf("MTU %d: frames of %d, %v; want %d", c.mtu, got, err, c.want)
		}
	}
	if out, err := exec.Command("ip", "link", "set", r.a, "mtu", "9000").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if _, err := frameSize([]string{r.a}); err == nil || !strings.Contains(err.Error(), "MTU of 9000") {
		t.Errorf("MTU 9000: %v", err)
	}
}

func TestPortsWithDifferentQueues(t *testing.T) {
	r := newRigQueues(t, 3)
	f := newFakeClassify(t)
	cfg := r.config()
	cfg.KernelForwarding = false
	s, _, stop := start(t, cfg, f.client)
	r.echo()
	for range 10 {
		if err := r.exchange(8192); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "ledger", func() error { return settled(s) })
	stop()
	f.mu.Lock()
	defer f.mu.Unlock()
	queues := map[int]bool{}
	for id := range f.opens {
		queues[queueOf(id)] = true
	}
	if a := s.Ledger()["accounted"]; len(queues) < 2 || f.packets != a {
		t.Errorf("flows in queues %v; windows hold %d packets, accounted were %d", queues, f.packets, a)
	}
}
