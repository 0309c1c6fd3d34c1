package ingest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/tidegate-mesh/tidegate/libs/pcapfile"
	"github.com/tidegate-mesh/tidegate/libs/rpc"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	ingestv1 "github.com/tidegate-mesh/tidegate/proto/ingest/v1"
	"github.com/tidegate-mesh/tidegate/services/ingest/internal/filter"
	"github.com/tidegate-mesh/tidegate/services/ingest/internal/ring"
)

// serveCapture serves a sensor's IngestService on loopback.
func serveCapture(t *testing.T, s *Service) ingestv1.IngestServiceClient {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	ingestv1.RegisterIngestServiceServer(srv, s)
	go func() { _ = srv.Serve(ln) }()
	conn, err := rpc.Dial(telemetry.Discard("gateway"), ln.Addr().String(), rpc.TLS{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(); srv.Stop() })
	return ingestv1.NewIngestServiceClient(conn)
}

// captured is a capture that runs, or how it ended.
type captured struct {
	file    bytes.Buffer
	got     atomic.Int64 // bytes of it
	summary *ingestv1.CaptureSummary
	err     error
	cancel  context.CancelFunc
	done    chan struct{}
}

// begin starts a capture and returns when it records.
func begin(t *testing.T, client ingestv1.IngestServiceClient, req *ingestv1.CaptureRequest) *captured {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	c := &captured{cancel: cancel, done: make(chan struct{})}
	stream, err := client.Capture(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	first, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	c.file.Write(first.GetPcap())
	go func() {
		defer close(c.done)
		for {
			m, err := stream.Recv()
			if err != nil {
				if !errors.Is(err, io.EOF) {
					c.err = err
				}
				return
			}
			c.file.Write(m.GetPcap())
			c.got.Add(int64(len(m.GetPcap())))
			c.summary = m.GetSummary()
		}
	}()
	return c
}

// wait returns the capture's records.
func (c *captured) wait(t *testing.T) []pcapfile.Record {
	t.Helper()
	select {
	case <-c.done:
	case <-time.After(patience):
		t.Fatal("the capture does not end")
	}
	r, err := pcapfile.NewReader(&c.file)
	if err != nil {
		t.Fatal(err)
	}
	var out []pcapfile.Record
	for {
		rec, err := r.Next([]byte{})
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, rec)
	}
}

