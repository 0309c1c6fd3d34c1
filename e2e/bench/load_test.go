package bench

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/api"
	"github.com/tidegate-mesh/tidegate/libs/api/client"
)

// job is what a load process does: it runs apart from what it measures, on a CPU of its own.
type job struct {
	Credentials client.Credentials
	Paths       []string // asked for in turn by Clients connections; none: each holds an event stream instead
	Clients     int
	PerSecond   int // requests of all connections together, evenly spread; 0: as many as are answered
	For         time.Duration
}

// figures are what it saw. Latencies are in milliseconds, sorted.
type figures struct {
	Requests, Failed int
	Seconds          float64
	Latencies        []float64
	First            string // failure
}

func (f *figures) rate() float64 { return float64(f.Requests) / f.Seconds }

// at is a percentile of the latencies.
func (f *figures) at(share float64) float64 {
	if len(f.Latencies) == 0 {
		return 0
	}
	return f.Latencies[min(len(f.Latencies)-1, int(share*float64(len(f.Latencies))))]
}

const jobVariable = "TIDEGATE_BENCH_JOB"

// TestMain makes the same binary the load process, a reader or a classifier that only acknowledges.
func TestMain(m *testing.M) {
	for variable, do := range map[string]func(string) error{jobVariable: work, readerVariable: readFrames, classifierVariable: acknowledge} {
		if text := os.Getenv(variable); text != "" {
			if err := do(text); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			return
		}
	}
	os.Exit(m.Run())
}

// load starts a load process, on one CPU if cpu names it. The result comes when it is over.
func load(t *testing.T, cpu string, j job) (wait func() *figures) {
	t.Helper()
	text, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), jobVariable+"="+string(text))
	if cpu != "" {
		cmd.Path, cmd.Args = "/usr/bin/taskset", []string{"taskset", "-c", cpu, self}
		cmd.Env = append(cmd.Env, "GOMAXPROCS=1")
	}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return func() *figures {
		t.Helper()
		f := &figures{}
		decodeErr := json.NewDecoder(out).Decode(f)
		if err := cmd.Wait(); err != nil || decodeErr != nil {
			t.Fatalf("load: %v, %v", err, decodeErr)
		}
		slices.Sort(f.Latencies)
		return f
	}
}

func work(text string) error {
	var j job
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), j.For)
	defer cancel()
	var f figures
	var mu sync.Mutex
	var wg sync.WaitGroup
	began := time.Now()
	for i := range j.Clients {
		wg.Add(1)
		go func() {
			defer wg.Done()
			var part figures
			if len(j.Paths) > 0 {
				part = read(ctx, j, i)
			} else {
				part = follow(ctx, j)
			}
			mu.Lock()
			defer mu.Unlock()
			f.Requests += part.Requests
			f.Failed += part.Failed
			f.Latencies = append(f.Latencies, part.Latencies...)
			if f.First == "" {
				f.First = part.First
			}
		}()
	}
	wg.Wait()
	f.Seconds = time.Since(began).Seconds()
	return json.NewEncoder(os.Stdout).Encode(&f)
}

// read asks over one connection, one request after the other. It is no http.Client, which would cost more than what it
// measures.
func read(ctx context.Context, j job, offset int) (f figures) {
	fail := func(err error) figures {
		if ctx.Err() == nil {
			f.Failed++
			f.First = err.Error()
		}
		return f
	}
	address, err := url.Parse(j.Credentials.URL)
	if err != nil {
		return fail(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(j.Credentials.CA))
	d := tls.Dialer{Config: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}
	conn, err := d.DialContext(ctx, "tcp", address.Host)
	if err != nil {
		return fail(err)
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })()
	in := bufio.NewReader(conn)
	began := time.Now()
	var every time.Duration
	if j.PerSecond > 0 {
		every = time.Second * time.Duration(j.Clients) / time.Duration(j.PerSecond)
		began = began.Add(every * time.Duration(offset) / time.Duration(j.Clients))
	}
	for i := offset; ctx.Err() == nil; i++ {
		path := j.Paths[i%len(j.Paths)]
		if every == 0 {
			began = time.Now()
		} else { // a late answer delays no later request's time: waiting counts
			began = began.Add(every)
			time.Sleep(time.Until(began))
		}
		if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nAccept: application/json\r\nAccept-Encoding: gzip\r\nAuthorization: Bearer %s\r\n\r\n",
			path, address.Host, j.Credentials.Token); err != nil {
			return fail(err)
		}
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			return fail(err)
		}
		_, err = io.Copy(io.Discard, resp.Body)
		if err = errors.Join(err, resp.Body.Close()); err != nil {
			return fail(err)
		}
		if resp.StatusCode != http.StatusOK {
			f.Failed++
			f.First = path + ": " + resp.Status
			continue
		}
		f.Requests++
		f.Latencies = append(f.Latencies, float64(time.Since(began))/1e6)
	}
	return f
}

// follow holds an event stream and notes how old each attack is on arrival.
func follow(ctx context.Context, j job) (f figures) {
	o, err := j.Credentials.Options()
	if err != nil {
		return figures{Failed: 1, First: err.Error()}
	}
	c, err := client.New(o)
	if err != nil {
		return figures{Failed: 1, First: err.Error()}
	}
	defer c.Close()
	err = c.Stream(ctx, nil, "", func(e client.Event) error {
		if e.Type != api.EventAttack {
			return nil
		}
		var a api.Attack
		if err := json.Unmarshal(e.Data, &a); err != nil {
			return err
		}
		f.Requests++
		f.Latencies = append(f.Latencies, float64(time.Now().UnixNano()-int64(a.UpdatedNs))/1e6)
		return nil
	})
	if err != nil && ctx.Err() == nil {
		f.Failed++
		f.First = err.Error()
	}
	return f
}
