package edge

import (
	"context"
	"io"
	"net/http"
	"path/filepath"
	"sync"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	"github.com/tidegate-mesh/tidegate/libs/token"
	"github.com/tidegate-mesh/tidegate/services/gateway/internal/auth"
)

// BenchmarkChain is the chain with a real token and a trivial handler, without a socket.
func BenchmarkChain(b *testing.B) {
	r, raw := benchRig(b)
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "https://gate.example/api/v1/rules?limit=10", http.NoBody)
	if err != nil {
		b.Fatal(err)
	}
	req.RequestURI, req.RemoteAddr = "/api/v1/rules?limit=10", "192.0.2.1:1000"
	req.Header.Set("Authorization", "Bearer "+raw)
	req.Header.Set("Accept-Encoding", "gzip, zstd")
	b.ReportAllocs()
	for b.Loop() {
		r.ServeHTTP(&discard{h: http.Header{}}, req)
	}
}

type discard struct{ h http.Header }

func (d *discard) Header() http.Header         { return d.h }
func (d *discard) WriteHeader(int)             {}
func (d *discard) Write(p []byte) (int, error) { return len(p), nil }

func benchRig(b *testing.B) (*Chain, string) {
	dir := b.TempDir()
	if _, err := token.Init(dir); err != nil {
		b.Fatal(err)
	}
	raw, err := token.Issue(dir, token.Claims{Subject: "bench", Role: "viewer"})
	if err != nil {
		b.Fatal(err)
	}
	cfg := auth.DefaultConfig()
	cfg.JWKSFile = filepath.Join(dir, token.JWKSFile)
	tel := telemetry.Discard("gateway")
	a, err := auth.New(context.Background(), cfg, tel, nil)
	if err != nil {
		b.Fatal(err)
	}
	limits := DefaultConfig()
	limits.ViewerReads = 1e6
	c, err := New(limits, tel, a, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"items":[]}`)
	}))
	if err != nil {
		b.Fatal(err)
	}
	return c, raw
}

// BenchmarkServe is the same over 64 TLS connections; client and server share the CPUs, so it is a lower bound.
func BenchmarkServe(b *testing.B) {
	for name, h2 := range map[string]bool{"http1": false, "http2": true} {
		b.Run(name, func(b *testing.B) {
			c, raw := benchRig(b)
			r := serve(b, nil, nil)
			r.chain.auth, r.chain.next, r.chain.limits = c.auth, c.next, c.limits
			const conns = 64
			clients := make([]*http.Client, conns)
			ask := func(client *http.Client) {
				req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "https://"+r.addr+"/api/v1/rules?limit=10", http.NoBody)
				if err != nil {
					b.Error(err)
					return
				}
				req.Header.Set("Authorization", "Bearer "+raw)
				answer, err := client.Do(req)
				if err != nil {
					b.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, answer.Body)
				answer.Body.Close()
				if answer.StatusCode != http.StatusOK {
					b.Errorf("status %d", answer.StatusCode)
				}
			}
			for i := range clients {
				clients[i] = r.client(b, h2)
				ask(clients[i])
			}
			b.ResetTimer()
			var wg sync.WaitGroup
			for i, client := range clients {
				n := b.N / conns
				if i < b.N%conns {
					n++
				}
				wg.Add(1)
				go func() {
					defer wg.Done()
					for range n {
						ask(client)
					}
				}()
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "requests/s")
		})
	}
}
