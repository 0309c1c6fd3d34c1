package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/e2e/rig"
	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/loadgen"
)

// TestHostMode: on a machine that protects itself, a flood against it is found from the copies of what its stack gets and
// stopped in front of the stack, while its clients go on.
func TestHostMode(t *testing.T) {
	h := rig.NewHost(t)
	servers, err := loadgen.StartServers(h.Host, loadgen.VictimAddr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = servers.Close() }()
	h.Start(t)
	client := loadgen.NewClient(h.Peer, servers, h.Clients, loadgen.VictimAddr, 60, 1)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- client.Run(ctx) }()
	time.Sleep(3 * time.Second) // what is usual is learnt

	frames, err := loadgen.NewFrames(loadgen.Attack{
		Kind: loadgen.SYNFlood, Seed: 3, Target: loadgen.VictimAddr, Avoid: h.Avoid(),
		SrcMAC: [6]byte(loadgen.GeneratorMAC), DstMAC: [6]byte(loadgen.VictimMAC),
	})
	if err != nil {
		t.Fatal(err)
	}
	var sender *loadgen.Sender
	if err := h.Peer.Do(func() (err error) { sender, err = loadgen.NewSender(rig.PeerIface, 0); return err }); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sender.Close() }()
	const pps = 20_000
	if _, err := sender.Send(t.Context(), frames.Next, pps, pps); err != nil { // a second to be found in
		t.Fatal(err)
	}
	seen := func() (dropped, passed uint64) {
		var s api.Status
		if err := h.Ask(t, &s, "status"); err != nil {
			t.Fatal(err)
		}
		return s.Interfaces[0].XDPPackets["drop"], s.Interfaces[0].XDPPackets["pass"]
	}
	dropped, _ := seen()
	mark := client.SetMark()
	sent, err := sender.Send(t.Context(), frames.Next, pps, 3*pps)
	if err != nil {
		t.Fatal(err)
	}
	client.ClearMark()
	after, passed := seen()
	if n := after - dropped; float64(n) < 0.99*float64(sent.Frames) {
		t.Errorf("%d of %d attack packets were dropped after the first second", n, sent.Frames)
	}
	time.Sleep(3500 * time.Millisecond) // the longest a benign exchange may take
	if st := mark.Stats(); st.Begun < 50 || float64(st.Completed) < 0.95*float64(st.Begun) {
		t.Errorf("%d of %d connections begun meanwhile completed", st.Completed, st.Begun)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}

	var a api.Attack // the only one, else its text is not one object
	if err := h.Ask(t, &a, "attacks", "list"); err != nil {
		t.Fatal(err)
	}
	if a.Type != "syn_flood" || a.FirstDropNs == 0 {
		t.Errorf("attack: %+v", a)
	}
	t.Logf("first drop after %d ms; %d packets dropped, %d passed", (a.FirstDropNs-a.FirstNs)/1e6, after, passed)
	err = rig.Eventually(15*time.Second, func() error {
		var s api.Status
		if err := h.Ask(t, &s, "status"); err != nil {
			return err
		}
		if s.Ledger.Difference != 0 {
			return fmt.Errorf("the ledger does not balance: %+v", s.Ledger)
		}
		if i := s.Interfaces[0]; i.Received == 0 || i.RingDrops != 0 {
			return fmt.Errorf("not everything that passed was read: %+v", i)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
