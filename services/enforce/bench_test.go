package enforce

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/policy"
	"github.com/tidegate-mesh/tidegate/libs/rpc"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	enforcev1 "github.com/tidegate-mesh/tidegate/proto/enforce/v1"
)

// BenchmarkAddRule is the way of a user's rule from the gRPC call over NATS and the watch to the entry in the BPF map
// of a real interface, one call after the other, in plain text on loopback. The answer comes after the entry is
// there, which is checked outside the time.
func BenchmarkAddRule(b *testing.B) {
	l := newLink(b, 0)
	r := newRig(b, func(c *Config) {
		c.Ifaces, c.BPFFS, c.RulesPerSecond, c.RuleBurst = []string{l.iface}, l.bpffs, 1e6, 1e6
	})
	files := rpc.TLS{Insecure: true}
	srv, _, err := rpc.NewServer(telemetry.Discard("enforce"), files)
	if err != nil {
		b.Fatal(err)
	}
	r.registrar = srv
	r.start(openXDP(l.bpffs, telemetry.Discard("enforce")))
	waitReady(b, r.svc)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- rpc.ServeListener(ctx, srv, nil, ln) }()
	b.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			b.Error(err)
		}
	})
	conn, err := rpc.Dial(telemetry.Discard("bench"), ln.Addr().String(), files)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = conn.Close() })
	client := enforcev1.NewEnforceServiceClient(conn)

	for _, pace := range []struct {
		name  string
		every time.Duration // 0: one call after the other
	}{{"back to back", 0}, {"paced", 20 * time.Millisecond}} {
		b.Run(pace.name, func(b *testing.B) { addRules(b, r, client, pace.every) })
	}
}

// addRules adds and revokes a rule at a time; only the call of AddRule counts.
func addRules(b *testing.B, r *rig, client enforcev1.EnforceServiceClient, every time.Duration) {
	var took []time.Duration
	next := time.Now()
	for b.Loop() {
		b.StopTimer()
		if every > 0 {
			next = next.Add(every)
			time.Sleep(time.Until(next))
		}
		i := len(took)
		src := netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)})
		b.StartTimer()
		begin := time.Now()
		a, err := client.AddRule(b.Context(), &enforcev1.AddRuleRequest{Rule: dropOf(src.String())})
		took = append(took, time.Since(begin))
		b.StopTimer()
		if err != nil {
			b.Fatal(err)
		}
		id := a.GetRule().GetId()
		r.svc.mu.Lock()
		there := r.svc.pinned(policy.NumericID(id))
		r.svc.mu.Unlock()
		if !there {
			b.Fatalf("AddRule of %s answered before the entry was in the map", id)
		}
		if _, err := client.RevokeRule(b.Context(), &enforcev1.RevokeRuleRequest{Id: id}); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	slices.Sort(took)
	n := len(took)
	b.ReportMetric(took[n/2].Seconds()*1e3, "p50-ms")
	b.ReportMetric(took[n*99/100].Seconds()*1e3, "p99-ms")
}
