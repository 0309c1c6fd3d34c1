package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/e2e/rig"
	"github.com/tidegate-mesh/tidegate/libs/afxdp"
	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/api/client"
	"github.com/tidegate-mesh/tidegate/libs/loadgen"
	"github.com/tidegate-mesh/tidegate/libs/packet"
)

// Bars in packets a second are of a machine whose limit, the loop that only receives and drops, is referenceLimit. A slower
// one gets the same share of its own limit.
const (
	referenceLimit = 11.2e6
	meshPPS        = 4e6
	meshFlows      = 100_000
	meshNew        = 20_000 // flows a second
	floodedPPS     = 2e6
	connections    = 1000
	latencyPPS     = 500_000
	latencyFlows   = 10_000
)

// meshArgs: all services on one CPU leave the capturing thread out for up to 60 ms at a time. Frames have to bridge that; more
// CPUs need fewer.
var meshArgs = []string{"--ingest-frames", "131072", "--ingest-rx-ring", "131072"}

// question is a DNS query for the A record of www.example.org (RFC 1035 4.1): what new flows carry.
var question = []byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03www\x07example\x03org\x00\x00\x01\x00\x01")

// limit is the best of three runs of the loop that only receives and drops, in packets a second, or what
// TIDEGATE_BENCH_LIMIT says, for trying out.
func limit(t *testing.T) (pps float64) {
	t.Helper()
	if given, err := strconv.ParseFloat(os.Getenv("TIDEGATE_BENCH_LIMIT"), 64); err == nil && given > 0 {
		return given
	}
	for range 3 {
		row := captureRow{name: "limit", backend: afxdp.Native, frames: 2048, flows: 1000}
		run := row.run(t)
		pps = max(pps, run.offered*run.share())
	}
	return pps
}

// paced is a bar's rate for a machine whose limit is top.
func paced(pps, top float64) float64 { return min(pps, pps/referenceLimit*top) }

// TestBenchMesh: the all-in-one with NATS and SQLite in it on CPU 0, the sender with the kernel's part on the last CPU.
func TestBenchMesh(t *testing.T) {
	needBench(t)
	top := limit(t)
	t.Logf("the limit is %.2f M packets/s (%.2f of the reference's %.1f): %.2f M for tap, %.2f M for the flood", top/1e6, top/referenceLimit,
		referenceLimit/1e6, paced(meshPPS, top)/1e6, paced(floodedPPS, top)/1e6)
	t.Run("tap", func(t *testing.T) { meshTap(t, top, paced(meshPPS, top), meshNew) })
	t.Run("tap_scaled", func(t *testing.T) { meshTap(t, top, paced(meshPPS, top), paced(meshNew, top)) })
	t.Run("flood", func(t *testing.T) { meshFlood(t, top, paced(floodedPPS, top)) })
}

// meshLoad is what the mesh's process used while a stream ran.
type meshLoad struct {
	pid              int
	began            time.Time
	used             float64
	start, ten, last float64 // MiB
}

func (s *system) load(t *testing.T) *meshLoad {
	t.Helper()
	l := &meshLoad{pid: s.process.PID(), began: time.Now()}
	l.used = cpuSeconds(t, l.pid)
	l.start, _ = rig.Memory(t, l.pid)
	return l
}

func (l *meshLoad) String() string {
	return fmt.Sprintf("memory %.0f MiB at the start, %.0f after 10 s, %.0f at the end", l.start, l.ten, l.last)
}

// during runs the stream for d beside f, which is told when the stream ends, and returns what was sent and the CPU time used, of
// one core.
func (l *meshLoad) during(t *testing.T, stream loadgen.Stream, d time.Duration, f func(context.Context)) (sent loadgen.Streamed, cpu float64) {
	t.Helper()
	type result struct {
		sent loadgen.Streamed
		err  error
	}
	done := make(chan result, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		sent, err := stream.Run(ctx, d)
		cancel()
		done <- result{sent, err}
	}()
	early, stop := context.WithTimeout(ctx, min(10*time.Second, d/2))
	defer stop()
	f(early)
	l.ten, _ = rig.Memory(t, l.pid)
	f(ctx)
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	l.last, _ = rig.Memory(t, l.pid)
	return r.sent, (cpuSeconds(t, l.pid) - l.used) / time.Since(l.began).Seconds()
}

// received is what came up to the sensor, and its ledger says so.
func (s *system) received(t *testing.T) (uint64, api.Status) {
	t.Helper()
	st := s.gateway.WaitBalanced(t, time.Minute)
	return st.Interfaces[0].Received, st
}

