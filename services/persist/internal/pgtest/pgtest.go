// Package pgtest runs a real PostgreSQL for tests: a cluster of its own in a temporary folder, on a free loopback
// port, gone at the end of the test.
package pgtest

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	_ "github.com/lib/pq" // the driver
)

// Server is one running cluster. Its methods are for one goroutine.
type Server struct {
	URL string // of an empty database, user and password included

	t    testing.TB
	bin  string
	data string
	port int
	as   *syscall.Credential
	cmd  *exec.Cmd
	log  bytes.Buffer
}

const password = "tidegate-test"

// Start makes a cluster and starts it. Without PostgreSQL installed it skips the test; under TIDEGATE_CI=1 it
// fails.
func Start(t testing.TB) *Server {
	t.Helper()
	bin := find()
	if bin == "" {
		const what = "PostgreSQL is not installed: install Debian's package postgresql"
		if os.Getenv("TIDEGATE_CI") == "1" {
			t.Fatal(what)
		}
		t.Skip(what)
	}
	s := &Server{t: t, bin: bin}
	dir := t.TempDir()
	s.data = filepath.Join(dir, "data")
	if os.Getuid() == 0 { // PostgreSQL refuses to run as root
		u, err := user.Lookup("postgres")
		if err != nil {
			t.Fatalf("running as root needs the user postgres: %v", err)
		}
		uid, gid := number(t, u.Uid), number(t, u.Gid)
		s.as = &syscall.Credential{Uid: uid, Gid: gid}
		for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
			if err := os.Chmod(d, 0o755); err != nil { //nolint:gosec // the other user has to get in
				t.Fatal(err)
			}
		}
		if err := os.Chown(dir, int(uid), int(gid)); err != nil {
			t.Fatal(err)
		}
	}
	secret := filepath.Join(dir, "password")
	if err := os.WriteFile(secret, []byte(password), 0o644); err != nil { //nolint:gosec // a test's password, read by postgres
		t.Fatal(err)
	}
	run := s.command("initdb", "--pgdata", s.data, "--username", "postgres", "--pwfile", secret,
		"--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-sync")
	if out, err := run.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.port = l.Addr().(*net.TCPAddr).Port
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	s.URL = fmt.Sprintf("postgres://postgres:%s@127.0.0.1:%d/postgres?sslmode=disable", password, s.port)
	t.Cleanup(func() {
		s.Stop()
		if t.Failed() {
			t.Logf("PostgreSQL's log:\n%s", s.log.String())
		}
	})
	s.Run()
	return s
}

func number(t testing.TB, s string) uint32 {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(n)
}

// find returns the folder of the newest installed version's programs.
func find() string {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	slices.SortFunc(found, func(a, b string) int { return len(a) - len(b) })
	if len(found) > 0 {
		return filepath.Dir(found[len(found)-1])
	}
	if p, err := exec.LookPath("initdb"); err == nil {
		return filepath.Dir(p)
	}
	return ""
}

func (s *Server) command(program string, args ...string) *exec.Cmd {
	c := exec.Command(filepath.Join(s.bin, program), args...) //nolint:gosec // a test's own programs
	c.Dir = filepath.Dir(s.data)
	c.Env = []string{"LC_ALL=C", "PATH=" + os.Getenv("PATH"), "TZ=UTC"}
	// PostgreSQL ends with the test process, also when that is killed.
	c.SysProcAttr = &syscall.SysProcAttr{Credential: s.as, Pdeathsig: syscall.SIGQUIT}
	return c
}

// Run starts a stopped server and waits until it answers.
func (s *Server) Run() {
	s.t.Helper()
	// No Unix socket: the folder's name may be longer than an address allows.
	s.cmd = s.command("postgres", "-D", s.data, "-p", strconv.Itoa(s.port), "-c", "listen_addresses=127.0.0.1",
		"-c", "unix_socket_directories=", "-c", "max_connections=40")
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	if err := s.cmd.Start(); err != nil {
		s.t.Fatalf("start postgres: %v", err)
	}
	db, err := sql.Open("postgres", s.URL)
	if err != nil {
		s.t.Fatal(err)
	}
	defer db.Close() //nolint:errcheck // a test's
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		err := db.PingContext(ctx)
		cancel()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("postgres does not answer: %v", err)
		}
	}
}

// Stop ends the server cleanly; nothing happens when it is stopped.
func (s *Server) Stop() { s.end(syscall.SIGINT) }

// Kill ends the server at once, as a crash would: recovery runs at the next start.
func (s *Server) Kill() { s.end(syscall.SIGQUIT) }

func (s *Server) end(sig syscall.Signal) {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(sig) // it may have ended by itself
	_ = s.cmd.Wait()              // the status tells which signal
	s.cmd = nil
}
