package feed

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// authority writes the server's certificate as a PEM file.
func authority(t *testing.T, s *httptest.Server) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRead(t *testing.T) {
	done := make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("/good", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Etag", `"1"`)
		if r.Header.Get("If-None-Match") == `"1"` {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		_, _ = w.Write([]byte("192.0.2.1\n"))
	})
	mux.HandleFunc("/moved", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/good", http.StatusFound) })
	mux.HandleFunc("/down", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://"+r.Host+"/good", http.StatusFound)
	})
	mux.HandleFunc("/loop", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/loop", http.StatusFound) })
	mux.HandleFunc("/hangs", func(http.ResponseWriter, *http.Request) { <-done })
	mux.HandleFunc("/drips", func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			_, _ = w.Write([]byte("#\n"))
			_ = http.NewResponseController(w).Flush()
			time.Sleep(20 * time.Millisecond)
		}
	})
	sent := 0
	mux.HandleFunc("/endless", func(w http.ResponseWriter, _ *http.Request) {
		chunk := bytes.Repeat([]byte("192.0.2.1\n"), 1000)
		for range 100_000 { // a gigabyte
			n, err := w.Write(chunk)
			if sent += n; err != nil {
				return
			}
		}
	})
	mux.HandleFunc("/bomb", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		for range 1000 {
			_, _ = z.Write(make([]byte, 10_000))
		}
		_ = z.Close()
	})
	mux.HandleFunc("/breaks", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		_, _ = w.Write([]byte("192.0.2.1\n"))
	})
	s := httptest.NewTLSServer(mux)
	defer s.Close()
	defer close(done)
	r, err := New(authority(t, s), 500*time.Millisecond, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"/good": "", "/moved": "", "/none": "404", "/down": "without HTTPS", "/loop": "redirects", "/hangs": "in time", "/drips": "in time",
		"/endless": "larger than 1 MiB", "/bomb": "larger than 1 MiB", "/breaks": "cannot be read",
	} {
		begin := time.Now()
		text, v, err := r.Read(context.Background(), s.URL+path, "")
		if took := time.Since(begin); took > 3*time.Second {
			t.Errorf("%s took %s", path, took)
		}
		switch {
		case want == "" && (err != nil || string(text) != "192.0.2.1\n" || v != `"1"`):
			t.Errorf("%s: %q, %q, %v", path, text, v, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), s.URL+path)):
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	if sent > 64<<20 {
		t.Errorf("%d bytes of an endless answer were taken", sent)
	}
	if text, v, err := r.Read(context.Background(), s.URL+"/good", `"1"`); text != nil || v != "" || err != nil {
		t.Errorf("not modified: %q, %q, %v", text, v, err)
	}
	stranger, err := New("", time.Second, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := stranger.Read(context.Background(), s.URL+"/good", ""); err == nil || !strings.Contains(err.Error(), "--list-ca") {
		t.Errorf("an authority that nobody knows: %v", err)
	}
	if _, err := New(filepath.Join(t.TempDir(), "none"), time.Second, 1); err == nil {
		t.Error("a file that is not there is taken")
	}
}

func TestCheckURL(t *testing.T) {
	for s, ok := range map[string]bool{
		"https://lists.example/drop.txt": true, "http://lists.example/drop.txt": false, "file:///etc/passwd": false, "https://": false,
		"https://user:secret@lists.example/": false, "lists.example": false, "https://a b/": false,
	} {
		if err := CheckURL(s); (err == nil) != ok {
			t.Errorf("%s: %v", s, err)
		}
	}
}
