package ingest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/tidegate-mesh/tidegate/libs/flow"
	"github.com/tidegate-mesh/tidegate/libs/netlab"
	"github.com/tidegate-mesh/tidegate/libs/packet"
	"github.com/tidegate-mesh/tidegate/libs/rpc"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
	classifyv1 "github.com/tidegate-mesh/tidegate/proto/classify/v1"
)

const patience = 10 * time.Second

// rig is client namespace ─ port a ─ [sensor] ─ port b ─ server namespace.
type rig struct {
	t              *testing.T
	lab            *netlab.Lab
	client, server *netlab.NS
	a, b           string
	bpffs          string
}

var (
	clientAddr = netip.MustParsePrefix("10.77.0.1/24")
	serverAddr = netip.MustParsePrefix("10.77.0.2/24")
)

func newRig(t *testing.T) *rig { return newRigQueues(t, 1) }

// newRigQueues gives the server's side, port b, several queues.
func newRigQueues(t *testing.T, queues int) *rig {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("TIDEGATE_CI") == "1" {
			t.Fatal("the sensor's tests need root")
		}
		t.Skip("the sensor's tests need root")
	}
	lab, err := netlab.New("tgi")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	r := &rig{t: t, lab: lab, a: netlab.Ifname("tgi", "a"), b: netlab.Ifname("tgi", "b")}
	r.client, r.server = r.namespace("client"), r.namespace("server")
	r.bpffs = filepath.Join(t.TempDir(), "bpf")
	unmount, err := netlab.BPFFS(r.bpffs)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unmount(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		_ = xdp.Remove(r.bpffs, r.a)
		_ = xdp.Remove(r.bpffs, r.b)
	})
	r.wire(r.client, r.a, clientAddr, 1)
	r.wire(r.server, r.b, serverAddr, queues)
	return r
}

func (r *rig) namespace(name string) *netlab.NS {
	ns, err := r.lab.Namespace(name)
	if err != nil {
		r.t.Fatal(err)
	}
	return ns
}

func (r *rig) wire(ns *netlab.NS, port string, addr netip.Prefix, queues int) {
	r.t.Helper()
	// The far end comes first: a veth takes redirected frames only if its peer had GRO on when it came up.
	err := r.lab.Veth(netlab.End{NS: ns, Name: "eth0", Addrs: []netip.Prefix{addr}}, netlab.End{Name: port}, queues)
	if err != nil {
		r.t.Fatal(err)
	}
}

// remake takes port a away and makes it again; the sensor's readiness follows.
func (r *rig) remake(tel *telemetry.Telemetry) {
	r.t.Helper()
	if out, err := exec.Command("ip", "link", "del", r.a).CombinedOutput(); err != nil { //nolint:gosec // the rig's own name
		r.t.Fatalf("%v: %s", err, out)
	}
	eventually(r.t, "readiness says so", func() error {
		if p := tel.Ready(); len(p) == 0 || !strings.Contains(p[0], "capture") {
			return fmt.Errorf("problems: %v", p)
		}
		return nil
	})
	r.wire(r.client, r.a, clientAddr, 1)
	eventually(r.t, "ready again", func() error {
		if p := tel.Ready(); len(p) != 0 {
			return fmt.Errorf("problems: %v", p)
		}
		return nil
	})
}

func (r *rig) config() Config {
	c := DefaultConfig()
	c.Ifaces, c.BPFFS, c.Sensor = []string{r.a, r.b}, r.bpffs, "test-sensor"
	c.MaxFlows = 1 << 16
	return c
}

// echo serves TCP echo on the server's port 7777 until the test ends.
func (r *rig) echo() {
	r.t.Helper()
	if err := r.server.Do(r.listen); err != nil {
		r.t.Fatal(err)
	}
}

// host makes this machine the server, at port a.
func (r *rig) host() {
	r.t.Helper()
	if out, err := exec.Command("ip", "address", "add", serverAddr.String(), "dev", r.a).CombinedOutput(); err != nil {
		r.t.Fatalf("%v: %s", err, out)
	}
	if err := r.listen(); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) listen() error {
	ln, err := net.Listen("tcp", netip.AddrPortFrom(serverAddr.Addr(), 7777).String())
	if err != nil {
		return err
	}
	r.t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
		}
	}()
	return nil
}

