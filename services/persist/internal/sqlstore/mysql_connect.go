package sqlstore

import (
	"context"
	"crypto/rand"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/go-sql-driver/mysql"
	"golang.org/x/sys/unix"
)

const (
	// deadPeer is after how long a connection whose other end has gone silent is given up.
	deadPeer = 10 * time.Second
	// mysqlSession makes every server behave the same. Strict: a value that does not fit is an error, never
	// changed. READ COMMITTED: fewer gap locks, and what Galera certifies best.
	mysqlSession = `SET NAMES utf8mb4 COLLATE utf8mb4_bin, SESSION time_zone = '+00:00',
		SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION,ERROR_FOR_DIVISION_BY_ZERO,ONLY_FULL_GROUP_BY,ANSI_QUOTES,PIPES_AS_CONCAT',
		SESSION lock_wait_timeout = 10`
)

// mysqlConnector makes connections to the first host that will do, beginning with the one that did last.
type mysqlConnector struct {
	t    target
	last atomic.Int64 // index into the hosts
}

// Driver implements driver.Connector.
func (c *mysqlConnector) Driver() driver.Driver { return mysql.MySQLDriver{} }

// Connect implements driver.Connector.
func (c *mysqlConnector) Connect(ctx context.Context) (driver.Conn, error) {
	secret, err := c.t.password.read()
	if err != nil {
		return nil, err
	}
	hosts := c.t.mysql.hosts
	first := int(c.last.Load())
	var problems []error
	for i := range hosts {
		n := (first + i) % len(hosts)
		conn, err := c.connectTo(ctx, hosts[n], secret)
		if err == nil {
			c.last.Store(int64(n))
			return conn, nil
		}
		if len(hosts) == 1 {
			return nil, hide(err, secret)
		}
		problems = append(problems, fmt.Errorf("%s: %w", hosts[n], err))
		if ctx.Err() != nil {
			break
		}
	}
	return nil, hide(joined{problems}, secret)
}

// joined is several errors in one line.
type joined struct{ errs []error }

func (j joined) Error() string {
	var b strings.Builder
	for i, err := range j.errs {
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(err.Error())
	}
	return b.String()
}

func (j joined) Unwrap() []error { return j.errs }

func (c *mysqlConnector) connectTo(ctx context.Context, addr, secret string) (driver.Conn, error) {
	m := c.t.mysql
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	cfg := mysql.NewConfig()
	cfg.User, cfg.Passwd, cfg.Net, cfg.Addr, cfg.DBName = m.user, secret, "tcp", addr, m.database
	cfg.Timeout = m.connectTimeout
	cfg.Logger = silent{} // every error is returned too
	cfg.DialFunc = dial
	cfg.ConnectionAttributes = "program_name:tidegate-persist"
	if cfg.TLS, cfg.AllowFallbackToPlaintext, err = m.tls.config(host); err != nil {
		return nil, err
	}
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		return nil, err
	}
	// A server that is stopped in the middle of the handshake says nothing more.
	ctx, cancel := context.WithTimeout(ctx, 2*m.connectTimeout)
	defer cancel()
	conn, err := connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.setUp(ctx, conn); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// setUp refuses a server of another kind and a Galera node that does not take queries, and sets the session.
