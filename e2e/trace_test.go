package e2e

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	collectorv1 "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"

	"github.com/tidegate-mesh/tidegate/e2e/rig"
)

// receiver is an OTLP receiver that keeps the spans' names and parents by trace.
type receiver struct {
	collectorv1.UnimplementedTraceServiceServer
	mu    sync.Mutex
	spans map[string]map[string]span // trace id → span id
}

type span struct{ name, parent string }

// Export implements the OTLP trace service.
func (r *receiver) Export(_ context.Context, req *collectorv1.ExportTraceServiceRequest) (*collectorv1.ExportTraceServiceResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rs := range req.GetResourceSpans() {
		for _, ss := range rs.GetScopeSpans() {
			for _, s := range ss.GetSpans() {
				trace := hex.EncodeToString(s.GetTraceId())
				if r.spans[trace] == nil {
					r.spans[trace] = map[string]span{}
				}
				r.spans[trace][hex.EncodeToString(s.GetSpanId())] = span{s.GetName(), hex.EncodeToString(s.GetParentSpanId())}
			}
		}
	}
	return &collectorv1.ExportTraceServiceResponse{}, nil
}

// TestVerdictTrace: a verdict is one span tree over all services, and its trace id is the one that is stored.
func TestVerdictTrace(t *testing.T) {
	rig.NeedRoot(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &receiver{spans: map[string]map[string]span{}}
	srv := grpc.NewServer()
	collectorv1.RegisterTraceServiceServer(srv, r)
	go func() { _ = srv.Serve(ln) }()
	defer srv.Stop()

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, rig.Binary(t, "tidegate"), "demo", "--json", "--for", "7s", "--warm-up", "2s", "--attack-for", "3s",
		"--attacks", "syn_flood", "--listen", "", "--metrics", "", "--gateway-listen", "")
	cmd.Env = append(os.Environ(), "OTEL_EXPORTER_OTLP_ENDPOINT=http://"+ln.Addr().String())
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var report demoReport
	if err := json.Unmarshal(out, &report); err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	if len(report.Attacks) != 1 || report.Attacks[0].TraceID == "" {
		t.Fatalf("no trace id: %s", out)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, spans := range r.spans {
		t.Log(id, spans)
	}
	t.Logf("%d traces, wanted %s", len(r.spans), report.Attacks[0].TraceID)
	tree := r.spans[report.Attacks[0].TraceID]
	names := map[string]int{}
	for _, s := range tree {
		names[s.name]++
	}
	for _, want := range []string{"window close", "classify", "decide", "publish", "enforce apply", "first drop", "persist.insert"} {
		if names[want] == 0 {
			t.Errorf("no span %q in the verdict's trace: %v", want, names)
		}
	}
	roots := 0
	for _, s := range tree {
		if _, ok := tree[s.parent]; !ok {
			roots++
		}
	}
	if roots != 1 {
		t.Errorf("%d roots, want one tree: %v", roots, tree)
	}
}
