package sqlstore

import (
	"context"
	"database/sql/driver"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/lib/pq"
)

// cancelGrace is how long a server may take to end what it was asked to cancel.
const cancelGrace = 3 * time.Second

// postgresConnector makes each connection with the password of that moment.
type postgresConnector struct {
	dsn      string
	password password
	grace    time.Duration
}

// Driver implements driver.Connector.
func (c postgresConnector) Driver() driver.Driver { return &pq.Driver{} }

// Connect implements driver.Connector.
func (c postgresConnector) Connect(ctx context.Context) (driver.Conn, error) {
	dsn, secret, err := c.password.inURL(c.dsn)
	if err != nil {
		return nil, err
	}
	connector, err := pq.NewConnector(dsn)
	if err != nil {
		return nil, hide(err, secret)
	}
	wire := &postgresWire{grace: c.grace}
	connector.Dialer(wire)
	conn, err := connector.Connect(ctx)
	if err != nil {
		return nil, hide(err, secret)
	}
	full, ok := conn.(pqConn)
	if !ok {
		_ = conn.Close()
		return nil, errors.New("the driver's connection lacks a part of database/sql's interface")
	}
	wire.made()
	return postgresConn{full, wire}, nil
}

// postgresWire is the network side of one connection. When a context ends, pq asks the server over another connection to cancel,
// and waits for the first one to say that it did: without end where the server hangs, or is gone without a word. That other
// connection is asked for here, so here the first one gets its deadline.
type postgresWire struct {
	grace time.Duration

	mu      sync.Mutex
	conn    net.Conn
	ready   bool // what is dialled from now on is to cancel
	givenUp bool
}

// made says that the connection is there: hosts and ways of TLS are not tried any more.
func (w *postgresWire) made() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ready = true
}

// giveUp ends what waits for the server, unless it answers within the grace.
func (w *postgresWire) giveUp() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.givenUp {
		w.givenUp = true
		_ = w.conn.SetDeadline(time.Now().Add(w.grace)) // fails when it is closed
	}
}

// DialContext implements pq.DialerContext.
func (w *postgresWire) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	w.mu.Lock()
	cancels := w.ready
	w.mu.Unlock()
	if cancels {
		w.giveUp()
	}
	c, err := dial(ctx, network, addr)
	if err != nil || cancels {
		return c, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.conn = c
	return c, nil
}

// Dial implements pq.Dialer.
func (w *postgresWire) Dial(network, addr string) (net.Conn, error) {
	return w.DialContext(context.Background(), network, addr)
}

// DialTimeout implements pq.Dialer.
func (w *postgresWire) DialTimeout(network, addr string, limit time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	return w.DialContext(ctx, network, addr)
}

// pqConn is what pq's connections can do.
type pqConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.NamedValueChecker
	driver.Pinger
	driver.QueryerContext
	driver.SessionResetter
	driver.Validator
}

type postgresConn struct {
	pqConn
	wire *postgresWire
}

// BeginTx implements driver.ConnBeginTx: pq does not look at the context while it begins.
func (c postgresConn) BeginTx(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	defer context.AfterFunc(ctx, c.wire.giveUp)()
	return c.pqConn.BeginTx(ctx, opts)
}

// IsValid implements driver.Validator: a connection with a deadline is not used again.
func (c postgresConn) IsValid() bool {
	c.wire.mu.Lock()
	defer c.wire.mu.Unlock()
	return !c.wire.givenUp && c.pqConn.IsValid()
}
