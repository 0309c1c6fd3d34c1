package mix

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"

	"github.com/tidegate-mesh/tidegate/libs/loadgen"
	"github.com/tidegate-mesh/tidegate/libs/netlab"
)

const (
	portNTP  = 123
	portQUIC = 443
	portGame = 27015
)

// serveUDP hands datagrams to answer, one at a time, until Close.
func (m *Mix) serveUDP(ns *netlab.NS, addr netip.Addr, port uint16, answer func(c *net.UDPConn, from netip.AddrPort, b []byte)) error {
	var c *net.UDPConn
	err := ns.Do(func() (err error) {
		c, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, port)))
		return err
	})
	if err != nil {
		return fmt.Errorf("serve UDP port %d: %w", port, err)
	}
	_ = c.SetReadBuffer(4 << 20) // as much as the host allows
	m.closers = append(m.closers, c)
	m.wg.Add(1)
	go func() {
		defer m.wg.Done()
		buf := make([]byte, 2048)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil { // else a client is gone
				answer(c, from, buf[:n])
			}
		}
	}()
	return nil
}

// talk opens a socket from source to a server, in the caller's namespace.
func talk(source, target netip.Addr, port uint16) (*net.UDPConn, error) {
	return net.DialUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(source, 0)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(target, port)))
}

// ask sends b and waits for an answer, up to times times.
func ask(c *net.UDPConn, b, answer []byte, times int) (n int, err error) {
	for range times {
		if _, err = c.Write(b); err != nil {
			continue // the link is away
		}
		_ = c.SetReadDeadline(time.Now().Add(time.Second))
		if n, err = c.Read(answer); err == nil {
			return n, nil
		}
	}
	return n, err
}

func answerGame(c *net.UDPConn, from netip.AddrPort, b []byte) {
	_, _ = c.WriteToUDPAddrPort(append(b, make([]byte, 200)...), from)
}

// play sends a player's moves, 60 a second, each answered by the state of the game.
func (m *Mix) play(ctx context.Context, source netip.Addr) error {
	return m.gen.Do(func() error {
		c, err := talk(source, loadgen.VictimAddr, portGame)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		tick := time.NewTicker(time.Second / 60)
		defer tick.Stop()
		move, state := make([]byte, 60), make([]byte, 512)
		for i := uint64(0); ; i++ {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
			binary.BigEndian.PutUint64(move, i)
			m.exchange("game", func() error { _, err := ask(c, move, state, int(patience/time.Second)); return err })
		}
	})
}

func answerNTP(c *net.UDPConn, from netip.AddrPort, b []byte) {
	if len(b) >= 48 && b[0]&7 == 3 { // a client's (RFC 5905 7.3)
		b[0] = 4<<3 | 4
		_, _ = c.WriteToUDPAddrPort(b[:48], from)
	}
}

// askTime asks an NTP server in the caller's namespace.
func (m *Mix) askTime(source, server netip.Addr) {
	m.exchange("NTP", func() error {
		c, err := talk(source, server, portNTP)
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		question := make([]byte, 48)
		question[0] = 4<<3 | 3
		_, err = ask(c, question, make([]byte, 64), int(patience/time.Second))
		return err
	})
}

// ping sends ten echo requests a second.
func (m *Mix) ping(ctx context.Context) error {
	return m.gen.Do(func() error {
		c, err := icmp.ListenPacket("ip4:icmp", monitor.String())
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		id, buf := os.Getpid()&0xffff, make([]byte, 256)
		tick := time.NewTicker(time.Second / 10)
		defer tick.Stop()
		for seq := 0; ; seq++ {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
			m.exchange("ping", func() error {
				b, err := (&icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: id, Seq: seq & 0xffff, Data: make([]byte, 56)}}).Marshal(nil)
				if err != nil {
					return err
				}
				for range int(patience / time.Second) {
					if _, err = c.WriteTo(b, &net.IPAddr{IP: loadgen.VictimAddr.AsSlice()}); err != nil {
						time.Sleep(time.Second)
						continue
					}
					_ = c.SetReadDeadline(time.Now().Add(time.Second))
					if _, _, err = c.ReadFrom(buf); err == nil {
						return nil
					}
				}
				return err
			})
		}
	})
}

// stream sends datagrams of size bytes that begin with head, evenly, pps a second for d, and returns how many went out. to is
// nil on a connected socket.
func stream(c *net.UDPConn, to net.Addr, head []byte, size, pps int, d time.Duration) (sent int) {
	const batch = 128
	p := ipv4.NewPacketConn(c)
	payload := make([]byte, size)
	copy(payload, head)
	msgs := make([]ipv4.Message, batch)
	for i := range msgs {
		msgs[i] = ipv4.Message{Buffers: [][]byte{payload}, Addr: to}
	}
	due, last := 0.0, time.Now()
	for end := last.Add(d); last.Before(end); {
		time.Sleep(time.Millisecond)
		now := time.Now()
		// What a busy machine missed is not caught up on: the receiver's buffer would not hold it.
		due = min(due+now.Sub(last).Seconds()*float64(pps), batch)
		last = now
		n, _ := p.WriteBatch(msgs[:int(due)], 0) // fails while the link is away
		due -= float64(n)
		sent += n
	}
	return sent
}

