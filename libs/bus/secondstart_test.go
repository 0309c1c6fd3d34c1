package bus

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/tidegate-mesh/tidegate/libs/pki"
)

// TestSecondEmbedded: two servers on one folder would write over each other's messages.
func TestSecondEmbedded(t *testing.T) {
	dir := t.TempDir()
	first, err := StartEmbedded(context.Background(), dir, Listen{})
	if err != nil {
		t.Fatal(err)
	}
	if second, err := StartEmbedded(context.Background(), dir, Listen{}); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("a second server: %v", err)
		if err == nil {
			second.Shutdown()
		}
	}
	first.Shutdown()
	next, err := StartEmbedded(context.Background(), dir, Listen{})
	if err != nil {
		t.Fatalf("after the first has ended: %v", err)
	}
	next.Shutdown()
}

// What is free on the disk does not decide whether the streams, with their limits, are made and loaded again.
func TestStoreIsNotBoundedByFreeSpace(t *testing.T) {
	dir := t.TempDir()
	e, err := StartEmbedded(t.Context(), dir, Listen{})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Shutdown()
	if c := e.srv.JetStreamConfig(); c.MaxStore != maxStore || c.StoreDir != filepath.Join(dir, "jetstream") {
		t.Errorf("%+v", c)
	}
	certs, conf := t.TempDir(), filepath.Join(t.TempDir(), "nats.conf")
	if _, err := pki.Ensure(certs, nil, false); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(conf, []byte(ServerConf(certs, dir)), 0o600); err != nil {
		t.Fatal(err)
	}
	if o, err := server.ProcessConfigFile(conf); err != nil || o.JetStreamMaxStore != maxStore {
		t.Errorf("a server of its own: %+v, %v", o, err)
	}
}
