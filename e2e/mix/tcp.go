package mix

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/tidegate-mesh/tidegate/libs/loadgen"
	"github.com/tidegate-mesh/tidegate/libs/netlab"
)

const (
	portSSH   = 22
	portHello = 8443
	portSpeed = 5201
)

// serveTCP answers connections to addr in ns, each in a goroutine, until Close.
func (m *Mix) serveTCP(ns *netlab.NS, addr netip.Addr, port uint16, answer func(c net.Conn)) error {
	var l net.Listener
	err := ns.Do(func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(addr, port).String())
		return err
	})
	if err != nil {
		return fmt.Errorf("serve TCP port %d: %w", port, err)
	}
	m.closers = append(m.closers, l)
	m.wg.Add(1)
	go func() {
		defer m.wg.Done()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			m.wg.Add(1)
			go func() {
				defer m.wg.Done()
				defer func() { _ = c.Close() }()
				answer(c)
			}()
		}
	}()
	return nil
}

// connect is called in the client's namespace.
func connect(source, target netip.Addr, port uint16) (net.Conn, error) {
	d := net.Dialer{Timeout: patience, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0))}
	return d.Dial("tcp", netip.AddrPortFrom(target, port).String())
}

// clientHello is what a TLS client says first.
func clientHello() ([]byte, error) {
	ours, theirs := net.Pipe()
	defer func() { _ = ours.Close() }()
	go func() { // ends when the pipe does
		_ = tls.Client(theirs, &tls.Config{ServerName: loadgen.HostName, MinVersion: tls.VersionTLS12}).Handshake()
		_ = theirs.Close()
	}()
	buf := make([]byte, 4096)
	n, err := ours.Read(buf)
	if err != nil {
		return nil, fmt.Errorf("make a ClientHello: %w", err)
	}
	return buf[:n], nil
}

// answerHello takes a ClientHello and sends as much as a server's first flight has: the exchange of a short connection
// without the cost of its cryptography, so that thousands a second can be had.
func (m *Mix) answerHello(c net.Conn) {
	buf := make([]byte, len(m.hello))
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.ReadFull(c, buf); err != nil {
		return
	}
	flight := make([]byte, 3000)
	copy(flight, []byte{22, 3, 3, 0x0b, 0xb3, 2}) // TLS 1.2 record of a handshake: ServerHello (RFC 8446 5.1)
	_, _ = c.Write(flight)
}

func (m *Mix) greet(source netip.Addr) error {
	c, err := connect(source, loadgen.VictimAddr, portHello)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write(m.hello); err != nil {
		return err
	}
	n, err := io.Copy(io.Discard, c)
	if err == nil && n != 3000 {
		err = fmt.Errorf("%d bytes of an answer of 3000", n)
	}
	return err
}

// Crowd is n short connections of some hundred clients, as fast as the machine makes them, at most rate a second.
func (m *Mix) Crowd(n int, rate float64) error {
	const workers = 64
	var next atomic.Int64
	begin := time.Now()
	var wg sync.WaitGroup
	errs := make([]error, workers)
	for w := range workers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			errs[w] = m.gen.Do(func() error {
				for i := next.Add(1); i <= int64(n); i = next.Add(1) {
					time.Sleep(time.Until(begin.Add(time.Duration(float64(i) / rate * float64(time.Second)))))
					source := firstOne.As4()
					source[2] += byte(i % crowdSize >> 8)
					source[3] = byte(i)
					m.exchange("flash crowd", func() error { return m.greet(netip.AddrFrom4(source)) })
				}
				return nil
			})
		}()
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Together is n clients that connect at the same moment, and again together if nobody answers.
func (m *Mix) Together(n int) error {
	errs := make(chan error, n)
	source := firstOne
	for range n {
		source = source.Next()
		from := source
		go func() {
			errs <- m.gen.Do(func() error {
				m.exchange("synchronized retries", func() error { return m.greet(from) })
				return nil
			})
		}()
	}
	var err error
	for range n {
		err = errors.Join(err, <-errs)
	}
	return err
}

// answerSpeed is a speed test's server: U and the seconds takes what comes, D and the seconds sends as much as goes; T
// controls a test by UDP, which goes on beside it.
func answerSpeed(c net.Conn) {
	var ask [2]byte
	if _, err := io.ReadFull(c, ask[:]); err != nil {
		return
	}
	switch ask[0] {
	case 'U':
		_, _ = io.Copy(io.Discard, c)
	case 'D':
		blast(c, time.Duration(ask[1])*time.Second)
	case 'T':
		if _, err := c.Write(ask[:]); err == nil { // its parameters are agreed on
			_, _ = io.Copy(c, c)
		}
	}
}

// blast sends for d as fast as goes.
func blast(c net.Conn, d time.Duration) {
	buf := make([]byte, 128<<10)
	for end := time.Now().Add(d); time.Now().Before(end); {
		_ = c.SetWriteDeadline(time.Now().Add(patience))
		if _, err := c.Write(buf); err != nil {
			return
		}
	}
}

