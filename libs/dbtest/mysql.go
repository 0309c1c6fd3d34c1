package dbtest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// mysqld is MariaDB's server or MySQL's.
type mysqld struct {
	root   string // of the folder that MySQL runs in by chroot; "" for MariaDB
	server string
	client string
}

func findMariaDB(t testing.TB) (*mysqld, *syscall.Credential) {
	t.Helper()
	m := &mysqld{server: "/usr/sbin/mariadbd", client: "/usr/bin/mariadb"}
	_, err := os.Stat(m.server)
	need(t, err == nil, "MariaDB is not installed: install Debian's package mariadb-server (make setup)")
	return m, credential(t, "mysql")
}

// findMySQL makes the folder with MySQL in it, once a machine. Debian has MySQL in its unstable suite only, so
// that it runs from a root of its own.
func findMySQL(t testing.TB) (*mysqld, *syscall.Credential) {
	t.Helper()
	need(t, os.Geteuid() == 0, "MySQL runs in a chroot, which only root may do")
	cache, err := os.UserCacheDir() // XDG_CACHE_HOME or ~/.cache
	if err != nil {
		t.Fatal(err)
	}
	m := &mysqld{root: filepath.Join(cache, "tidegate", "roots", "mysql-sid"), server: "/usr/sbin/mysqld", client: "/usr/bin/mysql"}
	if err := os.MkdirAll(filepath.Dir(m.root), 0o755); err != nil { //nolint:gosec // a cache of public packages
		t.Fatal(err)
	}
	lock, err := os.Create(m.root + ".lock")
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close() //nolint:errcheck // it is only a lock, which ends with it
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(m.root); err != nil {
		_, err := exec.LookPath("debootstrap")
		need(t, err == nil, "MySQL is not there and debootstrap, which would fetch it, is not installed (make setup)")
		t.Log("fetching MySQL into " + m.root)
		script := filepath.Join(repository(t), "deploy", "air-gapped", "root.sh")
		out, err := exec.Command(script, m.root, "sid", "mysql-server").CombinedOutput() //nolint:gosec // our own script
		need(t, err == nil, fmt.Sprintf("MySQL cannot be fetched: %v: %s", err, out))
	}
	return m, m.credential(t)
}

// credential is of the user mysql inside the root.
func (m *mysqld) credential(t testing.TB) *syscall.Credential {
	t.Helper()
	users, err := os.ReadFile(filepath.Join(m.root, "etc", "passwd"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(users)) {
		f := strings.Split(line, ":")
		if len(f) < 4 || f[0] != "mysql" {
			continue
		}
		uid, err1 := strconv.ParseUint(f[2], 10, 32)
		gid, err2 := strconv.ParseUint(f[3], 10, 32)
		if err1 == nil && err2 == nil {
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		}
	}
	t.Fatalf("%s has no user mysql: remove the folder, it is made again", m.root)
	return nil
}

// repository is the top folder of the checkout that the test runs in.
func repository(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.work")); err == nil {
			return dir
		}
	}
	t.Fatal("no go.work above the test's folder")
	return ""
}

// path is where the server sees a file of its folder.
func (m *mysqld) path(s *Server, elem ...string) string {
	return filepath.Join(append([]string{strings.TrimPrefix(s.dir, m.root)}, elem...)...)
}

func (m *mysqld) program(ctx context.Context, s *Server, path string, args ...string) *exec.Cmd {
	c := s.program(ctx, path, args...)
	c.SysProcAttr.Chroot = m.root
	return c
}

// rights are those of User on its database.
const rights = "SELECT, INSERT, UPDATE, DELETE, CREATE, DROP, ALTER, INDEX, CREATE TEMPORARY TABLES"

