package rig

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
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
		home, _ := os.UserHomeDir() // without one the name is only not found
		path = filepath.Join(home, ".cache", "tidegate", "tools", "nats-server")
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

const postgresBin = "/usr/lib/postgresql/15/bin"

// Postgres starts a PostgreSQL cluster of the test's own, as user postgres, and returns its URL.
func Postgres(t testing.TB) string {
	t.Helper()
	NeedRoot(t)
	_, err := os.Stat(filepath.Join(postgresBin, "initdb"))
	Need(t, err == nil, "postgresql-15 (make setup)")
	u, err := user.Lookup("postgres")
	if err != nil {
		t.Fatal(err)
	}
	uid, _ := strconv.ParseUint(u.Uid, 10, 32)
	gid, _ := strconv.ParseUint(u.Gid, 10, 32)
	// Not t.TempDir: its parents are closed to other users.
	dir, err := os.MkdirTemp("", "tidegate-e2e-pg-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chown(dir, int(uid), int(gid)); err != nil {
		t.Fatal(err)
	}
	as := func(name string, args ...string) *exec.Cmd {
		c := exec.Command(filepath.Join(postgresBin, name), args...)
		c.Dir = dir
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
		return c
	}
	data := filepath.Join(dir, "data")
	if out, err := as("initdb", "-D", data, "-U", "tidegate", "-A", "trust", "--no-sync").CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v: %s", err, out)
	}
	addr := FreeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	server := as("postgres", "-D", data, "-p", port, "-h", "127.0.0.1", "-k", dir)
	log := &logBuffer{}
	server.Stdout, server.Stderr = log, log
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { _ = server.Wait(); close(done) }()
	t.Cleanup(func() {
		_ = server.Process.Signal(syscall.SIGINT) // fast shutdown
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			_ = server.Process.Kill()
			<-done
		}
		if t.Failed() {
			t.Logf("output of postgres:\n%s", tail(log.String(), 3000))
		}
	})
	err = Eventually(20*time.Second, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_, err := Output(ctx, filepath.Join(postgresBin, "pg_isready"), "-h", "127.0.0.1", "-p", port, "-U", "tidegate")
		return err
	})
	if err != nil {
		t.Fatalf("PostgreSQL does not start: %v", err)
	}
	if out, err := as("createdb", "-h", "127.0.0.1", "-p", port, "-U", "tidegate", "tidegate").CombinedOutput(); err != nil {
		t.Fatalf("createdb: %v: %s", err, out)
	}
	return fmt.Sprintf("postgres://tidegate@127.0.0.1:%s/tidegate?sslmode=disable", port)
}