// volley sends numbered datagrams to two of the server's ports in turn, n to each, 100 in a millisecond.
func (r *rig) volley(n int, ports ...uint16) {
	r.t.Helper()
	err := r.client.Do(func() error {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: clientAddr.Addr().AsSlice(), Port: 4444})
		if err != nil {
			return err
		}
		defer c.Close() //nolint:errcheck // nothing is left
		payload := make([]byte, 100)
		for i := range n {
			binary.BigEndian.PutUint32(payload, uint32(i)) //nolint:gosec // small
			for _, p := range ports {
				if _, err := c.WriteToUDPAddrPort(payload, netip.AddrPortFrom(serverAddr.Addr(), p)); err != nil {
					return err
				}
			}
			if i%100 == 99 {
				time.Sleep(time.Millisecond)
			}
		}
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

// deaf takes datagrams on a server's port and drops them, so that no ICMP error answers.
func (r *rig) deaf(ports ...uint16) {
	r.t.Helper()
	for _, p := range ports {
		err := r.server.Do(func() error {
			c, err := net.ListenUDP("udp4", &net.UDPAddr{Port: int(p)})
			if err == nil {
				r.t.Cleanup(func() { _ = c.Close() })
			}
			return err
		})
		if err != nil {
			r.t.Fatal(err)
		}
	}
}

// TestCaptureUnderLoad: of interleaved traffic exactly the matching frames arrive, in order, whole or cut, while the
// pipeline loses nothing.
func TestCaptureUnderLoad(t *testing.T) {
	r := newRigQueues(t, 2)
	f := newFakeClassify(t)
	cfg := r.config()
	cfg.KernelForwarding = false
	s, _, stop := start(t, cfg, f.client)
	client := serveCapture(t, s)
	r.echo()
	r.deaf(9001, 9002)
	if err := r.exchange(1024); err != nil {
		t.Fatal(err)
	}

	const n = 10000
	from := time.Now()
	whole := begin(t, client, &ingestv1.CaptureRequest{Filter: "udp dst port 9001 and src host " + clientAddr.Addr().String(), Count: n})
	cut := begin(t, client, &ingestv1.CaptureRequest{Filter: "udp port 9001 or 9002", Snaplen: 46, Iface: r.a, Count: 2 * n})
	other := begin(t, client, &ingestv1.CaptureRequest{Filter: "udp", Iface: r.b, DurationMs: 1})
	echoed := make(chan error, 1)
	go func() { echoed <- r.exchange(64 << 10) }()
	r.volley(n, 9001, 9002)
	if err := <-echoed; err != nil {
		t.Fatal(err)
	}

	records := whole.wait(t)
	if whole.err != nil || whole.summary.GetReason() != "count" || whole.summary.GetFrames() != n || whole.summary.GetMissed() != 0 ||
		whole.summary.GetUnread() != 0 || whole.summary.GetDropped() != 0 {
		t.Errorf("the capture ended with %v, %v", whole.summary, whole.err)
	}
	last := from.UnixNano()
	for i, rec := range records {
		if len(rec.Data) != 142 || rec.WireLen != 142 || binary.BigEndian.Uint16(rec.Data[36:]) != 9001 ||
			binary.BigEndian.Uint32(rec.Data[42:]) != uint32(i) || rec.LinkType != linkEthernet {
			t.Fatalf("record %d of %d is %d of %d bytes: %x", i, len(records), len(rec.Data), rec.WireLen, rec.Data)
		}
		if rec.TimeNs < last || rec.TimeNs > time.Now().UnixNano() {
			t.Fatalf("record %d is stamped %d, the one before %d", i, rec.TimeNs, last)
		}
		last = rec.TimeNs
	}
	if len(records) != n {
		t.Errorf("%d records, want %d", len(records), n)
	}
	records = cut.wait(t)
	for i, rec := range records {
		if len(rec.Data) != 46 || rec.WireLen != 142 || binary.BigEndian.Uint32(rec.Data[42:]) != uint32(i/2) { //nolint:gosec // small
			t.Fatalf("cut record %d is %d of %d bytes", i, len(rec.Data), rec.WireLen)
		}
	}
	if len(records) != 2*n || cut.summary.GetMissed() != 0 {
		t.Errorf("%d cut records, want %d; %v", len(records), 2*n, cut.summary)
	}
	if records := other.wait(t); len(records) != 0 || other.summary.GetReason() != "time" {
		t.Errorf("on the other port: %d records, %v", len(records), other.summary)
	}
	if s.recordings.list.Load() != nil {
		t.Error("the worker still looks at captures that have ended")
	}
	stop()
	if err := settled(s); err != nil {
		t.Errorf("ledger: %v", err)
	}
	if l := s.Ledger(); l["ring_drops"] != 0 || l["tx_dropped"] != 0 || l["received"] < 2*n {
		t.Errorf("ledger: %v", l)
	}
}

// TestCaptureEnds: every way in which a capture ends or is refused.
func TestCaptureEnds(t *testing.T) {
	r := newRig(t)
	f := newFakeClassify(t)
	s, _, stop := start(t, r.config(), f.client)
	client := serveCapture(t, s)
	r.echo()
	r.deaf(9001)

	refused := func(req *ingestv1.CaptureRequest) error {
		stream, err := client.Capture(t.Context(), req)
		if err == nil {
			_, err = stream.Recv()
		}
		return err
	}
	for _, c := range []struct {
		req  *ingestv1.CaptureRequest
		want string
	}{
		{&ingestv1.CaptureRequest{Filter: "tcp prot 80"}, `column 5, at "prot 80"`},
		{&ingestv1.CaptureRequest{Iface: "eth9"}, "no interface of this sensor"},
		{&ingestv1.CaptureRequest{Bytes: 10}, "use 4096 to"},
		{&ingestv1.CaptureRequest{Bytes: maxCaptureBytes + 1}, "use 4096 to"},
		{&ingestv1.CaptureRequest{DurationMs: 3600001}, "at most 1h"},
	} {
		if err := refused(c.req); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v", c.req, err)
		}
	}

	// Bytes: the file stays within them.
	c := begin(t, client, &ingestv1.CaptureRequest{Filter: "udp", Bytes: 5000})
	r.volley(100, 9001)
	if records := c.wait(t); len(records) != (5000-24)/(16+142) || c.summary.GetReason() != "bytes" {
		t.Errorf("%d records, %v, %v", len(records), c.summary, c.err)
	}

	// Time.
	c = begin(t, client, &ingestv1.CaptureRequest{Filter: "udp", DurationMs: 50})
	if records := c.wait(t); len(records) != 0 || c.summary.GetReason() != "time" {
		t.Errorf("%d records, %v, %v", len(records), c.summary, c.err)
	}

	// What the kernel forwards meanwhile is told, since no capture can have it.
	f.set(func() { f.enough = true })
	c = begin(t, client, &ingestv1.CaptureRequest{Filter: "udp port 9", Count: 1})
	conn, err := r.dial()
	if err != nil {
		t.Fatal(err)
	}
	before := s.Ledger()["xdp_forwarded"]
	eventually(t, "kernel forwarding", func() error {
		if err := echoOn(conn, 1024); err != nil {
			return err
		}
		if s.Ledger()["xdp_forwarded"] == before {
			return errors.New("nothing was forwarded")
		}
		return nil
	})
	_ = conn.Close()
	r.shout()
	if records := c.wait(t); len(records) != 1 || c.summary.GetReason() != "count" || c.summary.GetForwarded() == 0 {
		t.Errorf("%d records, %v, %v", len(records), c.summary, c.err)
	}
	f.set(func() { f.enough = false })

	// The caller goes: its place is free, and what it has is a whole file.
	c = begin(t, client, &ingestv1.CaptureRequest{Filter: "udp"})
	r.volley(100, 9001)
	eventually(t, "frames", func() error {
		if n := c.got.Load(); n != 100*(16+142) {
			return fmt.Errorf("%d bytes came", n)
		}
		return nil
	})
	c.cancel()
	if records := c.wait(t); len(records) != 100 || status.Code(c.err) != codes.Canceled {
		t.Errorf("%d records, %v", len(records), c.err)
	}
	free := func() error {
		if s.recordings.list.Load() != nil {
			return errors.New("a capture is left")
		}
		return nil
	}
	eventually(t, "free place", free)

	// As many as may run, and one more; the sensor's end ends them.
	var all []*captured
	for range maxCaptures {
		all = append(all, begin(t, client, &ingestv1.CaptureRequest{}))
	}
	if err := refused(&ingestv1.CaptureRequest{}); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "4 captures run") {
		t.Errorf("one too many: %v", err)
	}
	if err := r.ping(1); err != nil {
		t.Fatal(err)
	}
	stop()
	for _, c := range all {
		if records := c.wait(t); len(records) < 2 || c.summary.GetReason() != "stopped" {
			t.Errorf("%d records, %v, %v", len(records), c.summary, c.err)
		}
	}
	if err := refused(&ingestv1.CaptureRequest{}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("after the end: %v", err)
	}
	if err := settled(s); err != nil {
		t.Errorf("ledger: %v", err)
	}
}

