package rig

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// Certs makes the certificates of all services and nats.conf in a folder of the test's own.
func Certs(t testing.TB) (dir string) {
	t.Helper()
	dir = t.TempDir()
	MakeCerts(t, dir)
	return dir
}

// MakeCerts runs tidegate certs on a folder.
func MakeCerts(t testing.TB, dir string, args ...string) {
	t.Helper()
	args = append([]string{"certs", "--dir", dir, "--nats-store", filepath.Join(dir, "nats-store")}, args...)
	if _, err := Output(t.Context(), Binary(t, "tidegate"), args...); err != nil {
		t.Fatal(err)
	}
}

// NATS starts a real nats-server process with the nats.conf of a folder of certificates and returns it with its URL.
func NATS(t testing.TB, certs string) (*Process, string) {
	t.Helper()
	path := os.Getenv("TIDEGATE_NATS_SERVER")
	if path == "" {
		path = toolPath("nats-server")
		if p, err := exec.LookPath("nats-server"); err == nil {
			path = p
		}
	}
	_, err := os.Stat(path)
	Need(t, path != "" && err == nil, "a nats-server (make tools, TIDEGATE_NATS_SERVER)")
	addr := FreeAddr(t)
	host, port, _ := net.SplitHostPort(addr)
	p := Start(t, path, nil, "--config", filepath.Join(certs, "nats.conf"), "--addr", host, "--port", port)
	if err := Eventually(10*time.Second, func() error { return dial(addr) }); err != nil {
		t.Fatalf("nats-server does not answer: %v", err)
	}
	return p, "nats://" + addr
}

func dial(addr string) error {
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err == nil {
		_ = c.Close()
	}
	return err
}
