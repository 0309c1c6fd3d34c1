package rig

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Jaeger is a running Jaeger all-in-one that keeps traces in memory.
type Jaeger struct {
	OTLP  string // host:port of its OTLP gRPC receiver
	Query string // URL of its query API and page
}

// toolPath is where tools/build.sh puts a tool.
func toolPath(name string) string {
	cache, _ := os.UserCacheDir() // without one the tool is only not found
	return filepath.Join(cache, "tidegate", "tools", name)
}

// Tool is the path of a tool that tools/build.sh builds.
func Tool(t testing.TB, name string) string {
	t.Helper()
	path := toolPath(name)
	_, err := os.Stat(path)
	Need(t, err == nil, name+" (tools/build.sh "+name+")")
	return path
}

// StartJaeger starts a real Jaeger (tools/jaeger) on ports of its own; it is stopped when the test ends.
func StartJaeger(t testing.TB) *Jaeger {
	t.Helper()
	path := Tool(t, "jaeger")
	j := &Jaeger{OTLP: FreeAddr(t)}
	query := FreeAddr(t)
	j.Query = "http://" + query
	Start(t, path, []string{"SPAN_STORAGE_TYPE=memory"},
		"--memory.max-traces", "20000", "--log-level", "warn",
		"--collector.otlp.grpc.host-port", j.OTLP, "--collector.otlp.http.host-port", FreeAddr(t),
		"--collector.grpc-server.host-port", FreeAddr(t), "--collector.http-server.host-port", FreeAddr(t),
		"--query.http-server.host-port", query, "--query.grpc-server.host-port", FreeAddr(t),
		"--admin.http.host-port", FreeAddr(t))
	err := Eventually(30*time.Second, func() error {
		if err := dial(j.OTLP); err != nil {
			return err
		}
		return j.get(t.Context(), "/api/services", &struct{}{})
	})
	if err != nil {
		t.Fatalf("Jaeger does not answer: %v", err)
	}
	return j
}

// Span is a span as Jaeger keeps it.
type Span struct {
	ID, Parent string // Parent is empty for a root
	Name       string
	Service    string
	Start      time.Time // in microseconds
	Duration   time.Duration
	Tags       map[string]any
}

// End is when it ended.
func (s *Span) End() time.Time { return s.Start.Add(s.Duration) }

// Trace reads a trace back through the query API, its spans by id; it is nil while Jaeger does not have it.
func (j *Jaeger) Trace(ctx context.Context, id string) (map[string]*Span, error) {
	var answer struct {
		Data []struct {
			Spans []struct {
				SpanID        string
				OperationName string
				References    []struct{ RefType, TraceID, SpanID string }
				StartTime     int64 // µs
				Duration      int64 // µs
				ProcessID     string
				Tags          []struct {
					Key   string
					Value any
				}
			}
			Processes map[string]struct{ ServiceName string }
		}
	}
	if err := j.get(ctx, "/api/traces/"+id, &answer); err != nil {
		return nil, err
	}
	var spans map[string]*Span
	for _, trace := range answer.Data {
		spans = make(map[string]*Span, len(trace.Spans))
		for _, s := range trace.Spans {
			span := &Span{
				ID: s.SpanID, Name: s.OperationName, Service: trace.Processes[s.ProcessID].ServiceName,
				Start: time.UnixMicro(s.StartTime), Duration: time.Duration(s.Duration) * time.Microsecond,
				Tags: map[string]any{},
			}
			for _, r := range s.References {
				if r.RefType == "CHILD_OF" && r.TraceID == id {
					span.Parent = r.SpanID
				}
			}
			for _, tag := range s.Tags {
				span.Tags[tag.Key] = tag.Value
			}
			if spans[span.ID] != nil {
				return nil, fmt.Errorf("trace %s has span %s twice", id, span.ID)
			}
			spans[span.ID] = span
		}
	}
	return spans, nil
}

// get asks the query API; what it does not know leaves v as it is.
func (j *Jaeger) get(ctx context.Context, path string, v any) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, j.Query+path, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return nil
	default:
		return fmt.Errorf("Jaeger answers %s to %s", resp.Status, path) //nolint:staticcheck // a name
	}
	if err := json.NewDecoder(resp.Body).Decode(v); err != nil {
		return fmt.Errorf("read Jaeger's answer to %s: %w", path, err)
	}
	return nil
}
