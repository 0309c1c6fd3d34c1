package loadgen

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/tidegate-mesh/tidegate/libs/netlab"
)

// HostName is the name under which the benign servers answer.
const HostName = "shop.example.net"

const (
	benignTimeout = 3 * time.Second
	bodySize      = 4096
)

// Servers are real TLS (443), HTTP (80) and DNS (53, UDP) servers on one address.
type Servers struct {
	web   []*http.Server
	dns   net.PacketConn
	roots *x509.CertPool
	wg    sync.WaitGroup

	heldMu sync.Mutex
	held   map[netip.AddrPort]*net.TCPConn // by the client's end
}

// StartServers starts the servers inside ns on addr.
func StartServers(ns *netlab.NS, addr netip.Addr) (*Servers, error) {
	cert, roots, err := selfSigned()
	if err != nil {
		return nil, err
	}
	s := &Servers{roots: roots, held: make(map[netip.AddrPort]*net.TCPConn)}
	body := make([]byte, bodySize)
	handler := http.NewServeMux()
	handler.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(body) })
	handler.HandleFunc(heldPath, func(w http.ResponseWriter, _ *http.Request) { s.echo(w) })
	err = ns.Do(func() error {
		plain, err := net.Listen("tcp", netip.AddrPortFrom(addr, 80).String())
		if err != nil {
			return fmt.Errorf("start the HTTP server: %w", err)
		}
		s.serve(plain, handler)
		secure, err := net.Listen("tcp", netip.AddrPortFrom(addr, 443).String())
		if err != nil {
			return fmt.Errorf("start the TLS server: %w", err)
		}
		s.serve(tls.NewListener(secure, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}), handler)
		s.dns, err = net.ListenPacket("udp", netip.AddrPortFrom(addr, 53).String())
		if err != nil {
			return fmt.Errorf("start the DNS server: %w", err)
		}
		return nil
	})
	if err != nil {
		_ = s.Close()
		return nil, err
	}
	s.wg.Add(1)
	go s.serveDNS(addr)
	return s, nil
}

func (s *Servers) serve(l net.Listener, h http.Handler) {
	srv := &http.Server{
		Handler: h, ReadHeaderTimeout: benignTimeout, IdleTimeout: benignTimeout,
		ErrorLog: log.New(io.Discard, "", 0), // scanners do not finish their handshakes
	}
	srv.SetKeepAlivesEnabled(false)
	s.web = append(s.web, srv)
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		_ = srv.Serve(l) // ends with ErrServerClosed
	}()
}

func (s *Servers) serveDNS(addr netip.Addr) {
	defer s.wg.Done()
	buf := make([]byte, 1500)
	for {
		n, from, err := s.dns.ReadFrom(buf)
		if err != nil {
			return
		}
		var m dnsmessage.Message
		if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
			continue
		}
		m.Response, m.Authoritative = true, true
		m.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET, TTL: 60},
			Body:   &dnsmessage.AResource{A: addr.As4()},
		}}
		if out, err := m.Pack(); err == nil {
			_, _ = s.dns.WriteTo(out, from)
		}
	}
}

// Close stops the servers and waits for them.
func (s *Servers) Close() error {
	var errs []error
	for _, w := range s.web {
		errs = append(errs, w.Close())
	}
	if s.dns != nil {
		errs = append(errs, s.dns.Close())
	}
	s.closeHeld()
	s.wg.Wait()
	return errors.Join(errs...)
}

// ClientStats counts benign connections; a DNS query with its answer is one too.
type ClientStats struct {
	Begun, Completed uint64
}

// Client makes benign connections, each a whole TLS, HTTP or DNS exchange, until ctx ends.
type Client struct {
	ns      *netlab.NS
	sources []netip.Addr
	target  netip.Addr
	servers *Servers
	rate    float64
	rng     *mrand.Rand

	begun, completed atomic.Uint64
	marked           atomic.Pointer[Mark]
}

// Mark counts only the connections begun after it was set.
type Mark struct {
	kinds [len(servedPorts)]struct{ begun, completed atomic.Uint64 }
}

// Stats is how many were begun since the mark was set, and how many of these completed.
func (m *Mark) Stats() (sum ClientStats) {
	for _, port := range servedPorts {
		st := m.To(port)
		sum.Begun += st.Begun
		sum.Completed += st.Completed
	}
	return sum
}

