package e2e

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/e2e/rig"
	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/loadgen"
)

// stage is a stage of the ledger by its name.
func stage(t *testing.T, s *api.Status, name string) api.Stage {
	t.Helper()
	for _, x := range s.Ledger.Stages {
		if x.Stage == name {
			return x
		}
	}
	t.Fatalf("no stage %s in %+v", name, s.Ledger)
	return api.Stage{}
}

// TestFullClassifierStops: a classifier that stops reading, as one whose machine swaps, neither stalls capture nor grows it:
// what does not fit is counted, and when it reads again everything goes on and balances.
func TestFullClassifierStops(t *testing.T) {
	const limit = 1 << 20 // of what waits for the classifier, bytes: some seconds of this traffic
	m := newMeshOn(t, rig.SQLite, fmt.Sprintf("TIDEGATE_INGEST_BUFFER_BYTES=%d", limit))
	client := m.link.Client(60, 7)
	stop := background(client)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	streamed := make(chan error, 1)
	go func() {
		_, err := m.link.Stream(20_000, 20, 8, 64, 1).Run(ctx, time.Minute) // flows to be told of
		streamed <- err
	}()
	time.Sleep(3 * time.Second)
	status := func() *api.Status {
		t.Helper()
		s, err := m.gateway.Client(t, "viewer").Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return &s
	}
	received := func(s *api.Status) (n uint64) { return stage(t, s, "decode").In }
	before := status()
	memory, _ := rig.Memory(t, m.ingest.PID())

	m.classify.Signal(syscall.SIGSTOP)
	defer m.classify.Signal(syscall.SIGCONT)
	mark := client.SetMark()
	last, most := received(before), memory
	for range 4 {
		time.Sleep(2 * time.Second)
		s := status()
		if n := received(s); n < last+1000 {
			t.Errorf("capture stalls: %d packets received, %d two seconds before", n, last)
		} else {
			last = n
		}
		now, _ := rig.Memory(t, m.ingest.PID())
		most = max(most, now)
	}
	client.ClearMark()
	dropped := stage(t, status(), "batches").Out["batches_dropped"]
	m.classify.Signal(syscall.SIGCONT)
	time.Sleep(3500 * time.Millisecond) // the longest a benign exchange may take
	if st := mark.Stats(); st.Begun < 240 || st.Completed != st.Begun {
		t.Errorf("%d of %d connections begun meanwhile completed", st.Completed, st.Begun)
	}
	if dropped == 0 {
		t.Errorf("nothing was dropped although %d bytes are the bound: %+v", limit, status().Ledger)
	}
	// What grows within its first minute anyway, and what the collector has not taken yet, come on top of the buffer. Without a
	// bound it would be what a classifier gets in eight seconds, for as long as it takes.
	if most > memory+64 {
		t.Errorf("ingest grew from %.0f to %.0f MiB with a bound of %d bytes", memory, most, limit)
	}
	cancel()
	if err := <-streamed; err != nil {
		t.Error(err)
	}
	acked := stage(t, status(), "batches").Out["batches_acked"]
	if was := stage(t, before, "batches").Out["batches_acked"]; acked <= was {
		t.Errorf("%d batches are acknowledged, %d before the stop", acked, was)
	}
	stop()
	m.gateway.WaitBalanced(t, 20*time.Second)
	t.Logf("%d batches dropped and counted; ingest had %.0f MiB before and at most %.0f", dropped, memory, most)
}

// TestFullInterfaceMadeAgain: a port of the bridge is deleted under traffic and made anew. The all-in-one says so, captures and
// enforces on the new one, and keeps nothing of the old one.
func TestFullInterfaceMadeAgain(t *testing.T) {
	l := rig.Link(t, loadgen.LinkOptions{Prefix: "tgplug"})
	r := runInline(t, l)
	client := l.Client(60, 7)
	stop := background(client)
	time.Sleep(3 * time.Second)
	before := r.footprint(t)
	for range 3 {
		if err := l.Replug(500 * time.Millisecond); err != nil {
			t.Fatal(err)
		}
		err := rig.Eventually(30*time.Second, func() error {
			mark := client.SetMark()
			time.Sleep(time.Second)
			client.ClearMark()
			if st := mark.Stats(); st.Completed == 0 {
				return fmt.Errorf("none of %d connections completes", st.Begun)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if log := r.process.Log(); !strings.Contains(log, "is gone") && !strings.Contains(log, "made again") {
		t.Error("the log tells of no interface that went")
	}
	r.gateway.WaitReady(t, 4, 30*time.Second)
	after := r.footprint(t)
	stopsAttack(t, l, client, loadgen.AmpDNS)
	stop()
	r.gateway.WaitBalanced(t, 20*time.Second)
	// The frame memory of a port is 32 MiB; that of three would be seen.
	t.Logf("before %+v, after three times %+v", before, after)
	if after.goroutines > before.goroutines+5 || after.rss > before.rss+48 || after.heap > before.heap+16 {
		t.Errorf("something of the old interfaces is left: before %+v, after %+v", before, after)
	}
}
