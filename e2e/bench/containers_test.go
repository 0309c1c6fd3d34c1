package bench

import (
	"os"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/e2e/rig"
	"github.com/tidegate-mesh/tidegate/libs/loadgen"
)

// TestBenchContainers: the five services as containers, inline on the machine's network, as compose.yaml starts them.
func TestBenchContainers(t *testing.T) {
	needBench(t)
	if os.Getenv("TIDEGATE_CONTAINERS") == "" {
		t.Skip("needs the images: make images, and TIDEGATE_CONTAINERS=1")
	}
	ports := [2]string{"tgcben0", "tgcben1"}
	s := &system{link: rig.Link(t, loadgen.LinkOptions{Prefix: "tgben", Sink: true, Ports: ports})}
	c := rig.NewCompose(t, rig.ComposeOptions{Project: "tidegate-bench", Ports: ports})
	c.Up(t, 2*time.Minute)
	sent, rate := s.stream(t, 600_000, seconds(60))
	st := rig.WaitBalanced(t, c.Client(t), 10*time.Second)
	counts, err := s.link.Counter.Counts()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("five containers, inline: %.0f packets/s (bar 600,000), %d sent, %d arrived, ring drops %d, ledger difference %d\n%s",
		rate, sent, counts.Benign, ringDrops(st), st.Ledger.Difference, stages(st))
	if counts.Benign != sent || ringDrops(st) != 0 {
		t.Errorf("%d of %d packets were lost", sent-counts.Benign, sent)
	}
}