// TestCaptureUnread: a caller that takes nothing is cut off, keeps no place and leaves nothing that waits for it.
func TestCaptureUnread(t *testing.T) {
	r := newRig(t)
	s, _, stop := start(t, r.config(), newFakeClassify(t).client)
	defer stop()
	client := serveCapture(t, s)
	r.deaf(9001)
	s.recordings.grace = 100 * time.Millisecond
	stream, err := client.Capture(t.Context(), &ingestv1.CaptureRequest{Filter: "udp", DurationMs: 1000})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "a capture that runs", func() error {
		if s.recordings.list.Load() == nil {
			return errors.New("none yet")
		}
		return nil
	})
	r.volley(20_000, 9001) // more than flow control lets through unread
	eventually(t, "its end", func() error {
		if s.recordings.list.Load() != nil {
			return errors.New("the capture is left")
		}
		return nil
	})
	for err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.DeadlineExceeded || !strings.Contains(err.Error(), "not read within 100ms") {
		t.Errorf("it ended with %v", err)
	}
}

func TestOfferDoesNotAllocate(t *testing.T) {
	c, frames := offered(t, "tcp port 443")
	if n := testing.AllocsPerRun(100, func() { c.offer(0, frames, 1, 0) }); n != 0 {
		t.Errorf("offering a batch allocates %v times", n)
	}
	if n := (*c.list.Load())[0].missed(); n == 0 {
		t.Error("the small ring took everything")
	}
}

// offered is a capture with a small ring that nobody reads, and a batch of frames of which all are TCP of port 443.
func offered(tb testing.TB, expression string) (*recordings, [][]byte) {
	tb.Helper()
	f, err := filter.Compile(expression)
	if err != nil {
		tb.Fatal(err)
	}
	c := newRecordings()
	if err := c.add(&recording{filter: f, port: -1, snap: 1 << 18, rings: []*ring.Ring{ring.New(4096)}}); err != nil {
		tb.Fatal(err)
	}
	frame := make([]byte, 60)
	copy(frame[12:], "\x08\x00\x45\x00\x00\x2e\x00\x01\x40\x00\x40\x06\x00\x00\x0a\x00\x00\x01\x0a\x00\x00\x02\xc0\x00\x01\xbb")
	frames := make([][]byte, rxBatch)
	for i := range frames {
		frames[i] = frame
	}
	return c, frames
}

// BenchmarkOffer is what captures cost a worker, a frame: none, one that matches nothing, one that takes all.
func BenchmarkOffer(b *testing.B) {
	for _, c := range []struct{ name, expression string }{{"none", ""}, {"no match", "udp port 53"}, {"match", "tcp port 443"}} {
		b.Run(c.name, func(b *testing.B) {
			list, frames := offered(b, c.expression)
			if c.name == "none" {
				list.remove((*list.list.Load())[0])
			}
			var buf []byte
			for b.Loop() {
				list.offer(0, frames, 1, 0)
				if c.name == "match" {
					for r := (*list.list.Load())[0].rings[0]; ; {
						if _, ok := r.Next(); !ok {
							break
						}
						buf, _, _ = r.Take(buf[:0])
					}
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/rxBatch, "ns/frame")
		})
	}
}
