package ingest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/packet"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	classifyv1 "github.com/tidegate-mesh/tidegate/proto/classify/v1"
	ingestv1 "github.com/tidegate-mesh/tidegate/proto/ingest/v1"
)

// play reads captures until they end.
func play(t *testing.T, f *fakeClassify, pace string, change func(*Config), paths ...string) (*Service, error) {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Mode, cfg.Pcap, cfg.PcapPace, cfg.Sensor, cfg.MaxFlows = ModePcap, paths, pace, "test-sensor", 1<<16
	if change != nil {
		change(&cfg)
	}
	s, err := New(cfg, Deps{Telemetry: telemetry.Discard("ingest"), Classify: []classifyv1.ClassifyServiceClient{f.client}})
	if err != nil {
		t.Fatal(err)
	}
	return s, s.Run(t.Context())
}

// exactly checks that everything of n packets has arrived, nothing of it twice.
func (f *fakeClassify) exactly(s *Service, packets, undecodable uint64, flows int) error {
	l := s.Ledger()
	f.mu.Lock()
	defer f.mu.Unlock()
	l["transmitted"] = l["received"] // nothing is sent on
	if err := balance(l); err != nil {
		return err
	}
	sum := uint64(0)
	for _, e := range f.ends {
		sum += e.Totals.PacketsFwd + e.Totals.PacketsRev
	}
	switch {
	case l["raised"] != packets || l["undecodable"] != undecodable || l["accounted"] != packets-undecodable:
		return fmt.Errorf("%d packets, %d undecodable: ledger %v", packets, undecodable, l)
	case l["batches_dropped"] != 0 || l["windows_dropped"] != 0 || l["batches_pending"] != 0 || l["windows_pending"] != 0:
		return fmt.Errorf("something was dropped or is under way: %v", l)
	case len(f.ends) != flows || len(f.opens) > flows:
		return fmt.Errorf("%d flows ended and %d were opened, not %d", len(f.ends), len(f.opens), flows)
	case sum != packets-undecodable || f.packets != packets-undecodable:
		return fmt.Errorf("%d packets: the flows have %d and the windows %d", packets-undecodable, sum, f.packets)
	}
	return nil
}

// TestPlay: two captures, of which the second ends within a record, at both paces.
func TestPlay(t *testing.T) {
	there, back := between("192.0.2.1", "198.51.100.1"), between("198.51.100.1", "192.0.2.1")
	whole := capture(t, []frameAt{
		{0, there.AppendUDP(nil, 7, 9, []byte("question"))},
		{120 * time.Millisecond, back.AppendUDP(nil, 9, 7, []byte("answer"))},
		{130 * time.Millisecond, []byte{1, 2, 3}},
		{450 * time.Millisecond, there.AppendUDP(nil, 7, 9, []byte("thanks"))},
	})
	broken := capture(t, []frameAt{
		{0, there.AppendUDP(nil, 8, 9, []byte("question"))},
		{time.Millisecond, there.AppendUDP(nil, 8, 9, []byte("again"))},
	})
	info, err := os.Stat(broken)
	if err == nil {
		err = os.Truncate(broken, info.Size()-1)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, pace := range []string{PaceCapture, PaceFull} {
		t.Run(pace, func(t *testing.T) {
			f := newFakeClassify(t)
			began := time.Now()
			s, err := play(t, f, pace, nil, broken, whole)
			if !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), broken) {
				t.Errorf("error %v", err)
			}
			if err := f.exactly(s, 5, 1, 2); err != nil {
				t.Fatal(err)
			}
			if pace == PaceCapture && time.Since(began) < 450*time.Millisecond {
				t.Errorf("450 ms were over after %v", time.Since(began))
			}
			for _, e := range f.ends {
				if e.Key.SrcPort != 7 {
					continue
				}
				first, lasted := time.Unix(0, e.FirstNs), time.Duration(e.LastNs-e.FirstNs)
				switch {
				case lasted != 450*time.Millisecond:
					t.Errorf("the flow lasted %v", lasted)
				case pace == PaceFull && e.FirstNs != captureStart:
					t.Errorf("the flow began at %v, the capture at %v", first, time.Unix(0, captureStart))
				case pace == PaceCapture && (first.Before(began) || first.After(time.Now())):
					t.Errorf("the flow began at %v, the test at %v", first, began)
				}
			}
		})
	}
}

