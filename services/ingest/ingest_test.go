package ingest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/packet"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	classifyv1 "github.com/tidegate-mesh/tidegate/proto/classify/v1"
)

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

// TestEndWaitsForRoom: more flows under way than the buffer holds are sent at the end all the same, as long as classify takes them.
func TestEndWaitsForRoom(t *testing.T) {
	f := newFakeClassify(t)
	cfg := DefaultConfig()
	cfg.Mode, cfg.Ifaces, cfg.Sensor, cfg.MaxFlows, cfg.BufferBytes = ModeTap, []string{"tg-absent"}, "test-sensor", 1<<16, minBuffer
	s, err := New(cfg, Deps{Telemetry: telemetry.Discard("ingest"), Classify: []classifyv1.ClassifyServiceClient{f.client}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { s.shards.run(ctx); close(ended) }()
	defer func() { cancel(); <-ended }()
	eventually(t, "a stream", s.shards.check)
	const flows = 30_000
	w, now := s.staff(1)[0], time.Now().UnixNano()
	idle := func() error {
		if w.pipe.Poll(time.Now().UnixNano()); !s.shards.idle() {
			return errors.New("not yet")
		}
		return nil
	}
	for range 2 {
		for i := range flows {
			h := packet.Header{Src: netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), Dst: netip.MustParseAddr("198.51.100.1")} //nolint:gosec // bytes of i
			w.pipe.Frames([][]byte{h.AppendUDP(nil, 1000, 2000, nil)}, now, 0)
			if i%3000 == 0 {
				eventually(t, "acknowledgements", idle)
			}
		}
	}
	eventually(t, "acknowledgements", idle)
	s.endFlows(time.Now().Add(patience))
	eventually(t, "the last acknowledgements", func() error {
		if !s.shards.idle() {
			return errors.New("not yet")
		}
		return nil
	})
	if l := s.Ledger(); l["flows_ended"] != flows || l["batches_dropped"] != 0 || l["batches_pending"] != 0 {
		t.Errorf("%v", l)
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
