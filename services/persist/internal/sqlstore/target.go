package sqlstore

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/config"
)

// kinds are the values of DB_TYPE.
var kinds = []string{"postgresql", "mysql", "mariadb", "galera", "sqlite"}

// target is a checked Config.Type and URL.
type target struct {
	kind string // one of kinds
	// url is PostgreSQL's URL or SQLite's path; for the MySQL family it is without password and options.
	url      string
	password password
	mysql    mysqlTarget
}

// mysqlTarget is what the URL of MySQL, MariaDB or Galera says.
type mysqlTarget struct {
	hosts          []string // host:port, in the order in which they are tried
	user, database string
	tls            tlsOptions
	connectTimeout time.Duration
}

// kindOf is the kind that a URL's scheme stands for; "" without a scheme of a server.
func kindOf(raw string) string {
	scheme, _, ok := strings.Cut(raw, "://")
	if !ok {
		return ""
	}
	switch scheme {
	case "postgres", "postgresql":
		return "postgresql"
	case "mysql", "mariadb":
		return scheme
	case "file", "sqlite":
		return "sqlite"
	}
	return scheme
}

// example is a URL for an error to show.
func example(kind string) string {
	switch kind {
	case "postgresql":
		return "postgres://user:password@host:5432/tidegate?sslmode=require"
	case "galera":
		return "mysql://user:password@host1:3306,host2:3306,host3:3306/tidegate?sslmode=require"
	}
	return kind + "://user:password@host:3306/tidegate?sslmode=require"
}

func parse(cfg Config) (target, error) {
	kind := strings.ToLower(strings.TrimSpace(cfg.Type))
	is := kindOf(cfg.URL)
	if kind == "" {
		kind = "sqlite"
		if is != "" {
			kind = is
		} else if strings.ContainsAny(cfg.URL, "@=") && !strings.HasPrefix(cfg.URL, "file:") {
			// What other programs take: a file of that name, password included, would be made.
			return target{}, errors.New("DATABASE_URL is no URL: use postgres://, mysql:// or mariadb://, or set DB_TYPE=sqlite if it is the path of a file")
		}
		if !slices.Contains(kinds, kind) {
			return target{}, fmt.Errorf("DATABASE_URL begins with %s://, which is not supported: use postgres://, mysql://, mariadb:// or the path of an SQLite file", kind)
		}
	}
	if !slices.Contains(kinds, kind) {
		return target{}, fmt.Errorf("unknown DB_TYPE %q: use postgresql, mysql, mariadb, galera or sqlite%s", cfg.Type, meant(kind))
	}
	fits := is == kind || kind == "sqlite" && is == ""
	if kind == "mysql" || kind == "mariadb" || kind == "galera" {
		fits = is == "mysql" || is == "mariadb"
	}
	switch {
	case fits:
	case cfg.URL == "":
		return target{}, fmt.Errorf("DB_TYPE is %s but DATABASE_URL is empty: set it, for example %s", kind, example(kind))
	case kind == "sqlite" && slices.Contains(kinds, is):
		return target{}, fmt.Errorf("DB_TYPE is sqlite but DATABASE_URL begins with %s: set DB_TYPE=%s, or the path of a file", cfg.URL[:strings.Index(cfg.URL, "://")+3], is)
	default:
		want, _, _ := strings.Cut(example(kind), "://")
		return target{}, fmt.Errorf("DB_TYPE is %s but DATABASE_URL does not begin with %s://: set it, for example %s", kind, want, example(kind))
	}
	t := target{kind: kind, password: password{file: cfg.PasswordFile}}
	var err error
	switch kind {
	case "sqlite":
		if cfg.PasswordFile != "" {
			return target{}, errors.New("DATABASE_PASSWORD_FILE is set, but an SQLite file has no password: leave it empty, or set DATABASE_URL")
		}
		t.url, err = sqlitePath(cfg.URL, cfg.DataDir)
	case "postgresql":
		t.url, err = postgresURL(cfg.URL)
	default:
		err = t.parseMySQL(cfg.URL)
	}
	return t, err
}