func (r *rig) dial() (net.Conn, error) {
	var c net.Conn
	err := r.client.Do(func() (err error) {
		c, err = net.DialTimeout("tcp", netip.AddrPortFrom(serverAddr.Addr(), 7777).String(), 3*time.Second)
		return err
	})
	if err == nil {
		err = c.SetDeadline(time.Now().Add(patience))
	}
	return c, err
}

// exchange opens a connection and echoes n bytes, a kilobyte at a time.
func (r *rig) exchange(n int) error {
	c, err := r.dial()
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // the echo was checked
	return echoOn(c, n)
}

func echoOn(c net.Conn, n int) error {
	out, in := make([]byte, 1024), make([]byte, 1024)
	copy(out, "GET /tidegate HTTP/1.1\r\n")
	for ; n > 0; n -= len(out) {
		if _, err := c.Write(out); err != nil {
			return err
		}
		if _, err := io.ReadFull(c, in); err != nil {
			return err
		}
	}
	return nil
}

// ping sends ICMP echo requests (RFC 792) and waits for the answers.
func (r *rig) ping(count int) error {
	var c net.Conn
	err := r.client.Do(func() (err error) {
		c, err = net.DialTimeout("ip4:icmp", serverAddr.Addr().String(), time.Second)
		return err
	})
	if err != nil {
		return err
	}
	defer c.Close() //nolint:errcheck // nothing is left
	_ = c.SetDeadline(time.Now().Add(patience))
	for n := range count {
		m := []byte{8, 0, 0, 0, 0x54, 0x47, 0, byte(n)}
		binary.BigEndian.PutUint16(m[2:], packet.Checksum(0, m))
		if _, err := c.Write(m); err != nil {
			return err
		}
		buf := make([]byte, 128)
		for answered := false; !answered; {
			k, err := c.Read(buf)
			if err != nil {
				return err
			}
			// A raw socket's Read has the IP header.
			m := buf[20:max(k, 20)]
			answered = len(m) >= 8 && m[0] == 0 && m[7] == byte(n)
		}
	}
	return nil
}

// shout sends datagrams that nobody waits for.
func (r *rig) shout() {
	_ = r.client.Do(func() error {
		c, err := net.Dial("udp", netip.AddrPortFrom(serverAddr.Addr(), 9).String())
		if err != nil {
			return err
		}
		_, err = c.Write([]byte("tidegate"))
		return errors.Join(err, c.Close())
	})
}

// eventually waits for f to return nil.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if err = f(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

// start runs a sensor and waits until it is ready. stop ends it and waits.
func start(t *testing.T, cfg Config, client classifyv1.ClassifyServiceClient) (s *Service, tel *telemetry.Telemetry, stop func()) {
	t.Helper()
	tel = telemetry.Discard("ingest")
	s, err := New(cfg, Deps{Telemetry: tel, Classify: []classifyv1.ClassifyServiceClient{client}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("Run: %v", err)
			}
		})
	}
	t.Cleanup(stop)
	eventually(t, "sensor ready", func() error {
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("Run ended: %v", err)
		default:
		}
		if f := tel.Ready(); len(f) > 0 {
			return errors.New(f[0])
		}
		return nil
	})
	return s, tel, stop
}

// fakeClassify is a classify service that remembers everything.
type fakeClassify struct {
	classifyv1.UnimplementedClassifyServiceServer

	t      *testing.T
	addr   string
	srv    *grpc.Server
	conn   *grpc.ClientConn
	client classifyv1.ClassifyServiceClient

	mu      sync.Mutex
	mute    bool // takes, acknowledges nothing
	enough  bool // every opened flow's label is final at once
	batches map[uint64]int
	opens   map[uint64]flow.Open
	ends    map[uint64]flow.End
	data    []byte
	windows int
	packets uint64
}

func newFakeClassify(t *testing.T) *fakeClassify {
	t.Helper()
	f := &fakeClassify{t: t, addr: "127.0.0.1:0", batches: map[uint64]int{}, opens: map[uint64]flow.Open{}, ends: map[uint64]flow.End{}}
	f.start()
	conn, err := rpc.Dial(telemetry.Discard("ingest"), f.addr, rpc.TLS{})
	if err != nil {
		t.Fatal(err)
	}
	f.conn, f.client = conn, classifyv1.NewClassifyServiceClient(conn)
	t.Cleanup(func() { _ = conn.Close(); f.srv.Stop() })
	return f
}

