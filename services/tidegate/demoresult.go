package main

import (
	"fmt"
	"io"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/ledger"
	"github.com/tidegate-mesh/tidegate/libs/xdp"
)

// demoResult is the object that demo --json ends with.
type demoResult struct {
	PPS     uint64         `json:"pps"` // mean over the run
	Packets uint64         `json:"packets"`
	Attacks []attackResult `json:"attacks"`
	Benign  struct {
		Sent      uint64 `json:"sent"`
		Arrived   uint64 `json:"arrived"`
		Begun     uint64 `json:"connections_begun"`
		Completed uint64 `json:"connections_completed"`
	} `json:"benign"`
	Attack struct {
		Sent    uint64 `json:"sent"`
		Arrived uint64 `json:"arrived"`
	} `json:"attack"`
	// LinkDropped are packets of every kind that the generator's interface dropped because the other end took none.
	LinkDropped uint64       `json:"link_dropped"`
	Ledger      ledger.Sheet `json:"ledger"`
}

type attackResult struct {
	Type        string  `json:"type"`
	DetectedMs  float64 `json:"detected_ms"`
	FirstDropMs float64 `json:"first_drop_ms"`
	TraceID     string  `json:"trace_id"`
	Seed        uint64  `json:"seed"`
	// After the first drop, by the victim's count.
	Sent      uint64 `json:"sent_after_drop"`
	Arrived   uint64 `json:"arrived_after_drop"`
	Begun     uint64 `json:"connections_begun_after_drop"`
	Completed uint64 `json:"connections_completed_after_drop"`
	// Of them, those to the port that the attack goes to.
	PortBegun     uint64     `json:"port_connections_begun_after_drop"`
	PortCompleted uint64     `json:"port_connections_completed_after_drop"`
	Held          heldResult `json:"held_after_drop"`
	Stopped       bool       `json:"stopped"`
}

// heldResult is about packets of connections that were open before an attack, to its port if it has one that is served.
type heldResult struct {
	Connections    int    `json:"connections"`
	Sent           uint64 `json:"sent"`
	Arrived        uint64 `json:"arrived"`
	AnswersSent    uint64 `json:"answers_sent"`
	AnswersArrived uint64 `json:"answers_arrived"`
}

// result reads all counters; the traffic has ended, and what was under way has some seconds to arrive.
func (d *demo) result() (demoResult, error) {
	r := demoResult{Ledger: d.stack.settle(5 * time.Second)}
	counts, err := d.link.Counter.Counts()
	if err != nil {
		return r, err
	}
	genTx, genDropped, err := d.link.GeneratorPackets()
	if err != nil {
		return r, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range r.Ledger.Stages {
		if s.Stage == "xdp" {
			r.Packets = s.In
		}
	}
	r.PPS = uint64(float64(r.Packets) / d.elapsed().Seconds())
	r.Attack.Sent, r.Attack.Arrived = d.attackSent, counts.Attack
	r.LinkDropped = genDropped
	r.Benign.Sent, r.Benign.Arrived = genTx-min(genTx, d.attackSent), counts.Benign
	st := d.client.Stats()
	r.Benign.Begun, r.Benign.Completed = st.Begun, st.Completed
	r.Attacks = []attackResult{}
	for _, a := range d.attacks {
		o := attackResult{Type: detectorOf(a.kind), TraceID: a.traceID, Seed: a.seed}
		first := xdp.MonotonicToUnix(a.firstNs).UnixNano()
		if a.detectedNs != 0 {
			o.DetectedMs = float64(a.detectedNs-first) / 1e6
		}
		if a.firstDrop != 0 {
			o.Stopped = true
			o.FirstDropMs = float64(a.firstDrop-first) / 1e6
			o.Sent = a.sent - a.sentAtDetection
			if end := a.atEnd.Attack; end > a.atDetection.Attack {
				o.Arrived = end - a.atDetection.Attack
			}
			if a.mark != nil {
				m := a.mark.Stats()
				o.Begun, o.Completed = m.Begun, m.Completed
				m = a.mark.To(a.port)
				o.PortBegun, o.PortCompleted = m.Begun, m.Completed
				o.Held = heldResult(a.heldAtEnd.Sub(a.heldAtDrop))
			}
		}
		r.Attacks = append(r.Attacks, o)
	}
	return r, nil
}

func (r *demoResult) print(w io.Writer) {
	fmt.Fprintf(w, "\n%d packets, %s a second on average\n", r.Packets, quantity(float64(r.PPS)))
	for _, a := range r.Attacks {
		if !a.Stopped {
			fmt.Fprintf(w, "  %-12s seed %d: not stopped within its time\n", a.Type, a.Seed)
			continue
		}
		fmt.Fprintf(w, "  %-12s seed %d: detected after %.0f ms, first drop after %.0f ms; then %d of %d attack packets arrived, %d of %d benign connections completed\n",
			a.Type, a.Seed, a.DetectedMs, a.FirstDropMs, a.Arrived, a.Sent, a.Completed, a.Begun)
	}
	fmt.Fprintf(w, "  benign: %d of %d connections completed; attack: %d of %d packets arrived\n%s",
		r.Benign.Completed, r.Benign.Begun, r.Attack.Arrived, r.Attack.Sent, ledgerText(r.Ledger))
}
