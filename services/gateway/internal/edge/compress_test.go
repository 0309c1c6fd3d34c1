package edge

import (
	"bytes"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

var timeZero = time.Unix(1700000000, 0)

func TestNegotiate(t *testing.T) {
	for accept, want := range map[string]string{
		"": "", "gzip": "gzip", "gzip, deflate, br, zstd": "zstd", "zstd;q=0.5, gzip": "gzip", "gzip;q=0": "", "*": "zstd", "*;q=0": "",
		"gzip;q=0, *": "zstd", "zstd;q=0, *;q=0.1": "gzip", "identity": "", "GZIP": "gzip", "gzip;q=2": "", "gzip;q=nan": "", "gzip ; q=0.5": "gzip",
		"br": "", strings.Repeat("gzip,", 300): "",
	} {
		if got := negotiate(accept); got != want {
			t.Errorf("%.40q: %q, want %q", accept, got, want)
		}
	}
}

func TestCompression(t *testing.T) {
	text := strings.Repeat("the tide gate swings shut. ", 200)
	var seen string
	r := newChain(t, nil, func(w http.ResponseWriter, r *http.Request) {
		seen = r.Header.Get("If-None-Match") + r.Header.Get("If-Match")
		q := r.URL.Query()
		h := w.Header()
		kind := q.Get("kind")
		if kind == "" {
			kind = "application/json"
		}
		h.Set("Content-Type", kind)
		if e := q.Get("encoding"); e != "" {
			h.Set("Content-Encoding", e)
		}
		if tag := q.Get("etag"); tag != "" {
			h.Set("Etag", tag)
		}
		if q.Has("length") {
			h.Set("Content-Length", strconv.Itoa(len(text)))
		}
		if q.Has("304") {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		body := text
		if q.Has("small") {
			body = text[:minCompress-1]
		}
		if q.Has("bits") { // in many small writes, with a flush within
			for i := range len(body) {
				_, _ = io.WriteString(w, body[i:i+1])
				if i == 3000 && q.Has("flush") {
					if err := http.NewResponseController(w).Flush(); err != nil {
						t.Error(err)
					}
				}
			}
			return
		}
		_, _ = io.WriteString(w, body)
	})
	decode := map[string]func(io.Reader) (io.Reader, error){
		"":     func(r io.Reader) (io.Reader, error) { return r, nil },
		"gzip": func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) },
		"zstd": func(r io.Reader) (io.Reader, error) { return zstd.NewReader(r, zstd.WithDecoderConcurrency(1)) },
	}
	for _, c := range []struct {
		name, query, accept, want, etag, vary string
	}{
		{"gzip", "etag=%22a%22", "gzip", "gzip", `"a+gzip"`, "Accept-Encoding"},
		{"zstd", "etag=%22a%22", "gzip, zstd", "zstd", `"a+zstd"`, "Accept-Encoding"},
		{"weak tag", "etag=W/%22a%22", "gzip", "gzip", `W/"a"`, "Accept-Encoding"},
		{"with a length", "length", "gzip", "gzip", "", "Accept-Encoding"},
		{"in bits", "bits", "zstd", "zstd", "", "Accept-Encoding"},
		{"in bits with a flush", "bits&flush", "gzip", "gzip", "", "Accept-Encoding"},
		{"not asked", "etag=%22a%22", "", "", `"a"`, "Accept-Encoding"},
		{"refused", "etag=%22a%22", "identity;q=1, *;q=0", "", `"a"`, "Accept-Encoding"},
		{"small", "small&etag=%22a%22", "gzip", "", `"a"`, "Accept-Encoding"},
		{"small in bits", "small&bits", "gzip", "", "", "Accept-Encoding"},
		{"image", "kind=image/png", "gzip", "", "", ""},
		{"events", "kind=text/event-stream", "gzip", "", "", ""},
		{"html", "kind=text/html;%20charset=utf-8", "gzip", "", "", ""},
	} {
		if c.name == "html" {
			c.query, c.want, c.vary = "kind=text/html", "gzip", "Accept-Encoding"
		}
		var headers []string
		if c.accept != "" {
			headers = []string{"Accept-Encoding", c.accept}
		}
		w := r.ask("GET", "/x?"+c.query, "", headers...)
		h := w.Header()
		if h.Get("Content-Encoding") != c.want || h.Get("Etag") != c.etag || h.Get("Vary") != c.vary {
			t.Errorf("%s: encoding %q, tag %q, Vary %q", c.name, h.Get("Content-Encoding"), h.Get("Etag"), h.Get("Vary"))
			continue
		}
		if n := h.Get("Content-Length"); n != "" && n != strconv.Itoa(w.Body.Len()) {
			t.Errorf("%s: length %s of %d bytes", c.name, n, w.Body.Len())
		}
		if c.want != "" && w.Body.Len() > len(text)/4 {
			t.Errorf("%s: %d bytes of %d", c.name, w.Body.Len(), len(text))
		}
		in, err := decode[c.want](w.Body)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		body, err := io.ReadAll(in)
		want := text
		if strings.Contains(c.query, "small") {
			want = text[:minCompress-1]
		}
		if err != nil || !bytes.Equal(body, []byte(want)) {
			t.Errorf("%s: %d bytes come out, want %d (%v)", c.name, len(body), len(want), err)
		}
		if closer, ok := in.(*zstd.Decoder); ok {
			closer.Close()
		}
	}
	if w := r.ask("GET", "/x?encoding=br", "", "Accept-Encoding", "gzip"); w.Header().Get("Content-Encoding") != "br" || w.Body.String() != text {
		t.Errorf("what is compressed already: %q", w.Header().Get("Content-Encoding"))
	}
	if w := r.ask("HEAD", "/x", "", "Accept-Encoding", "gzip"); w.Header().Get("Content-Encoding") != "" {
		t.Errorf("HEAD: %q", w.Header().Get("Content-Encoding"))
	}
	// Handlers know the plain representation's tags only.
	w := r.ask("GET", "/x?304&etag=%22a%22", "", "Accept-Encoding", "gzip", "If-None-Match", `"a+gzip", "b+zstd", W/"c"`)
	if seen != `"a", "b", W/"c"` || w.Code != 304 || w.Header().Get("Etag") != `"a+gzip"` || w.Header().Get("Vary") != "Accept-Encoding" {
		t.Errorf("conditional: the handler saw %q, answer %d with tag %q", seen, w.Code, w.Header().Get("Etag"))
	}
	w = r.ask("GET", "/x?304&etag=%22a%22", "", "Accept-Encoding", "gzip", "If-None-Match", `"a"`)
	if w.Header().Get("Etag") != `"a"` {
		t.Errorf("a tag of the plain representation: answer %q", w.Header().Get("Etag"))
	}
	r.ask("PUT", "/api/v1/x", "", bearer, "Bearer admin", "If-Match", `"5+gzip"`)
	if seen != `"5"` {
		t.Errorf("If-Match: the handler saw %q", seen)
	}
}