func (c *mysqlConnector) setUp(ctx context.Context, conn driver.Conn) error {
	version, err := pair(ctx, conn, "SELECT 'version', version()")
	if err != nil {
		return err
	}
	wsrep, err := pair(ctx, conn, "SHOW GLOBAL VARIABLES LIKE 'wsrep_on'")
	if err != nil {
		return err
	}
	maria := strings.Contains(version, "MariaDB")
	switch kind := c.t.kind; {
	case kind == "galera" && wsrep != "ON":
		return errors.New("DB_TYPE is galera but the server is no Galera node: set DB_TYPE=mariadb or mysql")
	case kind != "galera" && wsrep == "ON":
		return fmt.Errorf("DB_TYPE is %s but the server is a Galera node: set DB_TYPE=galera", kind)
	case kind == "mysql" && maria:
		return errors.New("DB_TYPE is mysql but the server is MariaDB: set DB_TYPE=mariadb")
	case kind == "mariadb" && !maria:
		return errors.New("DB_TYPE is mariadb but the server is MySQL: set DB_TYPE=mysql")
	case kind == "galera":
		for _, s := range []struct{ name, want string }{{"wsrep_cluster_status", "Primary"}, {"wsrep_ready", "ON"}} {
			got, err := pair(ctx, conn, "SHOW GLOBAL STATUS LIKE '"+s.name+"'")
			if err != nil {
				return err
			}
			if got != s.want {
				return fmt.Errorf("the Galera node takes no queries (%s is %q): it has lost the majority of the cluster or is joining it", s.name, got)
			}
		}
	}
	x, ok := conn.(driver.ExecerContext)
	if !ok {
		return errors.New("the driver cannot set up a session")
	}
	statements := []string{mysqlSession, "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED"}
	switch c.t.kind {
	case "mysql": // sizes of this moment instead of up to a day old ones
		statements = append(statements, "SET SESSION information_schema_stats_expiry = 0")
	case "mariadb": // a warning for each duplicate of a LOAD DATA; MySQL allows 1,024, and more to administrators
		statements = append(statements, "SET SESSION max_error_count = 65535")
	}
	for _, q := range statements {
		if _, err := x.ExecContext(ctx, q, nil); err != nil {
			return fmt.Errorf("set up the session: %w", err)
		}
	}
	return nil
}

// pair is the second column of a query's first row; "" without a row.
func pair(ctx context.Context, conn driver.Conn, query string) (string, error) {
	q, ok := conn.(driver.QueryerContext)
	if !ok {
		return "", errors.New("the driver cannot ask what server it is")
	}
	rows, err := q.QueryContext(ctx, query, nil)
	if err != nil {
		return "", fmt.Errorf("ask what server it is: %w", err)
	}
	defer rows.Close() //nolint:errcheck // the row was read
	row := make([]driver.Value, 2)
	switch err := rows.Next(row); {
	case errors.Is(err, io.EOF):
		return "", nil
	case err != nil:
		return "", fmt.Errorf("ask what server it is: %w", err)
	}
	switch v := row[1].(type) {
	case []byte:
		return string(v), nil
	case string:
		return v, nil
	}
	return "", fmt.Errorf("ask what server it is: the answer is a %T", row[1])
}

// dial makes a connection that notices within deadPeer when the other end is gone, be it cut off or unplugged,
// whether data is on its way (TCP_USER_TIMEOUT, RFC 5482) or an answer is waited for (keep-alive).
func dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: deadPeer / 2, Interval: deadPeer / 10, Count: 5},
		Control: func(network, _ string, raw syscall.RawConn) error {
			if !strings.HasPrefix(network, "tcp") { // a local socket, whose other end cannot go silently
				return nil
			}
			var set error
			if err := raw.Control(func(fd uintptr) {
				set = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(deadPeer.Milliseconds()))
			}); err != nil {
				return err
			}
			return set
		},
	}
	return d.DialContext(ctx, network, addr)
}

type silent struct{}

// Print implements mysql.Logger.
func (silent) Print(...any) {}

// Error numbers of MySQL, MariaDB and Galera; the servers' manuals list them.
const (
	erUnknownCommand    = 1047 // Galera: the node is not ready for queries
	erBadNull           = 1048
	erDupKey            = 1062
	erTableExists       = 1050
	erCantLock          = 1180 // Galera: the commit failed
	erLockWaitTimeout   = 1205
	erDeadlock          = 1213 // Galera: also a failed certification
	erNotAllowedCommand = 1148 // MariaDB: LOAD DATA LOCAL is off
	erLocalInfile       = 3948 // MySQL: the same
	erNoLocalPrivilege  = 3950
	erLocalDisabled     = 4166 // MariaDB: the same, as LOAD DATA says it
	erQueryInterrupted  = 1317
	erServerShutdown    = 1053
	erReadOnly          = 1290
	erPartitionOrder    = 1493
	erSamePartition     = 1517
	erUnknownPartition  = 1507
	erNoPartition       = 1735
)

func mysqlCode(err error) uint16 {
	var e *mysql.MySQLError
	if errors.As(err, &e) {
		return e.Number
	}
	return 0
}

// ownerName is unique to this process and connection pool.
func ownerName() string { return rand.Text() }
