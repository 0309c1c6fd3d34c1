package sqlstore

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/dbtest"
)

// tryOpen opens and closes a store within a bounded time.
func tryOpen(t *testing.T, cfg Config) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	s, err := Open(ctx, cfg)
	if err != nil {
		return err
	}
	return s.Close()
}

// TestTLS opens databases that refuse connections without TLS.
func TestTLS(t *testing.T) {
	for _, kind := range []string{dbtest.PostgreSQL, dbtest.MariaDB} {
		t.Run(kind, func(t *testing.T) {
			srv := dbtest.Start(t, kind, dbtest.TLS())
			base, _, _ := strings.Cut(srv.URL, "?")
			other := filepath.Join(t.TempDir(), "other.pem")
			writeFile(t, other, otherAuthority)
			for _, c := range []struct {
				options string
				ok      bool
			}{
				{"?sslmode=require", true},
				{"?sslmode=verify-ca&sslrootcert=" + srv.CA, true},
				{"?sslmode=verify-full&sslrootcert=" + srv.CA, true},
				{"?sslmode=disable", false},
				{"?sslmode=verify-ca&sslrootcert=" + other, false},
				{"?sslmode=verify-full&sslrootcert=" + other, false},
			} {
				err := tryOpen(t, Config{Type: kind, URL: base + c.options})
				if c.ok != (err == nil) {
					t.Errorf("%s: %v", c.options, err)
				}
				if err != nil && strings.Contains(err.Error(), dbtest.Password) {
					t.Errorf("the error shows the password: %v", err)
				}
			}
			srv.Certify(-time.Minute)
			if err := tryOpen(t, Config{Type: kind, URL: base + "?sslmode=verify-full&sslrootcert=" + srv.CA}); err == nil || !strings.Contains(err.Error(), "expired") {
				t.Errorf("expired certificate: %v", err)
			}
			srv.Certify(time.Hour)
			if err := tryOpen(t, Config{Type: kind, URL: base + "?sslmode=verify-full&sslrootcert=" + srv.CA}); err != nil {
				t.Errorf("renewed certificate: %v", err)
			}
		})
	}
}

// TestPasswordFile changes a password under an open store.
func TestPasswordFile(t *testing.T) {
	change := map[string]string{
		dbtest.PostgreSQL: "ALTER USER " + dbtest.User + " PASSWORD '%s'",
		dbtest.MariaDB:    "ALTER USER " + dbtest.User + "@'%%' IDENTIFIED BY '%s'",
	}
	for _, kind := range []string{dbtest.PostgreSQL, dbtest.MariaDB} {
		t.Run(kind, func(t *testing.T) {
			srv := dbtest.Start(t, kind)
			file := filepath.Join(t.TempDir(), "password")
			cfg := Config{Type: kind, URL: strings.Replace(srv.URL, ":"+dbtest.Password+"@", "@", 1), PasswordFile: file}
			if err := tryOpen(t, cfg); err == nil || !strings.Contains(err.Error(), "DATABASE_PASSWORD_FILE") || !strings.Contains(err.Error(), "no such file") {
				t.Errorf("without the file: %v", err)
			}
			writeFile(t, file, "\n")
			if err := tryOpen(t, cfg); err == nil || !strings.Contains(err.Error(), "is empty") {
				t.Errorf("empty file: %v", err)
			}
			writeFile(t, file, "not-this-one\n")
			if err := tryOpen(t, cfg); err == nil || strings.Contains(err.Error(), "not-this-one") {
				t.Errorf("wrong password: %v", err)
			}
			writeFile(t, file, dbtest.Password+"\n")
			s := openStore(t, cfg, nil)
			const second = "second p@ss/word?"
			srv.SQL(fmt.Sprintf(change[kind], second))
			writeFile(t, file, second)
			srv.Stop()
			srv.Run()
			var err error
			for range 20 { // connections of before the stop fail once
				ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
				_, err = s.Insert(ctx, Batch{Flows: someFlows(10, now, "password")})
				cancel()
				if err == nil {
					break
				}
			}
			if err != nil {
				t.Errorf("after the password was changed: %v", err)
			}
		})
	}
}