// FuzzTarget: what passes is UTF-8 without tricks, and is read alike by everybody.
func FuzzTarget(f *testing.F) {
	for target := range badTargets {
		f.Add(target)
	}
	f.Add("/api/v1/rules/x?a=b&c=%20")
	f.Fuzz(func(t *testing.T, target string) {
		req, err := http.ReadRequest(newReader("GET " + target + " HTTP/1.1\r\nHost: h\r\n\r\n"))
		if err != nil || req.URL.Path == "*" {
			return
		}
		if check(req) != nil {
			return
		}
		for segment := range strings.SplitSeq(strings.TrimPrefix(req.URL.Path, "/"), "/") {
			if segment == "." || segment == ".." {
				t.Fatalf("%q passes with segment %q", target, segment)
			}
		}
		if strings.Contains(req.URL.Path, "//") || strings.ContainsAny(req.URL.Path, "\\\x00\r\n") || !utf8Valid(req.URL.Path) {
			t.Fatalf("%q passes as path %q", target, req.URL.Path)
		}
		for name, values := range req.URL.Query() {
			if s := name + strings.Join(values, ""); !utf8Valid(s) || strings.ContainsAny(s, "\x00\r\n") {
				t.Fatalf("%q passes with query %q", target, s)
			}
		}
		// ServeMux would redirect what it cleans.
		mux := http.NewServeMux()
		mux.HandleFunc("/", func(http.ResponseWriter, *http.Request) {})
		if _, pattern := mux.Handler(req); pattern != "/" {
			t.Fatalf("%q passes and is routed to %q", target, pattern)
		}
	})
}
