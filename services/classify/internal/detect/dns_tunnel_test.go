package detect

import (
	"encoding/base32"
	"fmt"
	"strings"
	"testing"

	"github.com/tidegate-mesh/tidegate/services/classify/internal/header"
)

// blob is n bytes that look encoded, different for each seed.
func blob(seed, n int) string {
	b := make([]byte, n)
	x := uint32(seed)*2654435761 + 12345 //nolint:gosec // a seed
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b))[:n]
}

// TestNames: a dozen distinct names with data within a minute is a tunnel; names that people and mail servers look up are not.
func TestNames(t *testing.T) {
	th := DefaultThresholds()
	hex := func(i int) string { return fmt.Sprintf("%032x", i*0x1234567) }
	for name, tt := range map[string]struct {
		typ   uint16
		every int64
		name  func(i int) string
		want  bool
	}{
		"TXT with data":           {16, 1e9, func(i int) string { return blob(i, 40) + ".t.example.net" }, true},
		"NULL, iodine's":          {10, 1e9, func(i int) string { return blob(i, 12) + ".t.example.net" }, true},
		"long A":                  {1, 1e9, func(i int) string { return blob(i, 60) + "." + blob(i+99, 50) + ".t.example.net" }, true},
		"CNAME":                   {5, 1e9, func(i int) string { return blob(i, 30) + ".t.example.net" }, true},
		"data once, again":        {16, 1e9, func(int) string { return blob(1, 40) + ".t.example.net" }, false},
		"one in ten seconds":      {16, 10e9, func(i int) string { return blob(i, 40) + ".t.example.net" }, false},
		"web pages":               {1, 1e8, func(i int) string { return fmt.Sprintf("img%d.cdn.example.net", i) }, false},
		"look-up of sums":         {1, 1e8, func(i int) string { return hex(i) + ".av.example.net" }, false},
		"block list":              {1, 1e8, func(i int) string { return fmt.Sprintf("%d.2.0.192.zen.example.net", i) }, false},
		"mail policies":           {16, 1e8, func(i int) string { return fmt.Sprintf("_dmarc.customer%d.example.net", i) }, false},
		"keys of mail":            {16, 1e8, func(i int) string { return fmt.Sprintf("selector%d._domainkey.example.net", i) }, false},
		"a long name of words":    {1, 1e8, func(i int) string { return fmt.Sprintf("service-%d.production.europe-west.internal.example.net", i) }, false},
		"reverse look-ups of v6":  {12, 1e8, func(i int) string { return strings.Repeat("1.", 31) + fmt.Sprint(i%10) + ".ip6.arpa" }, false},
		"TXT of names with words": {16, 1e8, func(i int) string { return fmt.Sprintf("newsletter-europe%d.example.net", i) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			n := NewNames()
			found := false
			for i := range 60 {
				q, ok := header.Query(query(tt.name(i), tt.typ))
				if !ok {
					t.Fatal("no query")
				}
				scan, ok := n.Add(stranger, host, &q, 1e18+int64(i)*tt.every, &th)
				found = found || ok
				if ok && (scan.Type != DNSTunnel || !scan.Alert || scan.Host != host) {
					t.Fatalf("found %+v", scan)
				}
			}
			if found != tt.want {
				t.Errorf("found %v, want %v", found, tt.want)
			}
		})
	}
}
