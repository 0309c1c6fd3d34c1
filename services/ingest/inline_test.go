package ingest

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/xdp"
	ingestv1 "github.com/tidegate-mesh/tidegate/proto/ingest/v1"
)

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
		st.Interfaces[0].Capture != "af_xdp native copy, shared memory" {
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
	r.remake(tel)
	if err := r.exchange(4096); err != nil {
		t.Fatal(err)
	}
	eventually(t, "ledger", func() error { return settled(s) })
	if l := s.Ledger(); l["received"] <= before {
		t.Errorf("received %d, before %d", l["received"], before)
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
	// Three workers send through port a's one socket, so frames are copied to it.
	if st, err := s.Status(context.Background(), &ingestv1.StatusRequest{}); err != nil || st.Interfaces[0].Capture != "af_xdp native copy" {
		t.Errorf("status: %v, %v", st, err)
	}
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
