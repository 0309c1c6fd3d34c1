package rig

import (
	"database/sql"
	"net/url"
	"path/filepath"
	"testing"

	"github.com/go-sql-driver/mysql"
	_ "github.com/lib/pq"  // PostgreSQL
	_ "modernc.org/sqlite" // SQLite

	"github.com/tidegate-mesh/tidegate/libs/dbtest"
)

// SQLite is the database type that is a file and has no server.
const SQLite = "sqlite"

// Database is an empty database of a test's own.
type Database struct {
	Type, URL string
	Server    *dbtest.Server  // nil: SQLite
	Cluster   *dbtest.Cluster // Galera's, else nil
}

// NewDatabase starts a real server of a type, or names an SQLite file, until the test ends.
func NewDatabase(t testing.TB, kind string) *Database {
	t.Helper()
	switch kind {
	case SQLite:
		return &Database{Type: kind, URL: filepath.Join(t.TempDir(), "persist.db")}
	case dbtest.Galera:
		c := dbtest.StartGalera(t)
		return &Database{Type: kind, URL: c.URL, Server: c.Nodes[0], Cluster: c}
	}
	s := dbtest.Start(t, kind)
	return &Database{Type: kind, URL: s.URL, Server: s}
}

// Env is what persist needs to know.
func (d *Database) Env() []string { return []string{"DB_TYPE=" + d.Type, "DATABASE_URL=" + d.URL} }

// Open gives the test its own view of the rows, by the plain driver; of Galera that is node 0's.
func (d *Database) Open(t testing.TB) *sql.DB {
	t.Helper()
	if d.Type == SQLite {
		return open(t, "sqlite", "file:"+d.URL+"?_pragma=busy_timeout(10000)")
	}
	return OpenServer(t, d.Server)
}

// OpenServer is Open for one server or node. A read on Galera waits for what the cluster has committed.
func OpenServer(t testing.TB, s *dbtest.Server) *sql.DB {
	t.Helper()
	if s.Kind == dbtest.PostgreSQL {
		return open(t, "postgres", s.URL)
	}
	u, err := url.Parse(s.AdminURL)
	if err != nil {
		t.Fatal(err)
	}
	c := mysql.NewConfig()
	c.User, c.Passwd, c.Net, c.Addr, c.DBName = dbtest.User, dbtest.Password, "tcp", u.Host, dbtest.Database
	if s.Kind == dbtest.Galera {
		c.Params = map[string]string{"wsrep_sync_wait": "1"}
	}
	return open(t, "mysql", c.FormatDSN())
}

func open(t testing.TB, driver, name string) *sql.DB {
	t.Helper()
	db, err := sql.Open(driver, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}