// TestMariaDB has what concerns one server of the family.
func TestMariaDB(t *testing.T) {
	srv := dbtest.Start(t, dbtest.MariaDB)
	fresh := func() { srv.SQL("DROP DATABASE " + dbtest.Database + "; CREATE DATABASE " + dbtest.Database) }
	cfg := Config{Type: "mariadb", URL: srv.URL}
	ctx := context.Background()

	t.Run("wrong kind", func(t *testing.T) {
		for kind, want := range map[string]string{"mysql": "set DB_TYPE=mariadb", "galera": "is no Galera node"} {
			if err := tryOpen(t, Config{Type: kind, URL: srv.URL}); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v", kind, err)
			}
		}
	})

	t.Run("interrupted migration", func(t *testing.T) {
		fresh()
		sql, err := migrations.ReadFile("migrations/mysql/00003_tables.sql")
		if err != nil {
			t.Fatal(err)
		}
		// What a process leaves that is killed after two tables, and before goose's first row.
		up, _, _ := strings.Cut(string(sql), "CREATE TABLE IF NOT EXISTS verdicts")
		srv.SQL("USE " + dbtest.Database + "; " + up + "CREATE TABLE " + versionTable +
			" (version_id BIGINT NOT NULL PRIMARY KEY, is_applied BOOLEAN NOT NULL, tstamp TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP)")
		srv.SQL("ALTER TABLE " + dbtest.Database + ".flows ADD COLUMN tunnel INT UNSIGNED") // and one of the next version
		s := openStore(t, cfg, nil)
		if got := insert(t, s, Batch{Flows: someFlows(100, now, "i"), Verdicts: []Verdict{{TS: 1, ID: "v", Rules: "[]", Evidence: "{}"}}}); got.Count[Flows].Committed != 100 || got.Count[Verdicts].Committed != 1 {
			t.Errorf("%+v", got)
		}
		// And one that is killed between a change of a table and the row that says so.
		srv.SQL("DELETE FROM " + dbtest.Database + "." + versionTable + " WHERE version_id >= 5")
		s = openStore(t, cfg, nil)
		if n := count(t, s, Flows); n != 100 {
			t.Errorf("%d flows after a change that was made twice", n)
		}
		auto := srv.SQL("SELECT COUNT(*) FROM information_schema.columns WHERE table_schema = '" + dbtest.Database + "' AND extra LIKE '%auto_increment%'")
		keyless := srv.SQL("SELECT COUNT(*) FROM information_schema.tables t WHERE table_schema = '" + dbtest.Database +
			"' AND NOT EXISTS (SELECT 1 FROM information_schema.statistics s WHERE s.table_schema = t.table_schema AND s.table_name = t.table_name AND s.index_name = 'PRIMARY')")
		if strings.TrimSpace(auto) != "0" || strings.TrimSpace(keyless) != "0" {
			t.Errorf("%s columns with AUTO_INCREMENT, %s tables without primary key: none works on Galera", auto, keyless)
		}
	})

	t.Run("schema lock", func(t *testing.T) {
		s := openStore(t, cfg, nil)
		d, ok := s.d.(*mysqlDialect)
		if !ok {
			t.Fatalf("dialect %T", s.d)
		}
		a, b := newRowLock(d.db), newRowLock(d.db)
		a.hold = 600 * time.Millisecond
		if err := a.SessionLock(ctx, nil); err != nil {
			t.Fatal(err)
		}
		short, cancel := context.WithTimeout(ctx, 2*time.Second) // longer than a's hold, which is renewed
		defer cancel()
		if err := b.SessionLock(short, nil); err == nil {
			t.Fatal("two owners")
		}
		if err := a.SessionUnlock(ctx, nil); err != nil {
			t.Fatal(err)
		}
		if err := b.SessionLock(ctx, nil); err != nil {
			t.Fatal(err)
		}
		if err := b.SessionUnlock(ctx, nil); err != nil {
			t.Fatal(err)
		}
		// An owner that was killed does not let go; its row expires.
		if ok, err := a.take(ctx); !ok || err != nil {
			t.Fatal(ok, err)
		}
		begin := time.Now()
		if err := b.SessionLock(ctx, nil); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took < 200*time.Millisecond {
			t.Errorf("taken from a live owner after %s", took)
		}
		if err := b.SessionUnlock(ctx, nil); err != nil {
			t.Fatal(err)
		}
	})

	t.Run("without LOAD DATA", func(t *testing.T) {
		fresh()
		s := openStore(t, cfg, nil)
		flows := someFlows(3000, now.Add(-time.Hour), "load")
		if got := insert(t, s, Batch{Flows: flows[:1000]}).Count[Flows]; got != (Count{Committed: 1000}) {
			t.Errorf("with: %+v", got)
		}
		srv.SQL("SET GLOBAL local_infile = OFF") // under the open store
		if got := insert(t, s, Batch{Flows: flows[:2000]}).Count[Flows]; got != (Count{Committed: 1000, Duplicate: 1000}) {
			t.Errorf("without: %+v", got)
		}
		flows[2500].Protocol = 300
		if got := insert(t, s, Batch{Flows: flows}).Count[Flows]; got != (Count{Committed: 999, Duplicate: 2000, Rejected: 1}) {
			t.Errorf("with a row that does not fit: %+v", got)
		}
	})

	t.Run("bad bytes", func(t *testing.T) {
		srv.SQL("SET GLOBAL local_infile = ON")
		s := openStore(t, cfg, nil)
		flows := someFlows(100, now, "bytes")
		flows[7].Host = "\xff\xfe"
		flows[8].App = strings.Repeat("x", 256)
		if got := insert(t, s, Batch{Flows: flows}).Count[Flows]; got != (Count{Committed: 98, Rejected: 2}) {
			t.Errorf("%+v", got)
		}
	})
}