func (m *mysqld) install(s *Server) error {
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	if m.root == "" {
		if _, err := output(m.program(ctx, s, "/usr/bin/mariadb-install-db", "--no-defaults", "--datadir="+m.path(s, "data"),
			"--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve", "--innodb-flush-method=nosync")); err != nil {
			return err
		}
	}
	require := ""
	if s.ca != nil {
		require = " REQUIRE SSL"
	}
	statements := []string{
		"FLUSH PRIVILEGES", // without it a server that bootstraps knows no users
		fmt.Sprintf("ALTER USER root@localhost IDENTIFIED BY '%s'", Password),
		fmt.Sprintf("CREATE USER root@'%%' IDENTIFIED BY '%s'", Password),
		"GRANT ALL PRIVILEGES ON *.* TO root@'%' WITH GRANT OPTION",
		"CREATE DATABASE " + Database,
		fmt.Sprintf("CREATE USER %s@'%%' IDENTIFIED BY '%s'%s", User, Password, require),
		fmt.Sprintf("GRANT %s ON %s.* TO %s@'%%'", rights, Database, User),
	}
	script := strings.Join(statements, ";\n") + ";\n"
	args := m.options(s)
	if m.root == "" {
		c := m.program(ctx, s, m.server, append(args, "--bootstrap")...)
		c.Stdin = strings.NewReader(script)
		_, err := output(c)
		return err
	}
	if err := os.WriteFile(filepath.Join(s.dir, "init.sql"), []byte(script), 0o644); err != nil { //nolint:gosec // read by the server's user
		return err
	}
	_, err := output(m.program(ctx, s, m.server, append(args, "--initialize-insecure", "--init-file="+m.path(s, "init.sql"))...))
	return err
}

// options are what every run of the server has. Without fsync a killed server loses nothing, a power cut would.
func (m *mysqld) options(s *Server) []string {
	args := []string{"--no-defaults", "--datadir=" + m.path(s, "data"), "--socket=" + m.path(s, "sock"), "--pid-file=" + m.path(s, "pid"),
		"--skip-name-resolve", "--innodb-flush-method=nosync", "--innodb-flush-log-at-trx-commit=2", "--innodb-buffer-pool-size=64M",
		"--performance-schema=OFF", "--max-connections=100"}
	if m.root == "" {
		return append(args, "--innodb-log-file-size=32M")
	}
	return append(args, "--innodb-redo-log-capacity=32M", "--disable-log-bin", "--mysqlx=OFF")
}

func (m *mysqld) command(s *Server) (*exec.Cmd, error) {
	args := append(m.options(s), "--bind-address="+s.host, "--port="+strconv.Itoa(s.port))
	if s.ca != nil {
		args = append(args, "--ssl-ca="+m.path(s, "ca.pem"), "--ssl-cert="+m.path(s, "cert.pem"), "--ssl-key="+m.path(s, "key.pem"))
	}
	c := m.program(context.Background(), s, m.server, append(args, s.extra...)...)
	return c, nil
}

func (m *mysqld) ready(ctx context.Context, s *Server) error {
	_, err := m.sql(ctx, s, "SELECT 1")
	return err
}

// sql goes over the Unix socket, which is there in every network namespace.
func (m *mysqld) sql(ctx context.Context, s *Server, statements string) (string, error) {
	c := m.program(ctx, s, m.client, "--no-defaults", "--protocol=socket", "--socket="+m.path(s, "sock"), "--user=root",
		"--batch", "--skip-column-names", "--database="+Database)
	c.Env = append(c.Env, "MYSQL_PWD="+Password)
	c.Stdin = strings.NewReader(statements)
	return output(c)
}

// reload is empty for MySQL, which takes no expired certificate while it runs.
func (m *mysqld) reload() string {
	if m.root == "" {
		return "FLUSH SSL"
	}
	return ""
}

func (m *mysqld) setReadOnly(s *Server, on bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	value := "OFF"
	if on {
		value = "ON"
	}
	_, err := m.sql(ctx, s, "SET GLOBAL read_only = "+value)
	return err
}

func (m *mysqld) create(name string) string {
	return fmt.Sprintf("CREATE DATABASE %s; GRANT %s ON %s.* TO %s@'%%'", name, rights, name, User)
}
