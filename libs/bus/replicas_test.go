package bus_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
)

// cluster starts three servers and returns the URL of one.
func cluster(t *testing.T) string {
	t.Helper()
	var routes []*url.URL
	var ports []int
	for range 3 {
		l, err := net.Listen("tcp", "127.0.0.2:0") // where no client's port can be the same
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close() //nolint:errcheck // only the number is wanted
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
		routes = append(routes, &url.URL{Scheme: "nats", Host: l.Addr().String()})
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	var servers []*server.Server
	for i := range 3 {
		s, err := server.NewServer(&server.Options{
			ServerName: fmt.Sprint("n", i), Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true,
			Cluster: server.ClusterOpts{Name: "tidegate", Host: "127.0.0.2", Port: ports[i]}, Routes: routes,
		})
		if err != nil {
			t.Fatal(err)
		}
		go s.Start()
		t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
		servers = append(servers, s)
	}
	for end := time.Now().Add(time.Minute); !slices.ContainsFunc(servers, (*server.Server).JetStreamIsLeader); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the cluster has no leader")
		}
	}
	return servers[0].ClientURL()
}

// TestReplicas: a number of copies that is set later is that of everything there is, the entries of lists too.
func TestReplicas(t *testing.T) {
	at := cluster(t)
	ctx := context.Background()
	for _, copies := range []int{0, 3} {
		b, err := bus.Connect(ctx, telemetry.Discard("classify"), t.Name(), bus.Config{URL: at, Replicas: copies, FlowsMaxBytes: 1 << 20, EventsMaxBytes: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		for range 5 { // a cluster that has just begun may not answer at first
			if err = b.EnsureStreams(ctx); err == nil {
				break
			}
		}
		if err := errors.Join(err, b.Close()); err != nil {
			t.Fatal(err)
		}
	}
	nc, err := nats.Connect(at)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	streams := []string{bus.StreamFlows, bus.StreamEvents, "OBJ_" + bus.BucketListEntries}
	for _, bucket := range []string{bus.BucketRules, bus.BucketControl, bus.BucketLists, bus.BucketNodes, bus.BucketRequests} {
		streams = append(streams, "KV_"+bucket)
	}
	for _, name := range streams {
		s, err := js.Stream(ctx, name)
		for range 5 {
			if err == nil {
				break
			}
			s, err = js.Stream(ctx, name)
		}
		if err != nil {
			t.Fatal(name, err)
		}
		if n := s.CachedInfo().Config.Replicas; n != 3 {
			t.Errorf("%s has %d copies, want 3", name, n)
		}
	}
}