func (f *fakeClassify) start() {
	f.t.Helper()
	ln, err := net.Listen("tcp", f.addr)
	if err != nil {
		f.t.Fatal(err)
	}
	f.addr = ln.Addr().String()
	f.srv = grpc.NewServer()
	classifyv1.RegisterClassifyServiceServer(f.srv, f)
	go func() { _ = f.srv.Serve(ln) }()
}

func (f *fakeClassify) Stream(stream classifyv1.ClassifyService_StreamServer) error {
	for {
		req, err := stream.Recv()
		if err != nil {
			return err
		}
		answer, err := f.take(req)
		if err != nil {
			f.t.Error(err)
			return err
		}
		if answer == nil {
			continue
		}
		if err := stream.Send(answer); err != nil {
			return err
		}
	}
}

func (f *fakeClassify) take(req *classifyv1.StreamRequest) (*classifyv1.StreamResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if proto.Size(req) > 1<<20 {
		return nil, fmt.Errorf("a message of %d bytes", proto.Size(req))
	}
	if w := req.GetWindow(); w != nil {
		if f.mute {
			return nil, nil
		}
		f.windows++
		f.packets += w.GetTotal().GetPackets()
		return &classifyv1.StreamResponse{Window: w.Sequence}, nil
	}
	b := req.GetBatch()
	if err := flow.Validate(b); err != nil {
		return nil, err
	}
	if b.Sensor != "test-sensor" || b.Epoch == 0 || b.Batch == 0 {
		return nil, fmt.Errorf("batch without origin: %q %d %d", b.Sensor, b.Epoch, b.Batch)
	}
	if f.mute {
		return nil, nil
	}
	f.batches[b.Batch]++
	var enough []byte
	for i := range int(b.GetOpens().GetCount()) {
		o := flow.OpenAt(b.Opens, i)
		f.opens[o.ID] = o
		if f.enough {
			enough = binary.LittleEndian.AppendUint64(enough, o.ID)
		}
	}
	for i := range int(b.GetEnds().GetCount()) {
		e := flow.EndAt(b.Ends, i)
		f.ends[e.ID] = e
	}
	f.data = append(f.data, b.GetSegments().GetData()...)
	return &classifyv1.StreamResponse{
		Batch: b.Batch, Published: uint64(flow.Records(b)), Enough: enough, //nolint:gosec // a count
	}, nil
}

func (f *fakeClassify) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// balance reports the first of the sensor's equations that does not hold.
func balance(l map[string]uint64) error {
	for _, e := range []struct {
		sum   string
		terms []string
	}{
		{"xdp_seen", []string{"xdp_dropped", "xdp_rate_limited", "xdp_passed", "xdp_forwarded", "xdp_no_reader", "redirected"}},
		{"raised", []string{"received", "ring_drops", "lost_at_restart"}},
		{"received", []string{"accounted", "undecodable"}},
		{"received", []string{"transmitted", "tx_dropped"}},
		{"flows_created", []string{"flows_ended", "flows_active", "flows_summarised", "flows_evicted"}},
		{"batches_made", []string{"batches_acked", "batches_dropped", "batches_pending"}},
		{"records_acked", []string{"records_published", "records_unpublished"}},
		{"windows_made", []string{"windows_acked", "windows_dropped", "windows_pending"}},
	} {
		sum := uint64(0)
		for _, name := range e.terms {
			if _, ok := l[name]; !ok {
				return fmt.Errorf("the ledger has no term %s", name)
			}
			sum += l[name]
		}
		if sum != l[e.sum] {
			return fmt.Errorf("%s = %d, but %v add up to %d; ledger %v", e.sum, l[e.sum], e.terms, sum, l)
		}
	}
	return nil
}

// settled is balance with nothing on its way.
func settled(s *Service) error {
	l := s.Ledger()
	if l["batches_pending"] != 0 || l["windows_pending"] > 1 {
		return fmt.Errorf("%d batches and %d windows are pending", l["batches_pending"], l["windows_pending"])
	}
	return balance(l)
}