// Check reports what is wrong with cfg without connecting.
func Check(cfg Config) error {
	_, err := parse(cfg)
	return err
}

// meant names the known kind that was probably meant; names that people use for a database count too.
func meant(typed string) string {
	names := map[string]string{"postgres": "postgresql", "pg": "postgresql", "maria": "mariadb", "percona": "mysql", "sqlite3": "sqlite"}
	for _, k := range kinds {
		names[k] = k
	}
	if n := config.Nearest(typed, slices.Collect(maps.Keys(names))); n != "" {
		return "; did you mean " + names[n] + "?"
	}
	return ""
}

// parseMySQL reads mysql://user:password@host:port,host:port/database?options. No error repeats the URL, which may
// have a password in it.
func (t *target) parseMySQL(raw string) error {
	_, rest, _ := strings.Cut(raw, "://")
	end := strings.IndexAny(rest, "/?#")
	if end < 0 {
		end = len(rest)
	}
	at := strings.LastIndex(rest[:end], "@")
	hosts := rest[at+1 : end]
	// url.Parse knows one host only.
	u, err := url.Parse("mysql://" + rest[:at+1] + "host" + rest[end:])
	if err != nil {
		return errors.New("DATABASE_URL is not a valid URL: escape special characters of the password as %XX")
	}
	m := mysqlTarget{user: u.User.Username(), database: strings.TrimPrefix(u.Path, "/"), connectTimeout: 5 * time.Second}
	t.password.fixed, _ = u.User.Password()
	switch {
	case m.user == "":
		return fmt.Errorf("DATABASE_URL names no user: write it as %s", example(t.kind))
	case m.database == "" || strings.Contains(m.database, "/"):
		return fmt.Errorf("DATABASE_URL names no database: write it as %s", example(t.kind))
	}
	for _, h := range strings.Split(hosts, ",") {
		addr, err := hostPort(h)
		if err != nil {
			return err
		}
		m.hosts = append(m.hosts, addr)
	}
	if len(m.hosts) > 1 && t.kind != "galera" {
		return fmt.Errorf("DATABASE_URL names %d hosts, which only a Galera cluster has: set DB_TYPE=galera, or name one host", len(m.hosts))
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return errors.New("the options of DATABASE_URL after '?' cannot be read: write them as sslmode=require&sslrootcert=/path")
	}
	for key, values := range q {
		v := values[len(values)-1]
		switch key {
		case "sslmode":
			m.tls.mode = v
		case "sslrootcert":
			m.tls.root = v
		case "sslcert":
			m.tls.cert = v
		case "sslkey":
			m.tls.key = v
		case "connect_timeout":
			n, err := strconv.Atoi(v)
			if err != nil || n < 1 || n > 600 {
				return errors.New("connect_timeout in DATABASE_URL must be 1 to 600 seconds")
			}
			m.connectTimeout = time.Duration(n) * time.Second
		default:
			return fmt.Errorf("DATABASE_URL has the option %q, which is not known: use sslmode, sslrootcert, sslcert, sslkey or connect_timeout", key)
		}
	}
	if err := m.tls.check(); err != nil {
		return err
	}
	t.mysql = m
	t.url = m.user + "@" + strings.Join(m.hosts, ",") + "/" + m.database
	return nil
}

// hostPort adds the port that MySQL listens on.
func hostPort(s string) (string, error) {
	bad := fmt.Errorf("DATABASE_URL has the host %q: write a name or address with an optional port, as host:3306 or [2001:db8::1]:3306", s)
	var host string
	port := "3306"
	if h, p, err := net.SplitHostPort(s); err == nil {
		host, port = h, p
	} else {
		host = strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")
		if strings.Contains(host, ":") && net.ParseIP(host) == nil {
			return "", bad
		}
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if host == "" || err != nil || n == 0 {
		return "", bad
	}
	return net.JoinHostPort(host, port), nil
}
