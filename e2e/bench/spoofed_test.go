package bench

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/loadgen"
)

// spoofedPPS leaves room in the link itself, whose interfaces queue 256 packets: what is dropped there, of the flood or of good
// traffic, never comes to Tidegate.
const spoofedPPS = 200_000

// TestBenchSpoofed floods a host with SYNs, each from a new source, beside good traffic to the same host and port: connections
// that were open before, and new ones. The look-alike copies clients' SYNs. After the first drop few of the flood's packets may
// arrive, nearly all of the open connections', and new connections complete.
func TestBenchSpoofed(t *testing.T) {
	needBench(t)
	share := func(part, whole uint64) float64 { return 100 * float64(part) / float64(max(1, whole)) }
	table := "percent, median and worst of the seeds, after the first drop\n"
	for _, f := range []struct {
		kind  string
		limit float64
		seeds []int // whose floods go to a port of the servers
	}{{loadgen.SYNFlood, 1, []int{1, 2, 3, 4, 6}}, {loadgen.SYNFloodLookalike, 10, []int{1, 2, 3, 4, 5}}} {
		var arrived, held, answers, completed []float64
		var sum demoAttack
		for _, seed := range f.seeds {
			a, ok := demo(t, seed, pace{spoofedPPS, 5 * time.Second, 500 * time.Millisecond}, []string{f.kind}, "--rate", "180", "--held-connections", "32")[f.kind]
			if !ok {
				continue
			}
			if a.Held.Connections != 16 || a.Held.Sent < 500 || a.PortBegun < 20 {
				t.Errorf("%s, seed %d: too little good traffic to the attacked port to say anything: %+v", f.kind, seed, a)
				continue
			}
			arrived = append(arrived, share(a.Arrived, a.Sent))
			held = append(held, share(min(a.Held.Arrived, a.Held.Sent), a.Held.Sent))
			answers = append(answers, share(min(a.Held.AnswersArrived, a.Held.AnswersSent), a.Held.AnswersSent))
			completed = append(completed, share(a.PortCompleted, a.PortBegun))
			sum.Sent, sum.Arrived, sum.PortBegun, sum.PortCompleted = sum.Sent+a.Sent, sum.Arrived+a.Arrived, sum.PortBegun+a.PortBegun, sum.PortCompleted+a.PortCompleted
			sum.LinkDropped += a.LinkDropped
			sum.Held.Sent, sum.Held.Arrived = sum.Held.Sent+a.Held.Sent, sum.Held.Arrived+a.Held.Arrived
		}
		row := func(what string, values []float64, most bool, bar string) {
			if len(values) == 0 {
				return
			}
			slices.Sort(values)
			worst := values[0]
			if most {
				worst = values[len(values)-1]
			}
			table += fmt.Sprintf("%-20s %-48s %7.3f %7.3f  (bar %s)\n", f.kind, what, values[len(values)/2], worst, bar)
		}
		row("attack packets that arrive", arrived, true, fmt.Sprintf("%g", f.limit))
		row("packets of open connections that arrive", held, false, "99.5")
		row("their answers that arrive", answers, false, "99.5")
		row("connections begun to the port that complete", completed, false, "95")
		table += fmt.Sprintf("%-20s all seeds: %d of %d attack packets, %d of %d packets of open connections, %d of %d connections; dropped by the link itself %d\n",
			f.kind, sum.Arrived, sum.Sent, sum.Held.Arrived, sum.Held.Sent, sum.PortCompleted, sum.PortBegun, sum.LinkDropped)
	}
	t.Log(table)
}
