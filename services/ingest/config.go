package ingest

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/tidegate-mesh/tidegate/libs/afpacket"
	"github.com/tidegate-mesh/tidegate/libs/afxdp"
	"github.com/tidegate-mesh/tidegate/services/ingest/internal/shard"
)

// Modes of the sensor; see the XDP program's modes in libs/xdp.
const (
	ModeInline = "inline"
	ModeTap    = "tap"
	ModeHost   = "host"
	ModePcap   = "pcap" // no interface: captures are read
)

// Values of Config.Tunnels.
const (
	TunnelsOuter = "outer"
	TunnelsInner = "inner"
)

// minBuffer is what every classifier's batches may take at least.
const minBuffer = 1 << 20

// maxSensor is what every database's column holds. Messages do not carry a text that is no UTF-8.
const maxSensor = 255

// maxForwarded is half of the gate's flow map: a flow takes an entry for each direction.
const maxForwarded = 65536

// Config describes a sensor. The tags are the command line's; DefaultConfig gives the same defaults.
type Config struct {
	Ifaces []string `name:"iface" env:"TIDEGATE_INGEST_IFACE" help:"Interface to watch; inline takes two, the bridge's ports."`
	Mode   string   `name:"mode" env:"TIDEGATE_INGEST_MODE" default:"inline" enum:"inline,tap,host,pcap" help:"inline bridges two ports, tap reads a mirror port, host protects the machine itself: packets go to its stack, and what begins a flow is copied up. pcap reads captures instead of an interface."`
	BPFFS  string   `name:"bpffs" env:"TIDEGATE_INGEST_BPFFS" default:"/sys/fs/bpf" help:"BPF file system with the pins of the XDP program."`
	Sensor string   `name:"sensor" env:"TIDEGATE_INGEST_SENSOR" help:"Name of this sensor in subjects and rows; the host name by default."`

	Pcap     []string `name:"pcap" env:"TIDEGATE_INGEST_PCAP" type:"path" help:"Mode pcap: capture to read (pcap or pcapng, gzip or not; repeatable)."`
	PcapPace string   `name:"pcap-pace" env:"TIDEGATE_INGEST_PCAP_PACE" default:"capture" enum:"capture,full" help:"Mode pcap: at the capture's own pace, as if it happened now, or at full speed with the capture's times."`
	PcapStay bool     `name:"pcap-stay" env:"TIDEGATE_INGEST_PCAP_STAY" help:"Mode pcap: do not end when the captures are read."`

	Classify  []string `name:"classify" env:"TIDEGATE_INGEST_CLASSIFY" default:"127.0.0.1:50051" help:"Address of the classify service (repeatable). Of several each judges its part of the networks, and for the others while they do not answer."`
	Protected []string `name:"protected" env:"TIDEGATE_INGEST_PROTECTED" help:"Prefix whose hosts are protected (repeatable), as classify has them: with several classifiers, the one of a flow is that of its protected side. One classifier needs none."`

	Tunnels       string `name:"tunnels" env:"TIDEGATE_INGEST_TUNNELS" default:"outer" enum:"outer,inner" help:"Tunnelled packets (GRE, IP in IP, 6in4, VXLAN, Geneve, GTP-U, CAPWAP) of a mirror port (tap) are accounted and judged by their outer header, or by what the tunnel carries (inner), as those of captures always are. Inline and host take outer alone: it is what rules match there."`
	Capture       string `name:"capture" env:"TIDEGATE_INGEST_CAPTURE" default:"auto" enum:"auto,af_xdp,af_packet" help:"How frames come from a mirror port (tap): by af_xdp, by af_packet, or auto, which takes AF_PACKET where AF_XDP cannot be had. Inline and host need XDP."`
	PacketWorkers int    `name:"packet-workers" env:"TIDEGATE_INGEST_PACKET_WORKERS" default:"0" help:"AF_PACKET: workers that share an interface's frames; 0 is one for each CPU, 8 at most."`
	PacketFanout  string `name:"packet-fanout" env:"TIDEGATE_INGEST_PACKET_FANOUT" default:"hash" enum:"hash,cpu" help:"AF_PACKET: frames go to workers by their flow (hash) or by the CPU that they came in on."`
	PacketRing    int    `name:"packet-ring" env:"TIDEGATE_INGEST_PACKET_RING" default:"33554432" help:"AF_PACKET: bytes of the ring of each worker and interface, a multiple of 262144."`

	Backend  string        `name:"afxdp-backend" env:"TIDEGATE_INGEST_AFXDP_BACKEND" default:"native" enum:"native,asavie" help:"AF_XDP implementation."`
	Frames   int           `name:"frames" env:"TIDEGATE_INGEST_FRAMES" default:"16384" help:"Receive frames a queue, a power of two. They bridge the time in which the worker does not run: 16384 are 8 ms at 2 million packets a second."`
	RxRing   int           `name:"rx-ring" env:"TIDEGATE_INGEST_RX_RING" default:"16384" help:"Receive ring of a queue, a power of two."`
	TxRing   int           `name:"tx-ring" env:"TIDEGATE_INGEST_TX_RING" default:"2048" help:"Transmit ring of a queue, a power of two."`
	BusyPoll time.Duration `name:"busy-poll" env:"TIDEGATE_INGEST_BUSY_POLL" default:"0" help:"AF_XDP: how long a worker that finds no frame runs the driver's poll loop itself instead of waiting for interrupts (20us is usual; native backend); 0: not at all. The card needs napi_defer_hard_irqs and gro_flush_timeout; see doctor."`
	ZeroCopy string        `name:"zero-copy" env:"TIDEGATE_INGEST_ZERO_COPY" default:"auto" enum:"auto,off,required" help:"AF_XDP: whether driver and sensor share frame memory: auto where the driver can, off never, required ends where it cannot."`

	CPUs []int         `name:"cpus" env:"TIDEGATE_INGEST_CPUS" help:"CPUs for the queues' workers, in order; without it the scheduler chooses."`
	Nice int           `name:"nice" env:"TIDEGATE_INGEST_NICE" default:"-10" help:"Scheduling priority of the workers' threads, -20 to 19, so that no other work on their CPU lets a ring overflow; 0 leaves it. Below 0 needs SYS_NICE."`
	Spin time.Duration `name:"spin" env:"TIDEGATE_INGEST_SPIN" default:"37us" help:"How long a worker looks for frames without sleeping while a million or more come a second; 0 sleeps at once."`

	BatchInterval  time.Duration `name:"batch-interval" env:"TIDEGATE_INGEST_BATCH_INTERVAL" default:"5ms" help:"Age at which a batch is sent."`
	WindowInterval time.Duration `name:"window-interval" env:"TIDEGATE_INGEST_WINDOW_INTERVAL" default:"100ms" help:"Length of a window."`
	BufferBytes    int64         `name:"buffer-bytes" env:"TIDEGATE_INGEST_BUFFER_BYTES" default:"67108864" help:"Bound of batches that classify has not acknowledged; beyond it the oldest is dropped and counted."`

	MaxFlows      int           `name:"max-flows" env:"TIDEGATE_INGEST_MAX_FLOWS" default:"1048576" help:"Flows kept at most, all queues together."`
	IdleTCP       time.Duration `name:"idle-tcp" env:"TIDEGATE_INGEST_IDLE_TCP" default:"120s" help:"Idle timeout of TCP flows."`
	IdleUDP       time.Duration `name:"idle-udp" env:"TIDEGATE_INGEST_IDLE_UDP" default:"60s" help:"Idle timeout of UDP flows."`
	IdleOther     time.Duration `name:"idle-other" env:"TIDEGATE_INGEST_IDLE_OTHER" default:"30s" help:"Idle timeout of other flows."`
	ActiveTimeout time.Duration `name:"active-timeout" env:"TIDEGATE_INGEST_ACTIVE_TIMEOUT" default:"60s" help:"Long flows are exported in parts of this length; 0 exports them whole. One that is silent by then for half its idle timeout is exported when it ends."`

	SharedFrames     bool `name:"shared-frames" env:"TIDEGATE_INGEST_SHARED_FRAMES" default:"true" negatable:"" help:"Inline: queues of both ports share frame memory, so that a frame is forwarded without a copy. Where kernel or driver refuses, or the ports have different numbers of queues, frames are copied."`
	FailClosed       bool `name:"fail-closed" env:"TIDEGATE_INGEST_FAIL_CLOSED" help:"Inline: drop instead of forward while no sensor reads."`
	KernelForwarding bool `name:"kernel-forwarding" env:"TIDEGATE_INGEST_KERNEL_FORWARDING" default:"true" negatable:"" help:"Inline and host: forward flows whose label is final in the kernel, or spare them the copy, and meter them there."`
	MaxForwarded     int  `name:"max-forwarded" env:"TIDEGATE_INGEST_MAX_FORWARDED" default:"16384" help:"Flows forwarded in the kernel at most."`
}

