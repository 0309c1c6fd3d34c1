package persist

import (
	"bytes"
	"database/sql"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tidegate-mesh/tidegate/libs/dbtest"
	"github.com/tidegate-mesh/tidegate/libs/pki"
	queryv1 "github.com/tidegate-mesh/tidegate/proto/query/v1"
)

// badDatabase is one mistake around the database, each tried with a database of its own.
type badDatabase struct {
	name string
	says []string // words of the sentence
	// spoil is called before persist starts or, when running, after it has stored the first messages; mend is called
	// when persist has said what is wrong.
	running           bool
	spoil, mend       func()
	messages, records int // of one publication; 10 and 20
}

// logged keeps the log for the test to read.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// lines is how many have the word.
func (l *logged) lines(word string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.b.String()) {
		if strings.Contains(line, word) {
			n++
		}
	}
	return n
}

// run has persist meet the mistake: it says so in one sentence in the log, in readiness and in its status, keeps the
// messages, and goes on by itself when the cause is mended.
func (c badDatabase) run(t *testing.T, kind, databaseURL string) {
	t.Run(c.name, func(t *testing.T) { c.check(t, kind, databaseURL) })
}

func (c badDatabase) check(t *testing.T, kind, databaseURL string) {
	cfg := DefaultConfig()
	cfg.DBType, cfg.DatabaseURL = kind, databaseURL
	if c.messages == 0 {
		c.messages, c.records = 10, 20
	}
	mend := func() {}
	if c.mend != nil {
		mend = sync.OnceFunc(c.mend)
		t.Cleanup(mend) // a case that fails does not spoil the next
	}
	published := 0
	log := &logged{}
	var r *rig
	publish := func() {
		r.publish(published+1, c.messages, c.records)
		published += c.messages
	}
	if c.running {
		r = newRigLogging(t, cfg, log)
		publish()
		r.until("the first messages", func(st *queryv1.StatusResponse) bool { return ledger(st)["committed"] == uint64(published) })
		c.spoil()
	} else {
		c.spoil()
		r = newRigLogging(t, cfg, log)
	}
	publish()
	has := func(text string) bool {
		for _, word := range c.says {
			if !strings.Contains(text, word) {
				return false
			}
		}
		return true
	}
	st := r.until(fmt.Sprintf("a problem with the words %q", c.says), func(st *queryv1.StatusResponse) bool {
		return has(strings.Join(st.GetStatus().GetProblems(), "\n")) && (ledger(st)["pending"] > 0 || !c.running)
	})
	if st.GetStatus().GetReady() {
		t.Errorf("ready with %v", st.GetStatus().GetProblems())
	}
	if ready := fmt.Sprint(r.tel.Ready()); !has(ready) {
		t.Errorf("readiness does not say %q: %s", c.says, ready)
	}
	// Some tries later it is still one line; two writers and the maintenance may each have theirs.
	time.Sleep(500 * time.Millisecond)
	if n := log.lines(c.says[0]); n < 1 || n > 3 {
		t.Errorf("%d lines of the log say %q, want one an operation", n, c.says[0])
	}
	if c.mend == nil {
		return
	}
	mend()
	st = r.until("all rows after it was mended", func(st *queryv1.StatusResponse) bool {
		return st.GetStatus().GetReady() && ledger(st)["committed"] == uint64(published) && ledger(st)["pending"] == 0 &&
			st.GetRows()["flows"] == uint64(published*c.records)
	})
	if ledger(st)["duplicate"] != 0 || ledger(st)["discarded"] != 0 || ledger(st)["rejected"] != 0 {
		t.Errorf("after it was mended: %v", ledger(st))
	}
	r.stop()
}

// TestBadDatabase: about 30 seconds a server; those beside PostgreSQL are part of the full tests.
func TestBadDatabase(t *testing.T) {
	for _, kind := range []string{dbtest.PostgreSQL, dbtest.MariaDB, dbtest.MySQL} {
		t.Run(kind, func(t *testing.T) {
			if kind != dbtest.PostgreSQL && os.Getenv("TIDEGATE_FULL") == "" {
				t.Skip("part of make test-full: about 30 seconds")
			}
			testBadServer(t, dbtest.Start(t, kind, dbtest.TLS()))
		})
	}
}

