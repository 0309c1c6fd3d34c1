package edge

import (
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Content codings (RFC 9110 section 8.4, RFC 8878), the preferred one first.
const (
	zstdCoding = "zstd"
	gzipCoding = "gzip"
)

var codings = [...]string{zstdCoding, gzipCoding}

type encoder interface {
	io.WriteCloser
	Flush() error
	Reset(w io.Writer)
}

// zstdWindow keeps a pooled encoder small, and is far below the 8 MiB that clients must accept (RFC 9659).
const zstdWindow = 128 << 10

var encoders = map[string]*sync.Pool{
	zstdCoding: {New: func() any {
		e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(zstdWindow), zstd.WithLowerEncoderMem(true))
		if err != nil { // constant options
			panic(err)
		}
		return e
	}},
	gzipCoding: {New: func() any {
		e, err := gzip.NewWriterLevel(nil, gzip.BestSpeed)
		if err != nil { // a constant level
			panic(err)
		}
		return e
	}},
}

func newEncoder(coding string, w io.Writer) encoder {
	e, _ := encoders[coding].Get().(encoder)
	e.Reset(w)
	return e
}

func putEncoder(coding string, e encoder) {
	e.Reset(nil) // it must not keep the request alive
	encoders[coding].Put(e)
}

// compressible types are text.
func compressible(kind string) bool {
	kind, _, _ = strings.Cut(kind, ";")
	kind = strings.TrimSpace(kind)
	switch kind {
	case eventStream:
		return false
	case "application/json", "application/problem+json", "application/javascript", "application/xml", "image/svg+xml", "application/openapi+json":
		return true
	}
	return strings.HasPrefix(kind, "text/")
}

// negotiate picks the coding that a client prefers of ours, empty for none (RFC 9110, section 12.5.3).
func negotiate(accept string) string {
	if accept == "" || len(accept) > 1024 {
		return ""
	}
	weights := [...]float64{-1, -1} // of codings, negative: not named
	star := 0.0
	for part := range strings.SplitSeq(accept, ",") {
		name, parameters, _ := strings.Cut(part, ";")
		name = strings.TrimSpace(name)
		weight := 1.0
		if parameters != "" {
			text, ok := strings.CutPrefix(strings.ReplaceAll(strings.ToLower(parameters), " ", ""), "q=")
			v, err := strconv.ParseFloat(text, 64)
			if !ok || err != nil || !(v >= 0 && v <= 1) {
				continue
			}
			weight = v
		}
		if name == "*" {
			star = weight
		}
		for i, coding := range codings {
			if strings.EqualFold(name, coding) {
				weights[i] = weight
			}
		}
	}
	best, bestWeight := "", 0.0
	for i, coding := range codings {
		if weights[i] < 0 {
			weights[i] = star
		}
		if weights[i] > bestWeight {
			best, bestWeight = coding, weights[i]
		}
	}
	return best
}

func addVary(h http.Header) {
	for _, v := range h["Vary"] {
		if strings.Contains(strings.ToLower(v), "accept-encoding") {
			return
		}
	}
	h["Vary"] = append(h["Vary"][:len(h["Vary"]):len(h["Vary"])], "Accept-Encoding")
}

// tagHeader marks a strong entity tag as the compressed representation's; a weak one stands for all of them.
func tagHeader(h http.Header, coding string) {
	tag := h.Get("Etag")
	if len(tag) < 2 || tag[0] != '"' || tag[len(tag)-1] != '"' {
		return
	}
	h.Set("Etag", tag[:len(tag)-1]+"+"+coding+`"`)
}

// stripTags undoes tagHeader in a list of tags.
func stripTags(tags string) string {
	if !strings.Contains(tags, "+") {
		return tags
	}
	return strings.NewReplacer("+"+gzipCoding+`"`, `"`, "+"+zstdCoding+`"`, `"`).Replace(tags)
}