// DefaultConfig is the configuration of a command line without flags; it names no interface.
func DefaultConfig() Config {
	return Config{
		Mode: ModeInline, PcapPace: PaceCapture, BPFFS: "/sys/fs/bpf", Classify: []string{"127.0.0.1:50051"},
		Tunnels: TunnelsOuter, Capture: CaptureAuto, PacketFanout: afpacket.FanoutHash, PacketRing: 32 << 20,
		Backend: afxdp.Native, Frames: 16384, RxRing: 16384, TxRing: 2048, Nice: -10, Spin: 37 * time.Microsecond,
		BatchInterval: 5 * time.Millisecond, WindowInterval: 100 * time.Millisecond, BufferBytes: 64 << 20,
		MaxFlows: 1 << 20, IdleTCP: 120 * time.Second, IdleUDP: 60 * time.Second, IdleOther: 30 * time.Second,
		ActiveTimeout: 60 * time.Second, ZeroCopy: "auto", SharedFrames: true, KernelForwarding: true, MaxForwarded: 16384,
	}
}

// Validate reports the first mistake as one sentence. An empty Sensor is filled with the host name.
func (c *Config) Validate() error {
	_, known := zeroCopy[c.ZeroCopy]
	switch {
	case c.Mode == ModePcap && len(c.Pcap) == 0:
		return errors.New("ingest: no capture: name one with --pcap")
	case c.Mode == ModePcap && len(c.Ifaces) > 0:
		return fmt.Errorf("ingest: mode pcap reads captures only: leave --iface %s out, or use another mode", c.Ifaces[0])
	case c.Mode != ModePcap && len(c.Pcap) > 0:
		return fmt.Errorf("ingest: %s mode reads interfaces: to read the capture %s use --mode pcap", c.Mode, c.Pcap[0])
	case c.PcapPace != PaceCapture && c.PcapPace != PaceFull:
		return fmt.Errorf("ingest: pace %q is neither capture nor full", c.PcapPace)
	case c.Mode != ModePcap && len(c.Ifaces) == 0:
		return errors.New("ingest: no interface: name one with --iface, or read a capture with --mode pcap --pcap FILE")
	case len(c.Ifaces) > 2:
		return fmt.Errorf("ingest: %d interfaces: a sensor has one or two", len(c.Ifaces))
	case len(c.Ifaces) == 2 && c.Ifaces[0] == c.Ifaces[1]:
		return fmt.Errorf("ingest: both interfaces are %s: name two different ones", c.Ifaces[0])
	case c.Mode == ModeInline && len(c.Ifaces) != 2:
		return errors.New("ingest: inline bridges two interfaces: give --iface twice, or use --mode tap or host")
	case c.Mode != ModeInline && c.Mode != ModeTap && c.Mode != ModeHost && c.Mode != ModePcap:
		return fmt.Errorf("ingest: mode %q is none of inline, tap, host and pcap", c.Mode)
	case c.Capture != CaptureAuto && c.Capture != CaptureAFXDP && c.Capture != CaptureAFPacket:
		return fmt.Errorf("ingest: capture %q is none of auto, af_xdp and af_packet", c.Capture)
	case c.Capture == CaptureAFPacket && c.Mode != ModeTap:
		return fmt.Errorf("ingest: --capture af_packet is for --mode tap: AF_PACKET copies frames, it cannot hold them back or send them on as %s mode does", c.Mode)
	case c.Tunnels != TunnelsOuter && c.Tunnels != TunnelsInner:
		return fmt.Errorf("ingest: tunnels %q is none of outer and inner", c.Tunnels)
	case c.Tunnels == TunnelsInner && c.Mode != ModeTap && c.Mode != ModePcap:
		return fmt.Errorf("ingest: --tunnels inner is for --mode tap: the XDP program of %s mode matches outer headers, so what is found inside a tunnel could be judged there and not stopped; use --tunnels outer, or watch where the tunnel ends", c.Mode)
	case c.PacketWorkers < 0 || c.PacketWorkers > maxQueues:
		return fmt.Errorf("ingest: %d AF_PACKET workers: use 0 to %d", c.PacketWorkers, maxQueues)
	case c.BatchInterval <= 0 || c.BatchInterval > time.Second:
		return fmt.Errorf("ingest: batch interval %v: use more than 0 and at most 1s", c.BatchInterval)
	case c.WindowInterval < 10*time.Millisecond || c.WindowInterval > 10*time.Second:
		return fmt.Errorf("ingest: window interval %v: use 10ms to 10s", c.WindowInterval)
	case c.BufferBytes < minBuffer:
		return fmt.Errorf("ingest: buffer of %d bytes: use at least %d, the size of one batch", c.BufferBytes, minBuffer)
	case c.MaxFlows < 1024:
		return fmt.Errorf("ingest: at most %d flows: use at least 1024", c.MaxFlows)
	case c.IdleTCP <= 0 || c.IdleUDP <= 0 || c.IdleOther <= 0:
		return fmt.Errorf("ingest: idle timeouts of %v (TCP), %v (UDP) and %v (others): use more than 0", c.IdleTCP, c.IdleUDP, c.IdleOther)
	case c.ActiveTimeout < 0:
		return fmt.Errorf("ingest: active timeout of %v: use more than 0, or 0 to export long flows whole", c.ActiveTimeout)
	case slices.ContainsFunc(c.CPUs, func(n int) bool { return n < 0 }):
		return fmt.Errorf("ingest: CPUs %v: they are numbered from 0", c.CPUs)
	case len(c.Sensor) > maxSensor || !utf8.ValidString(c.Sensor) || strings.ContainsFunc(c.Sensor, unicode.IsControl):
		return fmt.Errorf("ingest: sensor name %.40q: use at most %d bytes of text without control characters", c.Sensor, maxSensor)
	case c.Nice < -20 || c.Nice > 19:
		return fmt.Errorf("ingest: priority %d: use -20 to 19", c.Nice)
	case c.Spin < 0 || c.Spin > time.Second:
		return fmt.Errorf("ingest: spin of %v: use 0 to 1s", c.Spin)
	case c.BusyPoll < 0 || c.BusyPoll > time.Millisecond:
		return fmt.Errorf("ingest: busy polling of %v: use 0 to 1ms", c.BusyPoll)
	case c.BusyPoll > 0 && c.Backend != afxdp.Native:
		return fmt.Errorf("ingest: --busy-poll is for --afxdp-backend native, not %s", c.Backend)
	case !known:
		return fmt.Errorf("ingest: zero-copy %q is none of auto, off and required", c.ZeroCopy)
	case c.MaxForwarded < 0 || c.MaxForwarded > maxForwarded:
		return fmt.Errorf("ingest: at most %d forwarded flows: use 0 to %d", c.MaxForwarded, maxForwarded)
	}
	if err := c.validateClassifiers(); err != nil {
		return err
	}
	sockets := c.sockets("", 0, 2048)
	if err := sockets.Validate(); err != nil {
		return fmt.Errorf("ingest: AF_XDP: %w", err)
	}
	packets := c.packets("")
	if err := packets.Validate(); err != nil {
		return fmt.Errorf("ingest: AF_PACKET: %w", err)
	}
	if c.Sensor == "" {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("ingest: no sensor name, and the host name cannot be read: %w", err)
		}
		c.Sensor = host
	}
	return nil
}