// To is Stats of the connections to one port of the servers.
func (m *Mark) To(port uint16) (st ClientStats) {
	for i := range m.kinds {
		if servedPorts[i] == port {
			st = ClientStats{m.kinds[i].begun.Load(), m.kinds[i].completed.Load()}
		}
	}
	return st
}

// NewClient makes a client inside ns that connects from sources to the servers at target, rate times a
// second on average, in an order that seed fixes.
func NewClient(ns *netlab.NS, s *Servers, sources []netip.Addr, target netip.Addr, rate float64, seed uint64) *Client {
	return &Client{ns: ns, sources: sources, target: target, servers: s, rate: rate, rng: mrand.New(mrand.NewPCG(seed, 1))}
}

// Stats is what the client did so far; connections under way are begun and not completed.
func (c *Client) Stats() ClientStats { return ClientStats{c.begun.Load(), c.completed.Load()} }

// SetMark starts a new count of connections begun from now on.
func (c *Client) SetMark() *Mark {
	m := &Mark{}
	c.marked.Store(m)
	return m
}

// ClearMark ends the count: connections begun later are not in it.
func (c *Client) ClearMark() { c.marked.Store(nil) }

// Run makes connections until ctx ends and then waits for those under way.
func (c *Client) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	tick := time.NewTicker(time.Duration(float64(time.Second) / c.rate))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		kind, source := c.rng.IntN(len(servedPorts)), c.sources[c.rng.IntN(len(c.sources))]
		mark := c.marked.Load()
		c.begun.Add(1)
		if mark != nil {
			mark.kinds[kind].begun.Add(1)
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			// A connection under way may end in its own time: the context only stops new ones.
			if c.exchange(kind, source) != nil {
				return
			}
			c.completed.Add(1)
			if mark != nil {
				mark.kinds[kind].completed.Add(1)
			}
		}()
	}
}

// servedPorts are where an exchange of each kind goes: DNS, HTTP, TLS.
var servedPorts = [3]uint16{53, 80, 443}

func (c *Client) exchange(kind int, source netip.Addr) error {
	ctx, cancel := context.WithTimeout(context.Background(), benignTimeout)
	defer cancel()
	switch kind {
	case 0:
		return c.query(source)
	case 1:
		return c.get(ctx, "http://"+HostName+"/", 80, source)
	}
	return c.get(ctx, "https://"+HostName+"/", 443, source)
}

func (c *Client) dial(network string, port uint16, source netip.Addr) (conn net.Conn, err error) {
	d := net.Dialer{Timeout: benignTimeout}
	if network == "tcp" {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0))
	} else {
		d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(source, 0))
	}
	err = c.ns.Do(func() error {
		conn, err = d.Dial(network, netip.AddrPortFrom(c.target, port).String())
		return err
	})
	return conn, err
}

func (c *Client) get(ctx context.Context, url string, port uint16, source netip.Addr) error {
	t := &http.Transport{
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return c.dial("tcp", port, source) },
		TLSClientConfig:   &tls.Config{RootCAs: c.servers.roots, MinVersion: tls.VersionTLS12},
		DisableKeepAlives: true,
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := t.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if n, err := io.Copy(io.Discard, resp.Body); err != nil || n != bodySize {
		return fmt.Errorf("body of %d bytes: %w", n, errors.Join(io.ErrUnexpectedEOF, err))
	}
	return nil
}

func (c *Client) query(source netip.Addr) error {
	conn, err := c.dial("udp", 53, source)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	q := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 1, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(HostName + "."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}},
	}
	out, err := q.Pack()
	if err != nil {
		return err
	}
	buf := make([]byte, 1500)
	// Resolvers ask again when no answer comes; so does this one, once.
	for range 2 {
		if _, err = conn.Write(out); err != nil {
			return err
		}
		_ = conn.SetReadDeadline(time.Now().Add(benignTimeout / 2))
		if _, err = conn.Read(buf); err == nil {
			return nil
		}
	}
	return err
}

func selfSigned() (tls.Certificate, *x509.CertPool, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, nil, fmt.Errorf("make the test server's key: %w", err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: HostName}, DNSNames: []string{HostName},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(48 * time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, nil, fmt.Errorf("make the test server's certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return tls.Certificate{}, nil, fmt.Errorf("read the test server's certificate: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool, nil
}