// TestGaleraMoves parts nodes from the cluster one after the other; the store goes on with another, without being
// opened again, and every row is there once. About half a minute.
func TestGaleraMoves(t *testing.T) {
	if os.Getenv("TIDEGATE_FULL") != "1" {
		t.Skip("in the full run only (TIDEGATE_FULL=1)")
	}
	c := dbtest.StartGalera(t)
	s := openStore(t, Config{Type: "galera", URL: c.URL}, nil)
	rows := int64(0)
	put := func(name string) {
		t.Helper()
		b := Batch{Flows: someFlows(6000, now.Add(-time.Hour), name)} // two transactions
		deadline := time.Now().Add(60 * time.Second)
		for {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			_, err := s.Insert(ctx, b)
			cancel()
			if err == nil {
				break
			}
			t.Logf("%s: %v", name, err)
			if time.Now().After(deadline) {
				t.Fatalf("%s: %v", name, err)
			}
			time.Sleep(200 * time.Millisecond)
		}
		rows += 6000
	}
	put("whole")
	c.Cut(0)
	put("first cut off")
	c.Heal(0)
	c.Isolate(1)
	put("second isolated")
	c.Heal(1)
	c.Kill(2)
	put("third killed")
	c.Run(2)
	put("whole again")
	if n := between(t, s, 0, end); n != rows {
		t.Errorf("%d rows, want %d", n, rows)
	}
}

// otherAuthority signed none of the servers' certificates.
const otherAuthority = `-----BEGIN CERTIFICATE-----
MIIBjzCCATWgAwIBAgIUVjQ4UPU61zKm69NMJbjjRJ/+CWQwCgYIKoZIzj0EAwIw
HDEaMBgGA1UEAwwRYW5vdGhlciBhdXRob3JpdHkwIBcNMjYxMTI1MTcxMzM4WhgP
MjEyNjExMDExNzEzMzhaMBwxGjAYBgNVBAMMEWFub3RoZXIgYXV0aG9yaXR5MFkw
EwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEENawkTk46a8kBPhCvMLtwZmvWO+WKo+5
2Y59LuzQDthiDG2+Fucoo4o9cFk7TRaWR9QbIV4Sdsn1IQGd3MW1RqNTMFEwHQYD
VR0OBBYEFIhakCgZzG10SBG+42MwhJjF0mWyMB8GA1UdIwQYMBaAFIhakCgZzG10
SBG+42MwhJjF0mWyMA8GA1UdEwEB/wQFMAMBAf8wCgYIKoZIzj0EAwIDSAAwRQIh
AKraHMmdsND9Y47mdaNj6B+nSGSxlrS6YeP0SfY6pjabAiBz7l3YpE4qnTR8RGNY
mSwCAsKnlzkK8CPfVJSsn93vKg==
-----END CERTIFICATE-----
`
