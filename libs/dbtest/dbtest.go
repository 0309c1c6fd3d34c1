// Package dbtest starts real database servers for tests: PostgreSQL, MariaDB, MySQL, and a Galera cluster of
// three. Each has data of its own in a temporary folder, listens on loopback or in network namespaces that the
// test made, and ends with the test, also when the test process is killed.
//
// It has no database driver: it looks after its servers with their own client programs.
package dbtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/logtail"
)

// The kinds of server, which are also values of DB_TYPE.
const (
	PostgreSQL = "postgresql"
	MariaDB    = "mariadb"
	MySQL      = "mysql"
	Galera     = "galera"
)

// Every server has the empty database tidegate and this user with the rights that persist needs and no others.
const (
	Database = "tidegate"
	User     = "tidegate"
	Password = "tidegate-test"
)

// startLimit bounds how long a server may take until it answers, on a machine that is busy with other things.
const startLimit = 2 * time.Minute

// Server is one database server. Its methods are for one goroutine.
type Server struct {
	Kind string
	// URL is of the empty database as persist takes it, user and password included. With TLS it asks for the
	// server's certificate to be checked against CA.
	URL string
	// AdminURL is the same database as a user who may do everything.
	AdminURL string
	// CA is the file of the authority that signed the server's certificate; empty without TLS.
	CA string

	t     testing.TB
	e     engine
	dir   string // owned by the server's user
	host  string
	port  int
	extra []string
	as    *syscall.Credential
	space func(func() error) error // starts a process in the server's network namespace
	ca    *authority
	cmd   *exec.Cmd
	done  chan struct{} // closed when cmd has ended
	log   logtail.Buffer
}

// engine is what differs between database programs.
type engine interface {
	// install makes the data folder, with the database and its user; certificates are there already.
	install(s *Server) error
	// command is the server's process.
	command(s *Server) (*exec.Cmd, error)
	// ready is nil when the server takes queries.
	ready(ctx context.Context, s *Server) error
	// sql runs statements as administrator and returns what they print.
	sql(ctx context.Context, s *Server, statements string) (string, error)
	// reload is the statement by which a running server reads its certificate again; empty: it has to be restarted.
	reload() string
	setReadOnly(s *Server, on bool) error
	// create makes a further database of User's.
	create(name string) string
}

// Option changes how Start sets a server up.
type Option func(*Server)

// Args adds arguments to the server's command line.
func Args(args ...string) Option {
	return func(s *Server) { s.extra = append(s.extra, args...) }
}

// TLS makes an authority and a certificate for the server's address, and refuses User without TLS.
func TLS() Option {
	return func(s *Server) {
		var err error
		if s.ca, err = newAuthority(); err != nil {
			s.t.Fatal(err)
		}
	}
}

// Start makes a server and starts it. What is missing on the machine skips the test and is named; under
// TIDEGATE_CI it fails the test. Kind galera gives the first node of a cluster with URL naming all three.
func Start(t testing.TB, kind string, options ...Option) *Server {
	t.Helper()
	if kind == Galera {
		c := StartGalera(t, options...)
		c.Nodes[0].URL = c.URL
		return c.Nodes[0]
	}
	s := &Server{Kind: kind, t: t, host: "127.0.0.1", port: freePort(t)}
	var base string // where the data folder goes
	switch kind {
	case PostgreSQL:
		s.e, s.as = findPostgres(t)
	case MariaDB:
		s.e, s.as = findMariaDB(t)
	case MySQL:
		var m *mysqld
		m, s.as = findMySQL(t)
		s.e, base = m, filepath.Join(m.root, "var", "lib")
	default:
		t.Fatalf("there is no database server of the kind %q", kind)
	}
	s.dir = tempDir(t, base, s.as)
	s.setUp(options)
	s.Run()
	return s
}

// setUp applies the options and installs the server.
func (s *Server) setUp(options []Option) {
	s.t.Helper()
	for _, o := range options {
		o(s)
	}
	if s.ca != nil {
		s.CA = filepath.Join(s.dir, "ca.pem")
		if err := s.writeCertificate(time.Hour); err != nil {
			s.t.Fatal(err)
		}
	}
	s.t.Cleanup(func() {
		s.Stop()
		if s.t.Failed() {
			s.t.Logf("log of %s at %s:\n%s", s.Kind, net.JoinHostPort(s.host, strconv.Itoa(s.port)), s.log.Tail(4000))
		}
	})
	scheme, admin := "mysql", "root"
	if s.Kind == PostgreSQL {
		scheme, admin = "postgres", "postgres"
	}
	query := "sslmode=disable"
	if s.ca != nil {
		query = url.Values{"sslmode": {"verify-full"}, "sslrootcert": {s.CA}}.Encode()
	}
	u := url.URL{Scheme: scheme, User: url.UserPassword(User, Password), Host: net.JoinHostPort(s.host, strconv.Itoa(s.port)),
		Path: "/" + Database, RawQuery: query}
	s.URL = u.String()
	u.User = url.UserPassword(admin, Password)
	s.AdminURL = u.String()
	if err := s.e.install(s); err != nil {
		s.t.Fatalf("install %s: %v", s.Kind, err)
	}
}

// Run starts a server that is not running and waits until it answers.
func (s *Server) Run() {
	s.t.Helper()
	if err := s.launch(); err != nil {
		s.t.Fatal(err)
	}
	if err := s.waitReady(startLimit); err != nil {
		s.t.Fatal(err)
	}
}