// testSize is a datagram of a speed test: what fits an Ethernet frame.
const testSize = 1448

// answerTest is the server of a speed test by UDP. It answers the first datagram, as iperf3's does, and takes the others.
func answerTest(c *net.UDPConn, from netip.AddrPort, b []byte) {
	if len(b) < testSize {
		_, _ = c.WriteToUDPAddrPort(b, from)
	}
}

// Test is a speed test by UDP to the protected host: pps for d from one port, after a control connection by TCP has agreed
// on it, as iperf3 does. It returns how many datagrams left.
func (m *Mix) Test(pps int, d time.Duration) (sent int, err error) {
	err = m.gen.Do(func() error {
		m.exchange("UDP speed test", func() error {
			control, err := connect(tester, loadgen.VictimAddr, portSpeed)
			if err != nil {
				return err
			}
			defer func() { _ = control.Close() }()
			_ = control.SetDeadline(time.Now().Add(d + patience))
			agree := func() error {
				line := []byte("T.")
				if _, err := control.Write(line); err != nil {
					return err
				}
				_, err := control.Read(line)
				return err
			}
			if err := agree(); err != nil {
				return err
			}
			c, err := talk(tester, loadgen.VictimAddr, portSpeed)
			if err != nil {
				return err
			}
			defer func() { _ = c.Close() }()
			if _, err := ask(c, make([]byte, 4), make([]byte, 64), int(patience/time.Second)); err != nil {
				return err
			}
			sent = stream(c, nil, nil, testSize, pps, d)
			return agree() // the results
		})
		return nil
	})
	return sent, err
}

// A download is asked for in the first datagram, behind what looks like the header of a QUIC Initial (RFC 9000 17.2.2).
const (
	initialSize = 1200
	longHeader  = 0xc3
	shortHeader = 0x43
)

// answerDownload answers an Initial by one of its own and then sends short-header packets, each of the size of a path's
// MTU, at the rate and for the time asked for.
func answerDownload(c *net.UDPConn, from netip.AddrPort, b []byte) {
	if len(b) < initialSize || b[0] != longHeader {
		return // an acknowledgement
	}
	_, _ = c.WriteToUDPAddrPort(b[:initialSize], from)
	pps, ms := int(binary.BigEndian.Uint32(b[32:])), time.Duration(binary.BigEndian.Uint32(b[36:]))
	go stream(c, net.UDPAddrFromAddrPort(from), []byte{shortHeader}, 1350, pps, ms*time.Millisecond)
}

// Download is a download by QUIC: packets of 1,350 bytes at pps for d, every second one acknowledged. inward: the
// protected host loads from outside, else a client outside loads from the protected host. It returns how many came.
func (m *Mix) Download(inward bool, pps int, d time.Duration) (got int, err error) {
	ns, client, server := m.gen, browser, loadgen.VictimAddr
	if inward {
		ns, client, server = m.victim, loadgen.VictimAddr, outside
	}
	err = ns.Do(func() error {
		m.exchange("QUIC download", func() error {
			c, err := talk(client, server, portQUIC)
			if err != nil {
				return err
			}
			defer func() { _ = c.Close() }()
			_ = c.SetReadBuffer(4 << 20)
			first := make([]byte, initialSize)
			copy(first, []byte{longHeader, 0, 0, 0, 1, 8})                     // version 1, a connection id of 8 bytes
			binary.BigEndian.PutUint32(first[32:], uint32(pps))                //nolint:gosec // a rate
			binary.BigEndian.PutUint32(first[36:], uint32(d/time.Millisecond)) //nolint:gosec // seconds
			buf := make([]byte, 2048)
			if _, err := ask(c, first, buf, 1); err != nil {
				return err
			}
			ack := make([]byte, 40)
			ack[0] = shortHeader
			for end := time.Now().Add(d); ; {
				_ = c.SetReadDeadline(end.Add(time.Second))
				if _, err := c.Read(buf); err != nil {
					break
				}
				if got++; got%2 == 0 {
					_, _ = c.Write(ack)
				}
				if time.Now().After(end) {
					break
				}
			}
			if want := pps * int(d/time.Second); got < want/10 { // nothing controls its congestion
				return fmt.Errorf("%d of %d packets came", got, want)
			}
			return nil
		})
		return nil
	})
	return got, err
}