func testBadServer(t *testing.T, s *dbtest.Server) {
	n := 0
	fresh := func() string { n++; return s.NewDatabase(fmt.Sprintf("bad%d", n)) }
	password := func(p string) {
		if s.Kind == dbtest.PostgreSQL {
			s.SQL(fmt.Sprintf("ALTER ROLE %s PASSWORD '%s'", dbtest.User, p))
		} else {
			s.SQL(fmt.Sprintf("ALTER USER %s@'%%' IDENTIFIED BY '%s'", dbtest.User, p))
		}
	}
	readOnly := func() { s.SetReadOnly(true) }
	writable := func() { s.SetReadOnly(false) }

	badDatabase{name: "wrong password", says: []string{"refuses the user or the password", "DATABASE_URL"},
		spoil: func() { password("another") }, mend: func() { password(dbtest.Password) }}.run(t, s.Kind, fresh())
	badDatabase{name: "no such database", says: []string{"is not on the server", "create it"},
		spoil: func() {}, mend: func() { s.NewDatabase("absent") }}.run(t, s.Kind, s.Named("absent"))
	badDatabase{name: "no server", says: []string{"no database server answers", "start it"},
		spoil: s.Stop, mend: s.Run}.run(t, s.Kind, fresh())
	badDatabase{name: "server gone", says: []string{"no database server answers", "start it"}, running: true,
		spoil: s.Kill, mend: s.Run}.run(t, s.Kind, fresh())
	badDatabase{name: "read-only from the start", says: []string{"the database is read-only", "primary"},
		spoil: readOnly, mend: writable}.run(t, s.Kind, fresh())
	badDatabase{name: "read-only later", says: []string{"the database is read-only", "primary"}, running: true,
		spoil: readOnly, mend: writable}.run(t, s.Kind, fresh())
	badDatabase{name: "expired certificate", says: []string{"certificate", "has expired", "renew it"},
		spoil: func() { s.Certify(-time.Minute) }, mend: func() { s.Certify(time.Hour) }}.run(t, s.Kind, fresh())

	certs := t.TempDir()
	if _, err := pki.Ensure(certs, []string{"localhost"}, false); err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(certs, "database-ca.pem")
	replace := func(from string) func() {
		return func() {
			b, err := os.ReadFile(from) //nolint:gosec // a test's own
			if err == nil {
				err = os.WriteFile(ca, b, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	badDatabase{name: "certificate of another authority", says: []string{"an authority that is not trusted", "sslrootcert"},
		spoil: replace(pki.FilesOf(certs, pki.Persist).CA), mend: replace(s.CA)}.
		run(t, s.Kind, strings.Replace(fresh(), url.QueryEscape(s.CA), url.QueryEscape(ca), 1))

	if s.Kind == dbtest.PostgreSQL { // the others' answer is that of a wrong password
		bare, _, _ := strings.Cut(fresh(), "?")
		badDatabase{name: "no TLS where it is asked for", says: []string{"with TLS only", "sslmode=verify-full"},
			spoil: func() {}}.run(t, s.Kind, bare+"?sslmode=disable")
		badDatabase{name: "disk full", says: []string{"the disk of the database is full", "make room"}, running: true, messages: 60, records: 500,
			spoil: func() {}, mend: func() { s.SQL("SELECT 1") }}.onSmallDisk(t, s)
	}
	newer := "INSERT INTO tidegate_schema_version (version_id, is_applied) VALUES (9999, true)"
	badDatabase{name: "newer schema", says: []string{"schema version 9999", "upgrade the program"},
		spoil: func() {
			cfg := DefaultConfig()
			cfg.DBType, cfg.DatabaseURL = s.Kind, s.URL
			r := newRig(t, cfg)
			r.until("the schema", func(st *queryv1.StatusResponse) bool { return st.GetStatus().GetReady() })
			r.stop()
			s.SQL(newer)
		},
		mend: func() { s.SQL("DELETE FROM tidegate_schema_version WHERE version_id = 9999") }}.run(t, s.Kind, s.URL)
}

// smallDisk mounts a tmpfs of the given size, of the owner of the file like, and returns its folder and what makes it large.
func smallDisk(t *testing.T, size, like string) (dir string, grow func()) {
	t.Helper()
	if os.Getuid() != 0 {
		if os.Getenv("TIDEGATE_CI") != "" {
			t.Fatal("mounting a small file system needs root, and in CI nothing may be skipped")
		}
		t.Skip("mounting a small file system needs root")
	}
	dir, err := os.MkdirTemp("", "tidegate-small-") // t.TempDir is closed to other users
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // as above
		t.Fatal(err)
	}
	owner := ""
	if like != "" {
		info, err := os.Stat(like)
		if err != nil {
			t.Fatal(err)
		}
		st := info.Sys().(*syscall.Stat_t)
		owner = fmt.Sprintf(",uid=%d,gid=%d", st.Uid, st.Gid)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0700,size="+size+owner); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
		_ = os.Remove(dir)
	})
	return dir, func() {
		if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=128m"); err != nil {
			t.Fatal(err)
		}
	}
}

// onSmallDisk runs the case on a PostgreSQL database whose tables are on a file system of 16 MB.
func (c badDatabase) onSmallDisk(t *testing.T, s *dbtest.Server) {
	dir, grow := smallDisk(t, "16m", s.CA)
	s.SQL("CREATE TABLESPACE small LOCATION '" + dir + "'")
	s.SQL("CREATE DATABASE small OWNER " + dbtest.User + " TABLESPACE small")
	c.mend = grow
	c.run(t, s.Kind, s.Named("small"))
}

// TestBadSQLite: about 15 seconds.
func TestBadSQLite(t *testing.T) {
	dir, grow := smallDisk(t, "4m", "")
	badDatabase{name: "disk full", says: []string{"the disk of the database is full", "make room"}, running: true, messages: 30, records: 300,
		spoil: func() {}, mend: grow}.run(t, "sqlite", filepath.Join(dir, "full.db"))
	remount := func(flags uintptr) func() {
		return func() {
			if err := unix.Mount("", dir, "", unix.MS_REMOUNT|flags, ""); err != nil {
				t.Fatal(err)
			}
		}
	}
	badDatabase{name: "read-only file system", says: []string{"is read-only", "make it writable"},
		spoil: remount(unix.MS_RDONLY), mend: remount(0)}.run(t, "sqlite", filepath.Join(dir, "folder", "x.db"))
	badDatabase{name: "no database file", says: []string{"is no SQLite database", "restore it"},
		spoil: func() {
			if err := os.WriteFile(filepath.Join(dir, "no.db"), bytes.Repeat([]byte("no database "), 1000), 0o600); err != nil {
				t.Fatal(err)
			}
		},
		mend: func() {
			if err := os.Remove(filepath.Join(dir, "no.db")); err != nil {
				t.Fatal(err)
			}
		}}.run(t, "sqlite", filepath.Join(dir, "no.db"))
	path := filepath.Join(dir, "newer.db")
	change := func(statement string) func() {
		return func() {
			db, err := sql.Open("sqlite", path)
			if err == nil {
				_, err = db.Exec(statement)
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	badDatabase{name: "newer schema", says: []string{"schema version 9999", "upgrade the program"},
		spoil: func() {
			cfg := DefaultConfig()
			cfg.DatabaseURL = path
			r := newRig(t, cfg)
			r.until("the schema", func(st *queryv1.StatusResponse) bool { return st.GetStatus().GetReady() })
			r.stop()
			change("INSERT INTO tidegate_schema_version (version_id, is_applied) VALUES (9999, true)")()
		},
		mend: change("DELETE FROM tidegate_schema_version WHERE version_id = 9999")}.run(t, "sqlite", path)
}
