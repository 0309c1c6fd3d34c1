package dbtest

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"
)

// TestServers: what is committed outlives SIGKILL and a restart, and the user's rights end at its database.
func TestServers(t *testing.T) {
	for _, kind := range []string{PostgreSQL, MariaDB, MySQL} {
		t.Run(kind, func(t *testing.T) {
			if kind == MySQL {
				full(t, "MySQL may have to be fetched first")
			}
			s := Start(t, kind, TLS())
			u, err := url.Parse(s.URL)
			if err != nil || u.User.Username() != User || u.Path != "/"+Database {
				t.Fatalf("URL %s: %v", s.URL, err)
			}
			if u, err := url.Parse(s.NewDatabase("further")); err != nil || u.Path != "/further" {
				t.Errorf("URL of a further database: %v, %v", u, err)
			}
			s.SQL("CREATE TABLE kept (id INT PRIMARY KEY)")
			s.SQL("INSERT INTO kept VALUES (1), (2), (3)")
			s.Kill()
			s.Run()
			if got := s.SQL("SELECT count(*) FROM kept"); got != "3\n" {
				t.Errorf("%q rows after SIGKILL, want 3", got)
			}
			s.Stop()
			s.Run()
			s.SetReadOnly(true)
			if s.Kind == PostgreSQL && s.SQL("SELECT pg_is_in_recovery()") != "t\n" || s.Kind != PostgreSQL && s.SQL("SELECT @@read_only") != "1\n" {
				t.Error("not read-only")
			}
			s.SetReadOnly(false)
			s.SQL("INSERT INTO kept VALUES (4)")
			s.Certify(-time.Minute)
		})
	}
}

// TestGalera: a node that was killed, cut off or isolated has the others' rows when it is back, and a node that is
// cut off refuses queries.
func TestGalera(t *testing.T) {
	full(t, "about 40 seconds")
	c := StartGalera(t)
	if n := strings.Count(c.URL, ":3306"); n != 3 {
		t.Fatalf("URL %s names %d hosts", c.URL, n)
	}
	c.Size(0, 3)
	c.Nodes[0].SQL("CREATE TABLE kept (id INT PRIMARY KEY)")
	for i, f := range []struct {
		what       string
		begin, end func(int)
	}{{"killed", c.Kill, c.Run}, {"cut off", c.Cut, c.Heal}, {"isolated", c.Isolate, c.Heal}} {
		next := (i + 1) % 3
		f.begin(i)
		c.Size(next, 2)
		if f.what == "cut off" {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			if out, err := c.Nodes[i].e.sql(ctx, c.Nodes[i], "SELECT * FROM kept"); err == nil {
				t.Errorf("a node that is cut off answers: %q", out)
			}
			cancel()
		}
		c.Nodes[next].SQL("INSERT INTO kept SELECT COUNT(*) FROM kept")
		f.end(i)
		c.Size(next, 3)
		if got := c.Nodes[i].SQL("SET SESSION wsrep_sync_wait = 1; SELECT count(*) FROM kept"); got != fmt.Sprintf("%d\n", i+1) {
			t.Errorf("node %d was %s and has %q rows, want %d", i, f.what, got, i+1)
		}
	}
}

func full(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("TIDEGATE_FULL") == "" {
		t.Skip("part of make test-full: " + why)
	}
}