// launch starts the process and does not wait for it.
func (s *Server) launch(args ...string) error {
	if s.cmd != nil {
		return nil
	}
	cmd, err := s.e.command(s)
	if err != nil {
		return err
	}
	cmd.Args = append(cmd.Args, args...)
	cmd.Stdout, cmd.Stderr = &s.log, &s.log
	start := cmd.Start
	if s.space != nil {
		start = func() error { return s.space(cmd.Start) }
	}
	if err := start(); err != nil {
		return fmt.Errorf("start %s: %w", s.Kind, err)
	}
	done := make(chan struct{})
	s.cmd, s.done = cmd, done
	go func() {
		_ = cmd.Wait() // the status tells which signal
		close(done)
	}()
	return nil
}

func (s *Server) waitReady(limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		err := s.e.ready(ctx, s)
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-s.done:
			s.cmd = nil
			return fmt.Errorf("%s ended by itself: %s", s.Kind, s.log.Tail(2000))
		default:
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s does not answer within %s: %w", s.Kind, limit, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// Stop ends the server cleanly; nothing happens when it is not running.
func (s *Server) Stop() {
	if s.cmd == nil {
		return
	}
	stop := syscall.SIGTERM
	if s.Kind == PostgreSQL {
		stop = syscall.SIGINT // does not wait for the clients to leave
	}
	_ = s.cmd.Process.Signal(stop) // it may have ended by itself
	select {
	case <-s.done:
		s.cmd = nil
	case <-time.After(20 * time.Second):
		s.Kill()
	}
}

// Kill ends the server's process, and all that it started, with SIGKILL, and waits for it. The page cache
// survives, so that what was committed is there after Run.
func (s *Server) Kill() {
	if s.cmd == nil {
		return
	}
	killTree(s.cmd.Process.Pid)
	<-s.done
	s.cmd = nil
}

// SQL runs statements as administrator, with the server's own client, and returns the rows, one a line.
func (s *Server) SQL(statements string) string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	out, err := s.e.sql(ctx, s, statements)
	if err != nil {
		s.t.Fatalf("%s: %v", s.Kind, err)
	}
	return out
}

// NewDatabase makes a further empty database, which belongs to User as the first does, and returns its URL.
func (s *Server) NewDatabase(name string) string {
	s.t.Helper()
	s.SQL(s.e.create(name))
	return s.Named(name)
}

// Named is the URL of a database, which need not be there.
func (s *Server) Named(name string) string {
	return strings.Replace(s.URL, "/"+Database+"?", "/"+name+"?", 1)
}

// SetReadOnly makes the running server refuse, or take again, the writes of all but its administrator. PostgreSQL is
// restarted as a standby, which refuses everyone, and promoted again.
func (s *Server) SetReadOnly(on bool) {
	s.t.Helper()
	if err := s.e.setReadOnly(s, on); err != nil {
		s.t.Fatal(err)
	}
}

// Certify gives a running server with TLS a new certificate of the same authority, valid from an hour ago until
// validFor from now, so that a negative one has expired. MySQL is restarted for it.
func (s *Server) Certify(validFor time.Duration) {
	s.t.Helper()
	if err := s.writeCertificate(validFor); err != nil {
		s.t.Fatal(err)
	}
	if statement := s.e.reload(); statement != "" {
		s.SQL(statement)
		return
	}
	s.Stop()
	s.Run()
}

// program prepares a client or tool of the server, run as the server's user.
func (s *Server) program(ctx context.Context, path string, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, path, args...) //nolint:gosec // a test's own programs
	c.Dir = "/"
	c.Env = []string{"LC_ALL=C", "PATH=" + os.Getenv("PATH"), "TZ=UTC", "HOME=/nonexistent"}
	// It ends with the test process, also when that is killed.
	c.SysProcAttr = &syscall.SysProcAttr{Credential: s.as, Pdeathsig: syscall.SIGKILL}
	return c
}

// output runs a prepared program; an error has what it printed.
func output(c *exec.Cmd) (string, error) {
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s%s", filepath.Base(c.Path), err, stdout.String(), stderr.String())
	}
	return stdout.String(), nil
}

// need skips the test, or fails it in CI, when something is missing.
func need(t testing.TB, ok bool, what string) {
	t.Helper()
	switch {
	case ok:
	case os.Getenv("TIDEGATE_CI") != "":
		t.Fatalf("%s, and in CI nothing may be skipped", what)
	default:
		t.Skip(what)
	}
}

// credential is of the user a server runs as when the test is root, which servers refuse to run as.
func credential(t testing.TB, name string) *syscall.Credential {
	t.Helper()
	if os.Geteuid() != 0 {
		return nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatalf("running as root needs the server's own user: %v", err)
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

// tempDir makes a folder for a server, gone at the end of the test. It is not t.TempDir: that one's parents are
// closed to other users, and its name can be longer than a Unix socket's address may be.
func tempDir(t testing.TB, base string, as *syscall.Credential) string {
	t.Helper()
	sweep(base)
	dir, err := os.MkdirTemp(base, "tidegate-db-"+strconv.Itoa(os.Getpid())+"-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove the server's folder: %v", err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // the test reads the CA of another user's folder
		t.Fatal(err)
	}
	if err := chown(dir, as); err != nil {
		t.Fatal(err)
	}
	return dir
}

// sweep removes what killed tests have left.
func sweep(base string) {
	if base == "" {
		base = os.TempDir()
	}
	left, _ := filepath.Glob(filepath.Join(base, "tidegate-db-*"))
	for _, dir := range left {
		fields := strings.Split(filepath.Base(dir), "-")
		if pid, err := strconv.Atoi(fields[2]); err == nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			_ = os.RemoveAll(dir) // another test may be at it
		}
	}
}

func chown(path string, as *syscall.Credential) error {
	if as == nil {
		return nil
	}
	return os.Chown(path, int(as.Uid), int(as.Gid))
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // only the number is wanted
	return l.Addr().(*net.TCPAddr).Port
}
