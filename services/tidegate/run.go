package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/tidegate-mesh/tidegate/libs/bus"
	"github.com/tidegate-mesh/tidegate/libs/config"
	"github.com/tidegate-mesh/tidegate/libs/lifecycle"
	"github.com/tidegate-mesh/tidegate/libs/pki"
	"github.com/tidegate-mesh/tidegate/libs/rpc"
	"github.com/tidegate-mesh/tidegate/libs/telemetry"
	"github.com/tidegate-mesh/tidegate/libs/token"
	"github.com/tidegate-mesh/tidegate/services/classify"
	"github.com/tidegate-mesh/tidegate/services/enforce"
	"github.com/tidegate-mesh/tidegate/services/gateway"
	"github.com/tidegate-mesh/tidegate/services/ingest"
	"github.com/tidegate-mesh/tidegate/services/persist"
)

// runCmd is the all-in-one. The short flags set what several services share; each service's own settings
// are there with its name in front, also in the file (ingest: {spin: 50us}).
type runCmd struct {
	Iface      []string `help:"interface; inline bridges two" env:"TIDEGATE_IFACE"`
	Mode       string   `help:"inline, host, tap, or pcap, which reads captures instead of an interface" enum:"inline,host,tap,pcap" default:"inline" env:"TIDEGATE_MODE"`
	Pcap       []string `help:"mode pcap: capture to read (pcap or pcapng, gzip or not); repeat for more" type:"path" env:"TIDEGATE_PCAP"`
	PcapPace   string   `name:"pcap-pace" help:"mode pcap: at the capture's own pace, as if it happened now, or at full speed with the capture's times" enum:"capture,full" default:"capture" env:"TIDEGATE_PCAP_PACE"`
	Protected  []string `help:"protected prefix; repeat or separate by commas; without it every address is" env:"TIDEGATE_PROTECTED"`
	Enforce    bool     `help:"drop for real; without it rules only count what they would have dropped (shadow)" env:"TIDEGATE_ENFORCE"`
	Data       string   `help:"folder of the database and the message store" default:"/var/lib/tidegate" type:"path" env:"TIDEGATE_DATA"`
	BPFFS      string   `name:"bpffs" help:"BPF file system for the pinned programs and maps" default:"/sys/fs/bpf" env:"TIDEGATE_BPFFS"`
	Listen     string   `help:"gRPC address of all services; empty = none" default:"127.0.0.1:50051" env:"TIDEGATE_LISTEN"`
	NATSListen string   `name:"nats-listen" help:"address of the embedded NATS server for others; empty = none" env:"TIDEGATE_NATS_LISTEN"`
	NATSURL    string   `name:"nats-url" help:"an external NATS server instead of the embedded one" env:"NATS_URL"`
	Local      string   `name:"local-credentials" help:"file for the credentials of this machine's command line, removed at the end; empty = none" default:"/run/tidegate/local.json" env:"TIDEGATE_LOCAL_CREDENTIALS"`
	TLS        rpc.TLS  `embed:""`

	Telemetry telemetry.Config `embed:""`
	Ingest    ingest.Config    `embed:"" prefix:"ingest-"`
	Classify  classify.Config  `embed:"" prefix:"classify-"`
	EnforceC  enforce.Config   `embed:"" prefix:"enforce-"`
	Persist   persist.Config   `embed:"" prefix:"persist-"`
	Gateway   gateway.Config   `embed:"" prefix:"gateway-"`
}

// Validate is called by the flag parser.
func (c *runCmd) Validate() error {
	switch {
	case c.Mode == ingest.ModePcap && (len(c.Pcap) == 0 || len(c.Iface) > 0):
		return errors.New("--mode pcap takes captures and no interface: give --pcap FILE and leave --iface out")
	case c.Mode != ingest.ModePcap && len(c.Pcap) > 0:
		return errors.New("--pcap is read with --mode pcap")
	case c.Mode != ingest.ModePcap && len(c.Iface) == 0:
		return errors.New("no interface: name one with --iface, or read a capture with --mode pcap --pcap FILE")
	case c.Mode == ingest.ModeInline && len(c.Iface) != 2:
		return fmt.Errorf("--mode inline bridges two interfaces, %d named: give --iface twice, or use --mode tap or host", len(c.Iface))
	case c.Mode == ingest.ModeHost && len(c.Iface) != 1:
		return errors.New("--mode host takes one --iface")
	}
	if err := c.Classify.Validate(); err != nil {
		return fmt.Errorf("classify: %w", err)
	}
	if err := c.Persist.Hooks.Validate(); err != nil {
		return err
	}
	if c.Gateway.Listen == "" {
		return nil
	}
	return c.Gateway.Validate()
}

func (c *runCmd) Run() error {
	if os.Getenv("GOGC") == "" {
		// Most of the heap is what classify knows of flows, which lasts for minutes: garbage as large again, the default, costs
		// more memory than the collector saves time by it.
		debug.SetGCPercent(50)
	}
	ctx, stop := lifecycle.SignalContext()
	defer stop()
	c.Telemetry.Service = "tidegate"
	if err := c.secure(); err != nil {
		return err
	}
	s, err := newStack(ctx, c.stackConfig())
	if err != nil {
		return err
	}
	mode := "shadow: rules count what they would drop; start with --enforce to drop"
	if c.Enforce {
		mode = "enforcing"
	}
	s.tel.Log.Info("tidegate runs", "interfaces", c.Iface, "mode", c.Mode, "enforcement", mode, "grpc", c.Listen, "https", c.Gateway.Listen, "metrics", c.Telemetry.MetricsListen, "data", c.Data)
	return s.Run(ctx)
}

