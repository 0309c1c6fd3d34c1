package loadgen

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// heldPath is where a server echoes what comes after its answer, for as long as the connection lasts.
const heldPath = "/echo"

// heldEvery is the pause between two segments of a held connection. It is shorter than a delayed acknowledgement, which so goes
// with the next segment, and nothing is under way most of the time.
const heldEvery = 20 * time.Millisecond

// Held are connections that stay open, each sending a segment that the server echoes, every 20 ms: what an attack must
// not harm. What arrives is counted by the ends' own TCP, retransmissions as packets of their own.
type Held struct {
	servers *Servers
	conns   []heldConn
}

type heldConn struct {
	port   uint16
	conn   net.Conn // TLS on 443
	client *net.TCPConn
	server *net.TCPConn
}

// HeldCounts are packets of held connections, from the clients and from the servers: what was sent and what arrived at the
// other end's TCP. Those under way are sent and not arrived.
type HeldCounts struct {
	Connections                 int
	Sent, Arrived               uint64
	AnswersSent, AnswersArrived uint64
}

// Sub is what was counted since old.
func (c HeldCounts) Sub(old HeldCounts) HeldCounts {
	return HeldCounts{c.Connections, c.Sent - old.Sent, c.Arrived - old.Arrived, c.AnswersSent - old.AnswersSent, c.AnswersArrived - old.AnswersArrived}
}

// Hold opens n connections from the client's addresses, to the TLS and the HTTP server in turn. Close them.
func (c *Client) Hold(n int) (*Held, error) {
	h := &Held{servers: c.servers}
	for i := range n {
		x, err := c.hold([]uint16{443, 80}[i%2], c.sources[i/2%len(c.sources)])
		if err != nil {
			return nil, errors.Join(fmt.Errorf("hold connection %d open: %w", i, err), h.Close())
		}
		h.conns = append(h.conns, x)
	}
	return h, nil
}

func (c *Client) hold(port uint16, source netip.Addr) (heldConn, error) {
	x := heldConn{port: port}
	conn, err := c.dial("tcp", port, source)
	if err != nil {
		return x, err
	}
	x.conn, x.client = conn, conn.(*net.TCPConn) //nolint:forcetypeassert // what dial makes of "tcp"
	local := x.client.LocalAddr().(*net.TCPAddr).AddrPort()
	if port == 443 {
		x.conn = tls.Client(conn, &tls.Config{RootCAs: c.servers.roots, ServerName: HostName, MinVersion: tls.VersionTLS12})
	}
	_ = conn.SetDeadline(time.Now().Add(benignTimeout))
	_, err = io.WriteString(x.conn, "GET "+heldPath+" HTTP/1.1\r\nHost: "+HostName+"\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	if err == nil {
		_, err = io.ReadFull(x.conn, make([]byte, len(heldAnswer)))
	}
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if x.server = c.servers.heldBy(local); err == nil && x.server == nil {
		err = errors.New("the server does not know it")
	}
	if err != nil {
		return x, errors.Join(err, conn.Close())
	}
	return x, nil
}

// Run sends on all connections until ctx ends.
func (h *Held) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	for i := range h.conns {
		wg.Add(1)
		go func() {
			defer wg.Done()
			h.conns[i].run(ctx)
		}()
	}
	wg.Wait()
	return nil
}

// run waits for each echo, if need be as long as TCP itself.
func (x *heldConn) run(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() { _ = x.client.SetDeadline(time.Now()) })
	defer stop()
	tick := time.NewTicker(heldEvery)
	defer tick.Stop()
	b := make([]byte, 64)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if _, err := x.conn.Write(b); err != nil {
			return
		}
		if _, err := io.ReadFull(x.conn, b); err != nil {
			return
		}
	}
}

// Counts adds up the packets of connections to a port of the servers; of all of them when none is to this port.
func (h *Held) Counts(port uint16) (sum HeldCounts, err error) {
	if port != 443 && port != 80 {
		port = 0
	}
	for i := range h.conns {
		x := &h.conns[i]
		if port != 0 && x.port != port {
			continue
		}
		client, err := tcpInfo(x.client)
		if err != nil {
			return sum, err
		}
		server, err := tcpInfo(x.server)
		if err != nil {
			return sum, err
		}
		sum.Connections++
		sum.Sent += uint64(client.Segs_out)
		sum.Arrived += uint64(server.Segs_in)
		sum.AnswersSent += uint64(server.Segs_out)
		sum.AnswersArrived += uint64(client.Segs_in)
	}
	return sum, nil
}

func tcpInfo(c *net.TCPConn) (info *unix.TCPInfo, err error) {
	raw, err := c.SyscallConn()
	if err == nil {
		err = errors.Join(raw.Control(func(fd uintptr) {
			info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) //nolint:gosec // a descriptor
		}), err)
	}
	if err != nil {
		return nil, fmt.Errorf("read the counters of a held connection: %w", err)
	}
	return info, nil
}

// Close closes the connections; Run has returned.
func (h *Held) Close() error {
	var errs []error
	for i := range h.conns {
		errs = append(errs, h.conns[i].client.Close())
	}
	return errors.Join(errs...)
}

const heldAnswer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"

// echo serves a held connection until its client goes.
func (s *Servers) echo(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer func() { _ = conn.Close() }()
	plain := conn
	if t, ok := conn.(*tls.Conn); ok {
		plain = t.NetConn()
	}
	from := plain.RemoteAddr().(*net.TCPAddr).AddrPort() //nolint:forcetypeassert // of a TCP listener
	s.heldMu.Lock()
	s.held[from] = plain.(*net.TCPConn) //nolint:forcetypeassert // the same
	s.heldMu.Unlock()
	if conn.SetDeadline(time.Time{}) == nil {
		if _, err := io.WriteString(conn, heldAnswer); err == nil {
			_, _ = io.Copy(conn, conn) // ends with the client
		}
	}
	s.heldMu.Lock()
	delete(s.held, from)
	s.heldMu.Unlock()
}

func (s *Servers) heldBy(client netip.AddrPort) *net.TCPConn {
	s.heldMu.Lock()
	defer s.heldMu.Unlock()
	return s.held[client]
}

// closeHeld ends the connections whose clients did not.
func (s *Servers) closeHeld() {
	s.heldMu.Lock()
	defer s.heldMu.Unlock()
	for _, c := range s.held {
		_ = c.Close()
	}
}
