package ingest

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/packet"
	"github.com/tidegate-mesh/tidegate/libs/pcapfile"
	"github.com/tidegate-mesh/tidegate/libs/pcapfile/corpustest"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
	"google.golang.org/protobuf/proto"
)

// record keeps what a replay gives.
type record struct {
	batches []*flowv1.FlowBatch
	windows []*flowv1.Window
	fail    error
	enough  []uint64
}

func (r *record) Batch(b *flowv1.FlowBatch) ([]uint64, error) {
	r.batches = append(r.batches, proto.Clone(b).(*flowv1.FlowBatch))
	return r.enough, r.fail
}

func (r *record) Window(w *flowv1.Window) error {
	r.windows = append(r.windows, proto.Clone(w).(*flowv1.Window))
	return nil
}

// frameAt is one frame of a capture made for a test.
type frameAt struct {
	at   time.Duration
	data []byte
}

const captureStart = int64(1_600_000_000_123_456_789)

func capture(t *testing.T, frames []frameAt) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "test.pcap")
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	w, err := pcapfile.NewWriter(out, packet.LinkEthernet, 1<<16)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range frames {
		if err := w.Write(captureStart+int64(f.at), f.data, len(f.data)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Flush(), out.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

func between(a, b string) packet.Header {
	return packet.Header{Src: netip.MustParseAddr(a), Dst: netip.MustParseAddr(b)}
}

func TestReplay(t *testing.T) {
	there, back := between("192.0.2.1", "198.51.100.1"), between("198.51.100.1", "192.0.2.1")
	tcp := func(h packet.Header, s, d uint16, flags uint8, seq uint32, payload string) []byte {
		return h.AppendTCP(nil, &packet.TCP{SrcPort: s, DstPort: d, Flags: flags, Seq: seq}, []byte(payload))
	}
	path := capture(t, []frameAt{
		{0, tcp(there, 4000, 80, packet.FlagSYN, 1, "")},
		{time.Millisecond, tcp(back, 80, 4000, packet.FlagSYN|packet.FlagACK, 1, "")},
		{2 * time.Millisecond, tcp(there, 4000, 80, packet.FlagACK, 2, "GET / HTTP/1.1\r\n")},
		{3 * time.Millisecond, []byte{1, 2, 3}},
		{4 * time.Millisecond, there.AppendARP(nil, 1, [6]byte{})},
		{9 * time.Minute, tcp(there, 4000, 80, packet.FlagACK, 18, "Host: x\r\n\r\n")},   // still the same flow
		{200 * time.Hour, tcp(there, 4001, 80, packet.FlagSYN, 1, "")},                   // no answer
		{200*time.Hour - time.Second, tcp(there, 4001, 80, packet.FlagSYN, 1, "")},       // out of order
		{100 * time.Hour, there.AppendUDP(nil, 7, 9, []byte("from another capture"))},    // another clock
		{100*time.Hour + 2*time.Second, back.AppendUDP(nil, 9, 7, []byte("its answer"))}, // goes on
	})
	var got record
	l, err := Replay(context.Background(), ReplayConfig{}, path, &got)
	if err != nil {
		t.Fatal(err)
	}
	if l.Packets != 10 || l.Difference != 0 || l.Flows != 3 || len(l.Undecodable) != 1 || l.Undecodable["truncated_ethernet"] != 1 {
		t.Errorf("ledger %+v", l)
	}
	var ends []flow.End
	for i, b := range got.batches {
		if b.Sensor != "replay" || b.Epoch != uint64(captureStart) || b.Batch != uint64(i+1) || flow.Validate(b) != nil {
			t.Errorf("batch %d: %v", i, b)
		}
		for j := range int(b.GetEnds().GetCount()) {
			ends = append(ends, flow.EndAt(b.Ends, j))
		}
	}
	if len(ends) != 3 || ends[0].Totals.PacketsFwd != 3 || ends[0].FirstNs != captureStart ||
		ends[0].LastNs != captureStart+int64(9*time.Minute) || ends[1].Totals.PacketsFwd != 2 || ends[2].Totals.PacketsRev != 1 {
		t.Errorf("ends: %+v", ends)
	}
	if ends[2].LastNs-ends[2].FirstNs != int64(2*time.Second) || ends[2].FirstNs < captureStart+int64(200*time.Hour) {
		t.Errorf("after the clock's step: %+v", ends[2])
	}
	var packets, failed, handshakes uint64
	for i, w := range got.windows {
		packets += w.Total.Packets
		handshakes += w.Total.Handshakes
		if w.StartNs%1e8 != 0 || w.EndNs-w.StartNs != 1e8 || w.Sequence != uint64(i+1) {
			t.Errorf("window %d: %d to %d", w.Sequence, w.StartNs, w.EndNs)
		}
		for _, s := range w.Sources {
			failed += s.Failed
		}
	}
	if packets != 9 || failed != 1 || handshakes != 1 || len(got.windows) > 12 {
		t.Errorf("%d windows with %d packets, %d handshakes, %d failures", len(got.windows), packets, handshakes, failed)
	}

	var again record
	if _, err := Replay(context.Background(), ReplayConfig{}, path, &again); err != nil {
		t.Fatal(err)
	}
	equal := func(a, b proto.Message) bool { return proto.Equal(a, b) }
	if !slices.EqualFunc(got.batches, again.batches, func(a, b *flowv1.FlowBatch) bool { return equal(a, b) }) ||
		!slices.EqualFunc(got.windows, again.windows, func(a, b *flowv1.Window) bool { return equal(a, b) }) {
		t.Error("a second replay gives something else")
	}

	var plain record
	without, err := Replay(context.Background(), ReplayConfig{NoWindows: true}, path, &plain)
	if err != nil || without.Difference != 0 || without.Flows != l.Flows || len(plain.windows) != 0 {
		t.Errorf("without windows: %+v, %d windows, %v", without, len(plain.windows), err)
	}
	var same []flow.End
	for _, b := range plain.batches {
		for j := range int(b.GetEnds().GetCount()) {
			same = append(same, flow.EndAt(b.Ends, j))
		}
	}
	if !slices.Equal(same, ends) {
		t.Errorf("without windows flows end as %+v, with them as %+v", same, ends)
	}

	broken := record{fail: errors.New("disk full")}
	if _, err := Replay(context.Background(), ReplayConfig{}, path, &broken); !errors.Is(err, broken.fail) {
		t.Errorf("the sink's error is lost: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Replay(ctx, ReplayConfig{}, path, &got); !errors.Is(err, context.Canceled) {
		t.Errorf("after the context ended: %v", err)
	}
	if _, err := Replay(context.Background(), ReplayConfig{}, filepath.Join(t.TempDir(), "none"), &got); err == nil {
		t.Error("a missing file gives no error")
	}
}

// TestReplayEnough: of a flow that the sink knows enough of no more payload comes, and its packets still count.
func TestReplayEnough(t *testing.T) {
	h := between("192.0.2.1", "198.51.100.1")
	var frames []frameAt
	for i := range 8 {
		frames = append(frames, frameAt{time.Duration(i) * time.Second, h.AppendUDP(nil, 7, 9, []byte("hello"))})
	}
	path := capture(t, frames)
	for _, want := range []int{8, 1} {
		var got record
		if want == 1 {
			got.enough = []uint64{1 << 24} // the first flow's id
		}
		if _, err := Replay(t.Context(), ReplayConfig{}, path, &got); err != nil {
			t.Fatal(err)
		}
		segments, packets := 0, uint64(0)
		for _, b := range got.batches {
			segments += int(b.GetSegments().GetCount())
			for i := range int(b.GetEnds().GetCount()) {
				packets += flow.EndAt(b.Ends, i).Totals.PacketsFwd
			}
		}
		if segments != want || packets != 8 {
			t.Errorf("%d segments of %d packets, want %d", segments, packets, want)
		}
	}
}

// tally counts without keeping anything.
type tally struct {
	t       *testing.T
	name    string
	packets uint64
	opened  uint64
	last    int64
}

func (c *tally) Batch(b *flowv1.FlowBatch) ([]uint64, error) {
	if err := flow.Validate(b); err != nil {
		c.t.Errorf("%s: %v", c.name, err)
	}
	if n := proto.Size(b); n > 1<<20 {
		c.t.Errorf("%s: a batch of %d bytes", c.name, n)
	}
	return nil, nil
}

func (c *tally) Window(w *flowv1.Window) error {
	c.packets += w.Total.Packets
	c.opened += w.FlowsOpened
	if w.StartNs < c.last {
		c.t.Errorf("%s: window %d begins before the one before it ended", c.name, w.Sequence)
	}
	c.last = w.EndNs
	if n := proto.Size(w); n > 1<<20 {
		c.t.Errorf("%s: a window of %d bytes", c.name, n)
	}
	return nil
}

// TestReplayCorpus replays every capture of the shared corpus, whole or broken.
func TestReplayCorpus(t *testing.T) {
	files := corpustest.Captures(t, corpustest.Dir(t))
	begun := time.Now()
	var packets, flows uint64
	var slowest time.Duration
	var slow string
	for _, path := range files {
		name := filepath.Base(path)
		c := &tally{t: t, name: name}
		at := time.Now()
		l, err := Replay(t.Context(), ReplayConfig{}, path, c)
		if d := time.Since(at); d > slowest {
			slowest, slow = d, name
		}
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, pcapfile.ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
		undecodable := uint64(0)
		for _, n := range l.Undecodable {
			undecodable += n
		}
		if l.Difference != 0 || c.packets != l.Packets-undecodable || c.opened != l.Flows {
			t.Errorf("%s: ledger %+v; windows have %d packets and %d flows", name, l, c.packets, c.opened)
		}
		packets += l.Packets
		flows += l.Flows
	}
	t.Logf("%d captures, %d packets, %d flows in %v; slowest %s %v", len(files), packets, flows, time.Since(begun), slow, slowest)
}