// secure names the certificates. Where no folder and no file is named it makes them, in the data folder.
func (c *runCmd) secure() (err error) {
	if err := ensureDir(c.Data); err != nil {
		return err
	}
	dir := c.TLS.Dir
	if !c.TLS.Insecure && c.TLS == (rpc.TLS{}) {
		dir = filepath.Join(c.Data, "certs")
		if err := ensureCerts(dir, c.Listen, c.NATSListen, c.Gateway.Listen); err != nil {
			return err
		}
		c.TLS.Dir = dir
	}
	if c.TLS, err = c.TLS.Resolve(pki.Tidegate); err != nil {
		return config.Usagef("%w", err)
	}
	return secureGateway(&c.Gateway, dir, c.Data)
}

// defaultData is the default of --data.
const defaultData = "/var/lib/tidegate"

// listenHosts are the hosts of addresses that clients may name; not those that mean every address.
func listenHosts(addrs ...string) []string {
	var hosts []string
	for _, a := range addrs {
		host, _, err := net.SplitHostPort(a)
		if ip := net.ParseIP(host); err != nil || host == "" || (ip != nil && ip.IsUnspecified()) {
			continue
		}
		hosts = append(hosts, host)
	}
	return hosts
}

func (c *runCmd) stackConfig() stackConfig {
	s := stackConfig{
		data: c.Data, listen: c.Listen, natsListen: c.NATSListen, tls: c.TLS, telemetry: c.Telemetry,
		ingest: c.Ingest, classify: c.Classify, enforce: c.EnforceC, persist: c.Persist,
		gateway: c.Gateway, local: c.Local,
	}
	if c.NATSURL != "" {
		s.bus = bus.DefaultConfig()
		s.bus.URL = c.NATSURL
		s.bus.TLS = bus.TLS{}.Or(c.TLS.CA, c.TLS.Cert, c.TLS.Key)
	}
	s.ingest.Ifaces, s.ingest.Mode, s.ingest.BPFFS = c.Iface, c.Mode, c.BPFFS
	s.ingest.Pcap, s.ingest.PcapPace, s.ingest.PcapStay = c.Pcap, c.PcapPace, true
	s.enforce.Ifaces, s.enforce.Enforce, s.enforce.BPFFS = c.Iface, c.Enforce, c.BPFFS
	s.classify.Engine.Protected = append(s.classify.Engine.Protected, c.Protected...)
	if s.persist.DataDir == persist.DefaultConfig().DataDir {
		s.persist.DataDir = c.Data
	}
	return s
}

// stackConfig is the demo's: everything on the link, enforcing, nothing kept.
func (c *demoCmd) stackConfig(ifaces []string, bpffs, victim, data string) (stackConfig, error) {
	s := stackConfig{
		data: data, listen: c.Listen, local: c.Local, gateway: gateway.DefaultConfig(), telemetry: telemetry.DefaultConfig("tidegate"),
		ingest: ingest.DefaultConfig(), classify: classify.DefaultConfig(), enforce: enforce.DefaultConfig(), persist: persist.DefaultConfig(),
	}
	s.telemetry.MetricsListen, s.telemetry.LogLevel, s.telemetry.LogFormat = c.Metrics, "error", "text"
	s.telemetry.SampleRatio = 0
	s.ingest.Ifaces, s.ingest.Mode, s.ingest.BPFFS, s.ingest.Sensor = ifaces, ingest.ModeInline, bpffs, "demo"
	s.enforce.Ifaces, s.enforce.Enforce, s.enforce.BPFFS, s.enforce.Node = ifaces, true, bpffs, "demo"
	s.classify.Engine.Protected = []string{victim}
	// Attacks come back after half a minute with another seed: by then the one before must have ended.
	s.classify.Engine.Lease, s.classify.Engine.Quiet, s.enforce.LeaseMax = 6*time.Second, 4*time.Second, 0
	s.persist.DBType, s.persist.DatabaseURL, s.persist.DataDir = "sqlite", "", data
	certs := filepath.Join(data, "certs")
	if err := ensureCerts(certs, c.Listen, c.HTTPS); err != nil {
		return s, err
	}
	var err error
	if s.tls, err = (rpc.TLS{Dir: certs}).Resolve(pki.Tidegate); err != nil {
		return s, err
	}
	s.gateway.Listen = c.HTTPS
	if _, err := token.Init(data); err != nil {
		return s, err
	}
	s.gateway.Tokens.JWKSFile = filepath.Join(data, token.JWKSFile)
	return s, secureGateway(&s.gateway, certs, data)
}

// ensureDir makes the data folder, or says what to do.
func ensureDir(dir string) error {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return config.Usagef("--data: %w: name a folder that can be written", err)
	}
	return nil
}

const drain = 10 * time.Second
