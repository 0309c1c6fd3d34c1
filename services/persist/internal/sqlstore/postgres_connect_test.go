package sqlstore

import (
	"context"
	"database/sql"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"
)

// silentPostgres speaks as much of PostgreSQL's protocol (version 3.0) as a connection needs to be made and to be asked for a
// sign of life; to everything else it says nothing, as a server does that hangs.
func silentPostgres(t *testing.T) (dsn string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { _ = ln.Close(); close(done) })
	message := func(kind byte, body ...byte) []byte {
		return append(binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(body)+4)), body...)
	}
	read := func(c net.Conn, head []byte) ([]byte, error) {
		if _, err := io.ReadFull(c, head); err != nil {
			return nil, err
		}
		body := make([]byte, binary.BigEndian.Uint32(head[len(head)-4:])-4)
		_, err := io.ReadFull(c, body)
		return body, err
	}
	ready := message('Z', 'I')
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				start, err := read(c, make([]byte, 4))
				if err != nil || binary.BigEndian.Uint32(start) == 80877102 { // a request to cancel
					<-done
					return
				}
				hello := append(message('R', 0, 0, 0, 0), message('K', 0, 0, 0, 1, 0, 0, 0, 2)...)
				if _, err := c.Write(append(hello, ready...)); err != nil {
					return
				}
				for {
					query, err := read(c, make([]byte, 5))
					if err != nil {
						return
					}
					if strings.HasPrefix(string(query), ";") { // Ping
						if _, err := c.Write(append(message('I'), ready...)); err != nil {
							return
						}
					}
				}
			}()
		}
	}()
	return "postgres://u@" + ln.Addr().String() + "/d?sslmode=disable"
}

// A server that hangs, or whose machine has lost power, must not hold up who asks beyond the time that they have.
func TestPostgresThatHangs(t *testing.T) {
	connector := postgresConnector{dsn: silentPostgres(t), grace: 100 * time.Millisecond}
	d := &postgresDialect{db: sqlx.NewDb(sql.OpenDB(connector), "postgres")}
	defer func() { _ = d.close() }()
	if err := d.db.PingContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	for what, ask := range map[string]func(context.Context) error{
		"a query": func(ctx context.Context) error { _, err := d.version(ctx); return err },
		"a statement with arguments": func(ctx context.Context) error {
			_, err := d.db.ExecContext(ctx, "DELETE FROM flows WHERE ts < $1", 1)
			return err
		},
		"a transaction": func(ctx context.Context) error {
			tx, err := d.db.BeginTxx(ctx, nil)
			if err == nil {
				_ = tx.Rollback()
			}
			return err
		},
	} {
		result := make(chan error, 1)
		go func() {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			result <- ask(ctx)
		}()
		select {
		case err := <-result:
			if err == nil {
				t.Errorf("%s: no error", what)
			}
		case <-time.After(5 * time.Second):
			t.Errorf("%s goes on", what)
		}
	}
}
