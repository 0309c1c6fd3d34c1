package rest

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/tidegate-mesh/tidegate/services/gateway/internal/caller"
)

type sink struct{ header http.Header }

func (s *sink) Header() http.Header         { return s.header }
func (s *sink) WriteHeader(int)             {}
func (s *sink) Write(b []byte) (int, error) { return io.Discard.Write(b) }

func asViewer(ctx context.Context) context.Context {
	return caller.With(ctx, caller.Caller{Subject: "ada", Role: caller.Viewer})
}

// BenchmarkState is what a read of the state now costs in the API itself, behind the edge.
func BenchmarkState(b *testing.B) {
	r := newRig(b)
	for _, path := range []string{"status", "rules", "live", "me"} {
		b.Run(path, func(b *testing.B) {
			req := httptest.NewRequest(http.MethodGet, Prefix+"/"+path, nil)
			req = req.WithContext(asViewer(req.Context()))
			b.ReportAllocs()
			for b.Loop() {
				clear(req.Header)
				r.api.ServeHTTP(&sink{http.Header{}}, req)
			}
		})
	}
}