// meshTap: of the packets, so many a second begin flows. The bar's 20,000 do not shrink with the packets on a slower machine,
// so there is a row in which they do.
func meshTap(t *testing.T, top, pps, fresh float64) {
	s := startOn(t, "0", "tap", meshArgs...)
	stream := s.link.Stream(meshFlows, meshFlows/64+1, 1024, frameSize, runtime.NumCPU()-1)
	stream.Share = shareOf(t, stream, pps) // all flows are there then
	stream.Renew, stream.Opening = max(2, uint32(pps/fresh)), question
	before, _ := s.received(t)
	d := seconds(60)
	l := s.load(t)
	sent, cpu := l.during(t, stream, d, func(ctx context.Context) { <-ctx.Done() })
	after, st := s.received(t)
	got, offered := after-before, float64(sent.Frames)/d.Seconds()
	t.Logf("whole mesh, tap: %.2f M packets/s (bar %.2f, %.2f of the limit), %.0f flows/s new; received %d of %d (%.6f), ring drops %d, CPU %.0f%%, %v; rows %v, ledger difference %d\n%s",
		offered/1e6, pps/1e6, offered/top, float64(sent.Renewed)/d.Seconds(), got, sent.Frames, float64(got)/float64(sent.Frames), ringDrops(st),
		100*cpu, l, st.Rows, st.Ledger.Difference, stages(st))
	if got != sent.Frames || ringDrops(st) != 0 {
		t.Errorf("%d of %d packets were lost", int64(sent.Frames)-int64(got), sent.Frames) //nolint:gosec // far from it
	}
}

func meshFlood(t *testing.T, top, pps float64) {
	s := startOn(t, "0", "tap", meshArgs...)
	stream := s.link.Stream(1, 1, 1024, 0, runtime.NumCPU()-1)
	stream.Source, stream.Target, stream.Scatter, stream.SYN = netip.MustParseAddr("32.0.0.0"), loadgen.VictimAddr, 29, true
	calibrated := s.link.Stream(1000, 16, 1024, frameSize, stream.CPU) // not yet the flood
	stream.Share = shareOf(t, calibrated, pps)
	sender, err := s.link.Sender()
	if err != nil {
		t.Fatal(err)
	}
	defer closed(t, sender)
	before, _ := s.received(t)
	c := newConversations()
	own := uint64(0)
	send := func(ctx context.Context, steps []step, rate int, count uint64) {
		onLastCPU(t, func() error {
			sent, err := sender.Send(ctx, c.play(steps), rate, count)
			own += sent.Frames
			return err
		})
	}
	send(t.Context(), beginning, 10_000, uint64(connections*len(beginning)))
	time.Sleep(time.Second)
	began := time.Now()
	d := seconds(60)
	l := s.load(t)
	sent, cpu := l.during(t, stream, d, func(ctx context.Context) { send(ctx, going, 2*connections, 0) })
	send(t.Context(), ending, 10_000, uint64(connections*len(ending)))
	time.Sleep(5 * time.Second) // flows linger before they are told of
	after, st := s.received(t)
	got, offered := after-before, float64(sent.Frames)/d.Seconds()
	t.Logf("whole mesh, SYN flood, each a new source: %.2f M packets/s (bar %.2f, %.2f of the limit); received %d of %d (%.6f), ring drops %d, CPU %.0f%%, %v; rows %v, ledger difference %d\n%s",
		offered/1e6, pps/1e6, offered/top, got, sent.Frames+own, float64(got)/float64(sent.Frames+own), ringDrops(st), 100*cpu, l, st.Rows,
		st.Ledger.Difference, stages(st))
	if got != sent.Frames+own || ringDrops(st) != 0 {
		t.Errorf("%d of %d packets were lost", int64(sent.Frames+own)-int64(got), sent.Frames+own) //nolint:gosec // far from it
	}
	if l.last > 1.25*l.ten {
		t.Errorf("memory grows: %v", l)
	}
	viewer := s.gateway.Client(t, "viewer")
	detected := false
	for a, err := range viewer.Attacks(t.Context(), client.Query{}) {
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("attack: %s on %s, detected %.0f ms after the flood began, %d packets, %d sources", a.Type, a.Target,
			float64(int64(a.DetectedNs)-began.UnixNano())/1e6, a.Packets, a.Sources)
		detected = detected || a.Type == "syn_flood" && strings.HasPrefix(a.Target, loadgen.VictimAddr.String())
	}
	if !detected {
		t.Error("the flood was not detected")
	}
	c.survived(t, viewer)
}

// step is one packet of a connection.
type step struct {
	answer  bool // from the server
	flags   uint8
	payload string
}

