package live

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/bus"
	eventv1 "github.com/tidegate-mesh/tidegate/proto/event/v1"
	flowv1 "github.com/tidegate-mesh/tidegate/proto/flow/v1"
)

const (
	scaleClients = 500
	scaleEvents  = 50                     // to each client
	scaleEvery   = 100 * time.Millisecond // an event and a window
	scaleEnv     = "TIDEGATE_TEST_STREAM" // makes the test binary the clients of the address in it
)

// ticks is an event source without NATS, so that the memory measured is the hub's and the HTTP server's.
type ticks struct{ events chan uint64 }

func (*ticks) State(context.Context, string) (bus.StreamState, error) { return bus.StreamState{}, nil }

func (k *ticks) FollowEvents(ctx context.Context, _ uint64, _ []string, h func(bus.EventMsg), _ func(bus.Gap)) error {
	for {
		select {
		case n := <-k.events:
			h(bus.EventMsg{StreamSeq: n, Attack: &eventv1.Attack{Id: strings.Repeat("a", 500), Revision: uint32(n), UpdatedNs: time.Now().UnixNano()}}) //nolint:gosec // small
		case <-ctx.Done():
			return nil
		}
	}
}

func (*ticks) SubscribeWindows(ctx context.Context, h func(string, *flowv1.Window)) error {
	tick := time.NewTicker(scaleEvery)
	defer tick.Stop()
	w := &flowv1.Window{Sensor: "s"}
	for i := range byte(windowTargets) {
		w.Targets = append(w.Targets, &flowv1.Target{Addr: []byte{192, 0, 2, i}, PrefixLen: hostBits, Counters: &flowv1.Counters{Packets: 1000}})
	}
	for {
		select {
		case <-tick.C:
			h("s", w)
		case <-ctx.Done():
			return nil
		}
	}
}

// BenchmarkClients is how late events are and what the serving process holds with 500 clients in another process,
// each with a TLS connection of its own: run it with -benchtime 1x.
func BenchmarkClients(b *testing.B) {
	for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
		b.Run(proto, func(b *testing.B) {
			for range b.N {
				scale(b, proto)
			}
		})
	}
}

func scale(b *testing.B, proto string) {
	k := &ticks{events: make(chan uint64)}
	g := startGateway(b, k, func(c *Config) { c.Interval = DefaultConfig().Interval }, nil)
	debug.FreeOSMemory() // what the run before held
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	self, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.CommandContext(ctx, self) //nolint:gosec // this test again
	cmd.Env = append(os.Environ(), scaleEnv+"="+proto+" "+g.srv.URL)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20) // the report is one line
	if !lines.Scan() || lines.Text() != "ready" {
		b.Fatalf("the clients did not connect: %q", lines.Text())
	}
	var most float64
	for n := range uint64(scaleEvents) {
		k.events <- n + 1
		time.Sleep(scaleEvery)
		most = max(most, residentMiB(b))
	}
	var late []time.Duration
	if !lines.Scan() || json.Unmarshal(lines.Bytes(), &late) != nil {
		b.Fatalf("the clients did not report: %q", lines.Text())
	}
	if err := cmd.Wait(); err != nil {
		b.Fatal(err)
	}
	if len(late) != scaleClients*scaleEvents {
		b.Fatalf("%d events arrived, want %d", len(late), scaleClients*scaleEvents)
	}
	slices.Sort(late)
	b.ReportMetric(float64(late[len(late)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(late[len(late)*99/100].Microseconds())/1000, "p99-ms")
	b.ReportMetric(most, "MiB-resident")
}

func residentMiB(b *testing.B) float64 {
	b.Helper()
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "VmRSS:")
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		b.Fatal(err)
	}
	return float64(kib) / 1024
}

// scaleMain is the clients' process: it says ready when all have joined, then reports how late each event was.
func scaleMain(what string) error {
	proto, url, _ := strings.Cut(what, " ")
	var mu sync.Mutex
	var late []time.Duration
	var joined, done sync.WaitGroup
	errs := make(chan error, scaleClients)
	for range scaleClients {
		joined.Add(1)
		done.Add(1)
		go func() {
			defer done.Done()
			own, err := scaleClient(proto, url, sync.OnceFunc(joined.Done))
			if err != nil {
				errs <- err
				return
			}
			mu.Lock()
			defer mu.Unlock()
			late = append(late, own...)
		}()
	}
	joined.Wait()
	select {
	case err := <-errs:
		return err
	default:
	}
	fmt.Println("ready")
	done.Wait()
	select {
	case err := <-errs:
		return err
	default:
	}
	return json.NewEncoder(os.Stdout).Encode(late)
}

func scaleClient(proto, url string, joined func()) (late []time.Duration, err error) {
	defer joined()
	tr := &http.Transport{
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // the test's own server
		ForceAttemptHTTP2: proto == "HTTP/2.0",
	}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Get(url) //nolint:noctx // ends with the process
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.Proto != proto || resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("got %s %s, want %s", resp.Proto, resp.Status, proto)
	}
	r := bufio.NewReader(resp.Body)
	var name string
	for len(late) < scaleEvents {
		line, err := r.ReadString('\n')
		if err != nil {
			return nil, fmt.Errorf("after %d events: %w", len(late), err)
		}
		field, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		switch {
		case field == "id":
			joined() // the hub tells where the client stands: what follows is not missed
		case field == "event":
			name = value
		case field == "data" && name == api.EventAttack:
			var a api.Attack
			if err := json.Unmarshal([]byte(value), &a); err != nil {
				return nil, err
			}
			late = append(late, time.Since(a.UpdatedNs.Time()))
		}
	}
	return late, nil
}
