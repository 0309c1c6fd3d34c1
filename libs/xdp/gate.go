package xdp

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// Mode says what happens to a packet that no rule and no list has decided.
type Mode uint8

// The modes. ModeKeep is for processes that only write rules: Open leaves mode and peer as they are; on
// a new attachment that is ModeHost, which passes everything.
const (
	ModeKeep   Mode = iota
	ModeInline      // to the AF_XDP socket of the queue, else to the peer port (or dropped, see FailClosed)
	ModeHost        // to the machine's own stack
	ModeTap         // to the AF_XDP socket of the queue, else dropped (or passed, see PassUnread); rules only count
)

// The program's numbers of the modes.
var kernelModes = [...]uint32{ModeInline: 1, ModeHost: 0, ModeTap: 2}

// String returns keep, inline, host or tap.
func (m Mode) String() string {
	names := [...]string{"keep", "inline", "host", "tap"}
	if int(m) < len(names) {
		return names[m]
	}
	return fmt.Sprintf("mode(%d)", uint8(m))
}

// Options say which interface and how.
type Options struct {
	Iface      string
	BPFFS      string // default /sys/fs/bpf; mounted if nothing is mounted there
	Mode       Mode
	Peer       string // ModeInline: the other port
	FailClosed bool   // ModeInline without a reader: drop instead of forward
	PassUnread bool   // ModeTap without a reader: pass to the stack, and to AF_PACKET sockets, instead of drop
	Geometry   Geometry
	Log        *slog.Logger // default: discards
}

// Gate is an interface's attached program with its maps.
type Gate struct {
	dir        string
	iface      string
	ifindex    int
	generic    bool
	reattached string
	log        *slog.Logger
	maps       gateMaps
	link       link.Link
	lockFile   *os.File

	listsPaused atomic.Bool

	mu    sync.Mutex // guards all below and the lock file
	table ruleTable
	done  bool
}

// Close lets go of the maps. The program stays attached and everything stays pinned.
func (g *Gate) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.done {
		return nil
	}
	g.done = true
	return errors.Join(g.link.Close(), g.maps.Close(), g.lockFile.Close())
}

// Remove detaches the program, removes the pins and closes the gate. Packets then take the interface's
// usual way.
func (g *Gate) Remove() error {
	err := g.locked(func() error { return removePins(g.dir) })
	return errors.Join(err, g.Close())
}

// Ifindex is the interface's number at Open.
func (g *Gate) Ifindex() int { return g.ifindex }

// Generic reports whether the driver had no native XDP, so that packets are already in socket buffers
// when the program sees them: several times slower.
func (g *Gate) Generic() bool { return g.generic }

// Reattached says why Open replaced pins that it found, "" if it did not.
func (g *Gate) Reattached() string { return g.reattached }

// Mode is the interface's mode now; another process may have set it.
func (g *Gate) Mode() Mode {
	c, err := g.config()
	if err != nil {
		return ModeKeep
	}
	for m, k := range kernelModes {
		if Mode(m) != ModeKeep && k == c.Mode { //nolint:gosec // three modes
			return Mode(m) //nolint:gosec // as above
		}
	}
	return ModeKeep
}

// Alive reports ErrDetached when the interface is gone or another process has replaced the pins since
// Open. Rules that are written to such a gate have no effect.
func (g *Gate) Alive() error {
	info, err := g.link.Info()
	if err != nil {
		return fmt.Errorf("%s: read the XDP link: %w", g.iface, err)
	}
	if x := info.XDP(); x == nil || int(x.Ifindex) != g.ifindex {
		return fmt.Errorf("%s: %w", g.iface, ErrDetached)
	}
	pinned, err := ebpf.LoadPinnedMap(pinPath(g.dir, "gate_meta"), nil)
	if err != nil {
		return fmt.Errorf("%s: %w (%w)", g.iface, ErrDetached, err)
	}
	defer func() { _ = pinned.Close() }()
	same, err := sameMap(pinned, g.maps.GateMeta)
	if err != nil {
		return fmt.Errorf("%s: compare the pinned maps: %w", g.iface, err)
	}
	if !same {
		return fmt.Errorf("%s: %w", g.iface, ErrDetached)
	}
	return nil
}

func sameMap(a, b *ebpf.Map) (bool, error) {
	ia, err := a.Info()
	if err != nil {
		return false, err
	}
	ib, err := b.Info()
	if err != nil {
		return false, err
	}
	ida, _ := ia.ID()
	idb, _ := ib.ID()
	return ida == idb, nil
}

// locked runs f while no other goroutine and no other process changes this gate.
func (g *Gate) locked(f func() error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.done {
		return fmt.Errorf("%s: %w", g.iface, ErrClosed)
	}
	return flocked(g.lockFile, f)
}

func (g *Gate) config() (config, error) {
	var c config
	if err := g.maps.GateConfig.Lookup(uint32(0), &c); err != nil {
		return c, fmt.Errorf("%s: read the settings: %w", g.iface, err)
	}
	return c, nil
}

// setConfig reads, changes and writes the settings; the caller holds the lock. Equal settings are not
// written.
func (g *Gate) setConfig(change func(c *config)) error {
	c, err := g.config()
	if err != nil {
		return err
	}
	before := c
	if change(&c); c == before {
		return nil
	}
	if err := g.maps.GateConfig.Update(uint32(0), &c, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("%s: write the settings: %w", g.iface, err)
	}
	return nil
}

// SetSocket makes an AF_XDP socket the reader of a queue; any process may own the socket, and the kernel
// takes it out when it is closed or its process dies. The socket must be bound to this interface and queue.
func (g *Gate) SetSocket(queue, fd int) error {
	if queue < 0 || queue >= maxQueues {
		return fmt.Errorf("%s: queue %d: the program knows queues 0 to %d", g.iface, queue, maxQueues-1)
	}
	if err := g.maps.GateSockets.Update(uint32(queue), uint32(fd), ebpf.UpdateAny); err != nil { //nolint:gosec // both small
		return fmt.Errorf("%s: queue %d: register the AF_XDP socket: %w", g.iface, queue, err)
	}
	return nil
}

// ClearSocket takes the reader of a queue out; without one it does nothing.
func (g *Gate) ClearSocket(queue int) error {
	if queue < 0 || queue >= maxQueues {
		return fmt.Errorf("%s: queue %d: the program knows queues 0 to %d", g.iface, queue, maxQueues-1)
	}
	err := g.maps.GateSockets.Delete(uint32(queue)) //nolint:gosec // checked above
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("%s: queue %d: take the AF_XDP socket out: %w", g.iface, queue, err)
	}
	return nil
}

// RuleStat is what a rule has done since it was put under its ID. Bytes are of whole frames.
type RuleStat struct {
	Packets, Bytes uint64    // matched; of a rule that waits for retries, without the SYNs of sources that showed themselves
	Dropped        uint64    // of these, dropped: by drop, or in excess of a rate
	FirstDrop      time.Time // zero = none yet; exact to the clock
	FirstDropNs    uint64    // the same, CLOCK_MONOTONIC; 0 = none yet
	LastHit        time.Time // zero = none yet; to a tick of 1 to 10 ms
}