// TestPlayWaits: at full speed the classifier's pace decides, and nothing is dropped though the buffer holds a fraction.
func TestPlayWaits(t *testing.T) {
	const flows, each = 4000, 8
	var frames []frameAt
	payload := []byte(strings.Repeat("x", 500))
	for i := range flows * each {
		n := i % flows
		h := packet.Header{Src: netip.AddrFrom4([4]byte{192, 0, byte(n >> 8), byte(n)}), Dst: netip.MustParseAddr("198.51.100.1")} //nolint:gosec // bytes of n
		frames = append(frames, frameAt{time.Duration(i) * 200 * time.Microsecond, h.AppendUDP(nil, 1000, 2000, payload)})
	}
	f := newFakeClassify(t)
	f.mute = true
	go func() {
		time.Sleep(300 * time.Millisecond)
		f.set(func() { f.mute = false })
	}()
	s, err := play(t, f, PaceFull, func(c *Config) { c.BufferBytes = minBuffer }, capture(t, frames))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.exactly(s, flows*each, 0, flows); err != nil {
		t.Fatal(err)
	}
	for _, e := range f.ends {
		if e.Key.Protocol != packet.ProtoUDP || e.Totals != (flow.Totals{PacketsFwd: each, BytesFwd: each * (28 + 500)}) {
			t.Fatalf("flow %+v", e)
		}
	}
}

// TestPlayTells: a long reading says how far it is, by the capture's time, and no frames can be captured from it.
func TestPlayTells(t *testing.T) {
	h := between("192.0.2.1", "198.51.100.1")
	frames := make([]frameAt, 2*playChunk)
	for i := range frames {
		frames[i] = frameAt{0, h.AppendUDP(nil, 7, 9, nil)}
	}
	for _, pace := range []string{PaceCapture, PaceFull} {
		cfg := DefaultConfig()
		cfg.Mode, cfg.Pcap, cfg.PcapPace, cfg.MaxFlows = ModePcap, []string{capture(t, frames)}, pace, 1<<16
		s, err := New(cfg, Deps{Telemetry: telemetry.Discard("ingest"), Classify: make([]classifyv1.ClassifyServiceClient, 1)})
		if err != nil {
			t.Fatal(err)
		}
		var log bytes.Buffer
		s.tel.Log = slog.New(slog.NewTextHandler(&log, nil))
		p := &player{s: s, w: s.staff(1)[0], counts: s.counts[0]} // it never told anything
		if err := p.file(t.Context(), cfg.Pcap[0]); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(log.String(), "capture_time=2020-09-13T12:26:40Z") {
			t.Errorf("pace %s: %s", pace, log.String())
		}
		s.setProblem(nil)
		if _, err := s.newRecording(&ingestv1.CaptureRequest{}); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "tcpdump -r") {
			t.Errorf("%v", err)
		}
	}
}

// TestPlayEnds: the flows that are under way at the end of a capture may take more than the buffer, and none is dropped.
func TestPlayEnds(t *testing.T) {
	const flows, each = 30_000, 2
	var frames []frameAt
	for i := range flows * each {
		n := i % flows
		h := packet.Header{Src: netip.AddrFrom4([4]byte{192, 0, byte(n >> 8), byte(n)}), Dst: netip.MustParseAddr("198.51.100.1")} //nolint:gosec // bytes of n
		frames = append(frames, frameAt{time.Duration(i) * 20 * time.Microsecond, h.AppendUDP(nil, 1000, 2000, nil)})
	}
	f := newFakeClassify(t)
	s, err := play(t, f, PaceFull, func(c *Config) { c.BufferBytes = minBuffer }, capture(t, frames))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.exactly(s, flows*each, 0, flows); err != nil {
		t.Fatal(err)
	}
}

// TestPlayMistakes: a wrong combination is told with what to do.
func TestPlayMistakes(t *testing.T) {
	for want, change := range map[string]func(*Config){
		"--pcap":             func(c *Config) { c.Mode = ModePcap },
		"leave --iface eth0": func(c *Config) { c.Mode, c.Pcap, c.Ifaces = ModePcap, []string{"f"}, []string{"eth0"} },
		"use --mode pcap":    func(c *Config) { c.Mode, c.Pcap, c.Ifaces = ModeTap, []string{"f"}, []string{"eth0"} },
		"neither capture":    func(c *Config) { c.Mode, c.Pcap, c.PcapPace = ModePcap, []string{"f"}, "fast" },
	} {
		cfg := DefaultConfig()
		change(&cfg)
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, not %q", err, want)
		}
	}
	f := newFakeClassify(t)
	if _, err := play(t, f, PaceFull, nil, t.TempDir()+"/none.pcap"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no such file: %v", err)
	}
}
