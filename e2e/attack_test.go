package e2e

import (
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/loadgen"
)

// stopsAttack sends an attack beside the benign client's traffic: after the first second at most 1% of its packets
// may reach the victim, while at least 95% of the benign connections complete. The victim's side counts.
func stopsAttack(t *testing.T, link *loadgen.Link, client *loadgen.Client, kind string) {
	t.Helper()
	sender, err := link.Sender()
	if err != nil {
		t.Fatal(err)
	}
	defer sender.Close()
	frames, err := link.Attack(kind, 11)
	if err != nil {
		t.Fatal(err)
	}
	pps := 50000
	if kind == loadgen.PortScan {
		pps = 5000
	}
	// The first second is for detecting.
	if _, err := sender.Send(t.Context(), frames.Next, pps, uint64(pps)); err != nil {
		t.Fatal(err)
	}
	before, err := link.Counter.Counts()
	if err != nil {
		t.Fatal(err)
	}
	mark := client.SetMark()
	sent, err := sender.Send(t.Context(), frames.Next, pps, uint64(4*pps))
	if err != nil {
		t.Fatal(err)
	}
	client.ClearMark()
	time.Sleep(300 * time.Millisecond)
	after, err := link.Counter.Counts()
	if err != nil {
		t.Fatal(err)
	}
	arrived := after.Attack - before.Attack
	t.Logf("%s: %d of %d attack packets arrived after detection", kind, arrived, sent.Frames)
	if float64(arrived) > 0.01*float64(sent.Frames) {
		t.Errorf("%s: %d of %d attack packets arrived after detection, want at most 1%%", kind, arrived, sent.Frames)
	}
	time.Sleep(3500 * time.Millisecond) // the longest a benign exchange may take
	st := mark.Stats()
	t.Logf("%s: %d of %d benign connections begun after detection completed", kind, st.Completed, st.Begun)
	if st.Begun < 50 || float64(st.Completed) < 0.95*float64(st.Begun) {
		t.Errorf("%s: %d of %d benign connections completed, want at least 95%% of at least 50", kind, st.Completed, st.Begun)
	}
}
