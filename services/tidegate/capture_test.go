package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/pcapfile"
)

func TestCapture(t *testing.T) {
	var file bytes.Buffer
	w, err := pcapfile.NewWriter(&file, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Write(1, make([]byte, 60), 0); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	refused := false
	g := newGateway(t, map[string]http.HandlerFunc{"POST /api/v1/capture": func(rw http.ResponseWriter, _ *http.Request) {
		if refused {
			refuse(rw, api.Problem{Status: 422, Detail: `filter: column 5, at "prot": expected and`})
			return
		}
		_, _ = rw.Write(file.Bytes())
		_ = http.NewResponseController(rw).Flush()
		b, _ := json.Marshal(api.CaptureSummary{Sensor: "s", Reason: "time", Frames: 1, Missed: 3, Dropped: 7, Forwarded: 9})
		rw.Header().Set(http.TrailerPrefix+api.CaptureTrailer, string(b))
	}})
	g.loggedIn(t)
	name := filepath.Join(t.TempDir(), "out.pcap")
	_, stderr, err := command(t, "", "capture", "--filter", "tcp port 443", "-w", name, "--for", "2s", "--count", "5")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"1 frames captured: the time is over", "3 more matched", "7 frames of any kind were dropped by rules", "9 frames of any kind were forwarded"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("%q is not in %s", want, stderr)
		}
	}
	if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, file.Bytes()) {
		t.Errorf("the file has %d bytes, %v", len(got), err)
	}
	if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file's rights: %v, %v", info.Mode(), err)
	}
	if q, _ := g.last(); q != `POST capture {"filter":"tcp port 443","count":5,"bytes":67108864,"for":"2s"}` {
		t.Errorf("asked %s", q)
	}
	stdout, stderr, err := command(t, "", "capture", "-w", "-", "--json")
	if err != nil || stdout != file.String() || !strings.Contains(stderr, `"forwarded":9`) {
		t.Errorf("to standard output: %d bytes, %s, %v", len(stdout), stderr, err)
	}

	// A refused capture leaves the file that was there.
	refused = true
	if _, _, err := command(t, "", "capture", "-w", name, "--filter", "tcp prot"); err == nil || !strings.Contains(err.Error(), "column 5") {
		t.Errorf("refused: %v", err)
	}
	if got, err := os.ReadFile(name); err != nil || len(got) != file.Len() {
		t.Errorf("a refusal left %d bytes, %v", len(got), err)
	}
}