// validateClassifiers looks at what says which classifier gets what.
func (c *Config) validateClassifiers() error {
	switch n := len(c.Classify); {
	case n == 0 || slices.Contains(c.Classify, ""):
		return errors.New("ingest: no classifier: give its address with --classify, for example classify.example:50051")
	case n > shard.MaxOwners:
		return fmt.Errorf("ingest: %d classifiers: a sensor streams to at most %d", n, shard.MaxOwners)
	case n > 1 && len(c.Protected) == 0:
		return errors.New("ingest: several classifiers, and no protected prefix: name those of classify with --protected, because the protected side of a flow says which classifier gets it")
	}
	for i, name := range c.Classify {
		if slices.Contains(c.Classify[:i], name) {
			return fmt.Errorf("ingest: classifier %s is named twice: name each once", name)
		}
	}
	if _, err := shard.NewSides(c.Protected); err != nil {
		return fmt.Errorf("ingest: --protected: %w", err)
	}
	return nil
}

// zeroCopy are the values of Config.ZeroCopy.
var zeroCopy = map[string]afxdp.ZeroCopy{"auto": afxdp.ZeroCopyAuto, "off": afxdp.ZeroCopyNever, "required": afxdp.ZeroCopyRequire}

// sockets describes the AF_XDP socket of a queue.
func (c *Config) sockets(iface string, queue, frameSize int) afxdp.Config {
	x := afxdp.DefaultConfig(iface, queue)
	x.Backend, x.Frames, x.FrameSize, x.RxRing, x.TxRing = c.Backend, c.Frames, frameSize, c.RxRing, c.TxRing
	x.BusyPoll, x.ZeroCopy = c.BusyPoll, zeroCopy[c.ZeroCopy]
	return x
}

// packets describes an interface's AF_PACKET sockets, one so far.
func (c *Config) packets(iface string) afpacket.Config {
	x := afpacket.DefaultConfig(iface)
	x.Ring, x.Fanout = c.PacketRing, c.PacketFanout
	return x
}

// inner tells whether packets are accounted by what tunnels carry.
func (c *Config) inner() bool { return c.Tunnels == TunnelsInner || c.Mode == ModePcap }