// Speed is a speed test by TCP: streams at full speed for d, to the protected host or from it.
func (m *Mix) Speed(streams int, up bool, d time.Duration) (bits float64, err error) {
	var bytes atomic.Int64
	errs := make(chan error, streams)
	for range streams {
		go func() {
			errs <- m.gen.Do(func() error {
				m.exchange("TCP speed test", func() error {
					c, err := connect(tester, loadgen.VictimAddr, portSpeed)
					if err != nil {
						return err
					}
					defer func() { _ = c.Close() }()
					ask := [2]byte{'D', byte(d / time.Second)}
					if up {
						ask[0] = 'U'
					}
					if _, err := c.Write(ask[:]); err != nil {
						return err
					}
					if up {
						w := &counting{Conn: c, n: &bytes}
						blast(w, d)
						return w.err
					}
					_ = c.SetReadDeadline(time.Now().Add(d + patience))
					n, err := io.Copy(io.Discard, c)
					bytes.Add(n)
					return err
				})
				return nil
			})
		}()
	}
	for range streams {
		err = errors.Join(err, <-errs)
	}
	return 8 * float64(bytes.Load()) / d.Seconds(), err
}

// counting counts what is written and keeps the error of it.
type counting struct {
	net.Conn
	n   *atomic.Int64
	err error
}

func (c *counting) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.n.Add(int64(n))
	c.err = err
	return n, err
}

// Scan tries ports of the protected host, one after the other: the operator's own scanner. Each must be open or refuse. It
// ends early when the scanner is cut off.
func (m *Mix) Scan(first, n int) error {
	return m.gen.Do(func() error {
		failed := 0
		for port := first; port < first+n && failed < 3; port++ {
			m.exchange("own scanner", func() (err error) {
				defer func() {
					if err != nil {
						failed++
					}
				}()
				d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(Scanner, 0))}
				c, err := d.Dial("tcp", netip.AddrPortFrom(loadgen.VictimAddr, uint16(port)).String()) //nolint:gosec // the caller's, a port
				if errors.Is(err, syscall.ECONNREFUSED) {
					return nil
				}
				if err == nil {
					err = c.Close()
				}
				return err
			})
		}
		return nil
	})
}

// sshKeys are those of the SSH servers and of their users.
type sshKeys struct {
	server *ssh.ServerConfig
	user   ssh.Signer
}

func newSSHKeys() (k sshKeys, err error) {
	signer := func() ssh.Signer {
		_, private, e := ed25519.GenerateKey(rand.Reader)
		err = errors.Join(err, e)
		s, e := ssh.NewSignerFromKey(private)
		err = errors.Join(err, e)
		return s
	}
	host := signer()
	k.user = signer()
	if err != nil {
		return k, fmt.Errorf("make SSH keys: %w", err)
	}
	k.server = &ssh.ServerConfig{PublicKeyCallback: func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) {
		return &ssh.Permissions{}, nil
	}}
	k.server.AddHostKey(host)
	return k, nil
}

// answerSSH runs commands: it takes all of their input and prints a page.
func (m *Mix) answerSSH(c net.Conn) {
	conn, channels, requests, err := ssh.NewServerConn(c, m.ssh.server)
	if err != nil {
		return
	}
	defer func() { _ = conn.Close() }()
	go ssh.DiscardRequests(requests)
	for n := range channels {
		ch, reqs, err := n.Accept()
		if err != nil {
			return
		}
		for r := range reqs {
			_ = r.Reply(r.Type == "exec", nil)
			if r.Type != "exec" {
				continue
			}
			_, _ = io.Copy(io.Discard, ch)
			_, _ = ch.Write(make([]byte, 1500))
			_, _ = ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{}))
			_ = ch.Close()
		}
	}
}

// session runs one command at the protected host with input, in the caller's namespace.
func (m *Mix) session(source netip.Addr, input io.Reader) error {
	c, err := connect(source, loadgen.VictimAddr, portSSH)
	if err != nil {
		return err
	}
	conn, channels, requests, err := ssh.NewClientConn(c, loadgen.VictimAddr.String(), &ssh.ClientConfig{
		User: "robot", Auth: []ssh.AuthMethod{ssh.PublicKeys(m.ssh.user)}, HostKeyCallback: ssh.InsecureIgnoreHostKey(), //nolint:gosec // a test's own server
	})
	if err != nil {
		_ = c.Close()
		return err
	}
	client := ssh.NewClient(conn, channels, requests)
	defer func() { _ = client.Close() }()
	s, err := client.NewSession()
	if err != nil {
		return err
	}
	s.Stdin = input
	out, err := s.Output("check")
	if err == nil && len(out) != 1500 {
		err = fmt.Errorf("%d bytes of an answer of 1500", len(out))
	}
	return err
}

// command is a short session of an automation's.
func (m *Mix) command() {
	m.exchange("SSH command", func() error { return m.session(robot, nil) })
}

// backup copies to the protected host, each time for a minute at 40 Mbit/s, until ctx ends.
func (m *Mix) backup(ctx context.Context) error {
	return m.gen.Do(func() error {
		for ctx.Err() == nil {
			m.exchange("backup", func() error { return m.session(vault, &paced{ctx: ctx, end: time.Now().Add(time.Minute)}) })
		}
		return nil
	})
}

// paced reads zeros at 5 MB/s until its end.
type paced struct {
	ctx context.Context
	end time.Time
}

func (p *paced) Read(b []byte) (int, error) {
	if p.ctx.Err() != nil || time.Now().After(p.end) {
		return 0, io.EOF
	}
	n := min(len(b), 32<<10)
	time.Sleep(time.Duration(n) * time.Second / 5_000_000)
	return n, nil
}
