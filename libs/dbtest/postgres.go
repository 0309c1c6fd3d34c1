package dbtest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
)

// postgres is the folder of PostgreSQL's programs.
type postgres string

// findPostgres returns the newest installed version and the user it runs as.
func findPostgres(t testing.TB) (postgres, *syscall.Credential) {
	t.Helper()
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	slices.SortFunc(found, func(a, b string) int { return len(a) - len(b) })
	bin := ""
	if len(found) > 0 {
		bin = found[len(found)-1]
	} else if p, err := exec.LookPath("initdb"); err == nil {
		bin = p
	}
	need(t, bin != "", "PostgreSQL is not installed: install Debian's package postgresql (make setup)")
	return postgres(filepath.Dir(bin)), credential(t, "postgres")
}

func (p postgres) path(program string) string { return filepath.Join(string(p), program) }

func (p postgres) install(s *Server) error {
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	secret := filepath.Join(s.dir, "password")
	if err := os.WriteFile(secret, []byte(Password), 0o600); err != nil {
		return err
	}
	if err := chown(secret, s.as); err != nil {
		return err
	}
	data := filepath.Join(s.dir, "data")
	if _, err := output(s.program(ctx, p.path("initdb"), "--pgdata", data, "--username", "postgres", "--pwfile", secret,
		"--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-sync")); err != nil {
		return err
	}
	hba := "host all postgres 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 scram-sha-256\n"
	if s.ca != nil {
		hba = "host all postgres 127.0.0.1/32 scram-sha-256\nhostssl all all 127.0.0.1/32 scram-sha-256\n"
	}
	if err := os.WriteFile(filepath.Join(data, "pg_hba.conf"), []byte(hba), 0o600); err != nil {
		return err
	}
	// The single-user mode needs no running server. One statement a line.
	c := s.program(ctx, p.path("postgres"), "--single", "-D", data, "-F", "postgres")
	in, err := c.StdinPipe()
	if err != nil {
		return err
	}
	go func() {
		_, _ = fmt.Fprintf(in, "CREATE ROLE %s LOGIN PASSWORD '%s'\nCREATE DATABASE %s OWNER %s\n", User, Password, Database, User)
		_ = in.Close()
	}()
	_, err = output(c)
	return err
}

func (p postgres) command(s *Server) (*exec.Cmd, error) {
	// No Unix socket. Without fsync a killed server loses nothing, a power cut would.
	args := []string{"-D", filepath.Join(s.dir, "data"), "-p", strconv.Itoa(s.port), "-h", s.host, "-F", "-N", "60",
		"-c", "unix_socket_directories="}
	if s.ca != nil {
		args = append(args, "-c", "ssl=on", "-c", "ssl_cert_file="+filepath.Join(s.dir, "cert.pem"), "-c", "ssl_key_file="+filepath.Join(s.dir, "key.pem"))
	}
	c := s.program(context.Background(), p.path("postgres"), append(args, s.extra...)...)
	c.SysProcAttr.Pdeathsig = syscall.SIGQUIT // which ends its children too
	return c, nil
}

func (p postgres) ready(ctx context.Context, s *Server) error {
	_, err := output(s.program(ctx, p.path("pg_isready"), "-q", "-h", s.host, "-p", strconv.Itoa(s.port)))
	return err
}

func (p postgres) sql(ctx context.Context, s *Server, statements string) (string, error) {
	c := s.program(ctx, p.path("psql"), "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", s.host, "-p", strconv.Itoa(s.port),
		"-U", "postgres", "-d", Database, "-f", "-")
	c.Env = append(c.Env, "PGPASSWORD="+Password)
	in, err := c.StdinPipe()
	if err != nil {
		return "", err
	}
	go func() {
		_, _ = in.Write([]byte(statements))
		_ = in.Close()
	}()
	return output(c)
}

func (p postgres) reload() string { return "SELECT pg_reload_conf()" }

func (p postgres) setReadOnly(s *Server, on bool) error {
	if !on {
		ctx, cancel := context.WithTimeout(context.Background(), startLimit)
		defer cancel()
		_, err := p.sql(ctx, s, "SELECT pg_promote()") // waits until it is done
		return err
	}
	s.Stop()
	signal := filepath.Join(s.dir, "data", "standby.signal")
	if err := os.WriteFile(signal, nil, 0o600); err != nil {
		return err
	}
	if err := chown(signal, s.as); err != nil {
		return err
	}
	s.Run()
	return nil
}

func (p postgres) create(name string) string {
	return fmt.Sprintf("CREATE DATABASE %s OWNER %s", name, User)
}
