package client

import (
	"crypto/x509"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/api"
)

// Entries are read, stored and answered in their own time: that of other requests is too short for a long list.
func TestEntriesTakeTheirTime(t *testing.T) {
	var asked atomic.Int32
	_, s := rig(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		select {
		case <-time.After(400 * time.Millisecond):
			answer(t, w, api.List{Name: "bad", Hosts: 1})
		case <-r.Context().Done():
		}
	})
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	c, err := New(Options{URL: s.URL, Token: "a.b.c", CA: pool, Timeout: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if l, err := c.PutListEntries(t.Context(), "bad", []byte("192.0.2.1\n")); err != nil || l.Hosts != 1 || asked.Load() != 1 {
		t.Errorf("list %+v, asked %d times: %v", l, asked.Load(), err)
	}
}