var (
	beginning = []step{
		{false, packet.FlagSYN, ""}, {true, packet.FlagSYN | packet.FlagACK, ""}, {false, packet.FlagACK, ""},
		{false, packet.FlagACK | packet.FlagPSH, "GET /events HTTP/1.1\r\nHost: " + loadgen.HostName + "\r\n\r\n"},
		{true, packet.FlagACK | packet.FlagPSH, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"},
	}
	going  = []step{{true, packet.FlagACK | packet.FlagPSH, "data: tick\n\n"}, {false, packet.FlagACK, ""}}
	ending = []step{
		{false, packet.FlagFIN | packet.FlagACK, ""}, {true, packet.FlagFIN | packet.FlagACK, ""}, {false, packet.FlagACK, ""},
	}
)

// conversations are connections to the victim's port 80 whose both directions a mirror port shows.
type conversations struct {
	seq     [connections][2]uint32
	packets [connections]uint64
}

var conversing = netip.MustParsePrefix("10.20.200.0/22")

func newConversations() *conversations { return &conversations{} }

// play makes frames, connection after connection, of each all steps.
func (c *conversations) play(steps []step) func([]byte) []byte {
	n := 0
	return func(b []byte) []byte {
		i, s := n/len(steps)%connections, steps[n%len(steps)]
		n++
		from := conversing.Addr().As4()
		from[2] += byte(i / 250)
		from[3] = byte(1 + i%250)
		h := packet.Header{
			SrcMAC: [6]byte(loadgen.GeneratorMAC), DstMAC: [6]byte(loadgen.VictimMAC), Src: netip.AddrFrom4(from), Dst: loadgen.VictimAddr,
		}
		p, d := packet.TCP{SrcPort: 40000, DstPort: 80}, 0
		if s.answer {
			h.Src, h.Dst, p.SrcPort, p.DstPort, d = h.Dst, h.Src, 80, 40000, 1
		}
		p.Seq, p.Flags, p.Window = c.seq[i][d], s.flags, 64240
		if s.flags&packet.FlagACK != 0 {
			p.Ack = c.seq[i][1-d]
		}
		c.seq[i][d] += uint32(len(s.payload)) //nolint:gosec // short
		if s.flags&(packet.FlagSYN|packet.FlagFIN) != 0 {
			c.seq[i][d]++
		}
		c.packets[i]++
		return h.AppendTCP(b, &p, []byte(s.payload))
	}
}

// survived tells of how many connections the table kept one flow from the SYN to the FIN. A flow is told of in parts, whose
// ids are the flow's and the part's number.
func (c *conversations) survived(t *testing.T, viewer *client.Client) {
	t.Helper()
	type kept struct {
		ids     map[string]bool
		packets uint64
		fin     bool
	}
	byClient := map[string]*kept{}
	for f, err := range viewer.Flows(t.Context(), client.Query{Prefix: conversing.String()}) {
		if err != nil {
			t.Fatal(err)
		}
		k := byClient[f.SrcIP]
		if k == nil {
			k = &kept{ids: map[string]bool{}}
			byClient[f.SrcIP] = k
		}
		k.ids[f.ID[:strings.LastIndexByte(f.ID, '/')]] = true
		k.packets += f.Packets
		k.fin = k.fin || f.EndReason == "fin"
	}
	whole, packets, told := 0, uint64(0), uint64(0)
	for _, k := range byClient {
		if len(k.ids) == 1 && k.fin {
			whole++
		}
		told += k.packets
	}
	for _, n := range c.packets {
		packets += n
	}
	t.Logf("established connections: %d of %d kept their flow through the flood (%.1f%%, bar 100%%); %d of their %d packets are in the database",
		whole, connections, 100*float64(whole)/connections, told, packets)
	if whole != connections || told != packets {
		t.Errorf("%d of %d connections survived, %d of %d packets were recorded", whole, connections, told, packets)
	}
}

// TestBenchDelay: how long it takes from the sending of a packet to the classifier that has it, both on CPU 0. Packets bring
// their time with them.
func TestBenchDelay(t *testing.T) {
	needBench(t)
	link := rig.Link(t, loadgen.LinkOptions{Prefix: "tgben", Sink: true})
	address, listen := rig.FreeAddr(t), rig.FreeAddr(t)
	stop, _ := child(t, classifierVariable+"="+address)
	ingest := startIngest(t, link, address, listen, "tap")
	stream := link.Stream(latencyFlows, latencyFlows/64+1, 1024, frameSize, runtime.NumCPU()-1)
	stream.Share = shareOf(t, stream, latencyPPS) // of flows without stamps
	stream.Renew, stream.Stamped = 100, true
	before, _ := settled(t, listen)
	d := seconds(60)
	sent, err := stream.Run(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	received, wrong := settled(t, listen)
	if err := ingest.Stop(15 * time.Second); err != nil {
		t.Error(err)
	}
	delays := loadgen.NewDelays()
	if err := json.Unmarshal(stop(), &delays); err != nil {
		t.Fatal(err)
	}
	var n, late uint64
	for us, count := range delays {
		n += count
		if us > 10_000 {
			late += count
		}
	}
	t.Logf("packet to classify at %.0f packets/s: p50 %v, p90 %v, p99 %v (bar 10ms), p99.9 %v, longest %v; %d packets timed, %d later than 10 ms; received %d of %d",
		float64(sent.Frames)/d.Seconds(), delays.At(0.5), delays.At(0.9), delays.At(0.99), delays.At(0.999), delays.At(1), n, late, received-before, sent.Frames)
	if n == 0 || wrong != "" || delays.At(0.99) > 10*time.Millisecond {
		t.Errorf("%d packets were timed, p99 %v; %s", n, delays.At(0.99), wrong)
	}
}
